"""Sources of files: everything below a folder, the lines of a list, what matches a pattern."""

from __future__ import annotations

import glob
import itertools
import os
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NoReturn

from pydantic import Field

from mmmask.interfaces.files import SourceFile, open_file, path_manager
from mmmask.interfaces.source import Source, SourceError


class _FileSource(Source):
    """Files, numbered; `load` hands out the path and the modality reads it."""

    class Config(Source.Config):
        limit: int | None = Field(default=None, ge=1, description="take the first so many files only; null takes all")

    def __init__(self, config: Config, extensions: tuple[str, ...] = ()) -> None:
        super().__init__(config, tuple(extension.lower() for extension in extensions))
        self._folder, files = self._find(os.path.expanduser(self.config.path))
        self._paths = [path for path, _ in files[: config.limit]]
        self._labels = [label for _, label in files[: config.limit]]

    def _find(self, path: str) -> tuple[str, list[tuple[str, str | None]]]:
        """The folder that names are relative to; paths and labels, in an order that does not depend on the machine."""
        raise NotImplementedError

    def _with_extensions(self, paths: Sequence[str], where: str) -> list[str]:
        """The files that the modality can decode; of the others, `left_out` tells."""
        endings = self.extensions or ""
        self.left_out = _endings([path for path in paths if not path.lower().endswith(endings)])
        chosen = [path for path in paths if path.lower().endswith(endings)]
        if chosen:
            return chosen
        wanted = f" that end in {', '.join(self.extensions)}" if self.extensions else ""
        if self.left_out:
            raise SourceError(
                f"{where} holds no files{wanted}, but {len(paths)} others ({self.left_out}). "
                "Convert them, or choose the modality that decodes them."
            )
        raise SourceError(f"{where} holds no files{wanted}: it is empty. Set source.path to where they are.")

    def __len__(self) -> int:
        return len(self._paths)

    def load(self, index: int) -> SourceFile:
        """The file with this number, not read yet."""
        return SourceFile(self._paths[index])

    def label(self, index: int) -> str | None:
        """The file's label, or None."""
        return self._labels[index]

    @property
    def classes(self) -> Mapping[str, tuple[str, ...]]:
        """The names that are labels of some file."""
        return classes_of(self._labels)

    def describe(self, index: int) -> str:
        """The file's path."""
        return self._paths[index]

    def name(self, index: int) -> str:
        """Path relative to the source's folder, where the file lies below it."""
        return self._paths[index].removeprefix(posixpath.join(self._folder, ""))


class FolderSource(_FileSource):
    """Every file below a folder that the modality can decode, nested or flat, sorted by relative path.

    Endings are compared without regard to case; names that start with a dot are skipped. The label is the name of the
    first-level subfolder, None for files that lie in the folder itself. Links to folders are followed.
    """

    class Config(_FileSource.Config):
        path: str = Field(description="the folder, local or remote; a first-level subfolder's name is the label")

    def _find(self, path: str) -> tuple[str, list[tuple[str, str | None]]]:
        _check_folder(path)
        found = sorted(_walk_remote(path) if _is_remote(path) else _walk_local(path))
        chosen = self._with_extensions(found, f"source folder: {self.config.path}")
        return path, [(posixpath.join(path, name), name.split("/")[0] if "/" in name else None) for name in chosen]


class GlobSource(_FileSource):
    """Every local file that matches a pattern and that the modality can decode, sorted by path.

    `*` stands for anything within a name, `**` for any number of folders. Names that start with a dot are skipped,
    unless the pattern spells the dot.
    """

    class Config(_FileSource.Config):
        path: str = Field(description="the pattern, such as data/**/frames_*.png; ** is any number of folders")

    def _find(self, path: str) -> tuple[str, list[tuple[str, str | None]]]:
        where = f"source glob: {self.config.path}"
        if _is_remote(path):
            raise SourceError(f"{where}: patterns work on local files only. Name them in a source list.")
        matches = set(glob.glob(path, recursive=True))
        if not matches:
            raise SourceError(f"{where} matches nothing. Set source.path to a pattern of files.")
        found = sorted(path for path in matches if os.path.isfile(path))
        plain = itertools.takewhile(lambda part: not glob.has_magic(part), path.split(os.sep))
        return os.sep.join(plain), [(path, None) for path in self._with_extensions(found, where)]


class ListSource(_FileSource):
    """The files that a text file names, one `path` or `path,label` a line, in the order of the lines.

    Relative paths are relative to the list's folder. Blank lines and lines that start with `#` are skipped. The LAST
    comma of a line separates path and label: a path with a comma and no label ends in a comma. Endings are not
    looked at, and whether a file is there is found out when it is read.
    """

    class Config(_FileSource.Config):
        path: str = Field(description="a UTF-8 text file with one `path` or `path,label` a line")

    def _find(self, path: str) -> tuple[str, list[tuple[str, str | None]]]:
        try:
            with open_file(path, "r") as file:
                # `splitlines` knows ten more ends
                lines = [line.strip() for line in file.read().removeprefix("\ufeff").split("\n")]
        except (OSError, UnicodeDecodeError) as error:
            raise SourceError(
                f"source list: {self.config.path} cannot be read ({type(error).__name__}). "
                "Set source.path to a text file with one `path` or `path,label` a line."
            ) from error
        folder = os.path.dirname(path)
        files = [_parse_line(line, folder) for line in lines if line and not line.startswith("#")]
        if not files:
            raise SourceError(
                f"source list: {self.config.path} names no file. Write one `path` or `path,label` a line into it."
            )
        return folder, files


def classes_of(labels: Iterable[str | None]) -> Mapping[str, tuple[str, ...]]:
    """{"label": the sorted names among labels}; empty where none is a name."""
    names = {label for label in labels if label is not None}
    return {"label": tuple(sorted(names))} if names else {}


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
    hint = " (a plugin may register an iopath handler for it)" if _is_remote(path) else ""
    raise SourceError(f"source folder: {path} does not exist{hint}. Set source.path to a folder of files.")


def _parse_line(line: str, folder: str) -> tuple[str, str | None]:
    path, _, label = line.rpartition(",") if "," in line else (line, "", "")
    path = os.path.expanduser(path.strip())
    if not (os.path.isabs(path) or _is_remote(path)):
        path = posixpath.join(folder, path)
    return path, label.strip() or None


def _is_remote(path: str) -> bool:
    return "://" in path


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
