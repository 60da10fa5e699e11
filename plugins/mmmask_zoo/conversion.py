"""One checkpoint on its way into mmmask's terms: what was taken, what was changed, what was left."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmmask.builtins.positions import resize_table
from mmmask.interfaces import ForeignWeights
from mmmask.interop import InteropError

HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16}
"""Width of a published encoder -> its attention heads, which no key tells."""


class Conversion:
    """Collects mmmask's keys from a state dict, with an account of every foreign key.

    Args:
        format: its name, for messages.
        source: the foreign state dict.
    """

    def __init__(self, format: str, source: Mapping[str, Tensor]) -> None:
        self.format, self.source = format, source
        self.state: dict[str, Tensor] = {}
        self.origin: dict[str, tuple[str, ...]] = {}
        self.converted: dict[str, str] = {}
        self.unused: dict[str, str] = {}

    def finished(self, settings: dict[str, Any]) -> ForeignWeights:
        """What was collected, for the model that the settings describe."""
        return ForeignWeights(settings, self.state, self.origin, self.converted, self.unused)

    def error(self, problem: str) -> InteropError:
        """A problem with the format's name in front."""
        return InteropError(f"format {self.format}: {problem}")

    # --- what the file says of the model

    def has(self, *prefixes: str) -> bool:
        """Whether any key begins so."""
        return any(key.startswith(prefixes) for key in self.source)

    def tensor(self, key: str, axes: str) -> Tensor:
        """A tensor that cannot be done without, or that must be laid out anew.

        Args:
            axes: names of its axes, such as `decoder width, width`.

        Raises:
            InteropError: it is missing, empty, no floating point numbers, or has another number of axes.
        """
        if key not in self.source:
            raise self.error(f"{key} is missing")
        tensor = self.source[key]
        if tensor.dim() != len(axes.split(",")) or 0 in tensor.shape:
            raise self.error(f"{key}: shape {tuple(tensor.shape)}, expected ({axes})")
        if not tensor.is_floating_point():
            raise self.error(f"{key}: {tensor.dtype}, expected floating point numbers")
        return tensor

    def shape(self, key: str, axes: str) -> tuple[int, ...]:
        """The shape of a tensor that tells the model's sizes, as `tensor`."""
        return tuple(self.tensor(key, axes).shape)

    def depth(self, prefix: str) -> int:
        """How many blocks `prefix.0`, `prefix.1`, ... there are.

        Raises:
            InteropError: one is missing.
        """
        pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
        numbers = {int(found[1]) for key in self.source if (found := pattern.match(key))}
        depth = max(numbers, default=-1) + 1
        if len(numbers) != depth:
            raise self.error(f"{prefix}.{depth - 1}: blocks before it are missing")
        return depth

    def heads(self, given: int | None, width: int, published: Mapping[int, int] = HEADS) -> int:
        """Attention heads: those given, or those published for a width.

        Raises:
            InteropError: neither is known.
        """
        if given or width in published:
            return given or published[width]
        raise self.error(f"an encoder of width {width} is not published: give num_heads")

    def require_multiple(self, option: str, value: int | None, patch: int, unit: str) -> None:
        """Refuses a size that the file's patches do not fill.

        Args:
            value: of the option, None where it is not given.
            patch: what it must be a multiple of, in `unit`s, such as pixels.
        """
        if value and value % patch:
            raise self.error(f"{option} {value} is not a multiple of the file's patches of {patch} {unit}")

    # --- what is taken

    def take(self, old: str, new: str) -> None:
        """A tensor as it is; nothing where the file lacks it."""
        if old in self.source:
            self.state[new], self.origin[new] = self.source[old], (old,)

    def take_linear(self, old: str, new: str) -> None:
        """Weight and bias as they are."""
        for part in ("weight", "bias"):
            self.take(f"{old}.{part}", f"{new}.{part}")

    def take_blocks(self, old: str, new: str, renamed: Mapping[str, str] | None = None) -> None:
        """Every tensor under `old.0`, `old.1`, ... that is not accounted for already.

        Args:
            renamed: what a tensor is called within a block, where that differs: {foreign: mmmask's}.
        """
        pattern = re.compile(re.escape(old) + r"\.(\d+)\.(.+)")
        known = {key for origin in self.origin.values() for key in origin} | self.unused.keys()
        for key in self.source:
            if (block := pattern.fullmatch(key)) and key not in known:
                self.take(key, f"{new}.{block[1]}.{(renamed or {}).get(block[2], block[2])}")

    def convert(self, old: str | Sequence[str], new: str, tensor: Tensor, how: str) -> None:
        """A tensor that was made of one or several foreign ones."""
        origin = (old,) if isinstance(old, str) else tuple(old)
        self.state[new], self.origin[new] = tensor, origin
        self.converted |= dict.fromkeys(origin, how)

    def flatten(self, old: str, new: str, row: bool = False) -> None:
        """A token or a bias that the file holds with leading axes of one; (1, width) where it is one of a `row`."""
        if old in self.source:
            flat = self.source[old].flatten()
            self.convert(old, new, flat.unsqueeze(0) if row else flat, "flattened")

    def embedding(self, old: str, new: str, inflate: int | None = None) -> None:
        """A patch embedding: a convolution whose kernel is its stride, as a linear layer over a token.

        Args:
            inflate: makes tubelets of so many frames of patches: the kernel repeated in time and divided by their
                number, so that a still gives what its picture gave (I3D, section 2.1; OmniMAE's baseline).
        """
        weight, how = self.source[f"{old}.weight"], "convolution as a linear layer over a token, channel fastest"
        if inflate:
            weight = (weight / inflate).unsqueeze(2).repeat(1, 1, inflate, *([1] * (weight.dim() - 2)))
            how += f"; repeated over {inflate} frames and divided by their number"
        self.convert(f"{old}.weight", f"{new}.weight", channel_fastest(weight), how)
        self.take(f"{old}.bias", f"{new}.bias")

    def ignore(self, old: str, why: str) -> None:
        """A tensor that is not needed."""
        if old in self.source:
            self.unused[old] = why

    def learned_table(self, old: str, new: str, table: Tensor, trained: Sequence[int], grid: Sequence[int]) -> None:
        """A learned table of positions (tokens, width), resized where the grid differs, and said so.

        Raises:
            InteropError: it has another number of rows than the grid that it was trained for.
        """
        try:
            resized = resize_table(table, tuple(trained), tuple(grid))
        except ValueError as error:
            raise self.error(f"{old}: {error}") from error
        how = f"resized from {times(trained)} to {times(grid)} tokens" if tuple(trained) != tuple(grid) else "flattened"
        self.convert(old, new, resized, how)

    def fixed_table(self, old: str, computed: Tensor) -> bool:
        """Leaves out a table (1, rows, width) that is computed anyway; False where the file's is another one."""
        table = self.tensor(old, "1, positions, width")
        if table.shape[1:] != computed.shape:
            return False
        rounding = torch.finfo(table.dtype).eps / 2  # of the file's dtype, relative
        if not torch.allclose(table[0].float(), computed.float(), rtol=rounding, atol=1e-5):
            return False
        self.ignore(old, "the table is computed; the file's is the same")
        return True


def channel_fastest(weight: Tensor) -> Tensor:
    """(out, channels, *patch) -> (out, prod(patch) * channels), as tokens hold their content."""
    return weight.permute(0, *range(2, weight.dim()), 1).flatten(1)


def embedding_key(patch: Sequence[int], channels: int) -> str:
    """What the modalities of pixels call the embedding of such patches."""
    return f"pixels_{times((*patch, channels))}"


def square(tokens: int) -> int | None:
    """The side of a square of so many tokens, None where it is no square."""
    side = math.isqrt(max(tokens, 0))
    return side if side and side * side == tokens else None


def times(numbers: Sequence[int]) -> str:
    """A shape in words, such as 2x16x16."""
    return "x".join(map(str, numbers))
