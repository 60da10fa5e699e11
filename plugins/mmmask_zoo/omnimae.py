"""OmniMAE's published layout (facebookresearch/omnivore): a flat state dict, `trunk.*` and `head.*`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from mmmask.interfaces import Format
from mmmask.interfaces.format import ForeignWeights
from mmmask.interop import InteropError

EMBEDDING = "trunk.patch_embed.proj.1"  # index 0 is the parameter-free repetition of a still
DECODER_EMBEDDING = "trunk.decoder.decoder_embed"
HEADS = ("head", "heads.0.projector")  # as published on the hub, as the trainer writes it
PUBLISHED_HEADS = {768: 12, 1024: 16, 1280: 16}  # encoder width -> attention heads
_BLOCK = re.compile(r"trunk\.(decoder\.decoder_)?blocks\.(\d+)\.(.+)")


class OmniMAEFormat(Format):
    """OmniMAE's pretraining checkpoints.

    Both the hub's files (no query, key and value biases in the decoder, head named `head`) and those of the released
    trainer (biases, head named `heads.0.projector`) are read.
    """

    class Config(Format.Config):
        size: int = Field(default=224, gt=0, description="height and width of images and clips, in pixels")
        num_frames: int = Field(default=16, gt=0, description="frames of a clip")
        num_heads: int | None = Field(
            default=None, gt=0, description="attention heads; by default told from a published width"
        )
        decoder_num_heads: int = Field(default=16, gt=0, description="attention heads of the decoder")
        image_mask_ratio: float = Field(
            default=0.9, ge=0, lt=1, description="share of an image's tokens that is hidden"
        )
        video_mask_ratio: float = Field(
            default=0.95, ge=0, lt=1, description="share of a video's tokens that is hidden"
        )

    config: Config

    @classmethod
    def recognizes(cls, keys: Mapping[str, Tensor]) -> bool:
        """Whether it has OmniMAE's patch embedding, decoder and head."""
        needed = (f"{EMBEDDING}.weight", f"{DECODER_EMBEDDING}.weight")
        return all(key in keys for key in needed) and _head(keys) is not None

    def read(self, state: Mapping[str, Tensor]) -> ForeignWeights:
        """Converts a state dict.

        Raises:
            InteropError: a key is missing or of another shape, the number of heads is not known, or the position
                tables are not the published ones for this size.
        """
        head = _head(state)
        if head is None or f"{EMBEDDING}.weight" not in state:
            raise InteropError("format omnimae: the patch embedding or the head is missing")
        if f"{DECODER_EMBEDDING}.weight" not in state:
            raise InteropError(f"format omnimae: {DECODER_EMBEDDING}.weight is missing: no pretraining checkpoint")
        expected = "(width, channels, frames, height, width of a patch)"
        width, channels, *patch = _shape(state, f"{EMBEDDING}.weight", 5, expected)
        key = f"pixels_{'x'.join(map(str, (*patch, channels)))}"
        renamed: dict[str, str] = {
            f"{EMBEDDING}.bias": f"encoder.embeddings.{key}.bias",
            f"{DECODER_EMBEDDING}.weight": "decoders.shared.embed.weight",
            f"{DECODER_EMBEDDING}.bias": "decoders.shared.embed.bias",
            f"{head}.weight": f"heads.{key}.weight",
            f"{head}.bias": f"heads.{key}.bias",
        }
        for part in ("weight", "bias"):
            renamed[f"trunk.norm.{part}"] = f"encoder.norm.{part}"
            renamed[f"trunk.decoder.norm.{part}"] = f"decoders.shared.norm.{part}"
        for name in state:
            if block := _BLOCK.fullmatch(name):
                owner = "decoders.shared" if block[1] else "encoder"
                renamed[name] = f"{owner}.blocks.{block[2]}.{block[3]}"
        weights = {new: state[old] for old, new in renamed.items() if old in state}
        origin = {new: (old,) for old, new in renamed.items() if old in state}
        converted = {}

        def convert(old: str, new: str, tensor: Tensor, how: str) -> None:
            weights[new], origin[new], converted[old] = tensor, (old,), how

        if "trunk.mask_token" in state:
            convert("trunk.mask_token", "decoders.shared.mask_token", state["trunk.mask_token"].flatten(), "flattened")
        weight = state[f"{EMBEDDING}.weight"]
        flat = weight.permute(0, *range(2, weight.dim()), 1).flatten(1)  # channel fastest, as tokens hold it
        how = "convolution as a linear layer over a token, channel fastest"
        convert(f"{EMBEDDING}.weight", f"encoder.embeddings.{key}.weight", flat, how)
        experiment = self._experiment(state, patch, channels, width)
        return ForeignWeights(experiment, weights, origin, converted, self._tables(state, patch, width))

    def _experiment(self, state: Mapping[str, Tensor], patch: list[int], channels: int, width: int) -> dict[str, Any]:
        num_heads = self.config.num_heads or PUBLISHED_HEADS.get(width)
        if num_heads is None:
            raise InteropError(f"format omnimae: an encoder of width {width} is not published: give num_heads")
        pixels = {"size": self.config.size, "patch_size": patch, "channels": channels}
        loss = {"name": "pixels", "normalize": "channel"}
        return {
            "description": "an OmniMAE checkpoint",
            "model": {
                "encoder": {
                    "name": "vit",
                    "width": width,
                    "depth": _depth(state, "trunk.blocks"),
                    "num_heads": num_heads,
                },
                "decoder": {
                    "name": "transformer",
                    "width": _shape(state, f"{DECODER_EMBEDDING}.weight", 2, "(decoder width, width)")[0],
                    "depth": _depth(state, "trunk.decoder.decoder_blocks"),
                    "num_heads": self.config.decoder_num_heads,
                    "qkv_bias": "trunk.decoder.decoder_blocks.0.attn.qkv.bias" in state,
                    "positions_at": "latent",
                },
            },
            "streams": {
                "images": {
                    "modality": {"name": "image", **pixels},
                    "masker": {"name": "random", "mask_ratio": self.config.image_mask_ratio},
                    "loss": loss,
                },
                "videos": {
                    "modality": {"name": "video", "num_frames": self.config.num_frames, **pixels},
                    "masker": {"name": "random", "mask_ratio": self.config.video_mask_ratio},
                    "loss": loss,
                },
            },
        }

    def _tables(self, state: Mapping[str, Tensor], patch: list[int], width: int) -> dict[str, str]:
        """The saved position tables are not needed: they are computed. Checks that they are what is computed."""
        from mmmask.builtins.positions import flat_sinusoid_table

        cells = self.config.size // patch[1]
        grid = (self.config.num_frames // patch[0], cells, cells)
        unused = {}
        for name in ("trunk.pos_embed", "trunk.decoder.pos_embed"):
            if name not in state:
                continue
            positions = _shape(state, name, 3, "(1, positions, width)")[1]
            if positions != math.prod(grid):
                raise InteropError(
                    f"format omnimae: {name} has {positions} positions, a clip of {self.config.num_frames} frames "
                    f"of {self.config.size} pixels has {math.prod(grid)}: give size and num_frames"
                )
            table = state[name]
            computed = flat_sinusoid_table(grid, width, grid).to(table.dtype).unsqueeze(0)
            if table.shape != computed.shape:
                raise InteropError(
                    f"format omnimae: {name}: shape {tuple(table.shape)}, expected {tuple(computed.shape)}"
                )
            if not torch.allclose(table, computed, atol=1e-5):
                raise InteropError(f"format omnimae: {name} is not the published sinusoid; it was trained or changed")
            unused[name] = "the sinusoid is computed; the file's is the same"
        return unused


def _head(state: Mapping[str, Tensor]) -> str | None:
    return next((name for name in HEADS if f"{name}.weight" in state), None)


def _shape(state: Mapping[str, Tensor], key: str, axes: int, expected: str) -> tuple[int, ...]:
    """The shape of a tensor that tells the model's sizes."""
    shape = tuple(state[key].shape)
    if len(shape) != axes or 0 in shape:
        raise InteropError(f"format omnimae: {key}: shape {shape}, expected {expected}")
    return shape


def _depth(state: Mapping[str, Tensor], prefix: str) -> int:
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    numbers = {int(found[1]) for key in state if (found := pattern.match(key))}
    depth = max(numbers, default=-1) + 1
    if len(numbers) != depth:
        raise InteropError(f"format omnimae: {prefix}.{depth - 1}: blocks before it are missing")
    return depth
