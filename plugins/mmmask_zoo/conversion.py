"""Reading: the tensors of a file, the sizes that they tell, and an account of every key."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mmmask.interfaces import ForeignWeights, Format, Grid
from mmmask.interop import InteropError

ATTENTION_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16}
"""Width of a published encoder -> its attention heads, which no key tells."""


@dataclass(frozen=True)
class Patches:
    """Patches that an encoder embeds.

    Attributes:
        width: of an embedded patch.
        channels: numbers of a pixel.
        size: of a patch: (height, width) in pixels, with frames before these in clips.
        key: of the embedding in mmmask.
    """

    width: int
    channels: int
    size: tuple[int, ...]
    key: str

    def grid(self, frames: int, size: int) -> Grid:
        """Grid of a clip of so many frames, `size` pixels high and wide."""
        return frames // self.size[0], size // self.size[1], size // self.size[2]

    def modality(self, name: str, size: int, **more: object) -> dict[str, Any]:
        """Settings of a modality of such patches; `size` is height and width of its samples in pixels."""
        return {"name": name, "size": size, "patch_size": list(self.size), "channels": self.channels, **more}


class Conversion:
    """mmmask's weights out of a state dict, with an account of every foreign key.

    What is missing, damaged or not known is an InteropError.

    Args:
        options: of the format.
        source: the foreign state dict.
    """

    def __init__(self, options: Format.Config, source: Mapping[str, Tensor]) -> None:
        self.options: Any = options
        self.source = source
        self.weights = ForeignWeights({}, {}, {})

    def finished(self, settings: dict[str, Any]) -> ForeignWeights:
        """The collected weights, for the model that the settings describe."""
        return replace(self.weights, settings=settings)

    def error(self, problem: str) -> InteropError:
        """A problem with the format's name in front."""
        return InteropError(f"format {self.options.name}: {problem}")

    def add(self, foreign: Sequence[str], own: str, tensor: Tensor, how: str = "") -> None:
        """Adds a tensor made of one or several of the file's; `how`, for the report, is empty where it is as it was."""
        self.weights.state[own], self.weights.origin[own] = tensor, tuple(foreign)
        if how:
            self.weights.converted.update(dict.fromkeys(foreign, how))

    def ignore(self, foreign: str, why: str) -> None:
        """Names a tensor as unused, where the file has it."""
        if foreign in self.source:
            self.weights.unused[foreign] = why

    def tensor(self, key: str, axes: str) -> Tensor:
        """A tensor that is needed.

        Args:
            axes: names of its axes, such as `decoder width, width`.
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
        """Shape of a tensor that tells sizes of the model, checked as in `tensor`."""
        return tuple(self.tensor(key, axes).shape)

    def patches(self, layer: str, axes: str) -> Patches:
        """Patches of a convolution; `axes` names those of its kernel, such as `height, width`."""
        width, channels, *size = self.shape(f"{layer}.weight", f"width, channels, {axes} of a patch")
        self.require_filled(size)
        return pixel_patches(width, channels, *size)

    def depth(self, prefix: str) -> int:
        """Number of blocks `prefix.0`, `prefix.1`, ..."""
        pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
        numbers = {int(found[1]) for key in self.source if (found := pattern.match(key))}
        depth = max(numbers, default=-1) + 1
        if len(numbers) != depth:
            raise self.error(f"{prefix}.{depth - 1}: blocks before it are missing")
        return depth

    def heads(self, given: int | None, width: int, published: Mapping[int, int] = ATTENTION_HEADS) -> int:
        """Attention heads: as given, or as published for a width."""
        if given or width in published:
            return given or published[width]
        raise self.error(f"an encoder of width {width} is not published: give num_heads")

    def require_filled(self, patch: Sequence[int]) -> None:
        """Checks that patches (frames, height, width) or (height, width) fill the sizes among the options."""
        pixels = math.lcm(*patch[-2:])
        units = {"size": (pixels, "pixels"), "trained_size": (pixels, "pixels")}
        if len(patch) == 3:
            units |= {"num_frames": (patch[0], "frames"), "trained_frames": (patch[0], "frames")}
        for option, (extent, unit) in units.items():
            if (value := getattr(self.options, option, None)) and value % extent:
                raise self.error(f"{option} {value} is not a multiple of the file's patches of {extent} {unit}")

    def is_computed(self, foreign: str, computed: Tensor, axes: str = "1, positions, width") -> bool:
        """Whether a table is the one that mmmask computes, (positions, width), but for rounding; it is unused then.

        Args:
            axes: as of `tensor`; of four the width is the second, before rows and columns.
        """
        table = self.tensor(foreign, axes)
        table = table.flatten(2).mT if table.dim() == 4 else table
        rounding = torch.finfo(table.dtype).eps / 2  # of the file's dtype, relative
        same_shape = table.shape[1:] == computed.shape
        if not same_shape or not torch.allclose(table[0].float(), computed.float(), rtol=rounding, atol=1e-5):
            return False
        self.ignore(foreign, "the table is computed; the file's is the same")
        return True


def pixel_patches(width: int, channels: int, *size: int) -> Patches:
    """Patches with the key that modalities of pixels give to their embedding."""
    return Patches(width, channels, size, f"pixels_{times((*size, channels))}")


def square(tokens: int) -> int | None:
    """The side of a square of so many tokens, None where it is no square."""
    side = math.isqrt(max(tokens, 0))
    return side if side and side * side == tokens else None


def times(numbers: Sequence[int]) -> str:
    """A shape in words, such as 2x16x16."""
    return "x".join(map(str, numbers))
