"""The learning rate over training, on fvcore's schedulers."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    ConstantParamScheduler,
    CosineParamScheduler,
    LinearParamScheduler,
    ParamScheduler,
)

from mmmask.experiment import ScheduleSettings


def learning_rate_schedule(settings: ScheduleSettings, peak: float, steps: int) -> Callable[[int], float]:
    """The rate at a step (0 .. steps).

    A linear warm-up from `warmup_start`, then `shape` from `peak` to `end`. With `progress: fixed` the shape sees the
    progress of the whole training, so that a cosine begins a little below its peak (OmniMAE's release: at
    0.5 (1 + cos(0.05 pi)) of it after 5 % warm-up).
    """
    shapes: dict[str, Callable[[], ParamScheduler]] = {
        "cosine": lambda: CosineParamScheduler(peak, settings.end),
        "linear": lambda: LinearParamScheduler(peak, settings.end),
        "constant": lambda: ConstantParamScheduler(peak),
        "multistep": lambda: _multistep(settings, peak),
    }
    scheduler = shapes[settings.shape]()
    if settings.warmup > 0:
        scheduler = CompositeParamScheduler(
            [LinearParamScheduler(settings.warmup_start, peak), scheduler],
            lengths=[settings.warmup, 1 - settings.warmup],
            interval_scaling=["rescaled", settings.progress],
        )
    last = 1 - 1e-12  # fvcore's schedulers are defined on [0, 1)
    return lambda step: float(scheduler(min(step / steps, last)))


def _multistep(settings: ScheduleSettings, peak: float) -> ParamScheduler:
    """The peak, multiplied by `factor` at every milestone."""
    bounds = (0.0, *settings.milestones, 1.0)
    return CompositeParamScheduler(
        [ConstantParamScheduler(peak * settings.factor**number) for number in range(len(bounds) - 1)],
        lengths=[end - start for start, end in pairwise(bounds)],
        interval_scaling=["fixed"] * (len(bounds) - 1),
    )
