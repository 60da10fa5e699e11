"""Loading one sample: decode once, prepare each replica, replace what cannot be decoded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmmask.data.order import Draw
from mmmask.interfaces import PLAIN, BadSample, Preparation, Source, View
from mmmask.interfaces.source import SourceError
from mmmask.randomness import seeded_generator

ATTEMPTS = 20


@dataclass(frozen=True)
class BadRecord:
    """A sample that could not be used: what the source calls it, and why."""

    sample: str
    reason: str


@dataclass(frozen=True)
class Batch:
    """One micro-batch of a stream.

    Attributes:
        samples: (batch, *sample_shape), replicas of a sample side by side.
        distinct: decoded samples.
        bad: samples that were replaced on the way.
    """

    samples: Tensor
    distinct: int
    bad: tuple[BadRecord, ...]


class TooManyBad(SourceError):
    """Sample after sample could not be decoded; carries their records, to be written down."""

    def __init__(self, stream: str, records: tuple[BadRecord, ...]) -> None:
        self.stream, self.records = stream, records
        super().__init__(
            f"streams.{stream}.source: {ATTEMPTS} samples in a row could not be decoded; the last: "
            f"{records[-1].sample}: {records[-1].reason}"
        )


class SampleLoader:
    """Turns draws into batches; a pure function of (seed, stream, draw), whichever worker runs it.

    Random draws within a sample come from (seed, stream, epoch, index), of a replica's crop from (..., replica).
    """

    def __init__(self, source: Source, preparation: Preparation, replicate: int, seed: int, stream: str) -> None:
        self.source, self.preparation = source, preparation
        self.replicate, self.seed, self.stream = replicate, seed, stream

    def batch(self, draws: list[Draw]) -> Batch:
        """The samples of the draws, each replaced, deterministically, where it is bad.

        Raises:
            SourceError: many samples in a row are bad.
        """
        samples: list[Tensor] = []
        bad: list[BadRecord] = []
        for draw in draws:
            samples.extend(self._replicas(draw, bad))
        return Batch(self.preparation.collate(samples), len(draws), tuple(bad))

    def plain(self, index: int) -> Tensor:
        """One sample, prepared without any randomness, (*sample_shape).

        Raises:
            BadSample: it cannot be decoded.
        """
        return self.preparation.prepare(self.preparation.decode(self.source.load(index), PLAIN), PLAIN)

    def _replicas(self, draw: Draw, bad: list[BadRecord]) -> list[Tensor]:
        epoch, index = draw
        substitutes = seeded_generator(self.seed, "substitute", self.stream, epoch, index)
        for _ in range(ATTEMPTS):
            try:
                return self._load(epoch, index)
            except BadSample as error:
                bad.append(BadRecord(self.source.describe(index), str(error)))
                index = int(torch.randint(len(self.source), (), generator=substitutes))
        raise TooManyBad(self.stream, tuple(bad))

    def _load(self, epoch: int, index: int) -> list[Tensor]:
        where = (self.seed, "sample", self.stream, epoch, index)
        decoded = self.preparation.decode(self.source.load(index), View(seeded_generator(*where)))
        return [
            self.preparation.prepare(decoded, View(seeded_generator(*where, replica)))
            for replica in range(self.replicate)
        ]
