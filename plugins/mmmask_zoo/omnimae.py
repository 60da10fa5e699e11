"""OmniMAE's published layout (facebookresearch/omnivore): a flat state dict, `trunk.*` and `head.*`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import Field
from torch import Tensor

from mmmask.builtins.positions import flat_sinusoid_table
from mmmask.interfaces import Format, Grid
from mmmask.interfaces.format import ForeignWeights
from mmmask_zoo.conversion import Conversion, embedding_key, times
from mmmask_zoo.fine_tuned import classifier_of_mean

PATCH = "trunk.patch_embed.proj.1"  # index 0 is the parameter-free repetition of a still
TABLES = ("trunk.pos_embed", "trunk.decoder.pos_embed")
PREDICTORS = ("head", "heads.0.projector")  # of pretraining: as published on the hub, as the trainer writes it
CLASSIFIERS = ("head", "heads.0", "heads.0.0")  # fine-tuned: hub; trainer, ImageNet; trainer, Something-Something
PUBLISHED_CLIP = (16, 224)
"""Frames and pixels of every published checkpoint."""
PUBLISHED_DECODERS = {768: (384, 4), 1024: (512, 4), 1280: (512, 8)}
"""Width of a published encoder -> width and depth of its decoder."""


class OmniMAEFormat(Format):
    """OmniMAE's checkpoints: with the decoder, the encoder alone (`strict=False`), or fine-tuned.

    Both the hub's files and those of the released trainer are read, which names heads differently and gives the
    decoder query, key and value biases.

    Positions are computed. A model of another size than the file's has the file's table, resized: each step's rows
    bicubically, and the steps of clips linearly; a still has the first step's rows, as in OmniMAE.

    The table tells how many tokens a clip had, and not of how many frames and pixels. It was one of `trained_frames`
    and `trained_size`. Where neither is given, it was the published clip, if that has so many tokens; or else the one
    that is wanted; or else one of as many frames as are wanted, at another size, or of the wanted size, with another
    number of frames. Where both are possible, or none is, one of the two options is asked for.
    """

    class Config(Format.Config):
        size: int = Field(default=224, gt=0, description="height and width of images and clips, in pixels")
        num_frames: int = Field(default=16, gt=0, description="frames of a clip")
        trained_size: int | None = Field(
            default=None, gt=0, description="size the file was trained at; null: told from its table of positions"
        )
        trained_frames: int | None = Field(
            default=None, gt=0, description="frames the file was trained on; null: told from its table of positions"
        )
        num_heads: int | None = Field(default=None, gt=0, description="attention heads; null: told from the width")
        decoder_num_heads: int = Field(default=16, gt=0, description="attention heads of the decoder")
        image_mask_ratio: float = Field(
            default=0.9, ge=0, lt=1, description="share of an image's tokens that is masked"
        )
        video_mask_ratio: float = Field(
            default=0.95, ge=0, lt=1, description="share of a video's tokens that is masked"
        )

    config: Config

    @classmethod
    def recognizes(cls, keys: Mapping[str, Tensor]) -> bool:
        """Whether it has a trunk that repeats stills, and plain attention."""
        return f"{PATCH}.weight" in keys and "trunk.blocks.0.attn.qkv.weight" in keys

    def read(self, state: Mapping[str, Tensor]) -> ForeignWeights:
        """Converts a state dict.

        Raises:
            InteropError: a key is missing or of another shape, the number of heads is not known, or the position
                tables are not the published sinusoid, or of a size that cannot be told.
        """
        parts = _Parts(self.config, Conversion(self.config.name, state))
        head = None if _pretrained(state) else _first(CLASSIFIERS, state)
        return parts.classifier(head) if head else parts.pretraining()


class _Parts:
    """The sizes that a file tells, and the model part by part."""

    def __init__(self, config: OmniMAEFormat.Config, conversion: Conversion) -> None:
        self.config, self.conversion = config, conversion
        axes = "width, channels, frames, height, width of a patch"
        self.width, channels, *self.patch = conversion.shape(f"{PATCH}.weight", axes)
        self.unit = math.lcm(*self.patch[1:])  # pixels that a size is a multiple of
        for option in ("size", "trained_size"):
            conversion.require_multiple(option, getattr(config, option), self.unit, "pixels")
        for option in ("num_frames", "trained_frames"):
            conversion.require_multiple(option, getattr(config, option), self.patch[0], "frames")
        self.key = embedding_key(self.patch, channels)
        pixels = {"size": config.size, "patch_size": self.patch, "channels": channels}
        self.modalities = {
            "images": {"name": "image", **pixels},
            "videos": {"name": "video", "num_frames": config.num_frames, **pixels},
        }
        self.positions = self._positions()

    def pretraining(self) -> ForeignWeights:
        """A masked model. Of a file without the decoder, the published one's sizes."""
        conversion = self.conversion
        conversion.flatten("trunk.mask_token", "objectives.masked.decoders.shared.mask_token")
        conversion.take_linear("trunk.decoder.decoder_embed", "objectives.masked.decoders.shared.embed")
        conversion.take_blocks("trunk.decoder.decoder_blocks", "objectives.masked.decoders.shared.blocks")
        conversion.take_linear("trunk.decoder.norm", "objectives.masked.decoders.shared.norm")
        conversion.take_linear(
            _first(PREDICTORS, conversion.source) or PREDICTORS[0], f"objectives.masked.heads.{self.key}"
        )
        encoder = self._encoder()
        conversion.take_linear("trunk.norm", "encoder.norm")
        width, depth = PUBLISHED_DECODERS.get(self.width, PUBLISHED_DECODERS[768])
        if conversion.has("trunk.decoder.decoder_embed.", "trunk.decoder.decoder_blocks."):
            width = conversion.shape("trunk.decoder.decoder_embed.weight", "decoder width, width")[0]
            depth = conversion.depth("trunk.decoder.decoder_blocks")
        decoder = {
            "name": "transformer",
            "width": width,
            "depth": depth,
            "num_heads": self.config.decoder_num_heads,
            "qkv_bias": "trunk.decoder.decoder_blocks.0.attn.qkv.bias" in conversion.source,
            "positions_at": "latent",
            "positions": self.positions,
        }
        ratios = {"images": self.config.image_mask_ratio, "videos": self.config.video_mask_ratio}
        return conversion.finished(
            {
                "description": "an OmniMAE checkpoint",
                "model": {"encoder": encoder, "decoder": decoder},
                "streams": {
                    name: {
                        "modality": modality,
                        "masker": {"name": "random", "mask_ratio": ratios[name]},
                        "loss": {"name": "pixels", "normalize": "channel"},
                    }
                    for name, modality in self.modalities.items()
                },
            }
        )

    def classifier(self, head: str) -> ForeignWeights:
        """A classifier of the mean of all tokens, normalised after it: the trunk's norm is not the encoder's."""
        return classifier_of_mean(self.conversion, "OmniMAE", self._encoder(), self.modalities, "trunk.norm", head)

    def _encoder(self) -> dict[str, Any]:
        conversion = self.conversion
        conversion.embedding(PATCH, f"encoder.embeddings.{self.key}")
        conversion.take_blocks("trunk.blocks", "encoder.blocks")
        return {
            "name": "vit",
            "width": self.width,
            "depth": conversion.depth("trunk.blocks"),
            "num_heads": conversion.heads(self.config.num_heads, self.width),
            "positions": self.positions,
        }

    def _positions(self) -> dict[str, Any]:
        """The published sinusoid, at the width of the encoder in the decoder too; resized where sizes differ."""
        conversion = self.conversion
        tables = [name for name in TABLES if name in conversion.source]
        rows = [conversion.shape(name, "1, positions, width")[1] for name in tables]
        wanted = self._grid(self.config.num_frames, self.config.size)
        trained = self._trained_grid(tables[0], rows[0]) if tables else self._assumed_grid()
        for name in tables:
            shape, expected = conversion.shape(name, "1, positions, width"), (1, math.prod(trained), self.width)
            if shape != expected:
                raise conversion.error(f"{name}: shape {shape}, expected {expected}")
            if not conversion.fixed_table(name, flat_sinusoid_table(trained, self.width, trained)):
                raise conversion.error(f"{name} is not the published sinusoid; it was trained or changed")
            if trained != wanted:
                conversion.ignore(name, f"computed; resized from {times(trained)} to {times(wanted)} tokens")
        return {"name": "flat_sinusoid"} | ({"trained_grid": list(trained)} if trained != wanted else {})

    def _trained_grid(self, table: str, rows: int) -> Grid:
        """The clip that a table of so many rows was made for, as `OmniMAEFormat` describes."""
        config, assumed = self.config, self._assumed_grid()
        sizes = range(self.unit, (math.isqrt(rows) + 1) * self.unit, self.unit)
        planes = [self._grid(0, size)[1:] for size in sizes]
        clips = [(rows // math.prod(plane), *plane) for plane in planes if rows % math.prod(plane) == 0]
        if config.trained_frames or config.trained_size:
            steps = assumed[:1] if config.trained_frames else None
            plane = assumed[1:] if config.trained_size else None
            found = [clip for clip in clips if steps in (None, clip[:1]) and plane in (None, clip[1:])]
        elif known := [clip for clip in (self._grid(*PUBLISHED_CLIP), assumed) if clip in clips]:
            found = known[:1]
        else:
            found = [clip for clip in clips if assumed[:1] == clip[:1] or assumed[1:] == clip[1:]]
        if len(found) != 1:
            frames, size = config.trained_frames or config.num_frames, config.trained_size or config.size
            raise self.conversion.error(
                f"{table} has {rows} positions, a clip of {frames} frames of {size} pixels has {math.prod(assumed)}: "
                "give trained_size and trained_frames"
            )
        return found[0]

    def _assumed_grid(self) -> Grid:
        """What the file was trained on as far as options say, otherwise what is wanted."""
        config = self.config
        return self._grid(config.trained_frames or config.num_frames, config.trained_size or config.size)

    def _grid(self, frames: int, size: int) -> Grid:
        return (frames // self.patch[0], size // self.patch[1], size // self.patch[2])


def _pretrained(state: Mapping[str, Tensor]) -> bool:
    """Whether there is any part that fine-tuning drops."""
    dropped = ("trunk.decoder.", "trunk.mask_token", "heads.0.projector.")
    return any(key.startswith(dropped) for key in state)


def _first(names: tuple[str, ...], state: Mapping[str, Tensor]) -> str | None:
    return next((name for name in names if f"{name}.weight" in state), None)
