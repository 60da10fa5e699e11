"""OmniMAE's published layout (facebookresearch/omnivore): a flat state dict, `trunk.*` and `head.*`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import Field
from torch import Tensor

from mmmask.interfaces import ForeignWeights, Format, Grid
from mmmask.interop import flat_sinusoid_table
from mmmask_zoo.conversion import Conversion, Patches, times
from mmmask_zoo.layout import Layout, LayoutFormat
from mmmask_zoo.options import DecoderNumHeads, NumFrames, NumHeads, Size
from mmmask_zoo.writing import Writing

LAYOUT = Layout(
    system="an OmniMAE",
    patch="trunk.patch_embed.proj.1",  # index 0 is the parameter-free repetition of a still
    positions="trunk.pos_embed",
    blocks="trunk.blocks",
    norm="trunk.norm",
    mask_token="trunk.mask_token",
    mask_token_shape=(1, -1),
    embed="trunk.decoder.decoder_embed",
    decoder_positions="trunk.decoder.pos_embed",
    decoder_blocks="trunk.decoder.decoder_blocks",
    decoder_norm="trunk.decoder.norm",
    head="head",
    pooled_norm="trunk.norm",
    encoder={},
    decoder={"positions_at": "latent"},
)
"""Names in the hub's files."""
PREDICTORS = ("head", "heads.0.projector")  # of pretraining: as published on the hub, as the trainer writes it
CLASSIFIERS = ("head", "heads.0", "heads.0.0")  # fine-tuned: hub; trainer, ImageNet; trainer, Something-Something
DROPPED = ("trunk.decoder.", "trunk.mask_token", "heads.0.projector.")
"""Parts that fine-tuning drops."""
PUBLISHED_CLIP = (16, 224)
"""Frames and pixels of every published checkpoint."""
PUBLISHED_DECODERS = {768: (384, 4), 1024: (512, 4), 1280: (512, 8)}
"""Width of a published encoder -> width and depth of its decoder."""


