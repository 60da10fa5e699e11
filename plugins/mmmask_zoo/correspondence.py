"""Tensors of a foreign layout and mmmask's own, pair by pair: one table, read in one direction, written in the other.

A pair of which the file or the model has nothing does nothing: what then is missing, the loader finds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mmmask_zoo.conversion import Conversion
from mmmask_zoo.writing import Writing


class Pair(ABC):
    """What a file holds, and what mmmask holds in its place."""

    @abstractmethod
    def read(self, conversion: Conversion) -> None:
        """From the file to mmmask.

        Raises:
            InteropError: the file has a part of it only, or parts that do not fit together.
        """

    @abstractmethod
    def write(self, writing: Writing) -> None:
        """From mmmask to the file."""


@dataclass(frozen=True)
class Same(Pair):
    """A tensor as it is, under another name."""

    foreign: str
    own: str

    def read(self, conversion: Conversion) -> None:
        """Takes it."""
        conversion.take(self.foreign, self.own)

    def write(self, writing: Writing) -> None:
        """Gives it."""
        if (tensor := writing.pop(self.own)) is not None:
            writing.written[self.foreign] = tensor


def linear(foreign: str, own: str) -> Iterator[Pair]:
    """Weight and bias of a linear layer or a LayerNorm."""
    for part in ("weight", "bias"):
        yield Same(f"{foreign}.{part}", f"{own}.{part}")


@dataclass(frozen=True)
class Token(Pair):
    """A learned token: (1, 1, width) in the file; (width,) in mmmask, or (1, width) where it is one of a `row`."""

    foreign: str
    own: str
    row: bool = False

    def read(self, conversion: Conversion) -> None:
        """Drops the leading axes."""
        conversion.flatten(self.foreign, self.own, self.row)

    def write(self, writing: Writing) -> None:
        """Adds them."""
        if (tensor := writing.pop(self.own)) is not None:
            writing.written[self.foreign] = tensor.reshape(1, 1, -1)


@dataclass(frozen=True)
class PatchEmbedding(Pair):
    """A convolution whose kernel is its stride; in mmmask a linear layer over a token, channel fastest."""

    foreign: str
    own: str
    patch: tuple[int, ...]

    def read(self, conversion: Conversion) -> None:
        """Flattens the kernel."""
        conversion.embedding(self.foreign, self.own)

    def write(self, writing: Writing) -> None:
        """Lays it out again."""
        if (weight := writing.pop(f"{self.own}.weight")) is not None:
            writing.written[f"{self.foreign}.weight"] = channels_first(weight, self.patch)
        Same(f"{self.foreign}.bias", f"{self.own}.bias").write(writing)


@dataclass(frozen=True)
class Stacked(Pair):
    """Equally large tensors that mmmask holds as one, one below the other, such as queries, keys and values."""

    foreign: tuple[str, ...]
    own: str

    def read(self, conversion: Conversion) -> None:
        """Stacks them."""
        present = [key for key in self.foreign if key in conversion.source]
        if not present:
            return
        if missing := [key for key in self.foreign if key not in present]:
            raise conversion.error(f"{missing[0]} is missing")
        parts = [conversion.source[key] for key in self.foreign]
        shapes = [tuple(part.shape) for part in parts]
        if len(set(shapes)) > 1 or () in shapes:
            raise conversion.error(f"{', '.join(self.foreign)}: shapes {', '.join(map(str, shapes))} do not stack")
        conversion.convert(self.foreign, self.own, torch.cat(parts), f"one of {len(parts)} parts of {self.own}")

    def write(self, writing: Writing) -> None:
        """Takes them apart."""
        if (tensor := writing.pop(self.own)) is not None:
            writing.written |= zip(self.foreign, tensor.chunk(len(self.foreign)), strict=True)


def read_all(pairs: Iterable[Pair], conversion: Conversion) -> None:
    """Every pair from the file to mmmask."""
    for pair in pairs:
        pair.read(conversion)


def write_all(pairs: Iterable[Pair], writing: Writing) -> None:
    """Every pair from mmmask to the file."""
    for pair in pairs:
        pair.write(writing)


def channels_first(weight: Tensor, patch: tuple[int, ...]) -> Tensor:
    """(out, prod(patch) * channels) -> (out, channels, *patch), the inverse of `conversion.channel_fastest`."""
    return weight.unflatten(1, (*patch, -1)).movedim(-1, 1)
