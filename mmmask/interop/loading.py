"""A foreign checkpoint -> a model, with an account of every key."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from mmmask.components import components
from mmmask.experiment import Experiment, experiment_from_data
from mmmask.interfaces import ForeignWeights, Format, StrictModel
from mmmask.interfaces.component import problems_of, validate_strictly
from mmmask.interop.checkpoint_file import misfits, read_state
from mmmask.interop.errors import InteropError
from mmmask.interop.published import address_of, published
from mmmask.interop.runs import RunFolder, load_run
from mmmask.model.build import build_model
from mmmask.model.model import Model
from mmmask_registry import MmmaskError

DECODERS, HEADS = "objectives.masked.decoders", "objectives.masked.heads"
"""Keys of decoders and heads of the objective `masked`; its other weights are those of losses and maskers."""


@dataclass(frozen=True)
class Report:
    """Account of every key.

    Attributes:
        format: the name of the format.
        origin: {mmmask key: foreign keys it was made of}.
        converted: {foreign key: how it was changed}.
        unused: {foreign key: why it is not needed}.
        missing: {mmmask key: why it stays as the model was built}.
        initialised: mmmask keys that the file should have had and lacks (`strict=False`).
        adapted: {mmmask key: how it was made to fit a model of other sizes}, of `start_from`.
        notes: whatever else differs from the model that the weights come from.
    """

    format: str
    origin: dict[str, tuple[str, ...]]
    converted: dict[str, str] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    initialised: tuple[str, ...] = ()
    adapted: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """Account in a few lines: keys of one reason and one part of the model together."""
        lines = [
            f"weights ({self.format}): {len(self.origin)} tensors taken, {len(self.adapted)} of them made to fit; "
            f"{len(self.missing)} as initialised; {len(self.unused)} of the source's left out"
        ]
        for word, keys in (("made to fit", self.adapted), ("initialised", self.missing), ("left out", self.unused)):
            lines += [f"  {word}  {line}" for line in _grouped(keys)]
        return "\n".join(lines + [f"  note  {note}" for note in self.notes])

    @property
    def account(self) -> str:
        """The summary, and a line for every key on both sides."""
        made = {key: f"{', '.join(keys) or 'computed'}" for key, keys in self.origin.items()}
        made |= {key: f"{made[key]}: {how}" for key, how in self.adapted.items()}
        parts = (
            ("taken", made),
            ("initialised", self.missing),
            ("converted", self.converted),
            ("left out", self.unused),
        )
        return "\n".join(
            [self.summary, "", *(f"{word}  {key}: {why}" for word, keys in parts for key, why in keys.items())]
        )

    @property
    def loaded(self) -> dict[str, tuple[str, ...]]:
        """{mmmask key: foreign keys}, as they were."""
        return {key: origin for key, origin in self.origin.items() if not self.converted.keys() & set(origin)}

    def __str__(self) -> str:
        lines = [
            f"format {self.format}: {len(self.loaded)} keys loaded, {len(self.converted)} of the file's converted, "
            f"{len(self.unused)} unused, {len(self.missing)} missing"
        ]
        for word in ("converted", "unused", "missing"):
            lines += [f"  {word}  {key}: {reason}" for key, reason in getattr(self, word).items()]
        return "\n".join(lines)


def _grouped(reasons: Mapping[str, str]) -> Iterator[str]:
    """A line for all keys of one reason in one part of a model: `objectives.masked.* (40): not in the weights`."""
    groups: dict[tuple[str, str], list[str]] = {}
    for key, reason in reasons.items():
        part = re.sub(r"\.\d.*", "", ".".join(key.split(".")[:-1][:2]))
        groups.setdefault((part, reason), []).append(key)
    for (_, reason), keys in groups.items():
        common = os.path.commonprefix([f"{key}." for key in keys]).rpartition(".")[0]
        yield f"{keys[0]}: {reason}" if len(keys) == 1 else f"{common}.* ({len(keys)}): {reason}".removeprefix(".")


@dataclass(frozen=True)
class Loaded:
    """A model and the report on how it was loaded."""

    model: Model
    report: Report


def load(
    source: str | Path | Mapping[str, Any], format: str | None = None, *, strict: bool = True, **options: object
) -> Model:
    """Loads a published checkpoint.

    Args:
        source: a published name (`mmmask list checkpoint`), a path, local or remote (iopath), the folder of a run (its
            newest checkpoint), or a state dict.
        format: a registered format; by default recognised from the keys.
        strict: whether keys that are missing or that nobody knows are errors. Otherwise what is missing stays as
            the model was built (an encoder without its decoder), unknown keys are left, and the report names both.
        options: what the keys do not tell, as the format needs: size, num_frames, num_heads, decoder_num_heads. Of a
            run `average=True`: the average of its weights (`training.average`).

    Returns:
        A model with streams `images` and `videos` as the system has them; of a fine-tuned file they have the objective
        `classification`.

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
    if not isinstance(source, Mapping):
        source = str(source)
        if not os.path.exists(source) and (named := published().get(source)):
            source, format, options = address_of(named), format or named.format, {**named.options, **options}
            strict = strict and not named.encoder_alone
        run = RunFolder(Path(source).parent.parent)
        if Path(source).parent == run.checkpoints and run.experiment_file.exists():
            raise InteropError(f"{source}: a checkpoint to go on training from; give the run's folder, {run.path}")
        if os.path.isdir(source):
            return _read_run(source, format, strict, options)
    state = read_state(source)
    name = format or _recognize(state)
    format_class: type[Format] = components().get("format", name)
    takes_config = format_class.options_from.__func__ is not Format.options_from.__func__
    if takes_config and not isinstance(source, Mapping):
        options = format_class.options_from(_config_beside(source)) | options
    try:
        foreign = make_format(name, options).read(state)
    except ValueError as error:  # a component that the file asks for cannot be of that size
        raise error if isinstance(error, MmmaskError) else InteropError(f"format {name}: {error}") from error
    experiment, classes = model_settings(foreign.settings, f"format {name}")
    with torch.device("meta"):  # compared before there is memory for whatever sizes the file asks for
        unallocated = build_model(experiment, classes)
    expected = unallocated.state_dict()
    if not strict:
        foreign = _lenient(state, foreign, expected)
    _check(name, state, foreign, expected)
    model = build_model(experiment, classes)
    dtypes = (tensor.dtype for tensor in foreign.state.values() if tensor.is_floating_point())
    model.to(reduce(torch.promote_types, dtypes))  # the widest
    model.load_state_dict({**model.state_dict(), **foreign.state})
    # what a strict reading leaves as built is right so
    initialised = () if strict else tuple(foreign.keeps)
    return Loaded(model, Report(name, foreign.origin, foreign.converted, foreign.unused, foreign.keeps, initialised))


