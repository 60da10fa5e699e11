"""Augmentation: a random change of a sample, made in a worker."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Protocol

from torch import Tensor

from mmmask.interfaces.component import ChosenByName, Component
from mmmask.interfaces.sample import View


class Resize(Protocol):
    """Resizing of content to the extent of a sample, with the modality's own interpolation."""

    @property
    def size(self) -> tuple[int, ...]:
        """Extent of a sample along its last axes, such as (height, width)."""
        ...

    def __call__(self, content: Tensor) -> Tensor:
        """(..., channels, *extent) -> (..., channels, *size), the whole content."""
        ...


class Augmentation(Component):
    """Changes the content of a sample; modalities apply a list of them, in order, in `Preparation.prepare`.

    Holds settings only and is picklable: one object serves all workers. Content that is not of the sample's extent
    after the last of them is resized and cropped by the modality.
    """

    @abstractmethod
    def __call__(self, content: Tensor, view: View, resize: Resize) -> Tensor:
        """The changed content, in the dtype it came in; never the tensor that was given, changed in place.

        Args:
            content: (..., channels, *extent) as decoded; leading axes (frames) share every draw.
            view: `view.place` draws geometry (crops, flips), `view.generator` appearance; a generator that is None asks
                for no change.
            resize: brings a part of the content to the extent of a sample.
        """


AugmentationChoice = Annotated[Component.Config, ChosenByName("augmentation")]
"""The type of a setting that names an augmentation; `build("augmentation", config)` makes it."""
