"""Augmentation: a random change of a sample, made in a worker."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor

from mmmask.interfaces.component import ChosenByName, Component, build
from mmmask.interfaces.sample import View
from mmmask.interfaces.tokens import TokenSpec


@dataclass(frozen=True)
class Target:
    """The sample that content is to become.

    Attributes:
        size: extent of a sample along its last axes, such as (height, width).
        spec: of its tokens: mean, standard deviation and scale of stored values.
        resize: (..., channels, *extent) -> (..., channels, *size), the whole content, with the modality's own
            interpolation.
    """

    size: tuple[int, ...]
    spec: TokenSpec
    resize: Callable[[Tensor], Tensor]

    def stored(self, raw: Tensor, dtype: torch.dtype) -> Tensor:
        """Raw values, in the unit of the source, as content of this dtype holds them.

        Integers: limited to the spec's `range` and to those of the dtype, and rounded.
        """
        if dtype.is_floating_point:
            return (raw * self.spec.scale).to(dtype)
        limits = torch.iinfo(dtype)
        return (self.spec.clamp(raw) * self.spec.scale).round().clamp(limits.min, limits.max).to(dtype)


class Augmentation(Component):
    """Changes the content of a sample; modalities apply a list of them, in order, in `Preparation.prepare`.

    Holds settings only and is picklable: one object serves all workers. Content that is not of the sample's extent
    after the last of them is resized and cropped by the modality.
    """

    @abstractmethod
    def __call__(self, content: Tensor, view: View, target: Target) -> Tensor:
        """The changed content, in the dtype it came in; never the tensor that was given, changed in place.

        Args:
            content: (..., channels, *extent) as decoded; leading axes (frames) share every draw.
            view: `view.place` draws geometry (crops, flips), equally often whatever the resolution, as aligned parts
                share the draws; `view.generator` appearance. A generator that is None asks for no change.
            target: resizes a part of the content to the extent of a sample, and says what stored values mean.

        Raises:
            MmmaskError: content of this dtype, or with so many channels, is not what it changes.
        """


AugmentationChoice = Annotated[Component.Config, ChosenByName("augmentation")]
"""The type of a setting that names an augmentation."""


@dataclass(frozen=True)
class Augmentations:
    """The augmentations that a modality's setting lists, applied in order.

    Attributes:
        chosen: settings of each.
        target: the sample that content is to become.
    """

    chosen: Sequence[Component.Config]
    target: Target
    _built: list[Augmentation] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_built", [build("augmentation", config) for config in self.chosen])

    def __call__(self, content: Tensor, view: View) -> Tensor:
        """The changed content; without randomness the content itself."""
        for augmentation in self._built:
            content = augmentation(content, view, self.target)
        return content
