"""Masked convolutions in stages, then a plain ViT over visible tokens: the encoder of ConvMAE (Gao et al. 2022)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from mmmask.builtins.encoders.windows import check_planes, cut, join
from mmmask.builtins.transformer import TransformerSettings, check_stages, placed, visible_index
from mmmask.interfaces import Component, Embedding, Encoder, EncoderInput, Grid, GridError, Latents, PositionsChoice
from mmmask.model.blocks import MLP, Blocks, initialize, recomputes, run
from mmmask.model.dropping import path_factors, scaled
from mmmask_registry import MmmaskError

# Between the convolutions there are only the cells of visible tokens: (B, V, rows, columns, width), rows and columns
# being those of a token at that stage. Masked ones need not be computed. A visible one never depends on them, for all
# else is pointwise, or a convolution whose kernel is its stride and lies within a token; so only the depth-wise
# convolution needs the plane, with zeros in their place.


class PatchEmbedding(nn.Module):
    """A projection (none where `inputs` is None), a LayerNorm and a GELU, before every stage."""

    def __init__(self, inputs: int | None, width: int, norm_epsilon: float) -> None:
        super().__init__()
        self.proj = nn.Identity() if inputs is None else nn.Linear(inputs, width)
        self.norm = nn.LayerNorm(width, eps=norm_epsilon)

    def forward(self, patches: Tensor) -> Tensor:
        """(..., inputs) -> (..., width)."""
        return F.gelu(self.norm(self.proj(patches)))


class ConvBlock(nn.Module):
    """x + conv2(depthwise(visible * conv1(norm(x)))), then x + mlp(norm(x)) (Gao et al. 2022).

    A transformer's block with a depth-wise convolution in the place of attention. `conv1`, `conv2` and the MLP are
    convolutions of one cell each, that is, linear layers.
    """

    def __init__(self, settings: ConvViTEncoder.Config, stage: int) -> None:
        super().__init__()
        width, epsilon = settings.stage_widths[stage], settings.conv_norm_epsilon
        self.norm1 = nn.LayerNorm(width, eps=epsilon)
        self.conv1 = nn.Linear(width, width)
        kernel = settings.conv_kernel
        self.depthwise = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.conv2 = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=epsilon)
        self.mlp = MLP(width, round(width * settings.conv_mlp_ratio))

    def forward(self, cells: Tensor, grid: Grid, places: Tensor | None, path: Tensor | None = None) -> Tensor:
        """(batch, visible, rows, columns, width) -> the same shape.

        Args:
            cells: of the visible tokens.
            grid: of all tokens.
            places: `places_on_plane` of the visible tokens, None where all are visible.
            path: (2, batch) what the two branches are multiplied by, None for nothing (drop path).
        """
        first, second = (None, None) if path is None else path.unbind(0)
        plane = _spread(self.conv1(self.norm1(cells)), grid, places)
        # the last axis of the memory stays the channels': the layout in which depth-wise kernels are fastest
        plane = self.depthwise(plane.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        cells = cells + scaled(self.conv2(_collect(plane, cells.shape, places)), first)
        return cells + scaled(self.mlp(self.norm2(cells)), second)


class ConvStage(nn.Module):
    """A patch embedding, then blocks at one resolution, and a projection of a token's cells to the latents' width."""

    def __init__(self, settings: ConvViTEncoder.Config, stage: int, patch_size: Sequence[int]) -> None:
        super().__init__()
        width = settings.stage_widths[stage]
        inputs = settings.stage_widths[stage - 1] * settings.stage_patches[stage] ** 2 if stage else None
        self.embed = PatchEmbedding(inputs, width, settings.conv_norm_epsilon)
        self.blocks = nn.ModuleList(ConvBlock(settings, stage) for _ in range(settings.stage_depths[stage]))
        self.fuse = nn.Linear(math.prod(settings.cells(patch_size, stage)) * width, settings.width)

    def forward(
        self, patches: Tensor, grid: Grid, places: Tensor | None, path: Tensor | None = None, recomputed: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Patches (batch, visible, rows, columns, inputs) -> cells (batch, visible, rows, columns, width).

        The other arguments are those of `ConvBlock.forward`, `path` for each block.

        Args:
            recomputed: whether the backward computes the blocks again.

        Returns:
            The cells, and what they add to the latents: (batch, visible, latents' width).
        """
        cells = self.embed(patches)
        for number, block in enumerate(self.blocks):
            cells = run(block, recomputed, cells, grid, places, None if path is None else path[number])
        return cells, self.fuse(cells.flatten(2))


