"""Sources of files: everything below a folder, the lines of a list, what matches a pattern."""

from __future__ import annotations

import glob
import itertools
import os
import posixpath
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NoReturn

from pydantic import Field

from mmmask.interfaces.files import path_manager
from mmmask.interfaces.listing import (
    FileSource,
    Label,
    LabelledFileSource,
    Listing,
    is_relative,
    is_remote,
    lines_of,
    open_text,
)
from mmmask.interfaces.source import SourceError
from mmmask.interfaces.texts import Texts


class FolderSource(LabelledFileSource):
    """Every file below a folder that the modality can decode, nested or flat, sorted by relative path.

    Endings are compared without regard to case; names that start with a dot are skipped. The label is the name of the
    subfolder at `label_depth`, None for files that do not lie so deep. Links to folders are followed.
    """

    class Config(LabelledFileSource.Config):
        path: str = Field(description="the folder, local or remote; the names of its subfolders are labels")
        label_depth: int = Field(
            default=1, ge=1, description="level of the subfolders whose names are labels: 2 for phylum/species/file"
        )

    def find(self) -> Listing:
        """All files below the folder, sorted."""
        path = os.path.expanduser(self.config.path)
        _check_folder(path)
        found = sorted(_walk_remote(path) if is_remote(path) else _walk_local(path))
        names = with_extensions(self, found, f"source folder: {self.config.path}")
        depth = self.config.label_depth
        known: dict[Label, Label] = {}  # one object for each name
        found = (parts[depth - 1] if len(parts := name.split("/")) > depth else None for name in names)
        labels = [known.setdefault(label, label) for label in found]
        return Listing(path, Texts(names), {"label": labels} if set(known) != {None} else {})


class GlobSource(FileSource):
    """Every local file that matches a pattern and that the modality can decode, sorted by path.

    `*` stands for anything within a name, `**` for any number of folders. Names that start with a dot are skipped,
    unless the pattern spells the dot.
    """

    class Config(FileSource.Config):
        path: str = Field(description="the pattern, such as data/**/frames_*.png; ** is any number of folders")

    def find(self) -> Listing:
        """All files that match, sorted."""
        path = os.path.expanduser(self.config.path)
        where = f"source glob: {self.config.path}"
        if is_remote(path):
            raise SourceError(f"{where}: patterns work on local files only. Name them in a source list.")
        matches = set(glob.glob(path, recursive=True))
        if not matches:
            raise SourceError(f"{where} matches nothing. Set source.path to a pattern of files.")
        found = sorted(path for path in matches if os.path.isfile(path))
        plain = itertools.takewhile(lambda part: not glob.has_magic(part), path.split(os.sep))
        folder = os.sep.join(plain)
        start = posixpath.join(folder, "")
        return Listing(folder, Texts(path.removeprefix(start) for path in with_extensions(self, found, where)))


class NamedFileSource(LabelledFileSource):
    """Files that a file names."""

    class Config(LabelledFileSource.Config):
        root: str | None = Field(
            default=None,
            description="the folder that all paths are relative to, those with a leading / too; null: relative "
            "ones, to the folder that holds the file",
        )
        label_separator: str | None = Field(
            default=None,
            min_length=1,
            description="what stands between the labels of a file that may have several of each set, such as ;",
        )
        skip_missing: bool = Field(
            default=False,
            description="look for every local file at the start, and leave out those that are not there; false: they "
            "are bad samples",
        )

    def _found(self, path: str, names: Iterable[str], lines: Sequence[int], **more: Any) -> Listing:  # noqa: ANN401 - a Listing's
        """The listing, with the settings applied that all such files have."""
        folder = os.path.dirname(path) if self.config.root is None else os.path.expanduser(self.config.root)
        start = posixpath.join(folder, "")
        inside = "" if self.config.root is None else "/"
        expanded = map(os.path.expanduser, names)
        inner = (name if is_relative(name) else name.removeprefix(start) for name in expanded)
        files = Listing(folder, Texts(name.lstrip(inside) for name in inner), lines=lines, **more)
        return self._present(files) if self.config.skip_missing else files

    def _several(self, labels: Mapping[str, Sequence[Label]]) -> dict[str, Any]:
        """Labels cut at `label_separator`; where some are tuples already, all become such."""
        separator = self.config.label_separator
        if separator is None:
            several = tuple(key for key, given in labels.items() if any(isinstance(label, tuple) for label in given))
            whole = {key: [(label,) if isinstance(label, str) else label for label in labels[key]] for key in several}
            return {"labels": {**labels, **whole}, "several": several}
        known: dict[Label, Label] = {None: None}
        for label in (label for given in labels.values() for label in given):
            if isinstance(label, str) and label not in known:
                names = dict.fromkeys(name.strip() for name in label.split(separator))
                known[label] = tuple(name for name in names if name)
        cut = {label_set: [known.get(label, label) for label in given] for label_set, given in labels.items()}
        return {"labels": cut, "several": tuple(labels)}

    def _present(self, files: Listing) -> Listing:
        kept = [index for index in range(len(files)) if is_remote(path := files.path(index)) or os.path.exists(path)]
        missing = len(files) - len(kept)
        if not kept:
            raise SourceError(
                f"source {self.config.name}: {self.config.path}: not one of {missing} files is there; the first: "
                f"{files.path(0)}. Set source.root to the folder that holds them."
            )
        if missing:
            self.left_out = f"{missing} of {len(files)} files, which are not there"
        return files.only(kept) if missing else files


