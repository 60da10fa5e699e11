"""Swin Transformer: blocks of window attention on a plane that gets coarser from stage to stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmmask.builtins.transformer import check_stages
from mmmask.builtins.windows import (
    WindowAttention,
    across_border,
    join_windows,
    split_windows,
    window_sides,
)
from mmmask.interfaces import Component, Embedding, Encoder, EncoderInput, Grid, GridError, Latents, TokenSpec, patchify
from mmmask.model.blocks import MLP
from mmmask.model.dropping import path_factors, scaled

Count = Annotated[int, Field(gt=0)]
Depth = Annotated[int, Field(ge=0)]


class SwinSettings(Component.Config):
    """The defaults are Swin-B with the windows of SimMIM at 192 pixels."""

    width: int = Field(default=1024, gt=0, description="width of the latents, the last stage's; half in each before it")
    depths: tuple[Depth, ...] = Field(
        default=(2, 2, 18, 2), min_length=1, description="blocks of each stage, finest first; so many stages there are"
    )
    depth: int | None = Field(default=None, ge=0, description="blocks of every stage, in place of those in depths")
    num_heads: int = Field(
        default=32, gt=0, description="attention heads of the last stage; half in each before it, at least one"
    )
    stage_heads: tuple[Count, ...] | None = Field(
        default=None, description="attention heads of each stage, in place of what num_heads says"
    )
    window: int = Field(
        default=6,
        gt=0,
        description="patches along a side of a window; where these cut a plane unevenly, the most that do",
    )
    embed_patch: int = Field(
        default=4, gt=0, description="side of an embedded patch; a token is 2^(stages - 1) of them high and wide"
    )
    mlp_ratio: float = Field(default=4.0, gt=0, description="hidden width of the MLP over width")
    qkv_bias: bool = Field(default=True, description="biases of the query, key and value projections")
    norm_epsilon: float = Field(default=1e-5, gt=0, description="epsilon of every LayerNorm")
    drop_path: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of samples that skip a branch of the last block, in training; "
        "linear over depth from 0 (stochastic depth)",
    )
    activation_checkpointing: bool = Field(
        default=False, description="recompute each block in backward: less memory, a third more time"
    )

    @model_validator(mode="after")
    def _stages_can_be_built(self) -> Any:  # noqa: ANN401 - Self
        stages = len(self.depths)
        if self.width % self.cells:
            raise ValueError(f"width ({self.width}) must be a multiple of {self.cells}: it doubles in {stages} stages")
        if self.stage_heads is not None and len(self.stage_heads) != stages:
            raise ValueError(f"stage_heads ({len(self.stage_heads)} numbers) and depths ({stages}) must be as long")
        for stage, (heads, width) in enumerate(zip(self.heads, self.widths, strict=True)):
            if width % heads:
                raise ValueError(
                    f"{heads} heads of stage {stage} must divide its width {width}: change num_heads or stage_heads"
                )
        return self

    @property
    def cells(self) -> int:
        """Embedded patches along a side of a token, 2^(stages - 1)."""
        return 2 ** (len(self.depths) - 1)

    @property
    def widths(self) -> list[int]:
        """Width of each stage, finest first."""
        return [self.width * 2**stage // self.cells for stage in range(len(self.depths))]

    @property
    def heads(self) -> list[int]:
        """Attention heads of each stage."""
        if self.stage_heads is not None:
            return list(self.stage_heads)
        return [max(1, self.num_heads * 2**stage // self.cells) for stage in range(len(self.depths))]

    @property
    def blocks(self) -> list[int]:
        """Blocks of each stage."""
        return [depth if self.depth is None else self.depth for depth in self.depths]

    def planes(self, grid: Grid) -> list[Grid]:
        """Height and width of each stage's plane, for a grid of tokens: the last is the grid itself."""
        return [tuple(side * self.cells // 2**stage for side in grid) for stage in range(len(self.depths))]

    def windows(self, grid: Grid) -> list[int]:
        """Side of each stage's windows.

        Raises:
            GridError: they do not cut the planes of this grid.
        """
        return window_sides(self.planes(grid), self.window)


class SwinBlock(nn.Module):
    """Pre-norm block, x + attention(norm(x)), then x + mlp(norm(x)), in windows (Swin, equation 3)."""

    def __init__(self, settings: SwinSettings, stage: int, window: int) -> None:
        super().__init__()
        width, self.window = settings.widths[stage], window
        self.norm1 = nn.LayerNorm(width, eps=settings.norm_epsilon)
        self.attn = WindowAttention(width, settings.heads[stage], window, settings.qkv_bias)
        self.norm2 = nn.LayerNorm(width, eps=settings.norm_epsilon)
        self.mlp = MLP(width, round(width * settings.mlp_ratio))

    def forward(self, plane: Tensor, shift: int = 0, apart: Tensor | None = None, path: Tensor | None = None) -> Tensor:
        """(batch, height, width, dim) -> the same shape.

        Args:
            plane: one vector per patch.
            shift: windows lie so many cells further down and to the right. The plane is rolled instead, so that all of
                them are whole (Swin, section 3.2, the cyclic shift).
            apart: `across_border` of that shift.
            path: (2, batch) what the two branches are multiplied by, None for nothing (drop path).
        """
        _, height, width, _ = plane.shape
        first, second = (None, None) if path is None else path.unbind(0)
        x = self.norm1(plane)
        x = x.roll((-shift, -shift), (1, 2)) if shift else x
        x = self.attn(split_windows(x, self.window), apart)
        x = join_windows(x, height, width, self.window)
        plane = plane + scaled(x.roll((shift, shift), (1, 2)) if shift else x, first)
        return plane + scaled(self.mlp(self.norm2(plane)), second)


class PatchMerging(nn.Module):
    """Four neighbours side by side, normalised and projected to twice their width (Swin, section 3.1)."""

    def __init__(self, width: int, norm_epsilon: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width, eps=norm_epsilon)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, plane: Tensor) -> Tensor:
        """(batch, height, width, dim) -> (batch, height / 2, width / 2, 2 dim).

        Neighbours are in the order of the published weights, by columns: upper left, lower left, upper right, lower
        right.
        """
        cut = plane.unflatten(1, (-1, 2)).unflatten(3, (-1, 2))  # (batch, height / 2, 2, width / 2, 2, dim)
        return self.reduction(self.norm(cut.permute(0, 1, 3, 4, 2, 5).flatten(3)))


class SwinStage(nn.Module):
    """Blocks at one resolution, every second one with shifted windows; a merging after them except in the last stage.

    A plane that is no larger than a window along its shorter side is not shifted.
    """

    def __init__(self, settings: SwinSettings, stage: int, window: int) -> None:
        super().__init__()
        self.window, self.recompute = window, settings.activation_checkpointing
        self.blocks = nn.ModuleList(SwinBlock(settings, stage, window) for _ in range(settings.blocks[stage]))
        last = stage == len(settings.depths) - 1
        self.merge = None if last else PatchMerging(settings.widths[stage], settings.norm_epsilon)

    def forward(
        self, plane: Tensor, path: Tensor | None = None, wanted: Sequence[int] = ()
    ) -> tuple[Tensor, Tensor, dict[int, Tensor]]:
        """(batch, height, width, dim) -> the same shape, what the next stage takes, and {block: its output}.

        Args:
            path: (blocks, 2, batch) what the branches are multiplied by, None for nothing (drop path).
            wanted: numbers of the blocks whose outputs are returned too.
        """
        _, height, width, _ = plane.shape
        shift = self.window // 2 if min(height, width) > self.window else 0
        apart = across_border(height, width, self.window, shift, plane.device) if shift else None
        kept = {}
        for number, block in enumerate(self.blocks):
            shifted = (shift, apart) if number % 2 else (0, None)
            arguments = (plane, *shifted, None if path is None else path[number])
            if self.recompute and torch.is_grad_enabled():
                plane = cast(Tensor, checkpoint(block, *arguments, use_reentrant=False, preserve_rng_state=False))
            else:
                plane = block(*arguments)
            if number in wanted:
                kept[number] = plane
        return plane, plane if self.merge is None else self.merge(plane), kept


class SwinEncoder(Encoder):
    """Swin Transformer over all tokens, the masked ones replaced by a mask token (Swin; SimMIM section 3.2).

    A token of the modality is one patch of the last stage: `embed_patch` * 2^(stages - 1) along each side, 32 pixels
    with four stages. Patches are embedded finer than that, and the mask token takes the place of all patches of a
    masked token before the first block. There are no positions but the biases within windows.
    """

    class Config(SwinSettings):
        pass

    config: Config
    no_weight_decay = ("mask_token",)

    def __init__(self, config: Component.Config, embeddings: Mapping[str, Embedding]) -> None:
        super().__init__(config, embeddings)
        settings = self.config
        for key, embedding in embeddings.items():
            _check_tokens(settings, key, embedding.spec)
        self.windows = _common_windows(settings, embeddings)
        area, narrow = settings.embed_patch**2, settings.widths[0]
        self.embeddings = nn.ModuleDict(
            {key: nn.Linear(area * embedding.spec.channels, narrow) for key, embedding in embeddings.items()}
        )
        self.patch_norm = nn.LayerNorm(narrow, eps=settings.norm_epsilon)
        self.pyramid = nn.ModuleList(SwinStage(settings, stage, side) for stage, side in enumerate(self.windows))
        self.norm = nn.LayerNorm(settings.width, eps=settings.norm_epsilon)
        self.mask_token = nn.Parameter(torch.empty(narrow).normal_(std=0.02))
        _initialize(self)

    @property
    def width(self) -> int:
        """Width of the latents."""
        return self.config.width

    @property
    def stages(self) -> Sequence[nn.Module]:
        """The blocks of all resolutions."""
        return [block for stage in self.pyramid for block in cast(SwinStage, stage).blocks]

    def forward(self, inputs: Sequence[EncoderInput], stages: Sequence[int] = ()) -> list[Latents]:
        """Latents (batch, tokens, width) of every input, of masked tokens too.

        The output of a stage is the patches of each token side by side, by rows.

        Raises:
            GridError: a grid that needs other windows than the encoder was built with.
        """
        check_stages(stages, self.stages)
        latents = []
        for own in inputs:
            planes, kept = self._planes(own, stages)
            asked = tuple(_of_tokens(kept[number], own.part.tokens.grid) for number in stages)
            latents.append(Latents(planes[-1].flatten(1, 2), stages=asked))
        return latents

    def feature_maps(self, inputs: Sequence[EncoderInput]) -> list[list[Tensor]]:
        """Feature maps of every resolution for every input, (batch, dim, height, width) each, finest first.

        The last ones are the latents, after the final norm, laid out on the grid.

        Raises:
            GridError: a grid that needs other windows than the encoder was built with.
        """
        return [[plane.permute(0, 3, 1, 2) for plane in self._planes(own)[0]] for own in inputs]

    def _planes(self, own: EncoderInput, wanted: Sequence[int] = ()) -> tuple[list[Tensor], dict[int, Tensor]]:
        """Output of each resolution (batch, height, width, dim), the last one normalised, and of the wanted blocks."""
        grid, depths = own.part.tokens.grid, self.config.blocks
        if (windows := self.config.windows(grid)) != self.windows:
            raise GridError(f"a grid {grid} of tokens needs windows {windows}, and the encoder has {self.windows}")
        paths = path_factors([own.noise], [len(own.mask.masked)], self.config.drop_path, sum(depths))
        path = [None] * len(depths) if paths is None else paths[0].split(depths)
        plane, planes, kept, first = self._embed(own), [], {}, 0
        for stage, factors, depth in zip(self.pyramid, path, depths, strict=True):
            features, plane, found = stage(plane, factors, [number - first for number in wanted])
            planes.append(features)
            kept |= {first + number: output for number, output in found.items()}
            first += depth
        planes[-1] = self.norm(planes[-1])
        return planes, kept

    def _embed(self, own: EncoderInput) -> Tensor:
        """Patches, or the mask token in their place: (batch, height, width, dim) of the first stage."""
        settings, part = self.config, own.part
        grid = part.tokens.grid
        patches = patchify(part.tokens.dense(), (settings.embed_patch, settings.embed_patch))
        plane = self.patch_norm(self.embeddings[part.key](patches.to(self.norm.weight.dtype)))
        plane = plane.unflatten(1, settings.planes(grid)[0])
        masked = own.mask.masked.unflatten(1, grid)
        masked = masked.repeat_interleave(settings.cells, 1).repeat_interleave(settings.cells, 2)
        return torch.where(masked.unsqueeze(-1), self.mask_token, plane)


def _of_tokens(plane: Tensor, grid: Grid) -> Tensor:
    """(batch, height, width, dim) -> (batch, tokens, patches of a token * dim)."""
    cut = plane.unflatten(2, (grid[1], -1)).unflatten(1, (grid[0], -1))  # (batch, rows, patches, columns, patches, dim)
    return cut.transpose(2, 3).flatten(3).flatten(1, 2)


def _check_tokens(settings: SwinSettings, key: str, spec: TokenSpec) -> None:
    """Raises a GridError unless such tokens can be cut into patches that merge to one again."""
    stages, side = len(settings.depths), settings.embed_patch * settings.cells
    where = f"embeddings.{key}"
    if spec.vocab_size is not None:
        raise GridError(f"{where}: swin embeds values, not ids: choose another encoder")
    if len(spec.patch_size) != 2:
        raise GridError(f"{where}: swin takes grids of two axes, not {len(spec.patch_size)}: choose another encoder")
    if spec.patch_size != (side, side):
        fitting = spec.patch_size[0] // settings.cells
        square = spec.patch_size == (fitting * settings.cells,) * 2
        raise GridError(
            f"{where}: a token of swin with embed_patch {settings.embed_patch} and {stages} stages is "
            f"{side} x {side}: set the modality's patch_size to [{side}, {side}]"
            + (f", or embed_patch to {fitting}" if square else "")
        )


def _common_windows(settings: SwinSettings, embeddings: Mapping[str, Embedding]) -> list[int]:
    """Side of each stage's windows, which all grids must agree on: the bias tables are that large."""
    found = {grid: settings.windows(grid) for embedding in embeddings.values() for grid in embedding.grids}
    (first, windows), *others = found.items()
    for grid, own in others:
        if own != windows:
            raise GridError(
                f"grids {first} and {grid} need windows {windows} and {own} in the stages of one encoder: make window "
                f"at most {min(*first, *grid)}, or the samples of one size"
            )
    return windows


def _initialize(module: nn.Module) -> None:
    """Truncated normal weights of deviation 0.02 and zero biases for every Linear."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
