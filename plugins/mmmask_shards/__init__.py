"""Samples in tar and parquet files: the sources, and `pack`, which writes such files from a folder."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from mmmask.hooks import Register, hookimpl

if TYPE_CHECKING:
    from pathlib import Path


@hookimpl
def register_components(register: Register) -> None:
    """Names the sources; torch is not imported before one is used."""
    register(
        "source", "shards", "mmmask_shards.source:ShardSource", "samples in tar files, in the layout of WebDataset"
    )
    register("source", "parquet", "mmmask_shards.parquet:ParquetSource", "samples in a column of parquet files")


def pack(
    folder: str,
    output: str,
    max_bytes: int = 10**9,
    endings: tuple[str, ...] = (),
    progress: Callable[[str], None] | None = None,
    leave_out: str | None = None,
) -> list[Path]:
    """Packs a folder into tar or parquet files, in the order and with the names that the source `folder` has.

    Equal folders give equal tar files. In these, files of one folder whose names are equal up to the first dot are one
    sample only where the others are .cls, .txt or .json; else a member has another name, such as `0-png.png` beside
    `0.jpg`, and the sample keeps its own. In parquet files every file is a row of its own.
    A file appears once it is whole; after an error there is none.

    Args:
        folder: local or remote; its subfolders become those of the members' names.
        output: path of the files, with a place for their number, such as `train-%06d.tar` or `train-%06d.parquet`.
        max_bytes: largest size of a file; a sample that is larger has one of its own.
        endings: of the files to pack, such as (".jpg", ".json"); none packs all files.
        progress: takes a line per file.
        leave_out: a file of `mmmask scan`; the bad samples that it names are not packed.

    Returns:
        The files in order.

    Raises:
        MmmaskError: a file cannot be read or written, files of this name are there, the folder is empty, or parquet
            files are wanted without pyarrow.
    """
    from mmmask_shards.packing import write_shards  # costs the seconds that importing torch does

    return write_shards(folder, output, max_bytes, endings, progress or (lambda line: None), leave_out)
