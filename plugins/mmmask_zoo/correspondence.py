"""Tensors of a foreign layout and mmmask's own, pair by pair: one table, read in one direction, written in the other.

A pair does nothing where the file (reading) or the model (writing) lacks its tensors: the loader reports what is then
missing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmmask.interfaces import Grid
from mmmask.interop import resize_table
from mmmask_zoo.conversion import Conversion, times
from mmmask_zoo.writing import Writing


@dataclass(frozen=True)
class Pair:
    """One or several tensors of a file, and the model's that corresponds to them.

    Attributes:
        foreign: keys in the file.
        own: key in mmmask.
        how: the tensor is converted, for the report; empty where it is taken as it is.
        to_own: of the file's tensors; it raises ValueError where they do not fit.
        to_foreign: the inverse.
        axes: names of the axes that the file's tensor must have; empty where any will do.
    """

    foreign: tuple[str, ...]
    own: str
    how: str = ""
    to_own: Callable[..., Tensor] = lambda tensor: tensor
    to_foreign: Callable[[Tensor], Sequence[Tensor]] = lambda tensor: [tensor]
    axes: str = ""

    def read(self, conversion: Conversion) -> None:
        """From the file to mmmask.

        Raises:
            InteropError: the file has some of the tensors only, or they do not fit.
        """
        missing = [key for key in self.foreign if key not in conversion.source]
        if len(missing) == len(self.foreign):
            return
        if missing:
            raise conversion.error(f"{missing[0]} is missing")
        tensors = [conversion.tensor(key, self.axes) if self.axes else conversion.source[key] for key in self.foreign]
        try:
            conversion.add(self.foreign, self.own, self.to_own(*tensors), self.how)
        except ValueError as error:
            raise conversion.error(f"{', '.join(self.foreign)}: {error}") from error

    def write(self, writing: Writing) -> None:
        """From mmmask to the file."""
        if (tensor := writing.pop(self.own)) is not None:
            writing.written |= zip(self.foreign, self.to_foreign(tensor), strict=True)


@dataclass(frozen=True)
class Computed:
    """A buffer of the file that mmmask computes when it is needed.

    Attributes:
        compute: the tensor to write, None for none.
    """

    foreign: str
    compute: Callable[[], Tensor | None]
    why: str

    def read(self, conversion: Conversion) -> None:
        """Names it as unused."""
        conversion.ignore(self.foreign, self.why)

    def write(self, writing: Writing) -> None:
        """Computes it."""
        if (tensor := self.compute()) is not None:
            writing.written[self.foreign] = tensor


Table = Iterable[Pair | Computed]


def read_all(table: Table, conversion: Conversion) -> None:
    """Reads every pair."""
    for pair in table:
        pair.read(conversion)


def write_all(table: Table, writing: Writing) -> None:
    """Writes every pair."""
    for pair in table:
        pair.write(writing)


def linear(foreign: str, own: str) -> Iterator[Pair]:
    """Weight and bias of a linear layer, a LayerNorm or any other module, as they are."""
    for part in ("weight", "bias"):
        yield Pair((f"{foreign}.{part}",), f"{own}.{part}")


def vector(foreign: str, own: str, shape: tuple[int, ...] = (1, 1, -1), row: bool = False) -> Pair:
    """A token or another vector: with axes of length one in the file, flat in mmmask.

    Args:
        shape: in the file, with -1 for its length.
        row: mmmask holds it as (1, width), one of several prefix tokens.
    """
    own_shape = (1, -1) if row else (-1,)
    return Pair(
        (foreign,), own, "flattened", lambda tensor: tensor.reshape(own_shape), lambda tensor: [tensor.reshape(shape)]
    )


def patch_embedding(foreign: str, own: str, patch: tuple[int, ...]) -> Iterator[Pair]:
    """A convolution whose kernel is its stride; in mmmask a linear layer over a patch, channel fastest."""
    yield Pair(
        (f"{foreign}.weight",),
        f"{own}.weight",
        "convolution as a linear layer over a token, channel fastest",
        lambda weight: weight.movedim(1, -1).flatten(1),
        lambda weight: [weight.unflatten(1, (*patch, -1)).movedim(-1, 1)],
        axes=f"outputs, inputs, {', '.join(('frames', 'height', 'width')[-len(patch) :])} of a kernel",
    )
    yield Pair((f"{foreign}.bias",), f"{own}.bias")


def channel_first_head(
    foreign: str, own: str, channels: int, size: tuple[int, ...], convolution: bool = False
) -> Iterator[Pair]:
    """A linear layer or 1 x 1 convolution with outputs (channel, height, width) of a token; here channel fastest."""

    def to_own(tensor: Tensor) -> Tensor:
        if tensor.shape[0] != channels * math.prod(size):
            raise ValueError(f"{tensor.shape[0]} outputs, a token has {times((channels, *size))}")
        tensor = tensor.flatten(1) if tensor.dim() > 1 else tensor
        return tensor.unflatten(0, (channels, *size)).movedim(0, len(size)).flatten(0, len(size))

    def to_foreign(tensor: Tensor) -> list[Tensor]:
        tensor = tensor.unflatten(0, (*size, channels)).movedim(len(size), 0).flatten(0, len(size))
        return [tensor[..., None, None] if convolution and tensor.dim() > 1 else tensor]

    how = "convolution and pixel shuffle as a linear layer, channel fastest" if convolution else "channel fastest"
    for part, axes in (("weight", "outputs, width, 1, 1" if convolution else "outputs, width"), ("bias", "outputs")):
        yield Pair((f"{foreign}.{part}",), f"{own}.{part}", how, to_own, to_foreign, axes)


def stacked(foreign: tuple[str, ...], own: str) -> Pair:
    """Equally large tensors that mmmask holds as one, one below the other, such as queries, keys and values."""

    def stack(*parts: Tensor) -> Tensor:
        shapes = [tuple(part.shape) for part in parts]
        if len(set(shapes)) > 1 or () in shapes:
            raise ValueError(f"shapes {', '.join(map(str, shapes))} do not stack")
        return torch.cat(parts)

    return Pair(foreign, own, f"one of {len(foreign)} parts of {own}", stack, lambda whole: whole.chunk(len(foreign)))


def learned_table(foreign: str, own: str, trained: Grid, grid: Grid, num_prefix: int = 0) -> Pair:
    """A learned table of positions: (1, prefix + tokens, width) in the file, (tokens, width) in mmmask.

    Args:
        trained: grid of the file's table.
        grid: the model's, to which a table that is read is resized.
        num_prefix: rows of prefix tokens before it, which are left; a table with such rows is only read.
    """
    is_resized = tuple(trained) != tuple(grid)
    return Pair(
        (foreign,),
        own,
        f"resized from {times(trained)} to {times(grid)} tokens" if is_resized else "flattened",
        lambda table: resize_table(table[0, num_prefix:], trained, grid),
        lambda table: [table.unsqueeze(0)],
        axes="1, positions, width",
    )


def learned_tables(foreign: str, own: str, trained: Grid, grid: Grid, num_prefix: int) -> Iterator[Pair]:
    """A learned table that begins with rows of prefix tokens, as `own.table` and `own.prefix_table`; only read."""
    table = learned_table(foreign, f"{own}.table", trained, grid, num_prefix)
    yield table
    if num_prefix:
        yield replace(table, own=f"{own}.prefix_table", to_own=lambda rows: rows[0, :num_prefix])
