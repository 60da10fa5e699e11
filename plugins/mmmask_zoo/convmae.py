"""ConvMAE's published layout (Alpha-VL/ConvMAE): two stages of convolutions, a ViT, and MAE's decoder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from mmmask.builtins.positions import sincos_2d_table
from mmmask.interfaces import Format
from mmmask.interfaces.format import ForeignWeights
from mmmask_zoo.conversion import Conversion, channel_fastest, embedding_key, square

STAGES = (1, 2)
"""The stages of convolutions, as the file's keys number them; stage 3 is the ViT."""
FINE_TUNED = ("head.weight", "fc_norm.weight")
POINTWISE = ("conv1", "conv2", "mlp.fc1", "mlp.fc2")
"""The layers of a block that are convolutions of one cell there and linear layers here."""


class ConvMAEFormat(Format):
    """ConvMAE's pretrained checkpoints: with the decoder, or the encoder alone (`strict=False`)."""

    class Config(Format.Config):
        size: int | None = Field(default=None, gt=0, description="height and width in pixels; null: the file's")
        num_heads: int | None = Field(default=None, gt=0, description="attention heads; null: told from the width")
        decoder_num_heads: int = Field(default=16, gt=0, description="attention heads of the decoder")
        mask_ratio: float = Field(default=0.75, ge=0, lt=1, description="share of the tokens that is hidden")
        normalize: Literal["token", "none"] = Field(
            default="token", description="whether the decoder was trained on normalised patches; no key tells"
        )

    config: Config

    @classmethod
    def recognizes(cls, keys: Mapping[str, Tensor]) -> bool:
        """Whether it has three patch embeddings and a linear layer as the fourth, and blocks of convolutions."""
        return all(
            key in keys
            for key in (
                "patch_embed1.proj.weight",
                "patch_embed4.weight",
                "blocks1.0.conv1.weight",
                "blocks3.0.norm1.bias",
            )
        )

    def read(self, state: Mapping[str, Tensor]) -> ForeignWeights:
        """Converts a state dict.

        Raises:
            InteropError: a key is missing or of another shape, the number of heads is not known, or the file is
                fine-tuned.
        """
        conversion = Conversion(self.config.name, state)
        if found := [key for key in FINE_TUNED if key in state]:
            raise conversion.error(
                f"{found[0]} is of a fine-tuned file, and how those pool their features is not known: load the "
                "pretrained file"
            )
        return _pretraining(self.config, conversion)


def _pretraining(config: ConvMAEFormat.Config, conversion: Conversion) -> ForeignWeights:
    """A masked model. Of a file without the decoder, the published one's sizes."""
    kernels = [
        conversion.shape(f"patch_embed{stage}.proj.weight", "width, inputs, height, width of a patch")
        for stage in (*STAGES, 3)
    ]
    widths, sides = [kernel[0] for kernel in kernels], [kernel[2] for kernel in kernels]
    for stage, kernel in enumerate(kernels, start=1):
        if kernel[2] != kernel[3]:
            raise conversion.error(
                f"patch_embed{stage}.proj.weight: patches of {kernel[2]} x {kernel[3]} are no squares"
            )
    channels, token = kernels[0][1], math.prod(sides)
    tokens = conversion.shape("pos_embed", "1, positions, width")[1]
    side = square(tokens)
    if side is None:
        raise conversion.error(f"pos_embed: {tokens} positions, which are no square")
    size = config.size or side * token
    if size % token:
        raise conversion.error(f"size {size} is not a multiple of the file's patches of {token} pixels")
    key, trained = embedding_key((token, token), channels), (side, side)
    positions: dict[str, Any] = {"name": "sincos_2d"} | (
        {} if size == side * token else {"trained_grid": list(trained)}
    )
    for stage in STAGES:
        _stage(conversion, stage, key)
    _convolution(conversion, "patch_embed3.proj", "encoder.embed.proj")
    conversion.take_linear("patch_embed3.norm", "encoder.embed.norm")
    conversion.take_linear("patch_embed4", "encoder.project")
    conversion.take_blocks("blocks3", "encoder.blocks")
    conversion.take_linear("norm", "encoder.norm")
    for table in ("pos_embed", "decoder_pos_embed"):
        if table in conversion.source:
            width = conversion.shape(table, "1, positions, width")[2]
            if width % 4 or not conversion.fixed_table(table, sincos_2d_table(trained, width)):
                raise conversion.error(f"{table} is not the published table; it was trained or changed")
    encoder = {
        "name": "conv_vit",
        "width": widths[-1],
        "depth": conversion.depth("blocks3"),
        "num_heads": conversion.heads(config.num_heads, widths[-1]),
        "stage_widths": widths[:-1],
        "stage_depths": [conversion.depth(f"blocks{stage}") for stage in STAGES],
        "stage_patches": sides[:-1],
        "conv_kernel": conversion.shape("blocks1.0.attn.weight", "width, 1, height, width of a kernel")[2],
        "positions": positions,
    }
    modality = {"name": "image", "size": size, "patch_size": [token, token], "channels": channels}
    stream = {
        "modality": modality,
        "masker": {"name": "random", "mask_ratio": config.mask_ratio, "round_down": "visible"},
        "loss": {"name": "pixels", "normalize": config.normalize, "unnormalize": False},
    }
    return conversion.finished(
        {
            "description": "a ConvMAE checkpoint",
            "model": {"encoder": encoder, "decoder": _decoder(config, conversion, positions, key)},
            "streams": {"images": stream},
        }
    )


