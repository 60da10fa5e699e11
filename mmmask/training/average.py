"""Moving average of the weights, beside the weights themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mmmask.experiment.settings import AverageSettings


class Average:
    """Exponential moving average of the parameters that train, of which it is one more copy.

    Frozen parameters and buffers, such as running statistics, are the model's own. Before the first update there is no
    average but the weights.
    """

    def __init__(self, model: nn.Module, settings: AverageSettings) -> None:
        self.settings = settings
        self._weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self._list = nn.ParameterList(self._weights.values())  # the model's parameters, not copies
        self._averaged = AveragedModel(self._list, multi_avg_fn=get_ema_multi_avg_fn(settings.decay))

    @property
    def begun(self) -> bool:
        """Whether there was an update, so that it differs from the weights."""
        return bool(self._averaged.n_averaged > 0)

    def update(self, step: int) -> None:
        """Adds the weights after so many steps, where that is due."""
        if step > self.settings.start and step % self.settings.every == 0:
            self._averaged.update_parameters(self._list)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the average for its weights within this block."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for weight, averaged in zip(self._weights.values(), self._averaged.parameters(), strict=True):
            kept = weight.clone()
            weight.copy_(averaged)
            averaged.copy_(kept)
        torch.clear_autocast_cache()  # it holds what was there before, in bfloat16

    def state_dict(self) -> dict[str, Any]:
        """Number of updates, and {parameter of the model: its average}, of none before the first update."""
        weights = zip(self._weights, self._averaged.parameters(), strict=True) if self.begun else ()
        return {
            "updates": int(self._averaged.n_averaged),
            "weights": {name: averaged.detach() for name, averaged in weights},
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state_dict`.

        Raises:
            ValueError: it is the average of other parameters.
        """
        saved = state["weights"]
        if state["updates"] and saved.keys() != self._weights.keys():
            raise ValueError("it is the average of other parameters")
        self._averaged.n_averaged.fill_(state["updates"])
        for name, averaged in zip(self._weights, self._averaged.parameters(), strict=True):
            if saved:
                averaged.copy_(saved[name])
