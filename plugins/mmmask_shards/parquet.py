"""Source of samples in a column of parquet files, as data sets are published."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from pydantic import Field, NonNegativeInt
from tqdm import tqdm

from mmmask.interfaces import BadSample, Listing, SourceError
from mmmask_shards.arrow import FEATURES, pa, pq
from mmmask_shards.packed import Held, PackedSource, Stamp

BATCH = 16
"""Rows at a time of a row group that is not kept."""


class ParquetSource(PackedSource):
    """Samples in a column of parquet files: bytes, or a struct {bytes, path}, as Hugging Face data sets have them.

    Samples are in the order of the files and of their rows. A sample is read with its row group, of which a process
    keeps the last two; one of more than `kept_bytes` is read up to the sample, and not kept.
    """

    class Config(PackedSource.Config):
        column: str | None = Field(default=None, description="the column of the contents; null: the only one there is")
        id: str | None = Field(
            default=None,
            description="the column of the samples' names; null: the path beside the contents, or the row's number",
        )
        labels: dict[str, str] | Literal["folder"] | None = Field(
            default=None,
            description="{label set: column}, or `folder` of the samples' names; null: the column `label`, or columns "
            "whose classes the file names, or else folder",
        )

        kept_bytes: NonNegativeInt = Field(
            default=2**26,
            description="contents of a row group that may be kept in memory: less saves time where samples are read in "
            "random order from large row groups, more where they are read in turn",
        )

    config: Config
    usual_ending = "parquet"
    _leaf: str | None = None

    def find(self) -> Listing:
        """The rows but those whose paths beside the contents have an ending that the modality does not decode."""
        files = super().find()
        if self.config.id is not None or not self.extensions:
            return files
        kept: list[int] = []
        endings: set[str] = set()  # of those that are not kept
        for number, name in enumerate(files.names):
            ending = os.path.splitext(name)[1].lower()
            if not ending or name.lower().endswith(self.extensions):
                kept.append(number)
            else:
                endings.add(ending)
        others = ", ".join(sorted(endings)[:4])
        if not kept:
            raise SourceError(
                f"{self.where} holds no samples that end in {', '.join(self.extensions)}, but others ({others}). "
                "Choose the modality that decodes them, or source.id, a column of names whose endings do not count."
            )
        self.left_out = f"{len(files) - len(kept)} of {others}" if others else ""
        return files.only(kept)

    @property
    def labelled_by_folder(self) -> bool:
        """Whether no column is named."""
        return not isinstance(self.config.labels, dict)

    def read(self, path: str, local: str, stamp: Stamp, bar: tqdm) -> Held:
        """By columns of names and labels; a sample's place is its row group, and its row there."""
        try:
            with pq.ParquetFile(local) as file:
                schema, metadata = file.schema_arrow, file.metadata
                leaf, id_ = self._contents(schema)
                features = json.loads((schema.metadata or {}).get(FEATURES, b"{}")).get("info", {}).get("features", {})
                columns = self._label_columns(schema, features)
                wanted = {*columns.values(), *([id_] if id_ else [])}
                table = file.read(columns=list(wanted), use_threads=False).flatten()
                given = {name: table.column(name).to_pylist() for name in wanted}
        except (pa.ArrowException, OSError, ValueError, AttributeError, KeyError) as error:
            raise SourceError(
                f"{path} is no parquet file, or damaged ({' '.join(str(error).split())[:200]})"
            ) from error
        if leaf != (self._leaf or leaf):
            raise SourceError(
                f"{path}: the contents are in the column {leaf}, and in {self._leaf} in files before it. "
                "Set source.path to files of one kind."
            )
        self._leaf = leaf
        bar.update(stamp[0])
        counts = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
        groups = np.repeat(np.arange(len(counts)), counts)
        rows = np.arange(len(groups)) - np.repeat(np.cumsum([0, *counts])[:-1], counts)
        paths = ["" if name is None else str(name) for name in given[id_]] if id_ else [""] * len(groups)
        alone = len(set(paths)) == len(paths) and "" not in paths
        names = paths if alone else [f"{number}/{name}".rstrip("/") for number, name in enumerate(paths)]
        classes = {name: tuple(found) for name, column in columns.items() if (found := _classes(features, column))}
        labels = {
            name: [_label(value, classes.get(name), f"{path}: {column}") for value in given[column]]
            for name, column in columns.items()
        }
        return Held(names, np.stack([groups, rows], 1), labels, paths, classes)

    def content(self, local: str, stamp: Stamp, place: Sequence[int]) -> bytes:
        """The value of the column, by way of its row group."""
        (group, row), leaf = place, str(self._leaf)
        try:
            if _bytes(local, stamp, leaf, group) <= self.config.kept_bytes:
                content = _kept(local, stamp, leaf, group)[row].as_py()
            else:
                content = _read_up_to(row, local, stamp, leaf, group)
        except (pa.ArrowException, OSError) as error:
            raise BadSample(f"its row group cannot be read ({' '.join(str(error).split())[:200]})") from error
        if content is None:
            raise BadSample("the row holds no bytes")
        return content

    def _contents(self, schema: Any) -> tuple[str, str | None]:  # noqa: ANN401 - pyarrow is not typed
        """The leaf column of the contents, and the column of the names."""
        leaves = {field.name: leaf for field in schema if (leaf := _leaf_of(field))}
        known = f"columns of bytes: {', '.join(leaves) or 'none'}; others: {', '.join(set(schema.names) - set(leaves))}"
        if self.config.column is None and len(leaves) != 1:
            raise SourceError(
                f"{'several columns' if leaves else 'no column'} could be loaded ({known}). Set source.column."
            )
        column = next(iter(leaves)) if self.config.column is None else self.config.column
        if column not in leaves:
            raise SourceError(f"column {column!r} holds no bytes, or is not there ({known})")
        if self.config.id is not None and self.config.id not in schema.names:
            raise SourceError(f"there is no column {self.config.id!r} for the names ({known})")
        kind = schema.field(column).type
        beside = f"{column}.path" if pa.types.is_struct(kind) and kind.get_field_index("path") >= 0 else None
        return leaves[column], self.config.id or beside

    def _label_columns(self, schema: Any, features: Mapping[str, Any]) -> dict[str, str]:  # noqa: ANN401
        """{label set: column}."""
        given = self.config.labels
        if given == "folder":
            return {}
        if given is None:
            named = [column for column in schema.names if _classes(features, column)]
            chosen = ["label"] if "label" in schema.names else named
            given = {"label": chosen[0]} if len(chosen) == 1 else {column: column for column in chosen}
        for column in given.values():
            kind = schema.field(column).type if column in schema.names else None
            if kind is None or pa.types.is_nested(kind) or _is_bytes(kind):
                raise SourceError(
                    f"column {column!r} holds no labels (texts or numbers), or is not there (columns: "
                    f"{', '.join(schema.names)}). Set source.labels."
                )
        return given


