"""Evaluator: figures of one stream on held-out samples."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from mmmask.interfaces.component import Component
from mmmask.interfaces.sample import Batch


class Evaluator(Component):
    """Accumulates figures over the batches of one stream; built anew for every evaluation.

    Built with the `model`, in evaluation mode, and the `stream`'s name.
    """

    needs_labels: ClassVar[bool] = False
    """Whether it needs labels: held-out samples then have the classes of the training source, and no others."""

    def __init__(self, config: Any, model: Any, stream: str) -> None:  # noqa: ANN401 - the model stands above interfaces
        super().__init__(config)
        self.model, self.stream = model, stream

    @property
    def training_samples(self) -> int:
        """Number of training samples, in the deterministic view, that it wants to see first; fewer where there are
        fewer, and with labels alone where it needs labels."""
        return 0

    def fit(self, batch: Batch) -> None:  # noqa: B027 - most want none
        """Receives some of the training samples, on the model's device; called before `add`, several times."""

    @abstractmethod
    def add(self, batch: Batch, first: int, total: int) -> None:
        """Adds the held-out samples `first ..` of `total`, on the model's device."""

    @abstractmethod
    def figures(self) -> dict[str, float | None]:
        """{name: figure} of all samples so far; None where a figure does not apply."""

    def state(self) -> Any:  # noqa: ANN401 - its own
        """Sums of all samples so far, picklable, on the CPU; asked for where `merge` is there."""
        raise NotImplementedError

    def merge(self, states: Sequence[Any]) -> None:
        """Replaces its state by those of all processes, given in order.

        An evaluator with both methods shares held-out samples with the other processes; without them every process
        adds all samples.
        """
        raise NotImplementedError

    @property
    def merges(self) -> bool:
        """Whether processes can share the samples."""
        return type(self).merge is not Evaluator.merge
