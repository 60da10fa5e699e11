"""A YAML file (+ overrides) -> a validated experiment."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mmmask.experiment.errors import ExperimentError

if TYPE_CHECKING:
    from mmmask.experiment.loading import experiment_from_data, load_experiment
    from mmmask.experiment.settings import Experiment, ScheduleSettings, StreamSettings

# Imported on first use: names of experiments are listed without torch.
_LAZY = {
    **dict.fromkeys(("experiment_from_data", "load_experiment"), "loading"),
    **dict.fromkeys(("Experiment", "ScheduleSettings", "StreamSettings"), "settings"),
}

__all__ = [
    "Experiment",
    "ExperimentError",
    "ScheduleSettings",
    "StreamSettings",
    "experiment_from_data",
    "load_experiment",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the public name stands for
    if name not in _LAZY:
        raise AttributeError(f"module 'mmmask.experiment' has no attribute {name!r}")
    return getattr(importlib.import_module(f"mmmask.experiment.{_LAZY[name]}"), name)
