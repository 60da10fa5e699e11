"""MAE's published layout (facebookresearch/mae): timm's names for the encoder, `decoder_*` for the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from mmmask.builtins.positions import sincos_2d_table
from mmmask.interfaces import Format
from mmmask.interfaces.format import ForeignWeights
from mmmask_zoo.conversion import Conversion, embedding_key, square

PATCH = "patch_embed.proj"


class MAEFormat(Format):
    """MAE's checkpoints: with the decoder, the encoder alone (`strict=False`), or fine-tuned.

    `num_frames` makes the paper's baseline for clips of it: an image model inflated to tubelets.
    """

    class Config(Format.Config):
        size: int | None = Field(default=None, gt=0, description="height and width in pixels; null: the file's")
        num_frames: int | None = Field(
            default=None, gt=0, description="inflates the model to clips of so many frames, and stills beside them"
        )
        tubelet: int = Field(default=2, gt=0, description="frames of a token, where it is inflated")
        num_heads: int | None = Field(default=None, gt=0, description="attention heads; null: told from the width")
        decoder_num_heads: int = Field(default=16, gt=0, description="attention heads of the decoder")
        mask_ratio: float = Field(default=0.75, ge=0, lt=1, description="share of the tokens that is hidden")
        normalize: Literal["token", "none"] = Field(
            default="token", description="whether the decoder was trained on normalised patches; no key tells"
        )

    config: Config

    @classmethod
    def recognizes(cls, keys: Mapping[str, Tensor]) -> bool:
        """Whether it has a cls token, one table of positions, square patches and plain attention."""
        needed = ("cls_token", "pos_embed", f"{PATCH}.weight", "blocks.0.attn.qkv.weight")
        return all(key in keys for key in needed) and keys[f"{PATCH}.weight"].dim() == 4

    def read(self, state: Mapping[str, Tensor]) -> ForeignWeights:
        """Converts a state dict.

        Raises:
            InteropError: a key is missing or of another shape, or the number of heads is not known.
        """
        conversion = Conversion(self.config.name, state)
        parts = _Parts(self.config, conversion)
        return parts.classifier() if "head.weight" in state else parts.pretraining()


class _Parts:
    """The sizes that a file tells, and the model part by part."""

    def __init__(self, config: MAEFormat.Config, conversion: Conversion) -> None:
        self.config, self.conversion = config, conversion
        self.width, channels, *patch = conversion.shape(f"{PATCH}.weight", "width, channels, height, width of a patch")
        tokens = conversion.shape("pos_embed", "1, positions, width")[1] - 1
        side = square(tokens)
        if side is None:
            raise conversion.error(f"pos_embed: {tokens} positions and a cls token, which are no square")
        size = config.size or side * patch[0]
        if size % patch[0]:
            raise conversion.error(f"size {size} is not a multiple of the file's patches of {patch[0]} pixels")
        cells, frames = size // patch[0], config.num_frames
        self.trained: tuple[int, ...] = (side, side)
        self.grid: tuple[int, ...] = (cells, cells)
        self.patch: tuple[int, ...] = tuple(patch)
        if frames:
            if frames % config.tubelet:
                raise conversion.error(f"num_frames {frames} is not a multiple of tubelet {config.tubelet}")
            self.grid = (frames // config.tubelet, cells, cells)
            self.patch = (config.tubelet, *patch)
        self.key = embedding_key(self.patch, channels)
        self.modality = {"size": size, "patch_size": list(self.patch), "channels": channels}

    def pretraining(self) -> ForeignWeights:
        """A masked model. Of a file without the decoder, the published one's sizes."""
        conversion = self.conversion
        has_decoder = conversion.has("decoder_embed.", "decoder_blocks.")
        conversion.flatten("mask_token", "decoders.shared.mask_token")
        conversion.take_linear("decoder_embed", "decoders.shared.embed")
        conversion.take_blocks("decoder_blocks", "decoders.shared.blocks")
        conversion.take_linear("decoder_norm", "decoders.shared.norm")
        self._head()
        encoder = self._encoder()
        conversion.take_linear("norm", "encoder.norm")
        decoder = {
            "name": "transformer",
            "width": conversion.shape("decoder_embed.weight", "decoder width, width")[0] if has_decoder else 512,
            "depth": conversion.depth("decoder_blocks") if has_decoder else 8,
            "num_heads": self.config.decoder_num_heads,
            "positions_at": "decoder",
            "positions": {"name": "sincos_2d", **self._trained_grid()},
        }
        if "decoder_pos_embed" in conversion.source:
            decoder["positions"] = self._positions(
                "decoder_pos_embed", "decoders.shared", decoder["width"], prefix=False
            )
        stream = {
            "masker": {"name": "random", "mask_ratio": self.config.mask_ratio, "round_down": "visible"},
            "loss": {"name": "pixels", "normalize": self.config.normalize, "unnormalize": False},
        }
        return conversion.finished(
            {
                "description": "an MAE checkpoint",
                "model": {"encoder": encoder, "decoder": decoder},
                "streams": {name: stream | {"modality": modality} for name, modality in self._modalities().items()},
            }
        )

    def classifier(self) -> ForeignWeights:
        """A classifier: of the cls token after the final norm, or of the mean of all patches, normalised."""
        conversion = self.conversion
        pooled = "fc_norm.weight" in conversion.source
        encoder = self._encoder() | {"final_norm": not pooled}
        conversion.take_linear("fc_norm" if pooled else "norm", "norm" if pooled else "encoder.norm")
        conversion.take_linear("head", "head")
        return conversion.finished(
            {
                "description": "a fine-tuned MAE checkpoint",
                "encoder": encoder,
                "streams": {name: {"modality": modality} for name, modality in self._modalities().items()},
                "pool": "mean" if pooled else "prefix",
                "norm_epsilon": 1e-6 if pooled else None,
                "classes": conversion.shape("head.weight", "classes, width")[0],
            }
        )

    def _encoder(self) -> dict[str, Any]:
        conversion = self.conversion
        inflate = self.config.tubelet if self.config.num_frames else None
        conversion.embedding(PATCH, f"encoder.embeddings.{self.key}", inflate)
        conversion.flatten("cls_token", "encoder.prefix_tokens", row=True)
        conversion.take_blocks("blocks", "encoder.blocks")
        return {
            "name": "vit",
            "width": self.width,
            "depth": conversion.depth("blocks"),
            "num_heads": conversion.heads(self.config.num_heads, self.width),
            "prefix_tokens": 1,
            "positions": self._positions("pos_embed", "encoder", self.width, prefix=True),
        }

    def _positions(self, old: str, owner: str, width: int, prefix: bool) -> dict[str, Any]:
        """The published sinusoid, or whatever was trained in its place."""
        conversion = self.conversion
        zeros = torch.zeros(1, width)
        if conversion.fixed_table(old, torch.cat([zeros, sincos_2d_table(self.trained, width)])):
            return {"name": "sincos_2d", **self._trained_grid()}
        if not prefix:
            raise conversion.error(f"{old} is not the published table; it was trained or changed")
        table, new = conversion.tensor(old, "1, positions, width")[0], f"{owner}.positions.{self.key}"
        plane, trained = table[1:], self.trained
        if len(self.grid) > 2:  # every step starts as the picture
            plane, trained = plane.repeat(self.grid[0], 1), (self.grid[0], *trained)
        conversion.learned_table(old, f"{new}.table", plane, trained, self.grid)
        conversion.convert(old, f"{new}.prefix_table", table[:1], conversion.converted[old])
        return {"name": "learned"}

    def _trained_grid(self) -> dict[str, Any]:
        return {} if self.grid[-2:] == self.trained else {"trained_grid": list(self.trained)}

    def _head(self) -> None:
        conversion = self.conversion
        if "decoder_pred.weight" not in conversion.source or not self.config.num_frames:
            return conversion.take_linear("decoder_pred", f"heads.{self.key}")
        for part, axes in (("weight", "numbers of a token, decoder width"), ("bias", "numbers of a token")):
            tensor = conversion.tensor(f"decoder_pred.{part}", axes)
            repeated = tensor.repeat(self.config.tubelet, *([1] * (tensor.dim() - 1)))
            how = f"repeated: each of the {self.config.tubelet} frames is predicted as the picture was"
            conversion.convert(f"decoder_pred.{part}", f"heads.{self.key}.{part}", repeated, how)
        return None

    def _modalities(self) -> dict[str, dict[str, Any]]:
        images = {"images": {"name": "image", **self.modality}}
        if not self.config.num_frames:
            return images
        return images | {"videos": {"name": "video", "num_frames": self.config.num_frames, **self.modality}}
