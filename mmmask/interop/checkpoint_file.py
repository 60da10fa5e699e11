"""Files of weights, and nothing else in them: what is read runs no code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmmask.data.files import local_path
from mmmask.errors import InteropError
from mmmask.published import published
from mmmask_registry import did_you_mean

WRAPPERS = ("model", "state_dict", "module")
"""Keys under which trainers keep the state dict."""


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
    wrapped = next((loaded[key] for key in WRAPPERS if isinstance(loaded.get(key), Mapping)), loaded)
    state = {key: value for key, value in wrapped.items() if isinstance(value, Tensor)}
    if not state:
        raise InteropError("there is not a single tensor in it")
    if strange := [key for key in state if not isinstance(key, str)]:
        raise InteropError(f"{strange[0]}: expected keys that are names, not {type(strange[0]).__name__}")
    if not any(tensor.is_floating_point() for tensor in state.values()):
        raise InteropError("there is not a single floating point tensor in it")
    return state


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file, readable for whoever may read the user's other new files.

    Raises:
        OSError: it cannot be written.
    """
    from safetensors.torch import save_file

    path.touch()
    mode = path.stat().st_mode
    # copies: safetensors refuses tensors that share memory
    save_file({key: part.detach().cpu().contiguous().clone() for key, part in tensors.items()}, path, dict(metadata))
    path.chmod(mode)  # safetensors makes its files private


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
    except Exception as error:  # torch.load raises half a dozen kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InteropError(
            f"{source}: not a file of plain weights, and nothing else is ever loaded: {reason}"
        ) from error
