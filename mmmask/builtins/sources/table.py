"""Source of the files that a table names, one a row: CSV, JSON, JSON lines, text with columns."""

from __future__ import annotations

import csv
import json
import math
import os
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any, Literal

import numpy as np
from pydantic import Field

from mmmask.builtins.sources.listings import SEPARATORS, NamedFileSource
from mmmask.interfaces.listing import Label, Listing, lines_of, open_text, read_json, shortened
from mmmask.interfaces.source import SourceError
from mmmask.interfaces.texts import Texts
from mmmask_registry import did_you_mean

WANTED = "Set source.path to a table: .csv, .tsv, .json, .jsonl, or text with a separator."
FORMAT = re.compile(r"(0?\d{0,3}([dsx]|(\.\d{1,2})?f))?")
TIME = re.compile(r"(?:(?:(\d{1,6}):)?(\d{1,6}):)?(\d{1,12}(?:\.\d*)?)")
NO_TEXT = re.compile("[\udc80-\udcff]")
"""Bytes that are no UTF-8, which names of files may hold."""
Row = Mapping[str, Any]


class TableSource(NamedFileSource):
    """The files that a table names, one a row, with labels of one or more sets and, of a recording, a part in time.

    By its ending the table is .csv (commas, a header line), .tsv (tabs), .jsonl or .ndjson (an object a line), or
    .json: a list of objects, or an object with a list `annotations` and others that these name: where there are
    `categories`, their name is the column `category.name` of every annotation with a `category_id`. Any other text has
    a `separator`. Endings of the files that are named are not looked at.
    """

    class Config(NamedFileSource.Config):
        path: str = Field(description="the table: .csv, .tsv, .json, .jsonl, or text with a separator")
        separator: Literal["comma", "space", "tab"] | None = Field(
            default=None, description="between the columns of a text; null: by the ending of its name"
        )
        columns: tuple[str, ...] | None = Field(
            default=None, min_length=1, description="names of the columns of a text without a header line"
        )
        file: str = Field(
            default="path",
            description="the column of the path, or a template such as '{id}_{start:06d}.mp4' of several columns",
        )
        id: str | None = Field(
            default=None,
            description="the column of the sample's name, or a template, by which parts of one sample find each other "
            "(source aligned); rows without a file are left out then; null: the file's path is its name",
        )
        labels: dict[str, str] | None = Field(
            default=None,
            description="{label set: column or template}, such as {verb: verb_class, noun: noun_class}; null: the "
            "column `label`, where there is one",
        )
        drop_from_labels: str = Field(default="", description="characters that are taken out of labels, such as []")
        where: dict[str, str | int] = Field(
            default={}, description="{column: value}: only rows that have it, such as {split: train}"
        )
        start: str | None = Field(
            default=None,
            description="the column where a part begins, in seconds or h:m:s; null or empty: at the beginning",
        )
        end: str | None = Field(default=None, description="the column where a part ends; null or empty: at the end")
        frame_rate: float | None = Field(
            default=None,
            gt=0,
            description="start and end are numbers of frames, so many a second; null: they are times",
        )

    config: Config

    def find(self) -> Listing:
        """The files that the rows name."""
        self._at = 0
        try:
            return self._listing(os.path.expanduser(self.config.path))
        except _CellError as error:
            raise SourceError(f"{self.where}, {self._unit} {error.line or self._at}: {error}") from None

    def _listing(self, path: str) -> Listing:
        rows, self._unit = self._rows(path)
        columns: _Columns | None = None
        names, ids, lines = Texts(), Texts(), array("q")
        labels: dict[str, list[Label]] = {}
        windows = array("d")
        known: dict[Label, Label] = {}
        for number, row in rows:
            self._at = number
            columns = columns or _Columns.found(self.config, row)
            if not columns.wants(row):
                continue
            if columns.id is not None and not columns.has_file(row):
                continue
            names.append(columns.file(row))
            if columns.id is not None:
                ids.append(columns.id(row))
            lines.append(number)
            for label_set, label_of in columns.labels.items():
                label = columns.label(label_of(row))
                labels.setdefault(label_set, []).append(known.setdefault(label, label))
            if columns.in_parts:
                windows.extend(columns.window(row))
        if not names:
            having = f" with {', '.join(f'{column} {value}' for column, value in self.config.where.items())}"
            raise SourceError(f"{self.where} has no row{having if self.config.where else ''}. {WANTED}")
        strange = [label for label in known if isinstance(label, str) and NO_TEXT.search(label)]
        if strange:
            raise SourceError(f"{self.where}: the label {shortened(strange[0])} is not UTF-8. Save the table as UTF-8.")
        given = {label_set: found for label_set, found in labels.items() if set(found) != {None}}
        more = self._several(given)
        windowed = np.array(windows).reshape(-1, 2) if windows else None
        return self._found(path, names, lines, windows=windowed, ids=ids or None, **more)

    def _rows(self, path: str) -> tuple[Iterator[tuple[int, Row]], str]:
        """Numbered rows, and what the numbers count."""
        ending = os.path.splitext(path)[1].lower()
        separator = self.config.separator or {".csv": "comma", ".tsv": "tab"}.get(ending)
        if separator:
            return self._text_rows(path, SEPARATORS[separator]), "line"
        if self.config.columns is not None:
            raise SourceError(f"{self.where}: columns are those of a text: set source.separator")
        if ending in (".jsonl", ".ndjson"):
            return self._line_objects(path), "line"
        if ending != ".json":
            raise SourceError(f"{self.where}: {ending or 'no ending'} does not tell what it is. {WANTED}")
        return enumerate(_objects(read_json(path, self.where, WANTED), self.where), start=1), "record"

    def _text_rows(self, path: str, separator: str | None) -> Iterator[tuple[int, Row]]:
        with open_text(path, self.where, WANTED, "surrogateescape") as file:
            header = self.config.columns
            for number, cells in _split(file, separator):
                self._at = number
                if not any(cells):
                    continue
                if header is None:
                    header = tuple(cell.strip() for cell in cells)
                    if len(set(header)) < len(header):
                        raise _CellError(f"the header names a column twice: {shortened(', '.join(header))}")
                elif len(cells) != len(header):
                    raise _CellError(f"{len(cells)} cells, where there are {len(header)} columns")
                else:
                    yield number, dict(zip(header, cells, strict=True))

    def _line_objects(self, path: str) -> Iterator[tuple[int, Row]]:
        with open_text(path, self.where, WANTED) as file:
            for number, line in lines_of(file):
                if not line:
                    continue
                self._at = number
                try:
                    found = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise _CellError(f"not JSON ({' '.join(str(error).split())[:200]})") from error
                if not isinstance(found, dict):
                    raise _CellError("no JSON object")
                yield number, found


