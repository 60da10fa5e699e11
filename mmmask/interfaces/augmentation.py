"""Augmentation: a random change of a sample, made in a worker."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from mmmask.interfaces.component import Component
from mmmask.interfaces.sample import View


class Augmentation(Component):
    """Changes the content of a sample; modalities apply a list of them, in order, in `Preparation.prepare`.

    Holds settings only and is picklable: one object serves all workers.
    """

    @abstractmethod
    def __call__(self, content: Tensor, view: View, size: tuple[int, ...]) -> Tensor:
        """The changed content, in the dtype it came in.

        Args:
            content: (..., channels, *extent) as decoded; leading axes (frames) share every draw.
            view: `view.place` draws geometry (crops, flips), `view.generator` appearance; a generator that is None asks
                for the deterministic form, such as the centre crop or no change.
            size: extent of the prepared sample along its last axes, such as (height, width).
        """
