"""VideoMAE's published layout (MCG-NJU/VideoMAE), which VideoMAE V2 shares: `encoder.*`, `decoder.*`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from mmmask.interfaces import Format
from mmmask.interfaces.format import ForeignWeights
from mmmask_zoo.conversion import Conversion, embedding_key
from mmmask_zoo.fine_tuned import classifier

PATCH = "patch_embed.proj"
DECODER_HEADS = {192: 3, 384: 6, 512: 8, 640: 8}
"""Width of a published decoder -> its attention heads, which no key tells."""
PUBLISHED_DECODERS = {384: (192, 4), 768: (384, 4), 1024: (512, 12), 1280: (640, 12), 1408: (512, 4)}
"""Width of a published encoder -> width and depth of its decoder."""


class VideoMAEFormat(Format):
    """VideoMAE's checkpoints: with the decoder, the encoder alone (`strict=False`), or fine-tuned.

    Positions are computed and not in the files.
    """

    class Config(Format.Config):
        size: int = Field(default=224, gt=0, description="height and width in pixels")
        num_frames: int = Field(default=16, gt=0, description="frames of a clip")
        trained_size: int | None = Field(
            default=None, gt=0, description="size the file was trained at, where it differs: positions are resized"
        )
        trained_frames: int | None = Field(
            default=None, gt=0, description="frames the file was trained on, where they differ: positions are resized"
        )
        num_heads: int | None = Field(default=None, gt=0, description="attention heads; null: told from the width")
        decoder_num_heads: int | None = Field(
            default=None, gt=0, description="attention heads of the decoder; null: told from its width"
        )
        mask_ratio: float = Field(default=0.9, ge=0, lt=1, description="share of the tubes that is masked")
        normalize: Literal["channel", "none"] = Field(
            default="channel", description="whether the decoder was trained on normalised tubelets; no key tells"
        )

    config: Config

    @classmethod
    def recognizes(cls, keys: Mapping[str, Tensor]) -> bool:
        """Whether it cuts tubelets and has query and value biases apart; files that only V2 writes are left to it."""
        return is_videomae(keys) and not is_second(keys)

    def read(self, state: Mapping[str, Tensor]) -> ForeignWeights:
        """Converts a state dict.

        Raises:
            InteropError: a key is missing or of another shape, or the number of heads is not known.
        """
        conversion = Conversion(self.config.name, state)
        return self._classifier(conversion) if "head.weight" in state else self._pretraining(conversion)

    def masks(self) -> dict[str, Any]:
        """The settings of a stream that say what is masked and predicted."""
        return {"masker": {"name": "tube", "mask_ratio": self.config.mask_ratio}}

    def _pretraining(self, conversion: Conversion) -> ForeignWeights:
        """A masked model. Of a file without the decoder, the published one's sizes."""
        source = conversion.source
        prefix = "" if f"{PATCH}.weight" in source else "encoder."
        key, encoder, modality = self._encoder(conversion, prefix)
        conversion.take_linear(f"{prefix}norm", "encoder.norm")
        conversion.flatten("mask_token", "objectives.masked.decoders.shared.mask_token")
        conversion.take("encoder_to_decoder.weight", "objectives.masked.decoders.shared.embed.weight")
        self._blocks(conversion, "decoder.blocks", "objectives.masked.decoders.shared.blocks")
        conversion.take_linear("decoder.norm", "objectives.masked.decoders.shared.norm")
        conversion.take_linear("decoder.head", f"objectives.masked.heads.{key}")
        width, depth = published_decoder(encoder["width"])
        qkv_bias, cosine_attention = encoder["qkv_bias"], encoder["cosine_attention"]
        if conversion.has("encoder_to_decoder.", "decoder."):
            width = conversion.shape("encoder_to_decoder.weight", "decoder width, width")[0]
            depth = conversion.depth("decoder.blocks")
            qkv_bias = "query_value" if "decoder.blocks.0.attn.q_bias" in source else False
            cosine_attention = "decoder.blocks.0.attn.scale" in source
        decoder = {
            "name": "transformer",
            "width": width,
            "depth": depth,
            "num_heads": conversion.heads(self.config.decoder_num_heads, width, DECODER_HEADS),
            "qkv_bias": qkv_bias,
            "cosine_attention": cosine_attention,
            "embed_bias": False,
            "positions_at": "decoder",
            "positions": encoder["positions"],
        }
        loss = {"name": "pixels", "normalize": self.config.normalize, "epsilon_inside": False}
        return conversion.finished(
            {
                "description": "a VideoMAE checkpoint",
                "model": {"encoder": encoder, "decoder": decoder},
                "streams": {"videos": {"modality": modality, **self.masks(), "loss": loss}},
            }
        )

    def _classifier(self, conversion: Conversion) -> ForeignWeights:
        """Of the mean of all tokens, normalised after it; or of the first token after the final norm."""
        _, encoder, modality = self._encoder(conversion, "")
        return classifier(conversion, "VideoMAE", encoder, {"videos": modality}, token="first")

    def _encoder(self, conversion: Conversion, prefix: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """The embedding's key, the encoder's settings, the modality's; the file's keys begin with `prefix`."""
        axes = "width, channels, frames, height, width of a patch"
        width, channels, *patch = conversion.shape(f"{prefix}{PATCH}.weight", axes)
        key = embedding_key(patch, channels)
        conversion.embedding(f"{prefix}{PATCH}", f"encoder.embeddings.{key}")
        self._blocks(conversion, f"{prefix}blocks", "encoder.blocks")
        encoder = {
            "name": "vit",
            "width": width,
            "depth": conversion.depth(f"{prefix}blocks"),
            "num_heads": conversion.heads(self.config.num_heads, width),
            "mlp_ratio": conversion.shape(f"{prefix}blocks.0.mlp.fc1.weight", "masked, width")[0] / width,
            "qkv_bias": "query_value" if f"{prefix}blocks.0.attn.q_bias" in conversion.source else False,
            "cosine_attention": f"{prefix}blocks.0.attn.scale" in conversion.source,
            "positions": {"name": "flat_sinusoid", **self._trained_grid(conversion, patch)},
        }
        pixels = {"size": self.config.size, "patch_size": patch, "channels": channels}
        return key, encoder, {"name": "video", "num_frames": self.config.num_frames, **pixels}

    def _trained_grid(self, conversion: Conversion, patch: list[int]) -> dict[str, Any]:
        config = self.config
        for option in ("size", "trained_size"):
            conversion.require_multiple(option, getattr(config, option), math.lcm(*patch[1:]), "pixels")
        for option in ("num_frames", "trained_frames"):
            conversion.require_multiple(option, getattr(config, option), patch[0], "frames")
        if config.trained_size is None and config.trained_frames is None:
            return {}
        clip = (config.trained_frames or config.num_frames, *[config.trained_size or config.size] * 2)
        return {"trained_grid": [size // side for size, side in zip(clip, patch, strict=True)]}

    @staticmethod
    def _blocks(conversion: Conversion, old: str, new: str) -> None:
        """Blocks; the temperatures of cosine attention are (heads, 1, 1) in the files."""
        for block in range(conversion.depth(old)):
            conversion.flatten(f"{old}.{block}.attn.scale", f"{new}.{block}.attn.log_scale")
        conversion.take_blocks(old, new)


def published_decoder(width: int) -> tuple[int, int]:
    """Width and depth of the decoder that was published with an encoder of a width, the base's where none was."""
    return PUBLISHED_DECODERS.get(width, PUBLISHED_DECODERS[768])


def is_videomae(keys: Mapping[str, Tensor]) -> bool:
    """Whether it cuts tubelets and has query and value biases apart, pretrained or fine-tuned."""
    return any(
        f"{prefix}blocks.0.attn.q_bias" in keys
        and f"{prefix}{PATCH}.weight" in keys
        and keys[f"{prefix}{PATCH}.weight"].dim() == 5
        for prefix in ("encoder.", "")
    )


def is_second(keys: Mapping[str, Tensor]) -> bool:
    """Whether only VideoMAE V2 writes such a file: cosine attention, or the giant's width."""
    prefix = "encoder." if f"encoder.{PATCH}.weight" in keys else ""
    return f"{prefix}blocks.0.attn.scale" in keys or keys[f"{prefix}{PATCH}.weight"].shape[0] == 1408
