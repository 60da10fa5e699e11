"""Sharded checkpoints: folders into which every process writes its shards (torch.distributed.checkpoint).

`plain.pt` holds the state as a single file would, sharded tensors without their numbers. Nothing else than tensors is
in the shards, so that reading them runs no code.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from concurrent.futures import Future
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.tensor import DTensor, distribute_tensor

from mmmask.interfaces.writing import reporting, written_whole
from mmmask.interop.checkpoint_file import Keys, Like, map_tensors, read_plain
from mmmask.interop.errors import InteropError

STATE_FILE = "plain.pt"
"""Everything that is not sharded, in the folder of a checkpoint."""


class ShardWriter:
    """Writes sharded states in the background; a copy is taken first, so that training goes on.

    Made by all processes together.
    """

    def __init__(self, timeout: timedelta | None = None) -> None:
        # a group of its own: the thread that writes must not meet the collectives of the main thread
        self._group = cast("dist.ProcessGroup", dist.new_group(backend="gloo", timeout=timeout))

    def begin(self, folder: Path, state: Mapping[str, Any], is_main: bool) -> Future[Any]:
        """Begins to write a state, on all processes; the future ends when all shards are on disk.

        Args:
            folder: empty, or not there yet.

        Raises:
            WriteError: the main process cannot write.
        """
        shards: dict[str, Tensor] = {}

        def without_numbers(path: Keys, tensor: Tensor) -> Tensor:
            if not isinstance(tensor, DTensor):
                return tensor
            shards[_key(path)] = tensor
            return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")

        plain = map_tensors(state, without_numbers)
        if is_main:
            with written_whole(folder / STATE_FILE) as file:
                torch.save(plain, file)
        written = async_save(shards, storage_writer=FileSystemWriter(folder), process_group=self._group)
        return cast("Future[Any]", written)


def result_of(written: Future[Any], path: Path) -> None:
    """Waits until the shards are on disk.

    Args:
        path: of the checkpoint, for messages.

    Raises:
        WriteError: a process could not write its own.
    """
    with reporting(path):
        try:
            written.result()
        except CheckpointException as error:  # a BaseException
            reasons = [reason for reason, *_ in error.failures.values()]
            known = next((reason for reason in reasons if isinstance(reason, OSError)), None)
            raise known or OSError(str(reasons[0])) from error


def read_state(folder: Path) -> Any:  # noqa: ANN401 - whatever was saved
    """The state of a checkpoint, sharded tensors without their numbers; see `with_shards`.

    Raises:
        InteropError: it is damaged. The message leaves out the path.
    """
    state = read_plain(folder / STATE_FILE)
    _Reader(folder).read_metadata()
    return state


def with_shards(state: Any, folder: Path | None, like: Like | None = None) -> Any:  # noqa: ANN401 - as `read_state`
    """A state with the numbers of its sharded tensors, read by each process for itself, and sharded as is asked.

    Args:
        folder: of the checkpoint; None where it is a single file.
        like: what is sharded, and how; by default nothing.

    Raises:
        InteropError: the shards are damaged.
    """
    wanted: dict[str, Tensor] = {}

    def placed(path: Keys, tensor: Tensor) -> Tensor:
        parameter = like(path) if like is not None else None
        sharded = parameter if isinstance(parameter, DTensor) and parameter.shape == tensor.shape else None
        if tensor.is_meta:
            target = (
                torch.empty(tensor.shape, dtype=tensor.dtype)
                if sharded is None
                else torch.empty_like(sharded, dtype=tensor.dtype, requires_grad=False)
            )
            return wanted.setdefault(_key(path), target)
        if sharded is None:
            return tensor
        # each process takes its own shard of what it has read: nothing is sent
        return distribute_tensor(tensor.to(sharded.device), sharded.device_mesh, sharded.placements, src_data_rank=None)

    found = map_tensors(state, placed)
    if wanted and folder is not None:
        with warnings.catch_warnings(action="ignore"):  # that it reads alone
            try:
                load(wanted, storage_reader=_Reader(folder), no_dist=True)
            except CheckpointException as error:
                raise InteropError(f"its shards cannot be read: {next(iter(error.failures.values()))[0]}") from error
    return found


def _key(path: Keys) -> str:
    return "/".join(map(str, path))


class _Reader(FileSystemReader):
    """Reader that unpickles nothing but descriptions of tensors."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:  # noqa: ANN401 - as FileSystemReader
        try:
            with (Path(self.path) / ".metadata").open("rb") as file:
                metadata: Metadata = _Unpickler(file).load()
            known = list(metadata.state_dict_metadata.values())
            ends = [(str(where.relative_path), where.offset + where.length) for where in metadata.storage_data.values()]
        except Exception as error:  # whatever damaged bytes make of unpickling
            raise InteropError(f"its .metadata cannot be read: {error}") from error
        if not all(isinstance(each, TensorStorageMetadata) for each in known):
            raise InteropError("its shards hold something else than tensors")
        for name, end in ends:
            file = Path(self.path) / Path(name).name  # never outside of the folder
            if name != file.name or not file.is_file() or file.stat().st_size < end:
                raise InteropError(f"{name} is missing or cut off")
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401
        module = "pathlib" if module == "pathlib._local" else module  # since Python 3.13
        if (module, name) in _HARMLESS or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it needs {module}.{name}")


_HARMLESS = {
    *(("torch.distributed.checkpoint.metadata", name) for name in (
        "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties", "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    )),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    ("pathlib", "PosixPath"),
    ("pathlib", "Path"),
    ("pathlib", "WindowsPath"),
    ("collections", "OrderedDict"),
}  # fmt: skip