@dataclass(frozen=True)
class _Columns:
    """Columns that are read from a row.

    Attributes:
        config: the source's settings.
        file: the file's path.
        labels: {label set: the label, or a list of JSON}.
        id: the sample's name, None where the file's path is it.
    """

    config: TableSource.Config
    file: Callable[[Row], str]
    labels: Mapping[str, Callable[[Row], Any]]
    id: Callable[[Row], str] | None

    @classmethod
    def found(cls, config: TableSource.Config, row: Row) -> _Columns:
        """By the settings, in a table with this row."""
        for column in (*config.where, config.start, config.end):
            _check(column, row)
        labels = config.labels
        if labels is None:
            labels = {"label": "label"} if "label" in row else {}
        file = _template(config.file, row, required=True)
        name = None if config.id is None else _template(config.id, row, required=True)
        return cls(config, file, {label_set: _template(column, row) for label_set, column in labels.items()}, name)

    @property
    def in_parts(self) -> bool:
        """Whether rows are parts of recordings."""
        return bool(self.config.start or self.config.end)

    def wants(self, row: Row) -> bool:
        """Whether the row is to be taken."""
        where = self.config.where
        return not where or all(_text(row.get(key)).strip() == str(value) for key, value in where.items())

    def has_file(self, row: Row) -> bool:
        """Whether the column of the file says anything; a template of several always does."""
        return "{" in self.config.file or bool(_text(row.get(self.config.file)).strip())

    def label(self, value: Any) -> Label:  # noqa: ANN401 - a text, or a list of JSON
        """The label without what is to be dropped."""
        if isinstance(value, list):
            return tuple(dict.fromkeys(text for item in value if (text := self._kept(_text(item)))))
        return self._kept(value) or None

    def window(self, row: Row) -> tuple[float, float]:
        """Start and end in seconds."""
        rate = self.config.frame_rate or 1.0
        start = _seconds(row, self.config.start, 0.0) / rate
        end = _seconds(row, self.config.end, math.inf) / rate
        if not start < end:
            raise _CellError(f"a part from {start:g} to {end:g} s, which is none")
        return start, end

    def _kept(self, label: str) -> str:
        drop = self.config.drop_from_labels
        return (label.translate(dict.fromkeys(map(ord, drop))) if drop else label).strip()


class _CellError(Exception):
    """Problem of a row, by default of the one being read."""

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem)
        self.line = line


