"""Samples in tar files in the layout of WebDataset: a source, and `pack`, which writes such files from a folder."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from mmmask.hooks import Register, hookimpl

if TYPE_CHECKING:
    from pathlib import Path


@hookimpl
def register_components(register: Register) -> None:
    """Names the source; torch is not imported before it is used."""
    register(
        "source", "shards", "mmmask_shards.source:ShardSource", "samples in tar files, in the layout of WebDataset"
    )


def pack(
    folder: str,
    output: str,
    max_bytes: int = 10**9,
    endings: tuple[str, ...] = (),
    progress: Callable[[str], None] | None = None,
) -> list[Path]:
    """Packs a folder into tar files, in the order and with the names that the source `folder` has.

    Equal folders give equal bytes. Files of one folder whose names are equal up to the first dot are one sample only
    where the others are .cls, .txt or .json; else each gets a name of its own, such as `0-png.png` beside `0.jpg`.
    A tar file appears once it is whole; after an error there is none.

    Args:
        folder: local or remote; its subfolders become those of the members' names.
        output: path of the tar files, with a place for their number, such as `train-%06d.tar`.
        max_bytes: largest size of a tar file; a sample that is larger has one of its own.
        endings: of the files to pack, such as (".jpg", ".json"); none packs all files.
        progress: takes a line per tar file.

    Returns:
        The tar files in order.

    Raises:
        MmmaskError: a file cannot be read or written, tar files of this name are there, or the folder is empty.
    """
    from mmmask_shards.packing import write_shards  # costs the seconds that importing torch does

    return write_shards(folder, output, max_bytes, endings, progress or (lambda line: None))
