"""The data that flows between components. All shapes are documented here, once.

B batch, N tokens, V visible tokens, P predicted tokens, R latents of a sample, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor, nn

from mmmask.randomness import Noise
from mmmask_registry import MmmaskError

Grid = tuple[int, ...]

Layout = tuple[tuple[str, Grid], ...]
"""(embedding key, grid) of every part of a sample, in order."""


class GridError(MmmaskError, ValueError):
    """Tokens of a size, or a grid of them, that a component does not fit."""


@dataclass(frozen=True)
class TokenSpec:
    """Description of a token, known before any sample exists.

    Content is stored in any dtype; stored content / `scale` is the raw value, in the unit of the source (pixels in
    [0, 1], Hounsfield units, metres), and (raw - mean) / std the normalised one.

    Attributes:
        patch_size: extent of a token along each grid axis, such as (2, 16, 16).
        channels: numbers per position of the grid (3 for colour).
        vocab_size: number of ids where content is discrete, None where it is continuous.
        mean, std: per channel, of raw values; empty where nothing is normalised.
        scale: stored content per raw value: 255 for bytes that stand for [0, 1].
        range: lowest and highest raw value, None where unbounded.
        gaps: whether values may be missing: NaN in content, or `vocab_size` among ids, one more than the last.
    """

    patch_size: tuple[int, ...]
    channels: int
    vocab_size: int | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    scale: float = 1.0
    range: tuple[float | None, float | None] = (None, None)
    gaps: bool = False

    @property
    def shape(self) -> tuple[tuple[int, ...], int, int | None]:
        """Patch size, channels and vocabulary: tokens that agree in these fit one embedding."""
        return self.patch_size, self.channels, self.vocab_size

    @property
    def content_dim(self) -> int:
        """Number of values per token."""
        return math.prod(self.patch_size) * self.channels

    @property
    def unit(self) -> tuple[float, float]:
        """(origin, extent), one for all channels: raw value = origin + extent * x.

        Of a bounded range its lowest value and its length, so that x is in [0, 1]; otherwise the means of `mean` and
        of `std` over the channels, so that x is about standard normal.
        """
        low, high = self.range
        if low is not None and high is not None:
            return low, high - low
        return sum(self.mean) / len(self.mean or (0,)), sum(self.std or (1.0,)) / len(self.std or (1.0,))

    @property
    def middle(self) -> float:
        """Raw value that stands for a masked one in pictures: the middle of a bounded range, otherwise the mean."""
        origin, extent = self.unit
        return origin if None in self.range else origin + extent / 2

    def missing(self, content: Tensor) -> Tensor:
        """Missing values, or ids: bool, in the shape of the content."""
        return content.isnan() if self.vocab_size is None else content == self.vocab_size

    def clamp(self, raw: Tensor) -> Tensor:
        """Raw values limited to the range, on its bounded sides."""
        low, high = self.range
        return raw if low is None and high is None else raw.clamp(low, high)


@dataclass(frozen=True)
class Tokens:
    """A batch of samples cut into tokens.

    Attributes:
        content: (B, N, content_dim), channel fastest, of any dtype; ids where the spec has a `vocab_size`. Where it has
            `gaps`, some may be missing.
        grid: the token layout of a sample; N is its product, the last axis varies fastest.
        normalized: whether content holds normalised values rather than stored ones.
        valid: (B, N) bool, False for padding and for tokens without any present value, which are masked first and
            never counted; None where all tokens are valid.
    """

    content: Tensor
    grid: Grid
    spec: TokenSpec
    normalized: bool = False
    valid: Tensor | None = None

    def values(self, index: Tensor | None = None) -> Tensor:
        """Normalised values (or ids) of the chosen tokens, as the network sees them.

        Args:
            index: (B, k) token indices, or None for all tokens.

        Returns:
            (B, k, content_dim). Integers are gathered first and normalised after (of bytes, four times less to move),
            in float32.
        """
        content = self.content if index is None else gather_rows(self.content, index)
        if self.normalized or self.spec.vocab_size is not None:
            return content
        content = content if content.is_floating_point() else content.float()
        scale, shift = _affine(self.spec, "normalize", content.device, content.dtype)
        return torch.addcmul(shift, content, scale)

    def raw(self, index: Tensor | None = None) -> Tensor:
        """The chosen tokens in the unit of the source, such as pixels in [0, 1]: (B, k, content_dim)."""
        content = self.content if index is None else gather_rows(self.content, index)
        if self.spec.vocab_size is not None:
            return content
        if self.normalized:
            scale, shift = _affine(self.spec, "restore", content.device, content.dtype)
            return torch.addcmul(shift, content, scale)
        if content.is_floating_point():
            return content if self.spec.scale == 1 else content / self.spec.scale
        return content.float().div_(self.spec.scale)  # in place: the floats were made for this call

    def sample(self, number: int) -> Tokens:
        """One sample, batch 1."""
        rows = slice(number, number + 1)
        return replace(self, content=self.content[rows], valid=None if self.valid is None else self.valid[rows])

    def dense(self) -> Tensor:
        """The normalised values laid out on the raw grid, 0 where missing: (B, channels, *grid * patch_size)."""
        values = self.values()
        if self.spec.gaps:
            values = torch.where(values.isnan(), 0, values)
        return unpatchify(values, self.grid, self.spec.patch_size)


@dataclass(frozen=True)
class Mask:
    """Index sets of visible and predicted tokens, ascending, and which predictions count.

    Of a sample of several parts, tokens are numbered part after part. The mask of one part has an empty `visible` where
    samples show different numbers of its tokens; `sample` has them.

    Attributes:
        visible: (B, V) int64.
        predicted: (B, P) int64.
        counted: (B, P) floating point, 1 where the prediction enters the loss, else 0.
        masked: (B, N) bool, True = masked.
        scores: (B, N) of the masker, with their graph, where it has weights; else None.
    """

    visible: Tensor
    predicted: Tensor
    counted: Tensor
    masked: Tensor
    scores: Tensor | None = None

    def sample(self, number: int) -> Mask:
        """The mask of one sample, batch 1, with exactly its visible tokens."""
        rows = slice(number, number + 1)
        visible = (~self.masked[number]).nonzero().T
        scores = None if self.scores is None else self.scores[rows]
        return Mask(visible, self.predicted[rows], self.counted[rows], self.masked[rows], scores)


def nothing_masked(batch: int, tokens: int | Grid, device: torch.device) -> Mask:
    """The mask of feature extraction and of objectives that mask nothing: all tokens visible, none predicted.

    Args:
        tokens: their number, or the grid.
    """
    tokens = tokens if isinstance(tokens, int) else math.prod(tokens)
    visible = torch.arange(tokens, device=device).expand(batch, -1)
    none = visible[:, :0]
    return Mask(visible, none, none.float(), torch.zeros(batch, tokens, dtype=torch.bool, device=device))


@dataclass(frozen=True)
class Part:
    """One modality's tokens of a batch; `key` names their embedding."""

    key: str
    tokens: Tokens


