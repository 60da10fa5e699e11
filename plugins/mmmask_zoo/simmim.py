"""SimMIM's published layouts (microsoft/SimMIM): a ViT or a Swin encoder, and one convolution as decoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from mmmask.interfaces import ForeignWeights, Format, Grid
from mmmask.interop import HEADS, across_border, relative_index, resize_relative_table
from mmmask_zoo.conversion import Conversion, Patches, pixel_patches, square
from mmmask_zoo.correspondence import (
    Computed,
    Pair,
    Table,
    channel_first_head,
    linear,
    patch_embedding,
    read_all,
    vector,
    write_all,
)
from mmmask_zoo.layout import Block, Layout, LayoutFormat
from mmmask_zoo.options import FilesSize, NumHeads
from mmmask_zoo.writing import Writing

LAYOUT = Layout(
    system="a SimMIM",
    patch="encoder.patch_embed.proj",
    cls_token="encoder.cls_token",
    positions="encoder.rel_pos_bias.relative_position_bias_table",
    blocks="encoder.blocks",
    block=Block(scales=("gamma_1", "gamma_2")),
    norm="encoder.norm",
    mask_token="encoder.mask_token",
    head="decoder.0",
    encoder={"prefix_tokens": 1, "masked_tokens": "replace"},
    pool="prefix",
)
"""Pretrained files of a ViT."""
FINE_TUNED = replace(LAYOUT.without("encoder."), encoder={"prefix_tokens": 1, "masked_tokens": "drop"})
SWIN = replace(LAYOUT, blocks="encoder.layers", encoder={}, pool="mean")
"""Blocks of a Swin lie in stages, `blocks.STAGE.blocks.0` and so on."""
SWIN_FINE_TUNED = SWIN.without("encoder.")
TABLE, INDEX = "relative_position_bias_table", "relative_position_index"
COMPUTED = "which row of the table a pair of tokens has is computed"


class SimMIMFormat(LayoutFormat):
    """SimMIM's checkpoints: ViT and Swin, pretrained and fine-tuned."""

    class Config(Format.Config):
        size: FilesSize = Field(default=None, description="height and width in pixels; null: the file's, of a Swin 192")
        num_heads: NumHeads = None
        stage_heads: tuple[int, ...] | None = Field(
            default=None, description="of a Swin: attention heads of each stage; null: told from its tables"
        )
        unit: int = Field(default=32, gt=0, description="pixels of the square units that are masked as a whole")
        mask_ratio: float = Field(default=0.6, ge=0, lt=1, description="share of the units that is masked")

    config: Config

    @classmethod
    def recognizes(cls, keys: Mapping[str, Tensor]) -> bool:
        """Whether it is a Swin with a mask token or a head, or a ViT with relative positions and layer scale."""
        swins = ((SWIN, SWIN.mask_token), (SWIN_FINE_TUNED, f"{SWIN_FINE_TUNED.classifier}.weight"))
        if any(_first_table(layout) in keys and key in keys for layout, key in swins):
            return True
        return any(
            f"{layout.blocks}.0.gamma_1" in keys and bool(_tables(keys, layout)) for layout in (LAYOUT, FINE_TUNED)
        )

    def _read(self, conversion: Conversion) -> ForeignWeights:
        swins = [layout for layout in (SWIN, SWIN_FINE_TUNED) if _first_table(layout) in conversion.source]
        return _read_swin(conversion, swins[0]) if swins else _read_vit(conversion)

    def _write(self, writing: Writing) -> None:
        writing.require_statistics()
        patches, is_swin = writing.patches("height", "width"), writing.part("encoder").name == "swin"
        (_write_swin if is_swin else _write_vit)(writing, patches)
        if not writing.classifier:
            writing.require_part("decoder", "in_place", depth=(0,))
            write_all(_head(writing.head_key, patches), writing)


