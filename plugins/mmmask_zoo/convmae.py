"""ConvMAE's published layout (Alpha-VL/ConvMAE): two stages of convolutions, a ViT, and MAE's decoder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from pydantic import Field
from torch import Tensor

from mmmask.interfaces import Format
from mmmask.interfaces.format import ForeignWeights
from mmmask_zoo.conversion import Conversion, channel_fastest, embedding_key
from mmmask_zoo.mae_decoder import take_mae_decoder
from mmmask_zoo.picture_positions import PicturePositions

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
        mask_ratio: float = Field(default=0.75, ge=0, lt=1, description="share of the tokens that is masked")
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
    channels, token = kernels[0][1], [math.prod(sides)] * 2
    positions = PicturePositions(conversion, "pos_embed", token, config.size, cls_token=False)
    key = embedding_key(token, channels)
    for stage in STAGES:
        _stage(conversion, stage, key)
    _convolution(conversion, "patch_embed3.proj", "encoder.embed.proj")
    conversion.take_linear("patch_embed3.norm", "encoder.embed.norm")
    conversion.take_linear("patch_embed4", "encoder.project")
    conversion.take_blocks("blocks3", "encoder.blocks")
    conversion.take_linear("norm", "encoder.norm")
    for table in ("pos_embed", "decoder_pos_embed"):
        if table in conversion.source and not positions.is_sinusoid(table):
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
        "positions": positions.sinusoid,
    }
    decoder = take_mae_decoder(conversion, f"heads.{key}", config.decoder_num_heads)
    modality = {"name": "image", "size": positions.size, "patch_size": token, "channels": channels}
    stream = {
        "modality": modality,
        "masker": {"name": "random", "mask_ratio": config.mask_ratio, "round_down": "visible"},
        "loss": {"name": "pixels", "normalize": config.normalize, "unnormalize": False},
    }
    return conversion.finished(
        {
            "description": "a ConvMAE checkpoint",
            "model": {"encoder": encoder, "decoder": decoder | {"positions": positions.sinusoid}},
            "streams": {"images": stream},
        }
    )


def _stage(conversion: Conversion, stage: int, key: str) -> None:
    """The patch embedding before a stage of convolutions, its blocks, and what it adds to the latents."""
    old, new = f"blocks{stage}", f"encoder.pyramid.{stage - 1}"
    proj = f"encoder.embeddings.{key}" if stage == STAGES[0] else f"{new}.embed.proj"
    _convolution(conversion, f"patch_embed{stage}.proj", proj)
    conversion.take_linear(f"patch_embed{stage}.norm", f"{new}.embed.norm")
    for layer in (f"{old}.{block}.{layer}" for block in range(conversion.depth(old)) for layer in POINTWISE):
        _convolution(conversion, layer, f"{new}.blocks{layer.removeprefix(old)}")
    renamed = {f"attn.{part}": f"depthwise.{part}" for part in ("weight", "bias")}
    conversion.take_blocks(old, f"{new}.blocks", renamed)
    _convolution(conversion, f"stage{stage}_output_decode", f"{new}.fuse")


def _convolution(conversion: Conversion, old: str, new: str) -> None:
    """One whose kernel is its stride; nothing where the file lacks it."""
    weight = f"{old}.weight"
    if weight in conversion.source:
        linear = channel_fastest(conversion.tensor(weight, "outputs, inputs, height, width of a kernel"))
        conversion.convert(weight, f"{new}.weight", linear, "convolution as a linear layer, channel fastest")
    conversion.take(f"{old}.bias", f"{new}.bias")