class OmniMAEFormat(LayoutFormat):
    """OmniMAE's checkpoints: with the decoder, the encoder alone (`strict=False`), or fine-tuned.

    Both the hub's files and those of the released trainer are read, which names heads differently and gives the
    decoder query, key and value biases.

    Positions are computed. A model of another size than the file's has the file's table, resized: each frame's rows
    bicubically, and the frames of clips linearly; a still has the first frame's rows, as in OmniMAE.

    The table tells how many tokens a clip had, and not of how many frames and pixels. It was one of `trained_frames`
    and `trained_size`. Where neither is given, it was the published clip, if that has so many tokens; or else the one
    that is wanted; or else one of as many frames as are wanted, at another size, or of the wanted size, with another
    number of frames. Where both are possible, or none is, one of the two options is asked for.
    """

    class Config(Format.Config):
        size: Size = 224
        num_frames: NumFrames = 16
        trained_size: int | None = Field(
            default=None, gt=0, description="size the file was trained at; null: told from its table of positions"
        )
        trained_frames: int | None = Field(
            default=None, gt=0, description="frames the file was trained on; null: told from its table of positions"
        )
        num_heads: NumHeads = None
        decoder_num_heads: DecoderNumHeads = 16
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
        return f"{LAYOUT.patch}.weight" in keys and "trunk.blocks.0.attn.qkv.weight" in keys

    def _read(self, conversion: Conversion) -> ForeignWeights:
        config, source = self.config, conversion.source
        patches = conversion.patches(LAYOUT.patch, "frames, height, width")
        positions = self._read_positions(conversion, patches)
        is_pretrained = any(key.startswith(DROPPED) for key in source)
        layout = replace(
            LAYOUT,
            head=_first(PREDICTORS, source) or LAYOUT.head,
            classifier="" if is_pretrained else _first(CLASSIFIERS, source),
        )
        width, depth = PUBLISHED_DECODERS.get(patches.width, PUBLISHED_DECODERS[768])
        images = patches.modality("image", config.size)
        videos = patches.modality("video", config.size, num_frames=config.num_frames)
        streams = {"images": (images, config.image_mask_ratio), "videos": (videos, config.video_mask_ratio)}
        return layout.read(
            conversion,
            patches,
            {
                name: {
                    "modality": modality,
                    "masker": {"name": "random", "mask_ratio": mask_ratio},
                    "loss": {"name": "pixels", "normalize": "channel"},
                }
                for name, (modality, mask_ratio) in streams.items()
            },
            {"positions": positions},
            {"positions": positions, "width": width, "depth": depth, "qkv_bias": False},
        )

    def _read_positions(self, conversion: Conversion, patches: Patches) -> dict[str, Any]:
        """Settings of the published sinusoid, of the encoder's width in the decoder too; resized where sizes differ."""
        config = self.config
        wanted = patches.grid(config.num_frames, config.size)
        assumed = patches.grid(config.trained_frames or config.num_frames, config.trained_size or config.size)
        present = [name for name in LAYOUT.tables.values() if name in conversion.source]
        tables = {name: conversion.shape(name, "1, positions, width") for name in present}
        trained = assumed
        if tables:
            name, shape = next(iter(tables.items()))
            if (found := self._trained_grid(patches, shape[1], assumed)) is None:
                frames, size = config.trained_frames or config.num_frames, config.trained_size or config.size
                raise conversion.error(
                    f"{name} has {shape[1]} positions, a clip of {frames} frames of {size} pixels has "
                    f"{math.prod(assumed)}: give trained_size and trained_frames"
                )
            trained = found
        for name, shape in tables.items():
            expected = (1, math.prod(trained), patches.width)
            if shape != expected:
                raise conversion.error(f"{name}: shape {shape}, expected {expected}")
            if not conversion.is_computed(name, flat_sinusoid_table(trained, patches.width, trained)):
                raise conversion.error(f"{name} is not the published sinusoid; it was trained or changed")
            if trained != wanted:
                conversion.ignore(name, f"computed; resized from {times(trained)} to {times(wanted)} tokens")
        return {"name": "flat_sinusoid"} | ({"trained_grid": list(trained)} if trained != wanted else {})

    def _trained_grid(self, patches: Patches, rows: int, assumed: Grid) -> Grid | None:
        """Grid of the clip that a table of so many rows was made for, as the class describes; None where none is sure.

        Args:
            assumed: of the clip that the file was trained on as far as options say, otherwise of the wanted one.
        """
        unit = math.lcm(*patches.size[1:])
        planes = [patches.grid(0, size)[1:] for size in range(unit, (math.isqrt(rows) + 1) * unit, unit)]
        clips = [(rows // math.prod(plane), *plane) for plane in planes if rows % math.prod(plane) == 0]
        if self.config.trained_frames or self.config.trained_size:
            length = assumed[:1] if self.config.trained_frames else None
            plane = assumed[1:] if self.config.trained_size else None
            found = [clip for clip in clips if length in (None, clip[:1]) and plane in (None, clip[1:])]
        elif known := [clip for clip in (patches.grid(*PUBLISHED_CLIP), assumed) if clip in clips]:
            found = known[:1]
        else:
            found = [clip for clip in clips if assumed[:1] == clip[:1] or assumed[1:] == clip[1:]]
        return found[0] if len(found) == 1 else None

    def _write(self, writing: Writing) -> None:
        writing.require_statistics()
        computed = {"positions": ("flat_sinusoid",)}
        LAYOUT.write(writing, writing.patches("frames", "height", "width"), computed, {"qkv_bias": (False, True)})
        encoder = writing.part("encoder")
        for part in writing.parts:
            positions = writing.part(part).positions
            if positions != encoder.positions:
                raise writing.error("model.decoder.positions: the layout has those of the encoder")
            grid = positions.trained_grid or writing.grid
            table = flat_sinusoid_table(grid, encoder.width, grid).to(writing.dtype)
            writing.written[LAYOUT.tables[part]] = table.unsqueeze(0)


def _first(names: tuple[str, ...], state: Mapping[str, Tensor]) -> str:
    """The first layer that a file has, empty for none."""
    return next((name for name in names if f"{name}.weight" in state), "")
