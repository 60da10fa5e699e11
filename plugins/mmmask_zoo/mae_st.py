"""MAE-ST's published layout (facebookresearch/mae_st): MAE's names, with queries, keys and values apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from mmmask.interfaces import Format
from mmmask.interfaces.format import ForeignWeights
from mmmask_zoo.conversion import Conversion, embedding_key, square
from mmmask_zoo.correspondence import Stacked
from mmmask_zoo.fine_tuned import classifier_of_mean
from mmmask_zoo.mae_decoder import PREDICTOR, take_mae_decoder

PATCH = "patch_embed.proj"


class MAESTFormat(Format):
    """MAE-ST's checkpoints: with the decoder, the encoder alone (`strict=False`), or fine-tuned.

    `stills` makes OmniMAE's baseline for images: each is repeated over the frames of one tubelet.
    """

    class Config(Format.Config):
        size: int | None = Field(default=None, gt=0, description="height and width in pixels; null: the file's")
        num_frames: int | None = Field(default=None, gt=0, description="frames of a clip; null: the file's")
        stills: bool = Field(default=False, description="images too, each repeated over the frames of one tubelet")
        num_heads: int | None = Field(default=None, gt=0, description="attention heads; null: told from the width")
        decoder_num_heads: int = Field(default=16, gt=0, description="attention heads of the decoder")
        mask_ratio: float = Field(default=0.9, ge=0, lt=1, description="share of the tokens that is masked")
        normalize: Literal["token", "none"] = Field(
            default="token", description="whether the decoder was trained on normalised patches; no key tells"
        )

    config: Config

    @classmethod
    def recognizes(cls, keys: Mapping[str, Tensor]) -> bool:
        """Whether it cuts tubelets and has projections of its own for queries."""
        return {f"{PATCH}.weight", "blocks.0.attn.q.weight"} <= keys.keys() and keys[f"{PATCH}.weight"].dim() == 5

    def read(self, state: Mapping[str, Tensor]) -> ForeignWeights:
        """Converts a state dict.

        Raises:
            InteropError: a key is missing or of another shape, or the number of heads is not known.
        """
        parts = _Parts(self.config, Conversion(self.config.name, state))
        return parts.classifier() if "head.weight" in state else parts.pretraining()


class _Parts:
    """The sizes that a file tells, and the model part by part."""

    def __init__(self, config: MAESTFormat.Config, conversion: Conversion) -> None:
        self.config, self.conversion = config, conversion
        axes = "width, channels, frames, height, width of a patch"
        self.width, self.channels, *patch = conversion.shape(f"{PATCH}.weight", axes)
        conversion.require_multiple("num_frames", config.num_frames, patch[0], "frames")
        conversion.require_multiple("size", config.size, patch[1], "pixels")
        self.trained = self._trained_grid(patch)
        size, frames = config.size or self.trained[1] * patch[1], config.num_frames or self.trained[0] * patch[0]
        self.grid = (frames // patch[0], size // patch[1], size // patch[1])
        self.patch = patch
        self.key = embedding_key(patch, self.channels)
        pixels = {"size": size, "patch_size": patch, "channels": self.channels}
        if self.channels == 3:  # its own, not ImageNet's
            pixels |= {"mean": [0.45] * 3, "std": [0.225] * 3}
        self.modalities = {"videos": {"name": "video", "num_frames": frames, **pixels}}
        if config.stills:
            self.modalities = {"images": {"name": "image", **pixels}} | self.modalities

    def pretraining(self) -> ForeignWeights:
        """A masked model. Of a file without the decoder, the published recipe's sizes."""
        conversion = self.conversion
        conversion.flatten("decoder_cls_token", "objectives.masked.decoders.shared.prefix_tokens", row=True)
        self._join_projections("decoder_blocks", "objectives.masked.decoders.shared.blocks")
        decoder = take_mae_decoder(
            conversion, f"objectives.masked.heads.{self.key}", self.config.decoder_num_heads, depth=4
        )
        decoder |= {"prefix": "drop", "prefix_tokens": 1}
        decoder["positions"] = self._positions("decoder_pos_embed", "objectives.masked.decoders.shared")
        encoder = self._encoder()
        conversion.take_linear("norm", "encoder.norm")
        stream = {
            "masker": {"name": "random", "mask_ratio": self.config.mask_ratio, "round_down": "visible"},
            "loss": {
                "name": "pixels", "normalize": self.config.normalize, "unnormalize": False, "slices": self._slices()
            },
        }  # fmt: skip
        return conversion.finished(
            {
                "description": "an MAE-ST checkpoint",
                "model": {"encoder": encoder, "decoder": decoder},
                "streams": {name: stream | {"modality": modality} for name, modality in self.modalities.items()},
            }
        )

    def classifier(self) -> ForeignWeights:
        """A classifier of the mean over all patches, normalised after it."""
        return classifier_of_mean(self.conversion, "MAE-ST", self._encoder(), self.modalities, norm="norm")

    def _encoder(self) -> dict[str, Any]:
        conversion = self.conversion
        conversion.embedding(PATCH, f"encoder.embeddings.{self.key}")
        conversion.flatten("cls_token", "encoder.prefix_tokens", row=True)
        self._join_projections("blocks", "encoder.blocks")
        conversion.take_blocks("blocks", "encoder.blocks")
        return {
            "name": "vit",
            "width": self.width,
            "depth": conversion.depth("blocks"),
            "num_heads": conversion.heads(self.config.num_heads, self.width),
            "prefix_tokens": 1 if "cls_token" in conversion.source else 0,
            "qkv_bias": "blocks.0.attn.q.bias" in conversion.source,
            "positions": self._positions("pos_embed", "encoder"),
        }

    def _join_projections(self, old: str, new: str) -> None:
        """Queries, keys and values of all blocks in one."""
        conversion = self.conversion
        for block in range(conversion.depth(old)):
            for part in ("weight", "bias"):
                parts = tuple(f"{old}.{block}.attn.{name}.{part}" for name in "qkv")
                Stacked(parts, f"{new}.{block}.attn.qkv.{part}").read(conversion)

    def _trained_grid(self, patch: list[int]) -> tuple[int, int, int]:
        """(steps, rows, columns) that the tables of positions are for."""
        conversion = self.conversion
        if "pos_embed_spatial" in conversion.source:
            cells = conversion.shape("pos_embed_spatial", "1, places, width")[1]
            steps = conversion.shape("pos_embed_temporal", "1, steps, width")[1]
        else:  # one table for all: of the published size, or of the size that is asked for
            tokens = conversion.shape("pos_embed", "1, positions, width")[1] - ("cls_token" in conversion.source)
            steps = (self.config.num_frames or 16) // patch[0]
            cells = tokens // steps
            if cells * steps != tokens:
                raise conversion.error(
                    f"pos_embed: {tokens} positions are not {steps} steps of a clip: give num_frames"
                )
        side = square(cells)
        if side is None:
            raise conversion.error(f"the positions of a step, {cells}, are no square: give num_frames")
        return steps, side, side

    def _positions(self, old: str, owner: str) -> dict[str, Any]:
        """Tables for place and step, or one for both, resized where the grid differs."""
        conversion, new = self.conversion, f"{owner}.positions.{self.key}"
        source, (steps, *plane) = conversion.source, self.trained
        if f"{old}_spatial" in source:
            space = conversion.tensor(f"{old}_spatial", "1, places, width")[0]
            conversion.learned_table(f"{old}_spatial", f"{new}.space", space, plane, self.grid[1:])
            time = conversion.tensor(f"{old}_temporal", "1, steps, width")[0]
            conversion.learned_table(f"{old}_temporal", f"{new}.time", time, (steps,), self.grid[:1])
            conversion.flatten(f"{old}_class", f"{new}.prefix_table", row=True)
        elif old in source:
            table = conversion.tensor(old, "1, positions, width")[0]
            prefix = len(table) - steps * plane[0] * plane[1]
            conversion.learned_table(old, f"{new}.table", table[prefix:], self.trained, self.grid)
            if prefix:
                conversion.convert(old, f"{new}.prefix_table", table[:prefix], conversion.converted[old])
            return {"name": "learned"}
        return {"name": "learned_separable"}

    def _slices(self) -> int | None:
        """How many frames of its own a token predicts, told from the head; null for all."""
        depth, *cells = self.patch
        if f"{PREDICTOR}.weight" not in self.conversion.source:
            return 1
        numbers = self.conversion.shape(f"{PREDICTOR}.weight", "numbers of a token, decoder width")[0]
        slices = numbers // (cells[0] * cells[1] * self.channels)
        return None if slices == depth else slices