def _leaf_of(field: Any) -> str | None:  # noqa: ANN401
    """Name of the column of bytes within a field, None where there is none."""
    if pa.types.is_struct(field.type):
        place = field.type.get_field_index("bytes")
        return f"{field.name}.bytes" if place >= 0 and _is_bytes(field.type.field(place).type) else None
    return field.name if _is_bytes(field.type) else None


def _is_bytes(kind: Any) -> bool:  # noqa: ANN401
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _classes(features: Mapping[str, Any], column: str) -> list[str]:
    """Names of the classes that the numbers of a column stand for."""
    feature = features.get(column)
    return feature["names"] if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else []


def _label(value: Any, classes: Sequence[str] | None, where: str) -> str | None:  # noqa: ANN401
    if value is None or value == "" or (classes and value == -1):
        return None
    if not classes or isinstance(value, str):
        return str(value)
    if not 0 <= value < len(classes):
        raise SourceError(f"{where}: {value} is none of the {len(classes)} classes that the file names")
    return classes[int(value)]


@lru_cache(maxsize=1024)
def _metadata(local: str, stamp: Stamp) -> Any:  # noqa: ANN401, ARG001 - the stamp tells a changed file
    return pq.read_metadata(local)


def _opened(local: str, stamp: Stamp) -> Any:  # noqa: ANN401
    # no threads, as this process may be a fork; read in pieces, as row groups may be large
    return pq.ParquetFile(local, metadata=_metadata(local, stamp), buffer_size=2**20, pre_buffer=False)


@lru_cache(maxsize=2)
def _kept(local: str, stamp: Stamp, leaf: str, group: int) -> Any:  # noqa: ANN401
    """Contents of a row group; the last two stay in memory."""
    with _opened(local, stamp) as file:
        return _column(file.read_row_group(group, [leaf], use_threads=False))


def _read_up_to(row: int, local: str, stamp: Stamp, leaf: str, group: int) -> bytes | None:
    """One value of a row group, of which no more is held than a few rows."""
    with _opened(local, stamp) as file:
        for batch in file.iter_batches(BATCH, [group], [leaf], use_threads=False):
            if row < batch.num_rows:
                return _column(batch)[row].as_py()
            row -= batch.num_rows
    raise OSError("fewer rows than were announced")


def _column(table: Any) -> Any:  # noqa: ANN401
    """The only leaf column of a table or a batch."""
    column = table.column(0)
    return column.flatten()[0] if pa.types.is_struct(column.type) else column


@lru_cache(maxsize=4096)
def _bytes(local: str, stamp: Stamp, leaf: str, group: int) -> int:
    """Bytes of the contents of a row group."""
    found = _metadata(local, stamp).row_group(group)
    columns = map(found.column, range(found.num_columns))
    return next(column.total_uncompressed_size for column in columns if column.path_in_schema == leaf)
