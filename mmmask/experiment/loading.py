"""A YAML file (+ overrides) -> a validated Experiment, or every problem with it at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from mmmask.experiment.compose import apply_overrides, published_experiments, read_experiment
from mmmask.experiment.errors import ExperimentError
from mmmask.experiment.settings import Experiment, StreamSettings, TrainingSettings
from mmmask.interfaces.component import problems_of, validate_strictly
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
    experiment._name = given if given in published_experiments() else Path(given).stem
    return experiment


def experiment_from_data(data: dict[str, Any], where: str = "", overrides: Sequence[str] = ()) -> Experiment:
    """Validates plain data.

    Raises:
        ExperimentError: everything that is wrong with it, each with its key path.
    """
    given = [str(name) for name in _mapping(data.get("streams"))]
    data = apply_overrides(data, overrides)
    streams = _mapping(data.get("streams"))
    removed = [str(name) for name, stream in streams.items() if stream is None]  # `streams.NAME=null` takes one out
    problems = [
        f"streams.{name}: no stream to take out.{did_you_mean(name, given)} Known: {', '.join(given)}"
        for name in removed
        if name not in given
    ]
    if removed:
        data = data | {"streams": {name: stream for name, stream in streams.items() if stream is not None}}
    experiment = None
    try:
        experiment = validate_strictly(Experiment, data)
    except ValidationError as error:
        problems += problems_of(error)
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
