"""The files that commands read samples from, and those they write."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmmask_registry import MmmaskError

if TYPE_CHECKING:
    from torch import Tensor

    from mmmask.interfaces import Modality, Preparation


class UndecodableFile(MmmaskError):
    """A file that the stream's modality cannot make a sample of."""


def files_by_stream(
    modalities: Mapping[str, Modality], inputs: Sequence[str], stream: str | None, owner: str, folders: bool = False
) -> dict[str, list[str]]:
    """{stream: files}, told from the files' endings unless a stream is named.

    Args:
        modalities: {stream: modality}.
        inputs: files.
        stream: that all files belong to, whatever their endings.
        owner: of the streams, for messages: `the run`.
        folders: whether folders are taken too, for all files below that a stream decodes.

    Raises:
        MmmaskError: there is no such stream or file, or no stream for it.
    """
    if stream is not None and stream not in modalities:
        raise MmmaskError(f"--stream {stream}: {owner} has {', '.join(modalities)}")
    endings = {name: modality.preparation.extensions for name, modality in modalities.items() if stream in (None, name)}
    found: dict[str, list[str]] = {}
    for path in _with_folders_opened(inputs, endings) if folders else inputs:
        if not os.path.isfile(path):
            raise MmmaskError(f"{path}: there is no such file")
        name = stream or next((name for name, known in endings.items() if known and path.lower().endswith(known)), None)
        if name is None:
            known = "; ".join(f"{name}: {' '.join(known)}" for name, known in endings.items())
            ending = Path(path).suffix.lower() or "such"
            raise MmmaskError(f"{path}: no stream of {owner} takes {ending} files ({known}); name one with --stream")
        found.setdefault(name, []).append(path)
    return found


def read_sample(preparation: Preparation, stream: str, path: str) -> Tensor:
    """A sample as held-out ones are prepared: the same at every call.

    Raises:
        UndecodableFile: with the reason.
    """
    from mmmask.interfaces import PLAIN, BadSample, SourceFile

    try:
        return preparation.prepare(preparation.decode(SourceFile(path), PLAIN), PLAIN)
    except BadSample as error:
        raise UndecodableFile(f"{path}: {error}") from error
    except Exception as error:  # a modality whose samples are not files meets a file here for the first time
        raise UndecodableFile(
            f"{path}: stream {stream!r} cannot decode files: {type(error).__name__}: {error}"
        ) from error


def require_inputs(inputs: Iterable[str]) -> None:
    """Checks that files and folders are there, before a model is fetched for them.

    Raises:
        MmmaskError: one is not.
    """
    for path in inputs:
        if not os.path.exists(path):
            raise MmmaskError(f"{path}: there is no such file")


def new_file(option: str, path: str, endings: Sequence[str]) -> Path:
    """The file that a command will write. It is only looked for: folders are made when there is something to write.

    Raises:
        MmmaskError: its name ends in something else, it is there already, or nothing can be written there.
    """
    target = Path(path)
    if target.suffix not in endings:
        raise MmmaskError(f"{option} {path}: let the name end in {' or '.join(endings)}")
    try:
        if target.exists():
            raise MmmaskError(f"{option} {path}: there is a file already; nothing is overwritten")
    except OSError as error:
        raise MmmaskError(f"{option} {path}: cannot be written: {error.strerror}") from error
    folder = next(folder for folder in target.absolute().parents if os.path.lexists(folder))
    if not folder.is_dir():
        raise MmmaskError(f"{option} {path}: cannot be written: {folder} is no folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise MmmaskError(f"{option} {path}: cannot be written: {folder} is closed to you")
    return target


def _with_folders_opened(inputs: Sequence[str], endings: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The files, and those below the folders that end as some stream's do; each file once."""
    from mmmask.builtins.sources import FolderSource
    from mmmask.interfaces import SourceError

    wanted = tuple(ending for known in endings.values() for ending in known)
    files: list[str] = []
    for path in inputs:
        if not os.path.isdir(path):
            files.append(path)
            continue
        try:
            source = FolderSource(FolderSource.Config(name="folder", path=path), wanted)
        except SourceError as error:
            # what follows is advice about a setting, and there is none here
            problem = re.sub(r" Set source\.path .*", "", str(error)).removeprefix("source folder: ")
            raise MmmaskError(problem) from error
        files += [source.describe(index) for index in range(len(source))]
    return list(dict.fromkeys(files))
