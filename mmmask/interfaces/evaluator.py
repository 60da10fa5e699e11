"""Evaluator: figures of one stream on held-out samples."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from mmmask.interfaces.component import Component
from mmmask.interfaces.sample import Batch


class Evaluator(Component):
    """Accumulates figures over the batches of one stream; built anew for every evaluation.

    Built with the `model`, in evaluation mode, and the `stream`'s name.
    """

    def __init__(self, config: Any, model: Any, stream: str) -> None:  # noqa: ANN401 - the model stands above interfaces
        super().__init__(config)
        self.model, self.stream = model, stream

    @abstractmethod
    def add(self, batch: Batch, first: int, total: int) -> None:
        """Adds the held-out samples `first ..` of `total`, on the model's device."""

    @abstractmethod
    def figures(self) -> dict[str, float | None]:
        """{name: figure} of all samples so far; None where a figure does not apply."""

    def state(self) -> Any:  # noqa: ANN401 - its own
        """What was added so far, picklable, on the CPU; asked for where `merge` is there."""
        raise NotImplementedError

    def merge(self, states: Sequence[Any]) -> None:
        """Takes the states of all processes, in order, in place of its own.

        An evaluator with both methods shares held-out samples with the other processes; without them every process
        adds all samples.
        """
        raise NotImplementedError

    @property
    def merges(self) -> bool:
        """Whether processes can share the samples."""
        return type(self).merge is not Evaluator.merge