@dataclass(frozen=True)
class EncoderInput:
    """One stream's samples on their way into an encoder.

    Attributes:
        parts: the modalities of a sample, aligned; mostly one.
        mask: over the tokens of all parts, one part after the other.
        noise: source of drop path and dropout, a fixed function of (seed, stream, step, row); None outside training,
            where nothing is dropped.
        activation_checkpointing: whether blocks keep nothing of this input for the backward but compute it again; None
            where the encoder's settings decide.
    """

    parts: tuple[Part, ...]
    mask: Mask
    noise: Noise | None = None
    activation_checkpointing: bool | None = None

    @classmethod
    def whole(cls, *parts: Part) -> EncoderInput:
        """Samples with nothing masked."""
        content = parts[0].tokens.content
        tokens = sum(part.tokens.content.shape[1] for part in parts)
        return cls(parts, nothing_masked(len(content), tokens, content.device))

    @property
    def layout(self) -> Layout:
        """Embedding key and grid of every part, in order."""
        return tuple((part.key, part.tokens.grid) for part in self.parts)

    @property
    def part(self) -> Part:
        """The only part.

        Raises:
            MmmaskError: there are several.
        """
        if len(self.parts) != 1:
            raise MmmaskError(
                f"model.encoder: this encoder takes one modality per stream, not {len(self.parts)} aligned ones "
                f"({', '.join(part.key for part in self.parts)}): choose an encoder that does, or a stream for each"
            )
        return self.parts[0]


