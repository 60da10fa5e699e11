"""A YAML file (+ overrides) -> a validated experiment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmmask.experiment.errors import ExperimentError
from mmmask_registry import lazy_attributes

if TYPE_CHECKING:
    from mmmask.experiment.loading import experiment_from_data, load_experiment
    from mmmask.experiment.settings import Experiment, ScheduleSettings, StreamSettings

# Imported on first use: names of experiments are listed without torch.
__getattr__ = lazy_attributes(__name__)

__all__ = [
    "Experiment",
    "ExperimentError",
    "ScheduleSettings",
    "StreamSettings",
    "experiment_from_data",
    "load_experiment",
]
