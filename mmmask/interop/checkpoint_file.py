"""Files of weights, and nothing else in them: what is read runs no code."""

from __future__ import annotations

import math
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from mmmask.interfaces.files import local_path
from mmmask.interfaces.out_of_memory import is_out_of_memory
from mmmask.interfaces.writing import written_whole
from mmmask.interop.errors import InteropError
from mmmask.interop.published import published
from mmmask.model.processes import local
from mmmask_registry import did_you_mean

WRAPPERS = ("model", "state_dict", "module", "model_state", "checkpoint")
"""Keys under which trainers keep the state dict."""

MOST_WRAPPERS = 8
"""Wrappers inside each other; a file may hold itself."""

PARALLEL = "module."
"""Prefix that DataParallel and its kin put before every key."""

PLAIN = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
)  # fmt: skip
"""Types of numbers that all operations know."""

Keys = tuple[Any, ...]
"""Keys from the root of a state to a tensor, such as ("model", "encoder.norm.weight")."""
Like = Callable[[Keys], Tensor | None]
"""The sharded parameter that a tensor of a state belongs to, whose shards it gets; None for a whole tensor."""


def read_state(source: str | Path | Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a file or mapping, out of a `model`, `state_dict` or `module` wrapper.

    Args:
        source: a path, local or remote (iopath; downloaded once), or a state dict.

    Raises:
        InteropError: it cannot be read, needs more than plain weights, or holds none.
    """
    if isinstance(source, Mapping):
        return _tensors(source)
    try:
        return _tensors(read_plain(local_path(str(source))))
    except FileNotFoundError as error:
        hint = did_you_mean(str(source), published())
        raise InteropError(f"{source}: there is no such file, and no checkpoint is published as that.{hint}") from error
    except (InteropError, OSError) as error:
        raise InteropError(f"{source}: {error}") from error


def _tensors(loaded: Any) -> dict[str, Tensor]:  # noqa: ANN401 - whatever a file holds
    if not isinstance(loaded, Mapping):
        raise InteropError(f"expected a state dict, not {type(loaded).__name__}")
    wrappers = 0
    while inner := next((loaded[key] for key in WRAPPERS if isinstance(loaded.get(key), Mapping)), None):
        loaded, wrappers = inner, wrappers + 1
        if wrappers > MOST_WRAPPERS:
            raise InteropError(f"expected a state dict, not one nested more than {MOST_WRAPPERS} deep, or in itself")
    state = {key: value for key, value in loaded.items() if isinstance(value, Tensor)}
    if not state:
        held = ", ".join(map(str, list(loaded)[:5])) or "nothing"
        raise InteropError(f"there is not a single tensor in it; it holds {held}")
    if strange := [key for key in state if not isinstance(key, str)]:
        raise InteropError(f"{strange[0]}: expected keys that are names, not {type(strange[0]).__name__}")
    for key, tensor in state.items():
        if strange := _strangeness(tensor):
            raise InteropError(f"{key}: a tensor that cannot be loaded ({strange}); expected plain numbers")
    if not any(tensor.is_floating_point() for tensor in state.values()):
        raise InteropError("there is not a single floating point tensor in it")
    if all(key.startswith(PARALLEL) for key in state):
        return {key.removeprefix(PARALLEL): tensor for key, tensor in state.items()}
    return state


def misfits(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], origin: Mapping[str, Sequence[str]] | None = None
) -> list[str]:
    """Why tensors cannot be weights of a model, a line for each.

    Args:
        state: {key of the model: tensor}.
        expected: state dict of the model; its tensors may be without memory.
        origin: {key of the model: keys in the file}; by default the same.
    """
    problems, broken = [], []
    for key, tensor in state.items():
        names = ", ".join(origin[key] if origin else [key])
        if key not in expected:
            problems.append(f"{key}: not a key of the model")
        elif tensor.shape != (shape := expected[key].shape):
            problems.append(f"{names}: shape {tuple(tensor.shape)}, the model has {tuple(shape)}")
        elif expected[key].is_floating_point() and not tensor.is_floating_point():
            problems.append(f"{names}: {_plainly(tensor.dtype)}, and weights are floating point numbers")
        elif tensor.is_floating_point() and tensor.numel():
            part = local(tensor)
            # three times as fast as `isfinite` of all
            broken += [] if not part.numel() or all(map(math.isfinite, map(float, part.aminmax()))) else [names]
    if broken:
        more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        problems.append(f"{broken[0]}{more}: not finite; take a checkpoint from before training diverged")
    return problems


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file, whole or not at all, readable for whoever may read the user's other new files.

    Raises:
        WriteError: it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with written_whole(path) as file:
        mode = os.fstat(file.fileno()).st_mode
        # copies: safetensors refuses tensors that share memory
        state = {key: part.detach().cpu().contiguous().clone() for key, part in tensors.items()}
        try:
            save_file(state, file.name, dict(metadata))
        except SafetensorError as error:
            raise OSError(str(error)) from error
        os.chmod(file.name, mode)  # safetensors makes its files private


def new_file(path: str | Path, endings: Sequence[str], overwrite: bool | None = None) -> Path:
    """A file that will be written. It is only looked for: folders are made when there is something to write.

    Args:
        overwrite: whether a file that is there is replaced; None: it never is.

    Raises:
        InteropError: its name ends in something else, it is there already, or nothing can be written there.
    """
    target = Path(path)
    if target.suffix not in endings:
        raise InteropError(f"{path}: let the name end in {' or '.join(endings)}")
    try:
        if target.is_dir():
            raise InteropError(f"{path}: there is a folder of this name")
        if target.exists() and not overwrite:
            unless = "" if overwrite is None else " without overwrite=True"
            raise InteropError(f"{path}: there is a file already; nothing is overwritten{unless}")
    except OSError as error:
        raise InteropError(f"{path}: cannot be written: {error.strerror}") from error
    folder = next(folder for folder in target.absolute().parents if os.path.lexists(folder))
    if not folder.is_dir():
        raise InteropError(f"{path}: cannot be written: {folder} is no folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InteropError(f"{path}: cannot be written: {folder} is closed to you")
    return target


def read_plain(path: str | Path) -> Any:  # noqa: ANN401 - whatever the file holds
    """Plain data and tensors of a .safetensors file, or of one that `torch.save` wrote.

    Checksums are compared, which `torch.load` does not.

    Raises:
        FileNotFoundError: there is no such file.
        InteropError: it is damaged, or needs more than plain data. The message leaves out the path.
    """
    try:
        if str(path).endswith(".safetensors"):
            from safetensors.torch import load_file

            return load_file(path)
        _compare_checksums(path)
        with warnings.catch_warnings(action="ignore"):  # torch's, to those who wrote the file
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # torch.load raises half a dozen more kinds
        raise InteropError(f"not a file of plain weights, and nothing else is ever loaded: {_reason(error)}") from error


def _compare_checksums(path: str | Path) -> None:
    with open(path, "rb") as file:
        if file.read(4) != b"PK\3\4" and not zipfile.is_zipfile(file):
            return  # from before torch 1.6, without any
        with zipfile.ZipFile(file) as archive:
            if damaged := archive.testzip():
                raise InteropError(f"it is damaged: {damaged} does not match its checksum")


def _reason(error: Exception) -> str:
    """Why a file could not be read; torch's own texts tell of its inside, or recommend to run the file's code."""
    from safetensors import SafetensorError

    if isinstance(error, InteropError | OSError | SafetensorError):
        return str(error)
    if isinstance(error, zipfile.BadZipFile):
        return "it is damaged or not whole"
    if is_out_of_memory(error):
        return "there is not enough memory for it"
    wanted = re.search(r"(?:Unsupported global: GLOBAL|GLOBAL) ([\w.]+)", str(error))
    return f"it needs {wanted[1]}" if wanted else "it is no checkpoint"


def _strangeness(tensor: Tensor) -> str:
    """Why a tensor cannot be used, in a word or two; empty where it can."""
    if tensor.device.type == "meta":
        return "without numbers"
    if tensor.layout != torch.strided:
        return _plainly(tensor.layout)
    if tensor.dtype not in PLAIN:
        return _plainly(tensor.dtype)
    if tensor.nbytes > max(tensor.untyped_storage().nbytes(), 2**24):
        return f"shape {tuple(tensor.shape)} of few numbers, repeated"
    return ""


def _plainly(kind: torch.dtype | torch.layout) -> str:
    return str(kind).removeprefix("torch.")


def write_arrays(file: BinaryIO, arrays: Mapping[str, np.ndarray]) -> None:
    """Arrays as .npz; np.savez has no place for an array that is called `file`."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)


def map_tensors(tree: Any, change: Callable[[Keys, Tensor], Any], path: Keys = ()) -> Any:  # noqa: ANN401 - plain data
    """Plain data with its tensors changed, each with the keys that lead to it."""
    if isinstance(tree, Tensor):
        return change(path, tree)
    if isinstance(tree, Mapping):
        return {key: map_tensors(value, change, (*path, key)) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(map_tensors(value, change, (*path, number)) for number, value in enumerate(tree))
    return tree
