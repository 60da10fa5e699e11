"""Masked convolutions in stages, then a plain ViT over visible tokens: the encoder of ConvMAE (Gao et al. 2022)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mmmask.builtins.transformer import TransformerSettings, add_positions, check_stages, positions_of, visible_index
from mmmask.interfaces import (
    Component,
    Embedding,
    Encoder,
    EncoderInput,
    Grid,
    GridError,
    Latents,
    PositionsChoice,
    TokenSpec,
)
from mmmask.model.blocks import MLP, Blocks, initialize
from mmmask.model.dropping import path_factors, scaled
from mmmask_registry import MmmaskError

Count = Annotated[int, Field(gt=0)]
Depth = Annotated[int, Field(ge=0)]

# Between the convolutions there are only the cells of visible tokens: (B, V, rows, columns, width), rows and columns
# being those of a token at that stage. Masked ones need not be computed. A visible one never depends on them, for all
# else is pointwise, or a convolution whose kernel is its stride and lies within a token; so only the depth-wise
# convolution needs the plane, with zeros in their place.


class ConvViTSettings(TransformerSettings):
    """The defaults are ConvMAE-Base. `depth`, `num_heads`, `mlp_ratio` and the like are the ViT's."""

    width: int = Field(default=768, gt=0, description="width of the latents, and of a token inside the last stage")
    depth: int = Field(default=11, ge=0, description="number of transformer blocks, after the stages of convolutions")
    stage_widths: tuple[Count, ...] = Field(
        default=(256, 384), min_length=1, description="width of each stage of convolutions, finest first"
    )
    stage_depths: tuple[Depth, ...] = Field(default=(2, 2), description="blocks of each stage of convolutions")
    stage_patches: tuple[Count, ...] = Field(
        default=(4, 2),
        description="side of the patches embedded before each stage of convolutions; what remains of a token is "
        "embedded before the transformer",
    )
    conv_kernel: int = Field(default=5, gt=0, description="side of the depth-wise convolutions; odd")
    conv_mlp_ratio: float = Field(
        default=4.0, gt=0, description="hidden width of the MLP over width, in the stages of convolutions"
    )
    conv_norm_epsilon: float = Field(
        default=1e-5, gt=0, description="epsilon of every LayerNorm before the transformer, patch embeddings included"
    )
    positions: PositionsChoice = Field(
        default_factory=lambda: Component.Config(name="sincos_2d"),
        validate_default=True,
        description="positions of the tokens, added before the transformer",
    )

    @model_validator(mode="after")
    def _stages_can_be_built(self) -> Any:  # noqa: ANN401 - Self
        stages = len(self.stage_widths)
        for name in ("stage_depths", "stage_patches"):
            if len(getattr(self, name)) != stages:
                raise ValueError(
                    f"{name} ({len(getattr(self, name))} numbers) and stage_widths ({stages}) must be as long"
                )
        if self.conv_kernel % 2 == 0:
            raise ValueError(f"conv_kernel ({self.conv_kernel}) must be odd: the convolution is centred on its cell")
        return self

    def cells(self, patch_size: Sequence[int], stage: int) -> Grid:
        """Rows and columns of cells that a token has at a stage."""
        side = math.prod(self.stage_patches[: stage + 1])
        return tuple(extent // side for extent in patch_size)


class PatchEmbedding(nn.Module):
    """A projection, a LayerNorm and a GELU: what stands before every stage.

    Args:
        inputs: numbers that a patch holds, None where it is projected before.
        width: of the embedded patch.
        norm_epsilon: of the LayerNorm.
    """

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

    def __init__(self, settings: ConvViTSettings, stage: int) -> None:
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
        cells = cells + scaled(self.conv2(_collect(plane, cells.shape, grid, places)), first)
        return cells + scaled(self.mlp(self.norm2(cells)), second)


class ConvStage(nn.Module):
    """A patch embedding, then blocks at one resolution, and a projection of a token's cells to the latents' width."""

    def __init__(self, settings: ConvViTSettings, stage: int, patch_size: Sequence[int]) -> None:
        super().__init__()
        width, self.recompute = settings.stage_widths[stage], settings.activation_checkpointing
        inputs = settings.stage_widths[stage - 1] * settings.stage_patches[stage] ** 2 if stage else None
        self.embed = PatchEmbedding(inputs, width, settings.conv_norm_epsilon)
        self.blocks = nn.ModuleList(ConvBlock(settings, stage) for _ in range(settings.stage_depths[stage]))
        self.fuse = nn.Linear(math.prod(settings.cells(patch_size, stage)) * width, settings.width)

    def forward(
        self, patches: Tensor, grid: Grid, places: Tensor | None, path: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Patches (batch, visible, rows, columns, inputs) -> cells (batch, visible, rows, columns, width).

        Args:
            patches: of the visible tokens.
            grid: of all tokens.
            places: `places_on_plane` of the visible tokens, None where all are visible.
            path: (blocks, 2, batch) what the branches are multiplied by, None for nothing (drop path).

        Returns:
            The cells, and what they add to the latents: (batch, visible, latents' width).
        """
        cells = self.embed(patches)
        for number, block in enumerate(self.blocks):
            arguments = (cells, grid, places, None if path is None else path[number])
            if self.recompute and torch.is_grad_enabled():
                cells = cast(Tensor, checkpoint(block, *arguments, use_reentrant=False, preserve_rng_state=False))
            else:
                cells = block(*arguments)
        return cells, self.fuse(cells.flatten(2))


class ConvViTEncoder(Encoder):
    """Stages of masked convolutions, a plain ViT over visible tokens, and what the stages saw added to it (ConvMAE).

    A token of the modality is a row of the ViT; the stages before see it in finer cells, by default 4 x 4 of 4 x 4
    pixels and then 2 x 2. Their convolutions see zeros where tokens are masked, and nothing is computed there, so that
    no masked pixel reaches a visible token (ConvMAE, "Block-wise Masking with Masked Convolutions"). Before the final
    norm a projection of each stage's cells is added to the latents, the multi-scale fusion.

    The first projection is `embeddings.<key>`; all else is shared, by streams whose tokens are of one size.
    """

    class Config(ConvViTSettings):
        pass

    config: Config

    def __init__(self, config: Component.Config, embeddings: Mapping[str, Embedding]) -> None:
        super().__init__(config, embeddings)
        settings = self.config
        self.patch_size = _common_patch_size(settings, embeddings)
        stages = range(len(settings.stage_widths))
        self.pyramid = nn.ModuleList(ConvStage(settings, stage, self.patch_size) for stage in stages)
        last = math.prod(settings.cells(self.patch_size, stages[-1])) * settings.stage_widths[-1]
        self.embed = PatchEmbedding(last, settings.width, settings.conv_norm_epsilon)
        self.project = nn.Linear(settings.width, settings.width)
        self.blocks = Blocks(settings)
        self.norm = nn.LayerNorm(settings.width, eps=settings.norm_epsilon)
        area, narrow = settings.stage_patches[0] ** 2, settings.stage_widths[0]
        self.embeddings = nn.ModuleDict(
            {key: nn.Linear(area * embedding.spec.channels, narrow) for key, embedding in embeddings.items()}
        )
        self.positions = settings.positions_by_key(embeddings, settings.width)
        initialize(self)
        for part in self.modules():
            if isinstance(part, nn.Conv2d) and part.bias is not None:
                nn.init.zeros_(
                    part.bias
                )  # the kernels stay as PyTorch draws them: Xavier's rule would be far too small

    @property
    def width(self) -> int:
        """Width of the latents."""
        return self.config.width

    @property
    def stages(self) -> Sequence[nn.Module]:
        """The stages of convolutions, then the blocks."""
        return [*self.pyramid, *self.blocks]

    def forward(self, inputs: Sequence[EncoderInput], stages: Sequence[int] = ()) -> list[Latents]:
        """Latents (batch, visible, width) of every input.

        The output of a stage of convolutions is the cells of each token side by side.

        Raises:
            GridError: tokens of another size than the encoder was built for.
        """
        check_stages(stages, self.stages)
        paths = self._paths(inputs)
        return self._latents(inputs, self._convolved(inputs, paths), paths, stages)

    def feature_maps(self, inputs: Sequence[EncoderInput]) -> list[list[Tensor]]:
        """Feature maps of every stage for every input, (batch, channels, rows, columns) each, finest first.

        The last ones are the latents, after the final norm, laid out on the grid.

        Raises:
            MmmaskError: something is masked.
            GridError: tokens of another size than the encoder was built for.
        """
        if any(visible_index(own) is not None for own in inputs):
            raise MmmaskError("feature maps need all tokens: mask nothing")
        paths, maps = self._paths(inputs), []
        seen = self._convolved(inputs, paths)
        for own, found, latents in zip(inputs, seen, self._latents(inputs, seen, paths), strict=True):
            grid = own.part.tokens.grid
            planes = [_spread(cells, grid, None).permute(0, 3, 1, 2) for cells, _ in found]
            maps.append([*planes, latents.values.transpose(1, 2).unflatten(2, grid)])
        return maps

    def _paths(self, inputs: Sequence[EncoderInput]) -> list[Tensor] | None:
        """Drop path's factors (blocks of convolutions, then the transformer's; 2; batch) for each input, or None."""
        noises, rows = [own.noise for own in inputs], [len(own.mask.masked) for own in inputs]
        depth = sum(self.config.stage_depths) + len(self.blocks)
        return path_factors(noises, rows, self.config.drop_path, depth)

    def _convolved(
        self, inputs: Sequence[EncoderInput], paths: Sequence[Tensor] | None
    ) -> list[list[tuple[Tensor, Tensor]]]:
        """Outputs of every convolutional stage for the visible tokens of every input."""
        return [
            self._convolve(
                own, None if paths is None else paths[number].split(self.config.stage_depths + (len(self.blocks),))
            )
            for number, own in enumerate(inputs)
        ]

    def _convolve(self, own: EncoderInput, paths: Sequence[Tensor] | None) -> list[tuple[Tensor, Tensor]]:
        settings, part = self.config, own.part
        grid, spec = part.tokens.grid, part.tokens.spec
        if spec.patch_size != self.patch_size:
            raise GridError(f"a token of {spec.patch_size}, and the encoder was built for {self.patch_size}")
        visible = visible_index(own)
        values = part.tokens.values(visible).to(self.norm.weight.dtype)
        cells, seen = values.unflatten(2, (*self.patch_size, spec.channels)), []
        for number, (stage, patch) in enumerate(zip(self.pyramid, settings.stage_patches, strict=True)):
            patches = _cut(cells, patch)
            if number == 0:
                patches = self.embeddings[part.key](patches)
            within = settings.cells(self.patch_size, number)
            places = None if visible is None else places_on_plane(visible, grid, within)
            cells, share = stage(patches, grid, places, None if paths is None else paths[number])
            seen.append((cells, share))
        return seen

    def _latents(
        self,
        inputs: Sequence[EncoderInput],
        seen: Sequence[list[tuple[Tensor, Tensor]]],
        paths: Sequence[Tensor] | None,
        wanted: Sequence[int] = (),
    ) -> list[Latents]:
        """The transformer over what the last stage saw, with every stage's share added to it, normalised."""
        first = len(self.pyramid)
        positions = [positions_of(self.positions, own.part.key) for own in inputs]
        tokens = [
            add_positions(
                self.project(self.embed(found[-1][0].flatten(2))), places, own.part.tokens.grid, visible_index(own)
            )
            for own, places, found in zip(inputs, positions, seen, strict=True)
        ]
        biases = [
            places.bias(own.part.tokens.grid, visible_index(own)) for own, places in zip(inputs, positions, strict=True)
        ]
        outputs, kept = self.blocks(
            tokens,
            biases,
            [own.noise for own in inputs],
            [number - first for number in wanted],
            None if paths is None else [path[sum(self.config.stage_depths) :] for path in paths],
        )
        latents = []
        for own, x, found, blocks in zip(inputs, outputs, seen, kept, strict=True):
            for _, share in found:
                x = x + share
            stages = (found[number][0].flatten(2) if number < first else blocks[number - first] for number in wanted)
            latents.append(Latents(self.norm(x), visible_index(own), stages=tuple(stages)))
        return latents


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
    batch, _, tall, wide, width = cells.shape
    height, columns = grid[0] * tall, grid[1] * wide
    if places is None:
        return cells.unflatten(1, grid).transpose(2, 3).reshape(batch, height, columns, width)
    plane = cells.new_zeros(batch * height * columns, width)
    return plane.index_copy(0, places, cells.flatten(0, 3)).view(batch, height, columns, width)


def _collect(plane: Tensor, shape: torch.Size, grid: Grid, places: Tensor | None) -> Tensor:
    """The inverse of `_spread`: cells (B, V, rows, columns, width) of that shape."""
    if places is None:
        return plane.unflatten(1, (grid[0], -1)).unflatten(3, (grid[1], -1)).transpose(2, 3).reshape(shape)
    return plane.flatten(0, 2).index_select(0, places).view(shape)


def _cut(cells: Tensor, patch: int) -> Tensor:
    """Joins the cells of a token to patches: (B, V, rows, columns, width) -> (B, V, fewer, fewer, area * width)."""
    cut = cells.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # (B, V, fewer, patch, fewer, patch, width)
    return cut.transpose(3, 4).flatten(4)


def _common_patch_size(settings: ConvViTSettings, embeddings: Mapping[str, Embedding]) -> tuple[int, ...]:
    """Height and width of a token, which all embeddings must agree on: the layers between stages are that large.

    Raises:
        GridError: they do not, or the stages do not fit into such a token.
    """
    for key, embedding in embeddings.items():
        _check_tokens(settings, key, embedding.spec)
    (first, embedding), *others = embeddings.items()
    for key, other in others:
        if other.spec.patch_size != embedding.spec.patch_size:
            raise GridError(
                f"embeddings {first} and {key} are of tokens of {embedding.spec.patch_size} and "
                f"{other.spec.patch_size}: conv_vit needs the same patch_size in all modalities"
            )
    return embedding.spec.patch_size


def _check_tokens(settings: ConvViTSettings, key: str, spec: TokenSpec) -> None:
    """Raises a GridError unless such tokens can be cut into the patches of all stages."""
    side, where = math.prod(settings.stage_patches), f"embeddings.{key}"
    if spec.vocab_size is not None:
        raise GridError(f"{where}: conv_vit embeds values, not ids: choose another encoder")
    if len(spec.patch_size) != 2:
        raise GridError(
            f"{where}: conv_vit takes grids of two axes, not {len(spec.patch_size)}: choose another encoder, or a "
            "patch_size of two numbers"
        )
    if any(extent % side for extent in spec.patch_size):
        raise GridError(
            f"{where}: stage_patches {list(settings.stage_patches)} make cells of {side} x {side}, and a token is "
            f"{spec.patch_size[0]} x {spec.patch_size[1]}: set the modality's patch_size to multiples of {side}, or "
            "choose smaller stage_patches"
        )