SEPARATORS = {"comma": ",", "space": None, "tab": "\t"}
"""{setting: character}; None is any run of blanks."""


class ListSource(NamedFileSource):
    """The files that a text file names, one `path` or `path,label` a line, in the order of the lines.

    Relative paths are relative to `root`. Blank lines and lines that start with `#` are skipped. The LAST separator of
    a line separates path and label: a path with a comma and no label ends in a comma. Endings are not looked at, and
    whether a file is there is found out when it is read, or with `skip_missing` at the start.
    """

    class Config(NamedFileSource.Config):
        path: str = Field(description="a UTF-8 text file with one `path` or `path,label` a line")
        separator: Literal["comma", "space", "tab"] = Field(
            default="comma", description="between path and label; space is any run of blanks"
        )

    def find(self) -> Listing:
        """The files that the lines name."""
        path = os.path.expanduser(self.config.path)
        where, wanted = f"source list: {self.config.path}", "one `path` or `path,label` a line"
        separator = SEPARATORS[self.config.separator]
        lines, names = array("q"), Texts()
        labels: list[Label] = []
        known: dict[str, str] = {}
        with open_text(path, where, f"Set source.path to a text file with {wanted}.") as file:
            for number, line in lines_of(file):
                if not line or line.startswith("#"):
                    continue
                name, *rest = line.rsplit(separator, 1)
                label = rest[0].strip() if rest else ""
                lines.append(number)
                names.append(name.strip())
                labels.append(known.setdefault(label, label) or None)
        if not names:
            raise SourceError(f"{where} names no file. Write {wanted} into it.")
        return self._found(path, names, lines, **self._several({"label": labels} if set(labels) != {None} else {}))


def with_extensions(source: FileSource, paths: Sequence[str], where: str) -> list[str]:
    """The files that the modality can decode; of the others, `left_out` tells."""
    endings = source.extensions or ""
    source.left_out = _endings([path for path in paths if not path.lower().endswith(endings)])
    chosen = [path for path in paths if path.lower().endswith(endings)]
    if chosen:
        return chosen
    wanted = f" that end in {', '.join(source.extensions)}" if source.extensions else ""
    if source.left_out:
        raise SourceError(
            f"{where} holds no files{wanted}, but {len(paths)} others ({source.left_out}). "
            "Convert them, or choose the modality that decodes them."
        )
    raise SourceError(f"{where} holds no files{wanted}: it is empty. Set source.path to where they are.")


def _check_folder(path: str) -> None:
    manager = path_manager()
    try:
        if manager.isdir(path):
            return
        is_file = manager.isfile(path)
    except NotImplementedError:
        raise SourceError(
            f"source folder: {path}: folders of this kind cannot be looked through. Name the files in a source list."
        ) from None
    if is_file:
        raise SourceError(f"source folder: {path} is a file, not a folder. For a file of paths use the source list.")
    hint = " (a plugin may register an iopath handler for it)" if is_remote(path) else ""
    raise SourceError(f"source folder: {path} does not exist{hint}. Set source.path to a folder of files.")


def _walk_local(root: str) -> Iterator[str]:
    """Relative paths with forward slashes; hidden names are left out, a folder linked into itself is seen once."""
    seen: set[str] = set()
    for folder, subfolders, files in os.walk(root, onerror=_unreadable, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        # sorted, so that of two links to one folder the same one is seen first on every machine
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        start = os.path.relpath(folder, root).replace(os.sep, "/")
        prefix = "" if start == "." else f"{start}/"
        yield from (prefix + name for name in files if not name.startswith("."))


def _unreadable(error: OSError) -> NoReturn:
    """Files that are left out silently would make another data set."""
    raise SourceError(
        f"source folder: {error.filename} cannot be read ({error.strerror}). Make it readable, or name the files that "
        "are wanted in a source list."
    ) from error


def _walk_remote(folder: str, prefix: str = "") -> Iterator[str]:
    manager = path_manager()
    for entry in manager.ls(folder):
        name = entry.rstrip("/").rsplit("/", 1)[-1]
        if name.startswith("."):
            continue
        path = posixpath.join(folder, name)
        if manager.isdir(path):
            yield from _walk_remote(path, f"{prefix}{name}/")
        else:
            yield prefix + name


def _endings(paths: Iterable[str]) -> str:
    counts = Counter(os.path.splitext(path)[1].lower() or "no ending" for path in paths)
    return ", ".join([f"{count} {ending}" for ending, count in counts.most_common(4)] + ["..."] * (len(counts) > 4))
