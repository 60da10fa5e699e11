"""A foreign checkpoint -> a model, with an account of every key."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from mmmask.components import components
from mmmask.experiment import Experiment, experiment_from_data
from mmmask.interfaces import ForeignWeights, Format
from mmmask.interfaces.component import validate_strictly
from mmmask.interop.checkpoint_file import read_state
from mmmask.interop.errors import InteropError
from mmmask.interop.published import address_of, published
from mmmask.interop.runs import RunFolder, load_run
from mmmask.model.build import build_classifier, build_model
from mmmask.model.classifier import Classifier, ClassifierSettings
from mmmask.model.model import Model
from mmmask_registry import MmmaskError, did_you_mean

DECODERS, HEADS = "objectives.masked.decoders", "objectives.masked.heads"
"""Keys of decoders and heads of the objective `masked`; its other weights are those of losses and maskers."""


@dataclass(frozen=True)
class Report:
    """Account of every key.

    Attributes:
        format: the name of the format.
        loaded: {mmmask key: foreign keys}, as they were.
        converted: {foreign key: how it was changed}.
        unused: {foreign key: why it is not needed}.
        missing: {mmmask key: why it stays as the model was built}.
        origin: {mmmask key: foreign keys it was made of}, loaded and converted.
        initialised: mmmask keys that the file should have had and lacks (`strict=False`).
    """

    format: str
    loaded: dict[str, tuple[str, ...]] = field(default_factory=dict)
    converted: dict[str, str] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    origin: dict[str, tuple[str, ...]] = field(default_factory=dict)
    initialised: tuple[str, ...] = ()

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
    """A model and the report on how it was loaded; `model` is a Classifier where the file is fine-tuned."""

    model: Model | Classifier
    report: Report


def load(
    source: str | Path | Mapping[str, Any], format: str | None = None, *, strict: bool = True, **options: object
) -> Any:  # noqa: ANN401 - Model or Classifier, which only the file tells
    """Loads a published checkpoint.

    Args:
        source: a published name (`mmmask list checkpoint`), a path, local or remote (iopath), the folder of a run (its
            newest checkpoint), or a state dict.
        format: a registered format; by default recognised from the keys.
        strict: whether keys that are missing or that nobody knows are errors. Otherwise what is missing stays as
            the model was built (an encoder without its decoder), unknown keys are left, and the report names both.
        options: what the keys do not tell, as the format needs: size, num_frames, num_heads, decoder_num_heads.

    Returns:
        A `Model` with streams `images` and `videos` as the system has them; of a fine-tuned file a
        `Classifier`.

    Raises:
        InteropError: it cannot be read, recognised or fitted.
    """
    return read(source, format, strict=strict, **options).model


def read(
    source: str | Path | Mapping[str, Any], format: str | None = None, *, strict: bool = True, **options: object
) -> Loaded:
    """Loads as `load` does, and returns the report too.

    Raises:
        InteropError: it cannot be read, recognised or fitted; or, where `strict`, a key is neither used nor known to
            be useless.
    """
    is_name = not isinstance(source, Mapping) and not Path(str(source)).exists()
    if is_name and (named := published().get(str(source))):
        source, format, options = address_of(named), format or named.format, {**named.options, **options}
        strict = strict and not named.encoder_alone
    if isinstance(source, str | Path):
        if os.path.isdir(source):
            return _read_run(str(source), format, strict, options)
        run = RunFolder(Path(source).parent.parent)
        if Path(source).parent == run.checkpoints and run.experiment_file.exists():
            raise InteropError(f"{source}: a checkpoint to go on training from; give the run's folder, {run.path}")
    state = read_state(source)
    name = format or _recognize(state)
    format_class: type[Format] = components().get("format", name)
    options = format_class.options_from(_config_beside(source)) | options
    try:
        config = validate_strictly(format_class.Config, {"name": name, **_plain(options)})
    except ValidationError as error:
        known = [key for key in format_class.Config.model_fields if key != "name"]
        raise InteropError(_option_problem(name, error, known)) from None
    try:
        foreign = format_class(config).read(state)
    except ValueError as error:  # a component that the file asks for cannot be of that size
        raise error if isinstance(error, MmmaskError) else InteropError(f"format {name}: {error}") from error
    model = _build(foreign.settings, f"format {name}")
    model.to(_widest(foreign.state.values()))
    expected = model.state_dict()
    if not strict:
        foreign = _lenient(state, foreign, expected)
    _check(name, state, foreign, expected)
    model.load_state_dict({**expected, **foreign.state})
    converted = set(foreign.converted)
    loaded = {key: origin for key, origin in foreign.origin.items() if not converted.intersection(origin)}
    # what a strict reading leaves as built is right so
    initialised = () if strict else tuple(foreign.keeps)
    report = Report(name, loaded, foreign.converted, foreign.unused, foreign.keeps, foreign.origin, initialised)
    return Loaded(model, report)


def _read_run(folder: str, format: str | None, strict: bool, options: Mapping[str, object]) -> Loaded:
    if format or options or not strict:
        words = [f"format={format}"] if format else [f"{key}={value}" for key, value in options.items()]
        given = (words or ["strict=False"])[0]
        raise InteropError(f"{given}: {folder} is a folder, and only a checkpoint's file is read with options")
    if not RunFolder(folder).experiment_file.exists():
        raise InteropError(
            f"{folder}: no run here (there is no experiment.yaml in it); of another checkpoint, give the file itself"
        )
    run = load_run(folder)
    keys = {key: (key,) for key in run.model.state_dict()}
    return Loaded(run.model, Report(f"run (step {run.step})", keys, origin=keys))


def model_settings(data: Mapping[str, Any], where: str) -> Experiment | ClassifierSettings:
    """Validates the plain data of a model: an experiment's, or a classifier's where it has `classes`.

    Args:
        data: as `mmmask.interfaces.ForeignWeights.settings`.
        where: it comes from, for messages.

    Raises:
        MmmaskError: all problems at once.
    """
    if "classes" not in data:
        return experiment_from_data(dict(data), where)
    try:
        return validate_strictly(ClassifierSettings, dict(data))
    except ValidationError as error:
        lines = [f"{where}: {'.'.join(map(str, part['loc']))}: {part['msg']}" for part in error.errors()]
        raise InteropError("\n".join(lines)) from None


def _build(data: Mapping[str, Any], where: str) -> Model | Classifier:
    settings = model_settings(data, where)
    return build_model(settings) if isinstance(settings, Experiment) else build_classifier(settings)


def _lenient(state: Mapping[str, Tensor], foreign: ForeignWeights, expected: Mapping[str, Tensor]) -> ForeignWeights:
    """Accounts for whatever `_check` would miss on either side."""
    kept = {key: tensor for key, tensor in foreign.state.items() if key in expected}
    origin = {key: foreign.origin[key] for key in kept}
    used = {key for keys in origin.values() for key in keys}
    unknown = {key: "unknown to the format (strict=False)" for key in state if key not in used}
    missing = {key: "not in the file; as initialised (strict=False)" for key in expected if key not in kept}
    return replace(foreign, state=kept, origin=origin, unused=unknown | foreign.unused, keeps=missing | foreign.keeps)


def _check(name: str, state: Mapping[str, Tensor], foreign: ForeignWeights, expected: Mapping[str, Tensor]) -> None:
    """Every key on both sides must be accounted for, and fit."""
    used = {key for origin in foreign.origin.values() for key in origin}
    problems = [f"{key}: in the file, unknown to the format" for key in state if key not in used | set(foreign.unused)]
    missing = [key for key in expected if key not in foreign.state and key not in foreign.keeps]
    decoder = [key for key in expected if key.startswith("objectives.")]
    if decoder and set(decoder) <= set(missing):
        problems.append(
            f"the decoder is not in the file, {len(decoder)} keys of it: strict=False loads the encoder alone"
        )
        missing = [key for key in missing if key not in decoder]
    problems += [f"{key}: needed, not in the file" for key in missing]
    problems += [f"{key}: not a key of the model" for key in foreign.state if key not in expected]
    problems += [
        f"{', '.join(foreign.origin[key])}: shape {tuple(tensor.shape)}, the model has {tuple(expected[key].shape)}"
        for key, tensor in foreign.state.items()
        if key in expected and tensor.shape != expected[key].shape
    ]
    if problems:
        raise InteropError("\n".join(f"format {name}: {problem}" for problem in problems))


def _recognize(state: Mapping[str, Tensor]) -> str:
    registry = components().registry("format")
    names, failed = [], []
    for entry in registry:
        try:
            if components().get("format", entry.name).recognizes(state):
                names.append(entry.name)
        except Exception as error:  # one plugin's mistake is not everybody's
            failed.append(f"format {entry.name} ({entry.supplier}) could not be asked: {error}")
    if len(names) != 1:
        first = ", ".join(list(state)[:3])
        found = f"could be {', '.join(names)}" if names else "is of no known format"
        known = ", ".join(entry.name for entry in registry)
        problem = f"the checkpoint (keys {first}, ...) {found}; give format=, one of: {known}"
        raise InteropError("\n".join([problem, *failed]))
    return names[0]


def _config_beside(source: str | Path | Mapping[str, Any]) -> Mapping[str, Any]:
    """The `config.json` in the folder of a file, which says what no key does; empty where there is none."""
    if isinstance(source, Mapping):
        return {}
    try:
        config = json.loads((Path(str(source)).parent / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _widest(tensors: Iterable[Tensor]) -> torch.dtype:
    """The dtype that holds all floating point tensors."""
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors if tensor.is_floating_point()))


def _plain(options: Mapping[str, object]) -> dict[str, object]:
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in options.items() if value is not None
    }


def _option_problem(name: str, error: ValidationError, known: list[str]) -> str:
    lines = []
    for detail in error.errors():
        option = ".".join(str(part) for part in detail["loc"])
        if detail["type"] == "extra_forbidden":
            listed = f"Known: {', '.join(known)}" if known else "It has none"
            lines.append(f"format {name}: no option is called {option!r}.{did_you_mean(option, known)} {listed}")
        else:
            lines.append(f"format {name}: option {option}: {detail['msg']}, not {detail['input']!r}")
    return "\n".join(lines)
