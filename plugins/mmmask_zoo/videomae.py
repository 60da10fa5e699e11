"""VideoMAE's published layout (MCG-NJU/VideoMAE) and VideoMAE V2's (OpenGVLab/VideoMAEv2): `encoder.*`, `decoder.*`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from mmmask.interfaces import ForeignWeights, Format
from mmmask_zoo.conversion import Conversion
from mmmask_zoo.layout import Layout, LayoutFormat
from mmmask_zoo.options import MaskRatio, NumFrames, NumHeads, Size
from mmmask_zoo.writing import Writing

LAYOUT = Layout(
    system="a VideoMAE",
    patch="encoder.patch_embed.proj",
    blocks="encoder.blocks",
    norm="encoder.norm",
    embed="encoder_to_decoder",
    decoder_blocks="decoder.blocks",
    decoder_norm="decoder.norm",
    head="decoder.head",
    encoder={},
    decoder={"embed_bias": False, "positions_at": "decoder"},
    pool="first",
)
ENCODER_ALONE = LAYOUT.without("encoder.")
"""Names in fine-tuned files, and in some of the encoder alone."""
GIANT = 1408
"""Width of the encoder that only V2 has."""
PUBLISHED_DECODERS = {384: (192, 4), 768: (384, 4), 1024: (512, 12), 1280: (640, 12), 1408: (512, 4)}
"""Width of a published encoder -> width and depth of its decoder; the base's for any other."""


class ClipOptions(Format.Config):
    """Options of formats of clips."""

    size: Size = 224
    num_frames: NumFrames = 16
    num_heads: NumHeads = None
    decoder_num_heads: int | None = Field(
        default=None, gt=0, description="attention heads of the decoder; null: told from its width"
    )
    mask_ratio: MaskRatio = 0.9
    normalize: Literal["channel", "none"] = Field(
        default="channel",
        description="whether the decoder was trained on normalised tubelets (norm_pix_loss); no key tells",
    )


class VideoMAEFormat(LayoutFormat):
    """VideoMAE's checkpoints: with the decoder, the encoder alone (`strict=False`), or fine-tuned.

    Positions are computed and not in the files.
    """

    class Config(ClipOptions):
        trained_size: int | None = Field(
            default=None, gt=0, description="size the file was trained at, where it differs: positions are resized"
        )
        trained_frames: int | None = Field(
            default=None,
            gt=0,
            description="frames the file was trained on, where they differ: positions are resized",
        )

    @classmethod
    def recognizes(cls, keys: Mapping[str, Tensor]) -> bool:
        """Whether it cuts tubelets and has query and value biases apart; files that only V2 writes are left to it."""
        return _version(keys) == 1

    def _read(self, conversion: Conversion) -> ForeignWeights:
        return _read(conversion)

    def _write(self, writing: Writing) -> None:
        _write(writing, cosine_attention=(False,))


class VideoMAEV2Format(LayoutFormat):
    """VideoMAE V2's checkpoints: as VideoMAE's, read with dual masking.

    All but the giant's and those with cosine attention look like VideoMAE's: name the format.
    """

    class Config(VideoMAEFormat.Config):
        decoder_mask_ratio: float = Field(
            default=0.5, ge=0.25, lt=1, description="share of the tokens that the decoder does not predict"
        )

    config: Config

    @classmethod
    def recognizes(cls, keys: Mapping[str, Tensor]) -> bool:
        """Whether only V2 writes such a file: with cosine attention, or of the giant's width."""
        return _version(keys) == 2

    def _read(self, conversion: Conversion) -> ForeignWeights:
        # running cells are left out of what the decoder predicts (section 3.2)
        ratio = self.config.decoder_mask_ratio
        return _read(conversion, decoder_masker={"name": "running_cell", "mask_ratio": ratio})

    def _write(self, writing: Writing) -> None:
        _write(writing, cosine_attention=(False, True))


def _version(keys: Mapping[str, Tensor]) -> int | None:
    """Version of the files that look so, None where it is neither's."""
    for layout in (LAYOUT, ENCODER_ALONE):
        patch = keys.get(f"{layout.patch}.weight")
        if patch is not None and patch.dim() == 5 and f"{layout.blocks}.0.attn.q_bias" in keys:
            return 2 if f"{layout.blocks}.0.attn.scale" in keys or patch.shape[0] == GIANT else 1
    return None


def _read(conversion: Conversion, **masks: object) -> ForeignWeights:
    source = conversion.source
    alone = f"{ENCODER_ALONE.classifier}.weight" in source or f"{LAYOUT.patch}.weight" not in source
    return read_clips(conversion, ENCODER_ALONE if alone else LAYOUT, masks=masks)


def _write(writing: Writing, **allowed: tuple[object, ...]) -> None:
    writing.require_statistics()
    allowed |= {"qkv_bias": ("query_value", False), "positions": ("flat_sinusoid",)}
    layout = ENCODER_ALONE if writing.classifier else LAYOUT
    layout.write(writing, writing.patches("frames", "height", "width"), allowed, allowed)


def read_clips(
    conversion: Conversion,
    layout: Layout,
    encoder: Mapping[str, object] | None = None,
    masks: Mapping[str, object] | None = None,
    unnormalize: bool = True,
) -> ForeignWeights:
    """A masked model; or a classifier of the mean over tokens, normalised, or of the first token after the final norm.

    Args:
        encoder: its settings that neither a key tells nor the layout.
        masks: settings of the stream that say what is masked and predicted, besides tubes.
        unnormalize: whether the loss sees pixels in [0, 1] where they are no colours; of colours it always does.

    Raises:
        InteropError: a key is missing or of another shape, or the number of heads is not known.
    """
    options = conversion.options
    patches = conversion.patches(layout.patch, "frames, height, width")
    conversion.require_filled(patches.size)
    size, frames = getattr(options, "trained_size", None), getattr(options, "trained_frames", None)
    positions: dict[str, Any] = {"name": "flat_sinusoid"}
    if size or frames:
        positions["trained_grid"] = list(patches.grid(frames or options.num_frames, size or options.size))
    width, depth = PUBLISHED_DECODERS.get(patches.width, PUBLISHED_DECODERS[768])
    stream = {
        "modality": patches.modality("video", options.size, num_frames=options.num_frames),
        "masker": {"name": "tube", "mask_ratio": options.mask_ratio},
        "loss": {
            "name": "pixels",
            "normalize": options.normalize,
            "epsilon_inside": False,
            "unnormalize": unnormalize or patches.channels == 3,
        },
        **(masks or {}),
    }
    decoder = {"width": width, "depth": depth, "positions": positions}
    return layout.read(conversion, patches, {"videos": stream}, {"positions": positions, **(encoder or {})}, decoder)
