"""Swin Transformer: blocks of window attention on a plane that gets coarser from stage to stage."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn

from mmmask.builtins.encoders.windows import (
    WindowAttention,
    across_border,
    check_planes,
    cut,
    join_windows,
    split_windows,
)
from mmmask.builtins.transformer import check_stages
from mmmask.interfaces import Component, Embedding, Encoder, EncoderInput, Grid, GridError, Latents, patchify
from mmmask.model.blocks import MLP, DropPath, Recompute, initialize, recomputes, run
from mmmask.model.dropping import path_factors, scaled


class SwinBlock(nn.Module):
    """Pre-norm block, x + attention(norm(x)), then x + mlp(norm(x)), in windows (Swin, equation 3)."""

    second_half = ("norm2", "mlp")

    def __init__(self, settings: SwinEncoder.Config, stage: int, window: int) -> None:
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
        return self.reduction(self.norm(cut(plane, (2, 2)).transpose(3, 4).flatten(3)))


class SwinStage(nn.Module):
    """Blocks at one resolution, and a merging after them except in the last stage."""

    def __init__(self, settings: SwinEncoder.Config, stage: int, window: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(SwinBlock(settings, stage, window) for _ in range(settings.blocks[stage]))
        last = stage == len(settings.depths) - 1
        self.merge = None if last else PatchMerging(settings.widths[stage], settings.norm_epsilon)


class SwinEncoder(Encoder):
    """Swin Transformer over all tokens, the masked ones replaced by a mask token (Swin; SimMIM section 3.2).

    A token of the modality is one patch of the last stage: `embed_patch` * 2^(stages - 1) along each side, 32 pixels
    with four stages. Patches are embedded finer than that, and the mask token takes the place of all patches of a
    masked token before the first block. There are no positions but the biases within windows.
    """

    class Config(Component.Config):
        """The defaults are Swin-B with the windows of SimMIM at 192 pixels."""

        width: int = Field(
            default=1024, gt=0, description="width of the latents, the last stage's; half in each before it"
        )
        depths: tuple[NonNegativeInt, ...] = Field(
            default=(2, 2, 18, 2),
            min_length=1,
            description="blocks of each stage, finest first; so many stages there are",
        )
        depth: int | None = Field(default=None, ge=0, description="blocks of every stage, in place of those in depths")
        num_heads: int = Field(
            default=32, gt=0, description="attention heads of the last stage; half in each before it, at least one"
        )
        stage_heads: tuple[PositiveInt, ...] | None = Field(
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
        drop_path: DropPath = 0.0
        activation_checkpointing: Recompute = False

        @model_validator(mode="after")
        def _stages_can_be_built(self) -> Any:  # noqa: ANN401 - Self
            stages = len(self.depths)
            if self.width % self.cells:
                raise ValueError(
                    f"width ({self.width}) must be a multiple of {self.cells}: it doubles in {stages} stages"
                )
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
            """Side of each stage's windows for a grid of tokens: the largest up to `window` that cuts its plane evenly.

            That is `window` where the plane is a multiple of it, and the whole of a smaller square.

            Raises:
                GridError: only single patches cut a plane evenly, and nothing would attend to anything.
            """
            sides = []
            for stage, (height, width) in enumerate(self.planes(grid)):
                common = math.gcd(height, width)
                side = next(side for side in range(min(self.window, common), 0, -1) if common % side == 0)
                if side == 1 and max(height, width) > 1 and self.window > 1:
                    raise GridError(
                        f"no window of up to {self.window} cuts the {height} x {width} patches of stage {stage} "
                        "evenly: resize samples, or make window larger"
                    )
                sides.append(side)
            return sides

    config: Config
    no_weight_decay = ("mask_token",)

    def __init__(self, config: Component.Config, embeddings: Mapping[str, Embedding]) -> None:
        super().__init__(config, embeddings)
        settings = self.config
        self._check_tokens(embeddings)
        self.windows = self._common_windows(embeddings)
        area, narrow = settings.embed_patch**2, settings.widths[0]
        self.embeddings = nn.ModuleDict(
            {key: nn.Linear(area * embedding.spec.channels, narrow) for key, embedding in embeddings.items()}
        )
        self.patch_norm = nn.LayerNorm(narrow, eps=settings.norm_epsilon)
        self.pyramid = nn.ModuleList(SwinStage(settings, stage, side) for stage, side in enumerate(self.windows))
        self.norm = nn.LayerNorm(settings.width, eps=settings.norm_epsilon)
        self.mask_token = nn.Parameter(torch.empty(narrow).normal_(std=0.02))
        initialize(self, xavier=False)

    @property
    def width(self) -> int:
        """Width of the latents."""
        return self.config.width

    @property
    def stages(self) -> Sequence[nn.Module]:
        """The blocks of all resolutions."""
        return [block for stage in self.pyramid for block in cast(SwinStage, stage).blocks]

    def by_depth(self) -> list[list[nn.Module]]:
        """Each block, the last one of a resolution with the merging after it; then the final norm."""
        depths: list[list[nn.Module]] = []
        for stage in cast(Iterable[SwinStage], self.pyramid):
            depths += [[block] for block in stage.blocks]
            if stage.merge is not None and depths:  # before the first block it belongs to the embeddings
                depths[-1].append(stage.merge)
        return [*depths, [self.norm]]

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
            rows, columns = own.part.tokens.grid
            tokens = (cut(plane, (plane.shape[1] // rows, plane.shape[2] // columns)) for plane in kept)
            asked = tuple(part.flatten(3).flatten(1, 2) for part in tokens)
            latents.append(Latents(planes[-1].flatten(1, 2), stages=asked))
        return latents

    def feature_maps(self, inputs: Sequence[EncoderInput]) -> list[list[Tensor]]:
        """Feature maps of every resolution for every input, (batch, dim, height, width) each, finest first.

        The last ones are the latents, after the final norm, laid out on the grid.

        Raises:
            GridError: a grid that needs other windows than the encoder was built with.
        """
        return [[plane.permute(0, 3, 1, 2) for plane in self._planes(own)[0]] for own in inputs]

    def _planes(self, own: EncoderInput, wanted: Sequence[int] = ()) -> tuple[list[Tensor], list[Tensor]]:
        """Output of each resolution (batch, height, width, dim), the last one normalised, and of the wanted blocks.

        Every second block of a resolution has shifted windows, except where the plane's shorter side is one window.
        """
        settings, grid = self.config, own.part.tokens.grid
        if (windows := settings.windows(grid)) != self.windows:
            raise GridError(f"a grid {grid} of tokens needs windows {windows}, and the encoder has {self.windows}")
        path = path_factors(own.noise, len(own.mask.masked), settings.drop_path, len(self.stages))
        recomputed = recomputes(own.activation_checkpointing, settings)
        plane, planes, kept, number = self._embed(own), [], {}, 0
        for stage, window in zip(cast(Iterable[SwinStage], self.pyramid), windows, strict=True):
            _, height, width, _ = plane.shape
            shift = window // 2 if min(height, width) > window else 0
            apart = across_border(height, width, window, shift, plane.device) if shift else None
            for place, block in enumerate(stage.blocks):
                shifted = (shift, apart) if place % 2 else (0, None)
                factors = None if path is None else path[number]
                plane = run(block, recomputed, plane, *shifted, factors)
                if number in wanted:
                    kept[number] = plane
                number += 1
            planes.append(plane)
            plane = plane if stage.merge is None else stage.merge(plane)
        planes[-1] = self.norm(planes[-1])
        return planes, [kept[number] for number in wanted]

    def _embed(self, own: EncoderInput) -> Tensor:
        """Patches, or the mask token in their place: (batch, height, width, dim) of the first stage."""
        side, cells, part = self.config.embed_patch, self.config.cells, own.part
        height, width = part.tokens.grid
        patches = patchify(part.tokens.dense(), (side, side)).to(self.norm.weight.dtype)
        plane = self.patch_norm(self.embeddings[part.key](patches)).unflatten(1, (height * cells, width * cells))
        masked = own.mask.masked.unflatten(1, (height, width, 1))
        masked = masked.repeat_interleave(cells, 1).repeat_interleave(cells, 2)
        return torch.where(masked, self.mask_token, plane)

    def _check_tokens(self, embeddings: Mapping[str, Embedding]) -> None:
        """Raises a GridError unless tokens can be cut into patches that merge to one again."""
        check_planes("swin", embeddings)
        patch, cells, stages = self.config.embed_patch, self.config.cells, len(self.config.depths)
        side = patch * cells
        for key, embedding in embeddings.items():
            height, width = embedding.spec.patch_size
            if (height, width) != (side, side):
                raise GridError(
                    f"embeddings.{key}: a token of swin with embed_patch {patch} and {stages} stages is "
                    f"{side} x {side}: set the modality's patch_size to [{side}, {side}]"
                    + (f", or embed_patch to {height // cells}" if height == width and height % cells == 0 else "")
                )

    def _common_windows(self, embeddings: Mapping[str, Embedding]) -> list[int]:
        """Side of each stage's windows, which all grids must agree on: the bias tables are that large."""
        found = {grid: self.config.windows(grid) for embedding in embeddings.values() for grid in embedding.grids}
        (first, windows), *others = found.items()
        for grid, own in others:
            if own != windows:
                raise GridError(
                    f"grids {first} and {grid} need windows {windows} and {own} in the stages of one encoder: make "
                    f"window at most {min(*first, *grid)}, or the samples of one size"
                )
        return windows