@dataclass(frozen=True)
class Latents:
    """Encoder output for one stream's tokens.

    Attributes:
        values: (B, R, D) after the encoder's final norm.
        index: (B, R) the token each latent belongs to, None where all tokens are there in order.
        prefix: (B, prefix tokens, D) cls and register tokens, or None.
        stages: outputs of the stages asked for, in the order asked for, before the final norm and without prefix
            tokens: (B, R, width of a token at that stage) each.
    """

    values: Tensor
    index: Tensor | None = None
    prefix: Tensor | None = None
    stages: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class DecoderInput:
    """Decoder input: predictions of `mask.predicted` of one part are asked for.

    Attributes:
        key: names the embedding of the part.
        latents: of the tokens of all parts of the samples.
        mask: what is visible and predicted of the part.
        grid: token layout of the part.
        noise: source of drop path and dropout; None outside training, where nothing is dropped.
        layout: embedding key and grid of all parts of a sample, in the order in which `latents.index` numbers their
            tokens; empty stands for the part alone.
        number: of the part among them.
        activation_checkpointing: as of the encoder's input; None where the decoder's settings decide.
    """

    key: str
    latents: Latents
    mask: Mask
    grid: Grid
    noise: Noise | None = None
    layout: Layout = ()
    number: int = 0
    activation_checkpointing: bool | None = None

    @property
    def first(self) -> int:
        """Number of the part's first token among the tokens of all parts."""
        return sum(math.prod(grid) for _, grid in self.layout[: self.number])

    @property
    def parts(self) -> Layout:
        """The layout, of the part alone where it is the only one."""
        return self.layout or ((self.key, self.grid),)


@dataclass(frozen=True)
class Embedding:
    """Constructor input of encoders and decoders, per embedding key.

    Attributes:
        spec: of the tokens.
        grids: of the streams that share the key, in the experiment's order, without repetition.
        aligned: whether samples of some stream have other parts beside this one.
        build: `build(width)` makes the module (B, V, content_dim) -> (B, V, width).
    """

    spec: TokenSpec
    grids: tuple[Grid, ...]
    build: Callable[[int], nn.Module]
    aligned: bool = False


def gather_rows(rows: Tensor, index: Tensor) -> Tensor:
    """Picks rows of each sample: (B, N, D) and (B, k) -> (B, k, D).

    By index_select on the flattened tensor, which on a CPU in bf16 is ten times as fast as `torch.gather`.
    """
    batch, tokens, _ = rows.shape
    offset = torch.arange(0, batch * tokens, tokens, device=index.device).unsqueeze(1)
    return rows.flatten(0, 1).index_select(0, (index + offset).flatten()).unflatten(0, index.shape)


def patchify(dense: Tensor, patch_size: Sequence[int]) -> Tensor:
    """Cuts (B, channels, *extent) into (B, tokens, prod(patch_size) * channels), channel fastest.

    Raises:
        ValueError: an extent is 0 or not a multiple of the patch size.
    """
    batch, channels, *extent = dense.shape
    if len(extent) != len(patch_size) or any(
        not size or size % patch for size, patch in zip(extent, patch_size, strict=True)
    ):
        raise ValueError(f"a sample of extent {tuple(extent)} cannot be cut into patches of {tuple(patch_size)}")
    split = [part for size, patch in zip(extent, patch_size, strict=True) for part in (size // patch, patch)]
    axes = range(len(patch_size))
    order = [0, *(2 + 2 * axis for axis in axes), *(3 + 2 * axis for axis in axes), 1]
    tokens = math.prod(split[0::2])
    # (batch, channels, g0, p0, g1, p1, ...) -> (batch, g0, g1, ..., p0, p1, ..., channels)
    return dense.reshape(batch, channels, *split).permute(order).reshape(batch, tokens, -1)


def unpatchify(content: Tensor, grid: Sequence[int], patch_size: Sequence[int]) -> Tensor:
    """The inverse of `patchify`: (B, tokens, content_dim) -> (B, channels, *grid * patch_size)."""
    rank = len(grid)
    split = content.reshape(content.shape[0], *grid, *patch_size, -1)
    order = [0, 2 * rank + 1, *(axis for i in range(rank) for axis in (1 + i, 1 + rank + i))]
    extent = [cells * patch for cells, patch in zip(grid, patch_size, strict=True)]
    return split.permute(order).reshape(content.shape[0], -1, *extent)


@lru_cache(maxsize=64)
def _affine(spec: TokenSpec, direction: str, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Scale and shift (content_dim,) each, from stored to normalised or from normalised to raw."""
    # the constants serve whoever asks next, with gradients or without: never an inference tensor
    with torch.inference_mode(False):
        mean = torch.tensor(spec.mean or (0.0,) * spec.channels, dtype=torch.float64)
        std = torch.tensor(spec.std or (1.0,) * spec.channels, dtype=torch.float64)
        scale, shift = (1 / (spec.scale * std), -mean / std) if direction == "normalize" else (std, mean)
        repeat = math.prod(spec.patch_size)
        return scale.repeat(repeat).to(device, dtype), shift.repeat(repeat).to(device, dtype)
