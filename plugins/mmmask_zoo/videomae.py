"""VideoMAE's published layout (MCG-NJU/VideoMAE) and VideoMAE V2's (OpenGVLab/VideoMAEv2): `encoder.*`, `decoder.*`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field
from torch import Tensor

from mmmask.interfaces import ForeignWeights
from mmmask_zoo.clips import CLIP_DECODER, ClipOptions, read_clips
from mmmask_zoo.conversion import Conversion
from mmmask_zoo.layout import Layout, LayoutFormat
from mmmask_zoo.options import TrainedFrames, TrainedSize
from mmmask_zoo.writing import Writing

LAYOUT = Layout(
    patch="encoder.patch_embed.proj",
    blocks="encoder.blocks",
    norm="encoder.norm",
    embed="encoder_to_decoder",
    decoder_blocks="decoder.blocks",
    decoder_norm="decoder.norm",
    head="decoder.head",
)
ENCODER_ALONE = LAYOUT.without("encoder.")
"""Names in fine-tuned files, and in some of the encoder alone."""
GIANT = 1408
"""Width of the encoder that only V2 has."""


class VideoMAEOptions(ClipOptions):
    """Options of both versions."""

    trained_size: TrainedSize = None
    trained_frames: TrainedFrames = None


class VideoMAEFormat(LayoutFormat):
    """VideoMAE's checkpoints: with the decoder, the encoder alone (`strict=False`), or fine-tuned.

    Positions are computed and not in the files.
    """

    class Config(VideoMAEOptions):
        pass

    config: Config

    @classmethod
    def recognizes(cls, keys: Mapping[str, Tensor]) -> bool:
        """Whether it cuts tubelets and has query and value biases apart; files that only V2 writes are left to it."""
        return _is_videomae(keys) and not _is_second(keys)

    def _read(self, conversion: Conversion) -> ForeignWeights:
        return _read(conversion, self.config)

    def _write(self, writing: Writing) -> None:
        _write(writing, cosine_attention=(False,))


class VideoMAEV2Format(LayoutFormat):
    """VideoMAE V2's checkpoints: as VideoMAE's, read with dual masking.

    All but the giant's and those with cosine attention look like VideoMAE's: name the format.
    """

    class Config(VideoMAEOptions):
        decoder_mask_ratio: float = Field(
            default=0.5, ge=0.25, lt=1, description="share of the tokens that the decoder does not predict"
        )

    config: Config

    @classmethod
    def recognizes(cls, keys: Mapping[str, Tensor]) -> bool:
        """Whether only V2 writes such a file: with cosine attention, or of the giant's width."""
        return _is_videomae(keys) and _is_second(keys)

    def _read(self, conversion: Conversion) -> ForeignWeights:
        # running cells are left out of what the decoder predicts (section 3.2)
        ratio = self.config.decoder_mask_ratio
        return _read(conversion, self.config, decoder_masker={"name": "running_cell", "mask_ratio": ratio})

    def _write(self, writing: Writing) -> None:
        _write(writing, cosine_attention=(False, True))


def _read(conversion: Conversion, options: VideoMAEOptions, **masks: Any) -> ForeignWeights:  # noqa: ANN401 - settings
    source = conversion.source
    alone = f"{ENCODER_ALONE.classifier}.weight" in source or f"{LAYOUT.patch}.weight" not in source
    return read_clips(conversion, ENCODER_ALONE if alone else LAYOUT, options, "a VideoMAE", **masks)


def _write(writing: Writing, **allowed: tuple[object, ...]) -> None:
    writing.require_statistics()
    allowed |= {"qkv_bias": ("query_value", False), "positions": ("flat_sinusoid",)}
    layout = ENCODER_ALONE if writing.classifier else LAYOUT
    patches = writing.patches("frames", "height", "width")
    layout.write(writing, patches, allowed, allowed | CLIP_DECODER, pools=("first",))


def _is_videomae(keys: Mapping[str, Tensor]) -> bool:
    """Whether it cuts tubelets and has query and value biases apart, pretrained or fine-tuned."""
    return any(
        f"{layout.blocks}.0.attn.q_bias" in keys
        and f"{layout.patch}.weight" in keys
        and keys[f"{layout.patch}.weight"].dim() == 5
        for layout in (LAYOUT, ENCODER_ALONE)
    )


def _is_second(keys: Mapping[str, Tensor]) -> bool:
    """Whether only VideoMAE V2 writes such a file."""
    layout = LAYOUT if f"{LAYOUT.patch}.weight" in keys else ENCODER_ALONE
    return f"{layout.blocks}.0.attn.scale" in keys or keys[f"{layout.patch}.weight"].shape[0] == GIANT