class ConvViTEncoder(Encoder):
    """Stages of masked convolutions, a plain ViT over visible tokens, and what the stages saw added to it (ConvMAE).

    A token of the modality is a row of the ViT; the stages before see it in finer cells, by default 4 x 4 of 4 x 4
    pixels and then 2 x 2. Their convolutions see zeros where tokens are masked, and nothing is computed there, so that
    no masked pixel reaches a visible token (ConvMAE, "Block-wise Masking with Masked Convolutions"). Before the final
    norm a projection of each stage's cells is added to the latents, the multi-scale fusion.

    The first projection is `embeddings.<key>`; all else is shared, by streams whose tokens are of one size.
    """

    class Config(TransformerSettings):
        """The defaults are ConvMAE-Base. `depth`, `num_heads`, `mlp_ratio` and the like are the ViT's."""

        width: int = Field(default=768, gt=0, description="width of the latents, and of a token inside the last stage")
        depth: int = Field(
            default=11, ge=0, description="number of transformer blocks, after the stages of convolutions"
        )
        stage_widths: tuple[PositiveInt, ...] = Field(
            default=(256, 384), min_length=1, description="width of each stage of convolutions, finest first"
        )
        stage_depths: tuple[NonNegativeInt, ...] = Field(
            default=(2, 2), description="blocks of each stage of convolutions"
        )
        stage_patches: tuple[PositiveInt, ...] = Field(
            default=(4, 2),
            description="side of the patches embedded before each stage of convolutions; what remains of a token is "
            "embedded before the transformer",
        )
        conv_kernel: int = Field(default=5, gt=0, description="side of the depth-wise convolutions; odd")
        conv_mlp_ratio: float = Field(
            default=4.0, gt=0, description="hidden width of the MLP over width, in the stages of convolutions"
        )
        conv_norm_epsilon: float = Field(
            default=1e-5,
            gt=0,
            description="epsilon of every LayerNorm before the transformer, patch embeddings included",
        )
        positions: PositionsChoice = Field(
            default_factory=lambda: Component.Config(name="sincos_2d"),
            validate_default=True,
            description="positions of the tokens, added before the transformer",
        )

        @model_validator(mode="after")
        def _stages_can_be_built(self) -> Any:  # noqa: ANN401 - Self
            stages = len(self.stage_widths)
            for name, found in (("stage_depths", self.stage_depths), ("stage_patches", self.stage_patches)):
                if len(found) != stages:
                    raise ValueError(f"{name} ({len(found)} numbers) and stage_widths ({stages}) must be as long")
            if self.conv_kernel % 2 == 0:
                raise ValueError(
                    f"conv_kernel ({self.conv_kernel}) must be odd: the convolution is centred on its cell"
                )
            return self

        def cells(self, patch_size: Sequence[int], stage: int) -> Grid:
            """Rows and columns of cells that a token has at a stage."""
            side = math.prod(self.stage_patches[: stage + 1])
            return tuple(extent // side for extent in patch_size)

    config: Config

    def __init__(self, config: Component.Config, embeddings: Mapping[str, Embedding]) -> None:
        super().__init__(config, embeddings)
        settings = self.config
        self.patch_size = self._common_patch_size(embeddings)
        stages = range(len(settings.stage_widths))
        self.pyramid = nn.ModuleList(ConvStage(settings, stage, self.patch_size) for stage in stages)
        last = math.prod(settings.cells(self.patch_size, stages[-1])) * settings.stage_widths[-1]
        self.embed = PatchEmbedding(last, settings.width, settings.conv_norm_epsilon)
        self.project = nn.Linear(settings.width, settings.width)
        self.blocks = Blocks(settings, before=sum(settings.stage_depths))
        self.norm = nn.LayerNorm(settings.width, eps=settings.norm_epsilon)
        area, narrow = settings.stage_patches[0] ** 2, settings.stage_widths[0]
        self.embeddings = nn.ModuleDict(
            {key: nn.Linear(area * embedding.spec.channels, narrow) for key, embedding in embeddings.items()}
        )
        self.positions = settings.positions_by_key(embeddings, settings.width)
        initialize(self)

    @property
    def width(self) -> int:
        """Width of the latents."""
        return self.config.width

    @property
    def stages(self) -> Sequence[nn.Module]:
        """The stages of convolutions, then the blocks."""
        return [*self.pyramid, *self.blocks]

    def by_depth(self) -> list[list[nn.Module]]:
        """Each stage, the last one of convolutions with the embedding after it, and each block; then the final norm."""
        depths: list[list[nn.Module]] = [[stage] for stage in self.stages]
        depths[len(self.pyramid) - 1] += [self.embed, self.project]
        return [*depths, [self.norm]]

    def forward(self, inputs: Sequence[EncoderInput], stages: Sequence[int] = ()) -> list[Latents]:
        """Latents (batch, visible, width) of every input.

        The output of a stage of convolutions is the cells of each token side by side.

        Raises:
            GridError: tokens of another size than the encoder was built for.
        """
        check_stages(stages, self.stages)
        return self._encode(inputs, stages)[0]

    def feature_maps(self, inputs: Sequence[EncoderInput]) -> list[list[Tensor]]:
        """Feature maps of every stage for every input, (batch, channels, rows, columns) each, finest first.

        The last ones are the latents, after the final norm, laid out on the grid.

        Raises:
            MmmaskError: something is masked.
            GridError: tokens of another size than the encoder was built for.
        """
        if any(visible_index(own) is not None for own in inputs):
            raise MmmaskError("feature maps need all tokens: mask nothing")
        maps = []
        for own, latents, seen in zip(inputs, *self._encode(inputs), strict=True):
            grid = own.part.tokens.grid
            planes = [_spread(cells, grid, None).permute(0, 3, 1, 2) for cells, _ in seen]
            maps.append([*planes, latents.values.transpose(1, 2).unflatten(2, grid)])
        return maps

    def _encode(
        self, inputs: Sequence[EncoderInput], wanted: Sequence[int] = ()
    ) -> tuple[list[Latents], list[list[tuple[Tensor, Tensor]]]]:
        """Latents of every input, and the outputs of its stages of convolutions."""
        first, seen = len(self.pyramid), [self._convolve(own) for own in inputs]
        tokens, biases = [], []
        for own, found in zip(inputs, seen, strict=True):
            x = self.project(self.embed(found[-1][0].flatten(2)))
            x, bias = placed(x, self.positions, own.part.key, own.part.tokens.grid, visible_index(own))
            tokens.append(x)
            biases.append(bias)
        noises, wanted_blocks = [own.noise for own in inputs], [number - first for number in wanted]
        recomputed = [own.activation_checkpointing for own in inputs]
        outputs, kept = self.blocks(tokens, biases, noises, wanted_blocks, recomputed)
        latents = []
        for own, x, found, blocks in zip(inputs, outputs, seen, kept, strict=True):
            for _, share in found:
                x = x + share
            stages = (found[number][0].flatten(2) if number < first else blocks[number - first] for number in wanted)
            latents.append(Latents(self.norm(x), visible_index(own), stages=tuple(stages)))
        return latents, seen

    def _convolve(self, own: EncoderInput) -> list[tuple[Tensor, Tensor]]:
        """Outputs of every stage of convolutions for the visible tokens of an input."""
        settings, tokens, visible = self.config, own.part.tokens, visible_index(own)
        if tokens.spec.patch_size != self.patch_size:
            raise GridError(f"a token of {tokens.spec.patch_size}, and the encoder was built for {self.patch_size}")
        depth = self.blocks.before + len(self.blocks)
        path = path_factors(own.noise, len(own.mask.masked), settings.drop_path, depth)
        recomputed = recomputes(own.activation_checkpointing, settings)
        values = tokens.values(visible).to(self.norm.weight.dtype)
        if tokens.spec.gaps:
            values = torch.where(values.isnan(), 0, values)
        cells, seen, first = values.unflatten(2, (*self.patch_size, -1)), [], 0
        for number, (stage, side) in enumerate(zip(self.pyramid, settings.stage_patches, strict=True)):
            patches = cut(cells.flatten(0, 1), (side, side)).flatten(3).unflatten(0, cells.shape[:2])
            if number == 0:
                patches = self.embeddings[own.part.key](patches)
            within = settings.cells(self.patch_size, number)
            places = None if visible is None else places_on_plane(visible, tokens.grid, within)
            first, before = first + settings.stage_depths[number], first
            cells, share = stage(patches, tokens.grid, places, None if path is None else path[before:first], recomputed)
            seen.append((cells, share))
        return seen

    def _common_patch_size(self, embeddings: Mapping[str, Embedding]) -> tuple[int, ...]:
        """Height and width of a token, which all embeddings must agree on: the layers between stages are that large.

        Raises:
            GridError: they do not, or cannot be cut into the patches of all stages.
        """
        check_planes("conv_vit", embeddings)
        patches = self.config.stage_patches
        side, (first, embedding) = math.prod(patches), next(iter(embeddings.items()))
        size = embedding.spec.patch_size
        for key, other in embeddings.items():
            height, width = other.spec.patch_size
            if height % side or width % side:
                raise GridError(
                    f"embeddings.{key}: stage_patches {list(patches)} make cells of {side} x {side}, and a token is "
                    f"{height} x {width}: set the modality's patch_size to multiples of {side}, or choose smaller "
                    "stage_patches"
                )
            if other.spec.patch_size != size:
                raise GridError(
                    f"embeddings {first} and {key} are of tokens of {size} and {other.spec.patch_size}: conv_vit needs "
                    "the same patch_size in all modalities"
                )
        return size


def places_on_plane(visible: Tensor, grid: Grid, within: Grid) -> Tensor:
    """Flat positions of the cells of visible tokens in the planes of all samples, read row by row.

    Args:
        visible: (batch, visible) token indices.
        grid: rows and columns of tokens.
        within: rows and columns of cells within a token.

    Returns:
        (batch * visible * rows * columns,) int64, in the order of the cells.
    """
    (height, columns), (tall, wide), device = grid, within, visible.device
    sample = torch.arange(visible.shape[0], device=device).view(-1, 1) * height
    row = ((sample + visible // columns) * tall)[..., None, None] + torch.arange(tall, device=device).view(-1, 1)
    column = (visible % columns * wide)[..., None, None] + torch.arange(wide, device=device)
    return (row * (columns * wide) + column).flatten()


def _spread(cells: Tensor, grid: Grid, places: Tensor | None) -> Tensor:
    """Cells of visible tokens (B, V, rows, columns, width) -> plane (B, height, width of it, width), zero elsewhere."""
    if places is None:
        return join(cells.unflatten(1, grid))
    batch, _, tall, wide, width = cells.shape
    height, columns = grid[0] * tall, grid[1] * wide
    plane = cells.new_zeros(batch * height * columns, width)
    return plane.index_copy(0, places, cells.flatten(0, 3)).view(batch, height, columns, width)


def _collect(plane: Tensor, shape: torch.Size, places: Tensor | None) -> Tensor:
    """The inverse of `_spread`: cells (B, V, rows, columns, width) of that shape."""
    found = cut(plane, shape[2:4]) if places is None else plane.flatten(0, 2).index_select(0, places)
    return found.reshape(shape)
