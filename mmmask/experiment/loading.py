"""A YAML file (+ overrides) -> a validated Experiment, or every problem with it at once."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from mmmask.components import components
from mmmask.experiment.compose import apply_overrides, read_experiment
from mmmask.experiment.errors import ExperimentError
from mmmask.experiment.settings import Experiment, StreamSettings, TrainingSettings, stream_settings
from mmmask.interfaces.component import chosen_kind, validate_strictly
from mmmask_registry import did_you_mean


def load_experiment(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Loads and validates an experiment.

    Args:
        name_or_path: a shipped name such as `omnimae/vit_base`, or a YAML file.
        overrides: `dotted.key=value`, such as `model.encoder.depth=2`.

    Raises:
        ExperimentError: everything that is wrong with it, each with its key path.
    """
    given = str(name_or_path)
    experiment = experiment_from_data(read_experiment(given), given, overrides)
    experiment._name = Path(given).stem if given.endswith((".yaml", ".yml")) else given
    return experiment


def experiment_from_data(data: dict[str, Any], where: str = "", overrides: Sequence[str] = ()) -> Experiment:
    """Validates plain data.

    Raises:
        ExperimentError: everything that is wrong with it, each with its key path.
    """
    given = _mapping(data.get("streams"))
    data = apply_overrides(data, overrides)
    problems = []
    if isinstance(data.get("streams"), dict):  # `streams.NAME=null` takes a stream out
        removed = [name for name, stream in data["streams"].items() if stream is None]
        problems += [
            f"streams.{name}: no stream to take out.{did_you_mean(str(name), map(str, given))} "
            f"Known: {', '.join(map(str, given))}"
            for name in removed
            if name not in given
        ]
        data = data | {"streams": {name: part for name, part in data["streams"].items() if name not in removed}}
    experiment = None
    try:
        experiment = validate_strictly(Experiment, data)
    except ValidationError as error:
        problems += [_problem(detail, data) for detail in error.errors()]
    problems += _conflicts(data)
    if problems or experiment is None:
        raise ExperimentError(problems, where)
    return experiment


def _conflicts(data: dict[str, Any]) -> list[str]:
    """Conflicts between keys that are valid one by one; the data may be wrong in other ways too."""
    problems = []
    streams, training = _mapping(data.get("streams")), _mapping(data.get("training"))
    accumulate = _count(TrainingSettings, training, "accumulate")
    for name, stream in streams.items():
        if not str(name).isidentifier():
            problems.append(f"streams.{name}: a stream's name must be a plain word (letters, digits, _)")
        batch_size, replicate = (_count(StreamSettings, _mapping(stream), key) for key in ("batch_size", "replicate"))
        if batch_size and replicate and accumulate and batch_size % (accumulate * replicate):
            problems.append(
                f"streams.{name}.batch_size: {batch_size} does not divide by accumulate x replicate "
                f"({accumulate} x {replicate})"
            )
    epochs = training.get("epochs")
    if epochs is not None and training.get("steps") is not None:
        problems.append("training.epochs: give either steps or epochs")
    if isinstance(epochs, dict) and epochs and streams and (len(epochs) != 1 or not epochs.keys() <= streams.keys()):
        problems.append(f"training.epochs: expected one stream's name, of {', '.join(map(str, streams))}")
    return problems


def _mapping(value: object) -> dict[str, Any]:
    """The value where it is a mapping, else an empty one."""
    return value if isinstance(value, dict) else {}


def _count(model: type[BaseModel], data: dict[str, Any], key: str) -> int | None:
    """A setting that counts something, by default the model's; None where what is given is no count."""
    value = data.get(key, model.model_fields[key].default)
    return value if type(value) is int and value > 0 else None


def _problem(detail: ErrorDetails, data: dict[str, Any]) -> str:
    """One line in the user's keys for one of pydantic's errors."""
    context = detail.get("ctx", {})
    path = [str(part) for part in detail["loc"]] + ([context["at"]] if "at" in context else [])
    where = ".".join(path)
    match detail["type"]:
        case "extra_forbidden":
            known = _known_keys(path[:-1], data)
            return f"{where}: unknown key.{did_you_mean(path[-1], known)} Known: {', '.join(known)}"
        case "missing":
            return f"{where}: required, and not given"
        case "value_error" | "assertion_error":
            return f"{where}: {detail['msg'].partition(', ')[2]}"
        case "unknown_name" | "no_name" | "no_stream":
            return f"{where}: {detail['msg']}"
        case _:
            message = detail["msg"][0].lower() + detail["msg"][1:]
            return f"{where}: {message.replace('input should', 'should')}, not {detail['input']!r}"


def _known_keys(path: Sequence[str], data: Any) -> list[str]:  # noqa: ANN401 - raw YAML
    """The keys that may stand at a path, found by walking settings and data together."""
    model: type[BaseModel] = Experiment
    named = False  # whether the next part is a stream's name
    kind = None
    for part in path:
        if isinstance(data, list):  # the part is a number in a list of components
            data = data[int(part)]
            if kind:
                model = components().get(kind, data["name"] if isinstance(data, dict) else data).Config
            continue
        data = data.get(part, {}) if isinstance(data, dict) else {}
        if named:
            named = False
            name = _mapping(data).get("objective", StreamSettings.model_fields["objective"].default)
            model = stream_settings(components().get("objective", name))
            continue
        if part not in model.model_fields:
            continue
        settings = model.model_fields[part]
        named = part == "streams" and model is Experiment
        kind = chosen_kind(settings)
        if isinstance(data, list):
            continue
        if kind:
            model = components().get(kind, _chosen_name(settings, data)).Config
        else:
            inner = [settings.annotation, *typing.get_args(settings.annotation)]
            model = next((c for c in inner if isinstance(c, type) and issubclass(c, BaseModel)), model)
    return [key for key in model.model_fields if key != "name" or model.__qualname__.endswith("Config")]


def _chosen_name(settings: FieldInfo, data: Any) -> str:  # noqa: ANN401 - raw YAML
    """The name in a block, or the one that stands for a block without."""
    if not isinstance(data, dict):
        return str(data)
    return data["name"] if "name" in data else settings.get_default(call_default_factory=True).name
