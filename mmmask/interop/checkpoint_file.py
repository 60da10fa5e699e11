"""Files of weights, and nothing else in them: what is read runs no code."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmmask.interfaces.files import local_path
from mmmask.interop.errors import InteropError
from mmmask.interop.published import published
from mmmask_registry import did_you_mean

WRAPPERS = ("model", "state_dict", "module", "model_state", "checkpoint")
"""Keys under which trainers keep the state dict."""

PARALLEL = "module."
"""Prefix that DataParallel and its kin put before every key."""


def read_state(source: str | Path | Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a file or mapping, out of a `model`, `state_dict` or `module` wrapper.

    Args:
        source: a path, local or remote (iopath; downloaded once), or a state dict.

    Raises:
        InteropError: it cannot be read, needs more than plain weights, or holds none.
    """
    loaded = source if isinstance(source, Mapping) else _read_file(str(source))
    if not isinstance(loaded, Mapping):
        raise InteropError(f"expected a state dict, not {type(loaded).__name__}")
    while inner := next((loaded[key] for key in WRAPPERS if isinstance(loaded.get(key), Mapping)), None):
        loaded = inner
    state = {key: value for key, value in loaded.items() if isinstance(value, Tensor)}
    if not state:
        held = ", ".join(map(str, list(loaded)[:5])) or "nothing"
        raise InteropError(f"there is not a single tensor in it; it holds {held}")
    if strange := [key for key in state if not isinstance(key, str)]:
        raise InteropError(f"{strange[0]}: expected keys that are names, not {type(strange[0]).__name__}")
    if not any(tensor.is_floating_point() for tensor in state.values()):
        raise InteropError("there is not a single floating point tensor in it")
    for key, tensor in state.items():
        if tensor.is_complex() or tensor.layout != torch.strided or tensor.device.type == "meta":
            kind = "meta" if tensor.device.type == "meta" else str(tensor.layout if tensor.is_sparse else tensor.dtype)
            raise InteropError(f"{key}: a tensor that cannot be loaded ({kind}); expected plain numbers")
    if all(key.startswith(PARALLEL) for key in state):
        return {key.removeprefix(PARALLEL): tensor for key, tensor in state.items()}
    return state


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file, whole or not at all, readable for whoever may read the user's other new files.

    Raises:
        OSError: it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
        mode = partial.stat().st_mode
        # copies: safetensors refuses tensors that share memory
        state = {key: part.detach().cpu().contiguous().clone() for key, part in tensors.items()}
        save_file(state, partial, dict(metadata))
        partial.chmod(mode)  # safetensors makes its files private
        partial.replace(path)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    finally:
        partial.unlink(missing_ok=True)


def new_file(path: str | Path, endings: Sequence[str]) -> Path:
    """A file that will be written. It is only looked for: folders are made when there is something to write.

    Raises:
        InteropError: its name ends in something else, it is there already, or nothing can be written there.
    """
    target = Path(path)
    if target.suffix not in endings:
        raise InteropError(f"{path}: let the name end in {' or '.join(endings)}")
    try:
        if target.exists():
            raise InteropError(f"{path}: there is a file already; nothing is overwritten")
    except OSError as error:
        raise InteropError(f"{path}: cannot be written: {error.strerror}") from error
    folder = next(folder for folder in target.absolute().parents if os.path.lexists(folder))
    if not folder.is_dir():
        raise InteropError(f"{path}: cannot be written: {folder} is no folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InteropError(f"{path}: cannot be written: {folder} is closed to you")
    return target


def first_line(error: Exception) -> str:
    """The first line of what torch says, or the kind of error where it says nothing."""
    return str(error).partition("\n")[0] or type(error).__name__


def _read_file(source: str) -> object:
    try:
        path = local_path(source)
    except OSError as error:
        raise InteropError(f"{source}: {error}") from error
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        hint = did_you_mean(source, published())
        raise InteropError(f"{source}: there is no such file, and no checkpoint is published as that.{hint}") from error
    except Exception as error:  # torch.load raises half a dozen more kinds
        reason = first_line(error)
        if isinstance(error, pickle.UnpicklingError):  # torch goes on to recommend that the file's code be run
            wanted = re.search(r"(?:Unsupported global: GLOBAL|GLOBAL) ([\w.]+)", str(error))
            reason = f"it needs {wanted[1]}" if wanted else "it is no checkpoint"
        raise InteropError(
            f"{source}: not a file of plain weights, and nothing else is ever loaded: {reason}"
        ) from error
