"""MAE's published layout (facebookresearch/mae): timm's names for the encoder, `decoder_*` for the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from mmmask.interfaces import Format
from mmmask.interfaces.format import ForeignWeights
from mmmask_zoo.conversion import Conversion, embedding_key
from mmmask_zoo.fine_tuned import classifier
from mmmask_zoo.mae_decoder import PREDICTOR, take_mae_decoder
from mmmask_zoo.picture_positions import PicturePositions

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
        mask_ratio: float = Field(default=0.75, ge=0, lt=1, description="share of the tokens that is masked")
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
        frames = config.num_frames
        if frames and frames % config.tubelet:
            raise conversion.error(f"num_frames {frames} is not a multiple of tubelet {config.tubelet}")
        steps = frames // config.tubelet if frames else None
        self.positions = PicturePositions(conversion, "pos_embed", patch, config.size, steps=steps)
        tokens = [config.tubelet, *patch] if frames else patch
        self.key = embedding_key(tokens, channels)
        self.modality = {"size": self.positions.size, "patch_size": tokens, "channels": channels}

    def pretraining(self) -> ForeignWeights:
        """A masked model. Of a file without the decoder, the published one's sizes."""
        conversion, table = self.conversion, "decoder_pos_embed"
        decoder = take_mae_decoder(conversion, f"objectives.masked.heads.{self.key}", self.config.decoder_num_heads)
        if self.config.num_frames:
            self._inflate_head()
        encoder = self._encoder()
        conversion.take_linear("norm", "encoder.norm")
        decoder["positions"] = self.positions.sinusoid
        if table in conversion.source:
            decoder["positions"] = self.positions.sinusoid_or_learned(
                table, f"objectives.masked.decoders.shared.positions.{self.key}", num_prefix=0
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
        return classifier(self.conversion, "MAE", self._encoder(), self._modalities(), token="prefix")

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
            "positions": self.positions.sinusoid_or_learned("pos_embed", f"encoder.positions.{self.key}", num_prefix=1),
        }

    def _inflate_head(self) -> None:
        conversion, tubelet = self.conversion, self.config.tubelet
        how = f"repeated: each of the {tubelet} frames is predicted as the picture was"
        for part, axes in (("weight", "numbers of a token, decoder width"), ("bias", "numbers of a token")):
            if (old := f"{PREDICTOR}.{part}") in conversion.source:
                tensor = conversion.tensor(old, axes)
                repeated = tensor.repeat(tubelet, *([1] * (tensor.dim() - 1)))
                conversion.convert(old, f"objectives.masked.heads.{self.key}.{part}", repeated, how)

    def _modalities(self) -> dict[str, dict[str, Any]]:
        images = {"images": {"name": "image", **self.modality}}
        if not self.config.num_frames:
            return images
        return images | {"videos": {"name": "video", "num_frames": self.config.num_frames, **self.modality}}
