"""Writes parquet files, a row for each file of a folder: {bytes, path} and the number of the label."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO

from mmmask.interfaces import Source
from mmmask_shards.arrow import FEATURES, pa, pq

GROUP = 2**20
"""Bytes of a row group, all of which is read for one of its samples."""
ROW, ROW_GROUP = 16, 1024
"""Bytes that a row and a row group take besides contents and names, or less."""


class ParquetWriter:
    """Parquet files as Hugging Face data sets have them, with small row groups and contents as they are."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._classes = source.classes.get("label", ())
        self._numbers = {name: number for number, name in enumerate(self._classes)}
        self.samples: Iterator[Sequence[int]] = ([number] for number in range(len(source)))
        value = {"_type": "Value"}
        features: dict[str, object] = {
            "file": {"bytes": value | {"dtype": "binary"}, "path": value | {"dtype": "string"}}
        }
        fields = [("file", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))]
        if self._classes:
            features["label"] = {"names": list(self._classes), "_type": "ClassLabel"}
            fields.append(("label", pa.int64()))
        self._schema = pa.schema(fields, {FEATURES: json.dumps({"info": {"features": features}})})

    @contextmanager
    def writing(self, file: BinaryIO) -> Iterator[None]:
        """Begins a parquet file, and ends it."""
        self._rows: list[dict[str, object]] = []
        self._waiting, self._written = 0, 4096 + len(self._schema.metadata[FEATURES])
        # contents are compressed already; statistics of them would be copies
        plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
        with pq.ParquetWriter(file, self._schema, **plain) as self._writer:
            yield
            self._write()

    def add(self, files: Sequence[tuple[int, bytes]]) -> None:
        """Adds a row; a row group is written once it is large enough."""
        ((number, data),) = files
        if self._rows and self._waiting + len(data) > GROUP:
            self._write()
        path = self._source.name(number)
        row: dict[str, object] = {"file": {"bytes": data, "path": path}}
        if self._classes:
            label = self._source.label(number)
            row["label"] = None if label is None else self._numbers[label]
        self._rows.append(row)
        self._waiting += self._size(path, data)

    def size_with(self, files: Sequence[tuple[int, bytes]]) -> int:
        """Contents, names and a share for what parquet adds."""
        ((number, data),) = files
        return self._written + self._waiting + self._size(self._source.name(number), data) + 2 * ROW_GROUP

    def _write(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._rows, self._schema), row_group_size=len(self._rows))
        self._written += self._waiting + ROW_GROUP
        self._rows, self._waiting = [], 0

    @staticmethod
    def _size(path: str, data: bytes) -> int:
        return len(data) + len(path.encode()) + ROW
