"""SimMIM's published layouts (microsoft/SimMIM): a ViT or a Swin encoder, and one convolution as decoder."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from pydantic import Field
from torch import Tensor

from mmmask.builtins.positions import resize_relative_table
from mmmask.interfaces import Format
from mmmask.interfaces.format import ForeignWeights
from mmmask_zoo.conversion import Conversion, embedding_key, square
from mmmask_zoo.fine_tuned import classifier

PATCH = "patch_embed.proj"
RELATIVE = "relative_position_bias_table"
INDEX = "relative_position_index"
VIT_BLOCK = {"gamma_1": "scale1.weight", "gamma_2": "scale2.weight"}
SWIN_BLOCK = {f"attn.{RELATIVE}": "attn.relative_table"}
"""What a tensor of a block is called, where that differs: {foreign: mmmask's}."""
COMPUTED = "which row of the table a pair of tokens has is computed"


class SimMIMFormat(Format):
    """SimMIM's checkpoints: ViT and Swin, pretrained; ViT fine-tuned as well."""

    class Config(Format.Config):
        size: int | None = Field(
            default=None, gt=0, description="height and width in pixels; null: the file's, of a Swin 192"
        )
        num_heads: int | None = Field(default=None, gt=0, description="attention heads; null: told from the width")
        stage_heads: tuple[int, ...] | None = Field(
            default=None, description="of a Swin: attention heads of each stage; null: told from its tables"
        )
        unit: int = Field(default=32, gt=0, description="pixels of the square units that are masked as a whole")
        mask_ratio: float = Field(default=0.6, ge=0, lt=1, description="share of the units that is masked")

    config: Config

    @classmethod
    def recognizes(cls, keys: Mapping[str, Tensor]) -> bool:
        """Whether it is a Swin that is pretrained, or a ViT with relative positions and layer scale."""
        if "encoder.mask_token" in keys and "encoder.layers.0.blocks.0.norm1.weight" in keys:
            return True
        return any(f"{prefix}blocks.0.gamma_1" in keys and _relative(keys, prefix) for prefix in ("encoder.", ""))

    def read(self, state: Mapping[str, Tensor]) -> ForeignWeights:
        """Converts a state dict.

        Raises:
            InteropError: a key is missing or of another shape, or the number of heads is not known.
        """
        conversion = Conversion(self.config.name, state)
        if "encoder.layers.0.blocks.0.norm1.weight" in state:
            return _read_swin(self.config, conversion)
        vit = _ViT(self.config, conversion, "" if "head.weight" in state else "encoder.")
        return vit.classifier() if "head.weight" in state else vit.pretraining()


class _ViT:
    """The plain ViT: the sizes that a file tells, and the model part by part; the file's keys begin with `prefix`."""

    def __init__(self, config: SimMIMFormat.Config, conversion: Conversion, prefix: str) -> None:
        self.config, self.conversion, self.prefix = config, conversion, prefix
        self.width, channels, *patch = conversion.shape(
            f"{prefix}{PATCH}.weight", "width, channels, height, width of a patch"
        )
        tables = _relative(conversion.source, prefix)
        if not tables:
            raise conversion.error(f"{prefix}rel_pos_bias.{RELATIVE} is missing")
        offsets = square(conversion.shape(tables[0], "offsets, heads")[0] - 3)
        if offsets is None or offsets % 2 == 0:
            raise conversion.error(f"{tables[0]}: its rows are not those of a square and a cls token")
        side = (offsets + 1) // 2
        conversion.require_multiple("size", config.size, math.lcm(*patch), "pixels")
        size = config.size or side * patch[0]
        self.tables, self.patch, self.channels = tables, patch, channels
        self.trained, self.grid = (side, side), (size // patch[0], size // patch[1])
        self.key = embedding_key(patch, channels)
        self.modality = {"name": "image", "size": size, "patch_size": patch, "channels": channels}

    def pretraining(self) -> ForeignWeights:
        """A masked model: mask tokens within the encoder, the head alone behind it."""
        conversion = self.conversion
        encoder = self._encoder() | {"masked_tokens": "replace"}
        conversion.flatten(f"{self.prefix}mask_token", "encoder.mask_token")
        conversion.take_linear(f"{self.prefix}norm", "encoder.norm")
        _head(conversion, f"heads.{self.key}", self.channels, self.patch)
        return conversion.finished(_experiment(self.config, encoder, self.modality))

    def classifier(self) -> ForeignWeights:
        """A classifier of the mean of all patches, normalised after it."""
        return classifier(self.conversion, "SimMIM", self._encoder(), {"images": self.modality}, token="prefix")

    def _encoder(self) -> dict[str, Any]:
        conversion, prefix = self.conversion, self.prefix
        conversion.embedding(f"{prefix}{PATCH}", f"encoder.embeddings.{self.key}")
        conversion.flatten(f"{prefix}cls_token", "encoder.prefix_tokens", row=True)
        per_block = ".blocks." in f".{self.tables[0]}"
        indices = [key.replace(RELATIVE, INDEX) for key in self.tables]
        for number, key in enumerate(self.tables):
            new = f"encoder.positions.{self.key}.{f'{number}.' if per_block else ''}table"
            table = conversion.tensor(key, "offsets, heads")
            if self.grid == self.trained:
                conversion.take(key, new)
            else:
                resized = resize_relative_table(table, self.trained, self.grid, extra=3)
                conversion.convert(key, new, resized, f"resized from {self.trained} to {self.grid} tokens")
            conversion.ignore(indices[number], COMPUTED)
        conversion.take_blocks(f"{prefix}blocks", "encoder.blocks", VIT_BLOCK)
        return {
            "name": "vit",
            "width": self.width,
            "depth": conversion.depth(f"{prefix}blocks"),
            "num_heads": conversion.heads(self.config.num_heads, self.width),
            "prefix_tokens": 1,
            "qkv_bias": "query_value",
            "layer_scale": 0.1,
            "positions": {"name": "relative_bias"},
            "bias_per_block": per_block,
        }


def _read_swin(config: SimMIMFormat.Config, conversion: Conversion) -> ForeignWeights:
    """A masked model with a Swin encoder; a token of its stream is a cell of the last stage."""
    source = conversion.source
    embed_width, channels, embed_patch, _ = conversion.shape(
        f"encoder.{PATCH}.weight", "width, channels, height, width of a patch"
    )
    stages = conversion.depth("encoder.layers")
    depths = [conversion.depth(f"encoder.layers.{stage}.blocks") for stage in range(stages)]
    tables = [
        conversion.shape(f"encoder.layers.{stage}.blocks.0.attn.{RELATIVE}", "offsets, heads")
        for stage in range(stages)
    ]
    windows = [((square(rows) or 0) + 1) // 2 for rows, _ in tables]
    patch = [embed_patch * 2 ** (stages - 1)] * 2
    conversion.require_multiple("size", config.size, patch[0], "pixels")
    key, size = embedding_key(patch, channels), config.size or _swin_size(conversion, windows[0], embed_patch)
    conversion.embedding(f"encoder.{PATCH}", f"encoder.embeddings.{key}")
    conversion.take_linear("encoder.patch_embed.norm", "encoder.patch_norm")
    conversion.flatten("encoder.mask_token", "encoder.mask_token")
    for stage in range(stages):
        old, new = f"encoder.layers.{stage}", f"encoder.pyramid.{stage}"
        computed = [name for name in source if name.startswith(old) and name.endswith((INDEX, "attn_mask"))]
        for name in computed:
            conversion.ignore(name, COMPUTED if name.endswith(INDEX) else "which windows are shifted is computed")
        conversion.take_blocks(f"{old}.blocks", f"{new}.blocks", SWIN_BLOCK)
        conversion.take_linear(f"{old}.downsample.norm", f"{new}.merge.norm")
        conversion.take_linear(f"{old}.downsample.reduction", f"{new}.merge.reduction")
    conversion.take_linear("encoder.norm", "encoder.norm")
    _head(conversion, f"heads.{key}", channels, patch)
    encoder = {
        "name": "swin",
        "width": embed_width * 2 ** (stages - 1),
        "depths": depths,
        "stage_heads": list(config.stage_heads or [heads for _, heads in tables]),
        "window": max(windows),
        "embed_patch": embed_patch,
    }
    modality = {"name": "image", "size": size, "patch_size": patch, "channels": channels}
    return conversion.finished(_experiment(config, encoder, modality))


def _experiment(config: SimMIMFormat.Config, encoder: dict[str, Any], modality: dict[str, Any]) -> dict[str, Any]:
    unit = [max(1, config.unit // side) for side in modality["patch_size"]]
    return {
        "description": "a SimMIM checkpoint",
        "model": {"encoder": encoder, "decoder": {"name": "in_place"}},
        "streams": {
            "images": {
                "modality": modality,
                "masker": {"name": "unit", "unit": unit, "mask_ratio": config.mask_ratio},
                "loss": {"name": "pixels", "error": "absolute", "normalize": "none", "unnormalize": False},
            }
        },
    }


def _head(conversion: Conversion, new: str, channels: int, patch: list[int]) -> None:
    """The decoder: a 1 x 1 convolution with outputs (channel, row, column) of a token, as the pixel shuffle asks."""
    for part, axes in (("weight", "outputs, width, 1, 1"), ("bias", "outputs")):
        old = f"decoder.0.{part}"
        if old in conversion.source:
            tensor = conversion.tensor(old, axes)
            tensor = tensor.flatten(1) if part == "weight" else tensor.unsqueeze(1)
            if tensor.shape[0] != channels * patch[0] * patch[1]:
                raise conversion.error(
                    f"{old}: {tensor.shape[0]} outputs, a token has {channels} x {patch[0]} x {patch[1]}"
                )
            tensor = tensor.unflatten(0, (channels, *patch)).permute(1, 2, 0, 3).flatten(0, 2)
            how = "convolution and pixel shuffle as a linear layer, channel fastest"
            conversion.convert(old, f"{new}.{part}", tensor if part == "weight" else tensor.flatten(), how)


def _relative(keys: Mapping[str, Tensor], prefix: str) -> list[str]:
    """The tables of relative positions of a ViT: one that all blocks share, or one for each, in order."""
    shared = f"{prefix}rel_pos_bias.{RELATIVE}"
    if shared in keys:
        return [shared]
    pattern = re.compile(re.escape(f"{prefix}blocks.") + r"(\d+)\.attn\." + RELATIVE)
    found = {int(match[1]): key for key in keys if (match := pattern.fullmatch(key))}
    return [found[number] for number in sorted(found)]


def _swin_size(conversion: Conversion, window: int, embed_patch: int) -> int:
    """Height and width in pixels, told from how many windows the first shifted block has, else the published 192."""
    mask = "encoder.layers.0.blocks.1.attn_mask"
    if mask not in conversion.source:
        return 192
    windows = conversion.shape(mask, "windows, cells of a window, cells of a window")[0]
    side = square(windows)
    if side is None:
        raise conversion.error(f"{mask}: {windows} windows, which are no square")
    return side * window * embed_patch