def _streams(conversion: Conversion, patches: Patches, size: int) -> dict[str, Any]:
    config = conversion.options
    unit = [max(1, config.unit // side) for side in patches.size]
    return {
        "images": {
            "modality": patches.modality("image", size),
            "masker": {"name": "unit", "unit": unit, "mask_ratio": config.mask_ratio},
            "loss": {"name": "pixels", "error": "absolute", "normalize": "none", "unnormalize": False},
        }
    }


def _head(own: str, patches: Patches) -> Iterator[Pair]:
    return channel_first_head(LAYOUT.head, own, patches.channels, patches.size, convolution=True)


# --- the plain ViT


def _tables(keys: Mapping[str, Tensor], layout: Layout) -> list[str]:
    """Tables of relative positions of a ViT: one that all blocks share, or one for each, in order."""
    if layout.positions in keys:
        return [layout.positions]
    blocks = (f"{layout.blocks}.{block}.attn.{TABLE}" for block in range(len(keys)))
    return [table for table in blocks if table in keys]


def _position_pairs(tables: Sequence[str], own: str, trained: Grid, grid: Grid) -> Table:
    """Tables of relative positions, resized where the grid differs, and their indices."""
    per_block = not tables[0].endswith(f"rel_pos_bias.{TABLE}")
    how = "" if trained == grid else f"resized from {trained} to {grid} tokens"
    for number, table in enumerate(tables):
        key = f"{own}.{number}.table" if per_block else f"{own}.table"
        resize = partial(resize_relative_table, trained=trained, grid=grid, extra=3)
        yield Pair((table,), key, how, resize, axes="offsets, heads")
        yield Computed(table.replace(TABLE, INDEX), partial(relative_index, grid, grid, num_prefix=1), COMPUTED)


def _read_vit(conversion: Conversion) -> ForeignWeights:
    is_classifier = f"{FINE_TUNED.classifier}.weight" in conversion.source
    layout = FINE_TUNED if is_classifier else LAYOUT
    patches = conversion.patches(layout.patch, "height, width")
    tables = _tables(conversion.source, layout)
    if not tables:
        raise conversion.error(f"{layout.positions} is missing")
    offsets = square(conversion.shape(tables[0], "offsets, heads")[0] - 3)
    if offsets is None or offsets % 2 == 0:
        raise conversion.error(f"{tables[0]}: its rows are not those of a square and a cls token")
    side, (height, width) = (offsets + 1) // 2, patches.size
    size = conversion.options.size or side * height
    own, grid = f"encoder.positions.{patches.key}", (size // height, size // width)
    read_all(_position_pairs(tables, own, (side, side), grid), conversion)
    if not is_classifier:
        vector(layout.mask_token, "encoder.mask_token").read(conversion)
        read_all(_head(f"{HEADS}.{patches.key}", patches), conversion)
    encoder = {"positions": {"name": "relative_bias"}, "bias_per_block": tables[0] != layout.positions}
    return layout.read(conversion, patches, _streams(conversion, patches, size), encoder, decoder=None)


def _write_vit(writing: Writing, patches: Patches) -> None:
    layout = FINE_TUNED if writing.classifier else LAYOUT
    allowed = {"qkv_bias": ("query_value",), "positions": ("relative_bias",)}
    layout.write(writing, patches, {"free": ("layer_scale", "bias_per_block"), **allowed}, decoder=None)
    encoder = writing.part("encoder")
    tables = [layout.positions]
    if encoder.bias_per_block:
        tables = [f"{layout.blocks}.{block}.attn.{TABLE}" for block in range(encoder.depth)]
    write_all(_position_pairs(tables, f"encoder.positions.{patches.key}", writing.grid, writing.grid), writing)
    vector(layout.mask_token, "encoder.mask_token").write(writing)


# --- Swin


def _first_table(layout: Layout) -> str:
    """Key of a tensor that every Swin has."""
    return f"{layout.blocks}.0.blocks.0.attn.{TABLE}"


def _swin_pairs(
    layout: Layout,
    patches: Patches,
    embed_patch: int,
    depths: Sequence[int],
    windows: Sequence[int],
    planes: Sequence[Grid],
) -> Table:
    """The encoder; of every stage there are the number of blocks, the side of windows, and the plane in patches."""
    yield from patch_embedding(layout.patch, f"encoder.embeddings.{patches.key}", (embed_patch, embed_patch))
    yield from linear(layout.patch.replace(".proj", ".norm"), "encoder.patch_norm")
    yield vector(layout.mask_token, "encoder.mask_token")
    for stage, (depth, window, (height, width)) in enumerate(zip(depths, windows, planes, strict=True)):
        old, new = f"{layout.blocks}.{stage}", f"encoder.pyramid.{stage}"
        yield from Block().pairs(f"{old}.blocks", f"{new}.blocks", depth)
        for block in range(depth):
            attention = f"{old}.blocks.{block}.attn"
            yield Pair((f"{attention}.{TABLE}",), f"{new}.blocks.{block}.attn.relative_table")
            index = partial(relative_index, (window, window), (window, window), num_prefix=0)
            yield Computed(f"{attention}.{INDEX}", index, COMPUTED)
            if block % 2:
                mask = partial(_shifted, height, width, window)
                yield Computed(f"{attention}_mask", mask, "which windows are shifted is computed")
        yield from linear(f"{old}.downsample.norm", f"{new}.merge.norm")
        yield from linear(f"{old}.downsample.reduction", f"{new}.merge.reduction")
    yield from linear(layout.norm, "encoder.norm")


def _shifted(height: int, width: int, window: int) -> Tensor | None:
    """(windows, cells, cells) added to attention within shifted windows: -100 across the plane's border, else 0.

    None for a plane that is no larger than a window, which is not shifted.
    """
    if min(height, width) <= window:
        return None
    across = across_border(height, width, window, window // 2, torch.device("cpu"))
    return torch.zeros(across.shape).masked_fill(across, -100.0)


def _read_swin(conversion: Conversion, layout: Layout) -> ForeignWeights:
    """A Swin encoder of a masked model, or of a classifier of the mean over the last stage's cells, its tokens."""
    width, channels, embed_patch, _ = conversion.shape(
        f"{layout.patch}.weight", "width, channels, height, width of a patch"
    )
    names = [f"{layout.blocks}.{stage}.blocks" for stage in range(conversion.depth(layout.blocks))]
    stages, depths = len(names), [conversion.depth(name) for name in names]
    tables = [conversion.shape(f"{name}.0.attn.{TABLE}", "offsets, heads") for name in names]
    windows = [((square(rows) or 0) + 1) // 2 for rows, _ in tables]
    cells = 2 ** (stages - 1)
    patches = pixel_patches(width * cells, channels, embed_patch * cells, embed_patch * cells)
    conversion.require_filled(patches.size)
    size = _swin_size(conversion, names[0], windows[0], embed_patch)
    planes = [(size // embed_patch // 2**stage,) * 2 for stage in range(stages)]
    read_all(_swin_pairs(layout, patches, embed_patch, depths, windows, planes), conversion)
    first = Block().settings(conversion, names[0], width)
    encoder = {
        "name": "swin",
        "width": patches.width,
        "depths": depths,
        "stage_heads": list(conversion.options.stage_heads or [heads for _, heads in tables]),
        "window": max(windows),
        "embed_patch": embed_patch,
        "mlp_ratio": first.get("mlp_ratio", 4.0),
    }
    streams = _streams(conversion, patches, conversion.options.size or size)
    if layout is SWIN_FINE_TUNED:
        conversion.weights.keeps["encoder.mask_token"] = "fine-tuned files mask nothing"
        return layout.fine_tuned(conversion, encoder, streams, None)
    read_all(_head(f"{HEADS}.{patches.key}", patches), conversion)
    return layout.masked_model(conversion, encoder, {"name": "in_place"}, streams)


def _swin_size(conversion: Conversion, blocks: str, window: int, embed_patch: int) -> int:
    """Height and width in pixels, told from how many windows the first shifted block has, else the published 192."""
    mask = f"{blocks}.1.attn_mask"
    if mask not in conversion.source:
        return 192
    windows = conversion.shape(mask, "windows, cells of a window, cells of a window")[0]
    side = square(windows)
    if side is None:
        raise conversion.error(f"{mask}: {windows} windows, which are no square")
    return side * window * embed_patch


def _write_swin(writing: Writing, patches: Patches) -> None:
    encoder = writing.require_part("encoder", "swin", ("depths", "stage_heads", "window", "embed_patch"))
    depths = encoder.depths if encoder.depth is None else [encoder.depth] * len(encoder.depths)
    windows, planes = encoder.windows(writing.grid), encoder.planes(writing.grid)
    layout = SWIN_FINE_TUNED if writing.classifier else SWIN
    if writing.classifier:
        layout.write_classifier(writing, None)
    write_all(_swin_pairs(layout, patches, encoder.embed_patch, depths, windows, planes), writing)
