"""A foreign checkpoint -> a masked model, with an account of every key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from mmmask.components import components
from mmmask.data.files import local_path
from mmmask.experiment import experiment_from_data
from mmmask.interfaces import Format
from mmmask.interfaces.component import validate_strictly
from mmmask.model.build import build_model
from mmmask.model.masked_model import MaskedModel
from mmmask_registry import MmmaskError, did_you_mean

WRAPPERS = ("model", "state_dict", "module")
"""Keys under which trainers keep the state dict."""


class InteropError(MmmaskError):
    """A checkpoint that cannot be read, recognised or fitted."""


@dataclass(frozen=True)
class Report:
    """What became of every key.

    Attributes:
        format: the name of the format.
        loaded: {mmmask key: foreign keys}, as they were.
        converted: {foreign key: how it was changed}.
        unused: {foreign key: why it is not needed}.
        missing: {mmmask key: why it stays as the model was built}.
    """

    format: str
    loaded: dict[str, tuple[str, ...]] = field(default_factory=dict)
    converted: dict[str, str] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [
            f"format {self.format}: {len(self.loaded)} keys loaded, {len(self.converted)} of the file's converted, "
            f"{len(self.unused)} unused, {len(self.missing)} missing"
        ]
        lines += [f"  converted  {key}: {how}" for key, how in self.converted.items()]
        lines += [f"  unused  {key}: {why}" for key, why in self.unused.items()]
        lines += [f"  missing  {key}: {why}" for key, why in self.missing.items()]
        return "\n".join(lines)


@dataclass(frozen=True)
class Loaded:
    """A model and the report on how it was loaded."""

    model: MaskedModel
    report: Report


def load(source: str | Path | Mapping[str, Any], format: str | None = None, **options: object) -> MaskedModel:
    """Loads a published checkpoint.

    Args:
        source: a path, local or remote (iopath), or a state dict.
        format: a registered format; by default recognised from the keys.
        options: what the keys do not tell, as the format needs: size, num_frames, num_heads, decoder_num_heads.

    Raises:
        InteropError: it cannot be read, recognised or fitted.
    """
    return read(source, format, **options).model


def read(source: str | Path | Mapping[str, Any], format: str | None = None, **options: object) -> Loaded:
    """As `load`, with the report.

    Raises:
        InteropError: it cannot be read, recognised or fitted; or a key is neither used nor known to be useless.
    """
    state = _state_dict(source)
    name = format or _recognize(state)
    format_class: type[Format] = components().get("format", name)
    try:
        config = validate_strictly(format_class.Config, {"name": name, **_plain(options)})
    except ValidationError as error:
        known = [key for key in format_class.Config.model_fields if key != "name"]
        raise InteropError(_option_problem(name, error, known)) from None
    foreign = format_class(config).read(state)
    model = build_model(experiment_from_data(foreign.experiment, f"format {name}"))
    model.to(next(tensor.dtype for tensor in foreign.state.values() if tensor.is_floating_point()))
    expected = model.state_dict()
    _check(name, state, foreign, expected)
    model.load_state_dict({**expected, **foreign.state})
    converted = set(foreign.converted)
    loaded = {key: origin for key, origin in foreign.origin.items() if not converted.intersection(origin)}
    return Loaded(model, Report(name, loaded, foreign.converted, foreign.unused, foreign.keeps))


def _check(name: str, state: Mapping[str, Tensor], foreign: Any, expected: Mapping[str, Tensor]) -> None:  # noqa: ANN401
    """Every key on both sides must be accounted for, and fit."""
    used = {key for origin in foreign.origin.values() for key in origin}
    problems = [f"{key}: in the file, unknown to the format" for key in state if key not in used | set(foreign.unused)]
    problems += [
        f"{key}: needed, not in the file" for key in expected if key not in foreign.state and key not in foreign.keeps
    ]
    problems += [f"{key}: not a key of the model" for key in foreign.state if key not in expected]
    problems += [
        f"{', '.join(foreign.origin[key])}: shape {tuple(tensor.shape)}, the model has {tuple(expected[key].shape)}"
        for key, tensor in foreign.state.items()
        if key in expected and tensor.shape != expected[key].shape
    ]
    if problems:
        raise InteropError("\n".join(f"format {name}: {problem}" for problem in problems))


def _state_dict(source: str | Path | Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a file or mapping, out of a `model`, `state_dict` or `module` wrapper."""
    if not isinstance(source, Mapping):
        try:
            path = local_path(str(source))
        except OSError as error:
            raise InteropError(f"{source}: {error}") from error
        try:
            loaded = _load_file(path)
        except FileNotFoundError as error:
            raise InteropError(f"{source}: there is no such file") from error
        except Exception as error:  # torch.load raises half a dozen kinds
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InteropError(
                f"{source}: not a file of plain weights, and nothing else is ever loaded: {reason}"
            ) from error
    else:
        loaded = source
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


def _load_file(path: str) -> object:
    if path.endswith(".safetensors"):
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _recognize(state: Mapping[str, Tensor]) -> str:
    registry = components().registry("format")
    names = [entry.name for entry in registry if components().get("format", entry.name).recognizes(state)]
    if len(names) != 1:
        first = ", ".join(list(state)[:3])
        found = f"could be {', '.join(names)}" if names else "is of no known format"
        known = ", ".join(entry.name for entry in registry)
        raise InteropError(f"the checkpoint (keys {first}, ...) {found}; give format=, one of: {known}")
    return names[0]


def _plain(options: Mapping[str, object]) -> dict[str, object]:
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in options.items() if value is not None
    }


def _option_problem(name: str, error: ValidationError, known: list[str]) -> str:
    lines = []
    for detail in error.errors():
        option = ".".join(str(part) for part in detail["loc"])
        if detail["type"] == "extra_forbidden":
            lines.append(f"format {name}: no option is called {option!r}.{did_you_mean(option, known)} Known: {known}")
        else:
            lines.append(f"format {name}: option {option}: {detail['msg']}, not {detail['input']!r}")
    return "\n".join(lines)