def _stage(conversion: Conversion, stage: int, key: str) -> None:
    """The patch embedding before a stage of convolutions, its blocks, and what it adds to the latents."""
    old, new = f"blocks{stage}", f"encoder.stages.{stage - 1}"
    proj = f"encoder.embeddings.{key}" if stage == STAGES[0] else f"{new}.embed.proj"
    _convolution(conversion, f"patch_embed{stage}.proj", proj)
    conversion.take_linear(f"patch_embed{stage}.norm", f"{new}.embed.norm")
    pointwise = [f"{old}.{block}.{layer}" for block in range(conversion.depth(old)) for layer in POINTWISE]
    for layer in pointwise:
        _convolution(conversion, layer, f"{new}.blocks{layer.removeprefix(old)}")
    renamed = {f"attn.{part}": f"depthwise.{part}" for part in ("weight", "bias")}
    leave = {f"{layer}.{part}" for layer in pointwise for part in ("weight", "bias")}
    conversion.take_blocks(old, f"{new}.blocks", renamed, leave)
    _convolution(conversion, f"stage{stage}_output_decode", f"{new}.fuse")


def _convolution(conversion: Conversion, old: str, new: str) -> None:
    """One whose kernel is its stride; nothing where the file lacks it."""
    weight = f"{old}.weight"
    if weight in conversion.source:
        linear = channel_fastest(conversion.tensor(weight, "outputs, inputs, height, width of a kernel"))
        conversion.convert(weight, f"{new}.weight", linear, "convolution as a linear layer, channel fastest")
    conversion.take(f"{old}.bias", f"{new}.bias")


def _decoder(
    config: ConvMAEFormat.Config, conversion: Conversion, positions: dict[str, Any], key: str
) -> dict[str, Any]:
    """MAE's decoder and its head."""
    has_decoder = conversion.has("decoder_embed.", "decoder_blocks.")
    conversion.flatten("mask_token", "decoders.shared.mask_token")
    conversion.take_linear("decoder_embed", "decoders.shared.embed")
    conversion.take_blocks("decoder_blocks", "decoders.shared.blocks")
    conversion.take_linear("decoder_norm", "decoders.shared.norm")
    conversion.take_linear("decoder_pred", f"heads.{key}")
    return {
        "name": "transformer",
        "width": conversion.shape("decoder_embed.weight", "decoder width, width")[0] if has_decoder else 512,
        "depth": conversion.depth("decoder_blocks") if has_decoder else 8,
        "num_heads": config.decoder_num_heads,
        "positions_at": "decoder",
        "positions": positions,
    }