def _split(file: Iterable[str], separator: str | None) -> Iterator[tuple[int, Sequence[str]]]:
    if separator is None:
        for number, line in enumerate(file, start=1):
            yield number, line.split()
        return
    reader = csv.reader(file, delimiter=separator, strict=True)
    try:
        for cells in reader:
            yield reader.line_num, cells
    except csv.Error as error:
        raise _CellError(f"cells that are not as CSV writes them ({error})", reader.line_num) from error


def _objects(found: Any, where: str) -> Sequence[Row]:  # noqa: ANN401 - whatever JSON holds
    """The objects of a JSON file."""
    if isinstance(found, dict) and isinstance(found.get("annotations"), list):
        found = _joined(found, where)
    if not isinstance(found, list):
        raise SourceError(f"{where}: neither a list of objects nor an object with annotations. {WANTED}")
    for number, row in enumerate(found, start=1):
        if not isinstance(row, dict):
            raise SourceError(f"{where}, record {number}: no object")
    return found


def _joined(found: Mapping[str, Any], where: str) -> list[Row]:
    """The annotations, each with the values of the objects that its `X_id` names as `X.key`."""
    try:
        rows = found["annotations"]
        stems = [key.removesuffix("_id") for key in (rows[0] if rows else ()) if key.endswith("_id")]
        lists = {stem: found.get(f"{stem}s") or found.get(f"{stem[:-1]}ies") for stem in stems}
        objects = {stem: {item["id"]: item for item in items} for stem, items in lists.items() if items}
        return [
            row
            | {
                f"{stem}.{key}": value
                for stem, known in objects.items()
                for key, value in known[row[f"{stem}_id"]].items()
            }
            for row in rows
        ]
    except (KeyError, TypeError, AttributeError) as error:
        problem = f"{error.args[0]!r} is not there" if isinstance(error, KeyError) else "no objects"
        raise SourceError(f"{where}: annotations and what they name do not fit: {shortened(problem, 200)}") from error


def _check(column: str | None, row: Row) -> None:
    if column is not None and column not in row:
        raise _CellError(f"no column {shortened(column)}{did_you_mean(column, row)} ({shortened(', '.join(row), 300)})")


def _template(text: str, row: Row, required: bool = False) -> Callable[[Row], Any]:
    """Makes a text of a row; a plain name is a column, whose value may be a list too."""
    if "{" not in text:
        _check(text, row)
        return (lambda row: _required(row, text)) if required else (lambda row: _listed(row.get(text)))
    pieces: list[tuple[str, str | None, str]] = []
    try:
        for literal, column, form, conversion in Formatter().parse(text):
            if column is not None and (conversion or not FORMAT.fullmatch(form or "")):
                raise ValueError(f"{{{column}}} has a format other than 06d, .2f and the like")
            pieces.append((literal, column, form or ""))
    except ValueError as error:
        raise _CellError(f"the template {shortened(text)}: {error}") from error
    for _, column, _ in pieces:
        _check(column, row)

    def fill(row: Row) -> str:
        return "".join(
            literal + ("" if column is None else _formatted(_required(row, column), column, form))
            for literal, column, form in pieces
        )

    return fill


def _required(row: Row, column: str) -> str:
    found = _text(row.get(column)).strip()
    if not found:
        raise _CellError(f"column {shortened(column)} is empty")
    return found


def _formatted(value: str, column: str, form: str) -> str:
    if not form or form[-1] == "s":
        return format(value, form)
    try:
        number = float(value)
        whole = form[-1] in "dx"
        if not math.isfinite(number) or (whole and not number.is_integer()):
            raise ValueError
        return format((int(value) if value.isdecimal() else int(number)) if whole else number, form)
    except (ValueError, OverflowError):
        raise _CellError(f"column {column!r} holds {shortened(value)}, no number for {{{column}:{form}}}") from None


def _seconds(row: Row, column: str | None, default: float) -> float:
    value = None if column is None else row.get(column)
    if isinstance(value, int | float) and 0 <= value < math.inf:
        return float(value)
    text = _text(value).strip()
    if not text:
        return default
    found = TIME.fullmatch(text)
    if found is None:
        raise _CellError(f"column {column!r} holds {shortened(text)}, no time in seconds or h:m:s")
    hours, minutes, seconds = (float(part or 0) for part in found.groups())
    return 3600 * hours + 60 * minutes + seconds


def _listed(value: Any) -> Any:  # noqa: ANN401
    return value if isinstance(value, list) else _text(value)


def _text(value: Any) -> str:  # noqa: ANN401 - a cell, or a value of JSON
    if isinstance(value, str):
        return value
    if isinstance(value, dict | list):
        raise _CellError(f"a text or a number is wanted, not {shortened(json.dumps(value))}")
    return "" if value is None else json.dumps(value)