def make_format(name: str, options: Mapping[str, object]) -> Format:
    """A format with its options; None stands for one that is not given.

    Raises:
        InteropError: all options that it does not have or that cannot be so.
    """
    format_class: type[Format] = components().get("format", name)
    given = {key: value for key, value in options.items() if value is not None}
    try:
        return format_class(validate_strictly(format_class.Config, {"name": name, **given}))
    except ValidationError as error:
        lines = [f"format {name}: option {problem}" for problem in problems_of(error)]
        raise InteropError("\n".join(lines)) from None


def _read_run(folder: str, format: str | None, strict: bool, options: Mapping[str, object]) -> Loaded:
    options = dict(options)
    average = options.pop("average", False)
    if not isinstance(average, bool):
        raise InteropError(f"average={average}: true or false")
    if format or options or not strict:
        words = [f"format={format}"] if format else [f"{key}={value}" for key, value in options.items()]
        given = (words or ["strict=False"])[0]
        raise InteropError(f"{given}: {folder} is a folder, and only a checkpoint's file is read with options")
    if not RunFolder(folder).experiment_file.exists():
        raise InteropError(
            f"{folder}: no run here (there is no experiment.yaml in it); of another checkpoint, give the file itself"
        )
    run = load_run(folder)
    model = run.averaged_model if average else run.model
    keys = {key: (key,) for key in model.state_dict()}
    return Loaded(model, Report(f"run (step {run.step}{', average of its weights' if average else ''})", keys))


class _Classes(StrictModel):
    classes: dict[str, dict[str, Annotated[list[str], Field(min_length=1)]]] = {}


def model_settings(data: Mapping[str, Any], where: str) -> tuple[Experiment, Mapping[str, Mapping[str, Sequence[str]]]]:
    """Validates the plain data of a model: its experiment and {stream: {label set: names of the classes}}.

    Args:
        data: as `mmmask.interfaces.ForeignWeights.settings`.
        where: it comes from, for messages.

    Raises:
        MmmaskError: all problems at once.
    """
    experiment = experiment_from_data({key: value for key, value in data.items() if key != "classes"}, where)
    try:
        return experiment, validate_strictly(_Classes, {"classes": data.get("classes", {})}).classes
    except ValidationError as error:
        raise InteropError("\n".join(f"{where}: {problem}" for problem in problems_of(error))) from None


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
    known = {key for origin in foreign.origin.values() for key in origin} | set(foreign.unused)
    problems = [f"{key}: in the file, unknown to the format" for key in state if key not in known]
    missing = [key for key in expected if key not in foreign.state and key not in foreign.keeps]
    decoder = [key for key in expected if key.startswith("objectives.")]
    if decoder and set(decoder) <= set(missing):
        problems.append(
            f"the decoder is not in the file, {len(decoder)} keys of it: strict=False loads the encoder alone"
        )
        missing = [key for key in missing if key not in decoder]
    problems += [f"{key}: needed, not in the file" for key in missing]
    problems += misfits(foreign.state, expected, foreign.origin)
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


def _config_beside(file: str | Path) -> Mapping[str, Any]:
    """The `config.json` in the folder of a file, which says what no key does; empty where there is none."""
    path = Path(file).parent / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):  # the latter of an address
        return {}
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no JSON"
        raise InteropError(f"{path}: cannot be read: {reason}; move it away and give its options instead") from error
    return config if isinstance(config, dict) else {}
