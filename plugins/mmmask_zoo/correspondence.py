"""Tensors of a foreign layout and mmmask's own, pair by pair: one table, read in one direction, written in the other.

A pair does nothing where the file (reading) or the model (writing) lacks its tensors: the loader reports what is then
missing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mmmask.interfaces import Grid
from mmmask.interop import resize_relative_table, resize_table
from mmmask_zoo.conversion import Conversion, times
from mmmask_zoo.writing import Writing


class Pair(ABC):
    """Tensors of a file, and the model's that correspond to them."""

    @abstractmethod
    def read(self, conversion: Conversion) -> None:
        """From the file to mmmask.

        Raises:
            InteropError: the file has a part of it only, or parts that do not fit together.
        """

    @abstractmethod
    def write(self, writing: Writing) -> None:
        """From mmmask to the file.

        Raises:
            InteropError: the layout has no place for a tensor of such a shape.
        """


@dataclass(frozen=True)
class Same(Pair):
    """A tensor as it is, under another name."""

    foreign: str
    own: str

    def read(self, conversion: Conversion) -> None:
        """Renames it."""
        conversion.take(self.foreign, self.own)

    def write(self, writing: Writing) -> None:
        """Renames it back."""
        if (tensor := writing.pop(self.own)) is not None:
            writing.written[self.foreign] = tensor


def linear(foreign: str, own: str) -> Iterator[Pair]:
    """Weight and bias of a linear layer, a LayerNorm or any other module, as they are."""
    for part in ("weight", "bias"):
        yield Same(f"{foreign}.{part}", f"{own}.{part}")


@dataclass(frozen=True)
class Vector(Pair):
    """A token or another vector: with axes of length one in the file, such as (1, 1, width); (width,) in mmmask.

    Attributes:
        shape: in the file, with -1 for its length.
        row: mmmask holds it as (1, width), one of several prefix tokens.
    """

    foreign: str
    own: str
    shape: tuple[int, ...] = (1, 1, -1)
    row: bool = False

    def read(self, conversion: Conversion) -> None:
        """Flattens it."""
        if self.foreign in conversion.source:
            flat = conversion.source[self.foreign].flatten()
            conversion.convert(self.foreign, self.own, flat.unsqueeze(0) if self.row else flat, "flattened")

    def write(self, writing: Writing) -> None:
        """Adds the axes."""
        if (tensor := writing.pop(self.own)) is not None:
            if tensor.shape[0] != 1 and self.row:
                raise writing.error(f"{self.own}: shape {tuple(tensor.shape)}; the layout has one such token")
            writing.written[self.foreign] = tensor.reshape(self.shape)


@dataclass(frozen=True)
class PatchEmbedding(Pair):
    """A convolution whose kernel is its stride; in mmmask a linear layer over a patch, channel fastest."""

    foreign: str
    own: str
    patch: tuple[int, ...]

    def read(self, conversion: Conversion) -> None:
        """Flattens the kernel: (out, channels, *patch) -> (out, prod(patch) * channels)."""
        key = f"{self.foreign}.weight"
        if key in conversion.source:
            axes = ("frames", "height", "width")[-len(self.patch) :]
            weight = conversion.tensor(key, f"outputs, inputs, {', '.join(axes)} of a kernel")
            flat = weight.permute(0, *range(2, weight.dim()), 1).flatten(1)
            conversion.convert(key, f"{self.own}.weight", flat, "convolution as a linear layer, channel fastest")
        conversion.take(f"{self.foreign}.bias", f"{self.own}.bias")

    def write(self, writing: Writing) -> None:
        """Lays the kernel out again."""
        if (weight := writing.pop(f"{self.own}.weight")) is not None:
            writing.written[f"{self.foreign}.weight"] = weight.unflatten(1, (*self.patch, -1)).movedim(-1, 1)
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


@dataclass(frozen=True)
class Computed(Pair):
    """A buffer of the file that mmmask computes when it is needed.

    Attributes:
        compute: the tensor to write.
    """

    foreign: str
    compute: Callable[[], Tensor]
    why: str

    def read(self, conversion: Conversion) -> None:
        """Names it as unused."""
        conversion.ignore(self.foreign, self.why)

    def write(self, writing: Writing) -> None:
        """Computes it."""
        writing.written[self.foreign] = self.compute()


@dataclass(frozen=True)
class LearnedTable(Pair):
    """A learned table of positions: (1, tokens, width) in the file, (tokens, width) in mmmask.

    Attributes:
        trained: the grid of the file's table.
        grid: the model's grid, to which a table that is read is resized.
    """

    foreign: str
    own: str
    trained: Grid
    grid: Grid

    def read(self, conversion: Conversion) -> None:
        """Drops the leading axis, and resizes the rest where the grids differ."""
        if self.foreign in conversion.source:
            self.take(conversion, conversion.tensor(self.foreign, "1, positions, width")[0])

    def take(self, conversion: Conversion, table: Tensor) -> None:
        """Resizes a table (tokens of `trained`, width).

        Raises:
            InteropError: it has another number of rows.
        """
        try:
            resized = resize_table(table, self.trained, self.grid)
        except ValueError as error:
            raise conversion.error(f"{self.foreign}: {error}") from error
        how = f"resized from {times(self.trained)} to {times(self.grid)} tokens"
        conversion.convert(self.foreign, self.own, resized, "flattened" if self.trained == self.grid else how)

    def write(self, writing: Writing) -> None:
        """Adds the leading axis."""
        if (tensor := writing.pop(self.own)) is not None:
            writing.written[self.foreign] = tensor.unsqueeze(0)


@dataclass(frozen=True)
class RelativeTable(Pair):
    """A learned bias per relative offset and head, and after these three rows for a cls token (BEiT).

    Attributes:
        trained: the grid of the file's table.
        grid: the model's grid, to which a table that is read is resized.
    """

    foreign: str
    own: str
    trained: Grid
    grid: Grid

    def read(self, conversion: Conversion) -> None:
        """Resizes it where the grids differ."""
        if self.trained == self.grid:
            conversion.take(self.foreign, self.own)
        elif self.foreign in conversion.source:
            table = conversion.tensor(self.foreign, "offsets, heads")
            resized = resize_relative_table(table, self.trained, self.grid, extra=3)
            conversion.convert(self.foreign, self.own, resized, f"resized from {self.trained} to {self.grid} tokens")

    def write(self, writing: Writing) -> None:
        """Writes it as it is."""
        Same(self.foreign, self.own).write(writing)


def read_all(pairs: Iterable[Pair], conversion: Conversion) -> None:
    """Reads every pair."""
    for pair in pairs:
        pair.read(conversion)


def write_all(pairs: Iterable[Pair], writing: Writing) -> None:
    """Writes every pair."""
    for pair in pairs:
        pair.write(writing)
