"""Sample: one record of a source, as parts and labels; View: the look at it that is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class View:
    """One look at a sample, as `decode` and `prepare` are asked for it.

    Attributes:
        generator: source of all randomness of this part's appearance; None asks for the deterministic view.
        index: number of the view among `of`, for evaluation on several clips or crops.
        of: how many views there are of the sample.
        geometry: source of the randomness that aligned parts share (crops, flips); None takes `generator`.
    """

    generator: torch.Generator | None = None
    index: int = 0
    of: int = 1
    geometry: torch.Generator | None = None

    @property
    def place(self) -> torch.Generator | None:
        """Generator of windows, crops and flips; None asks for the deterministic ones."""
        return self.generator if self.geometry is None else self.geometry

    def fraction(self) -> float:
        """Start of a window within the spare time or space, in [0, 1): drawn from `place`, or (index + 0.5) / of."""
        if self.place is None:
            return (self.index + 0.5) / self.of
        return float(torch.rand((), dtype=torch.float64, generator=self.place))


PLAIN = View()
"""The deterministic view: held-out samples, pictures."""


@dataclass(frozen=True)
class Sample:
    """One prepared sample.

    Attributes:
        parts: {name: tensor (*sample_shape)}; a stream of one modality has one part, named like the stream.
        present: {name of a part: whether the sample has it}, where it may be missing; the tensor of a missing one is 0.
        labels: {label set: number of the class}, of a set of `Source.several` float32 (classes,) of zeros and ones; -1
            throughout where the sample has no label. Empty where the source has no labels.
        index: number of the sample in its source.
    """

    parts: Mapping[str, Tensor]
    labels: Mapping[str, int | Tensor] = field(default_factory=dict)
    index: int = -1
    present: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """Samples of one stream, stacked.

    Attributes:
        parts: {name: tensor (batch, *sample_shape)}.
        labels: {label set: int64 (batch,), or float32 (batch, classes)}, as in the samples.
        index: int64 (batch,), numbers of the samples in their source; None where the samples are of no source.
        present: {part: bool (batch,)} where parts may be missing.
    """

    parts: Mapping[str, Tensor]
    labels: Mapping[str, Tensor] = field(default_factory=dict)
    index: Tensor | None = None
    present: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.parts.values())))

    @property
    def content(self) -> Tensor:
        """The only part, (batch, *sample_shape).

        Raises:
            ValueError: there are several.
        """
        if len(self.parts) != 1:
            raise ValueError(f"a batch of several parts ({', '.join(self.parts)}) where one is taken")
        return next(iter(self.parts.values()))

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with every tensor changed, such as moved to a device: `batch.map(lambda t: t.to(device))`."""
        return Batch(
            {name: change(part) for name, part in self.parts.items()},
            {name: change(part) for name, part in self.labels.items()},
            None if self.index is None else change(self.index),
            {name: change(part) for name, part in self.present.items()},
        )

    @staticmethod
    def of(samples: Sequence[Sample], collate: Callable[[list[Tensor]], Tensor] = torch.stack) -> Batch:
        """Stacks samples; `collate` makes one tensor of a part's tensors."""
        first = samples[0]
        return Batch(
            {name: collate([sample.parts[name] for sample in samples]) for name in first.parts},
            {name: torch.stack([torch.as_tensor(sample.labels[name]) for sample in samples]) for name in first.labels},
            torch.tensor([sample.index for sample in samples]),
            {name: torch.tensor([sample.present[name] for sample in samples]) for name in first.present},
        )
