"""VideoMAE's published layout (MCG-NJU/VideoMAE) and VideoMAE V2's (OpenGVLab/VideoMAEv2): `encoder.*`, `decoder.*`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

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


class VideoMAELayoutFormat(LayoutFormat):
    """VideoMAE's files, of either version."""

    version: ClassVar[int]

    class Config(ClipOptions):
        trained_size: int | None = Field(
            default=None, gt=0, description="size the file was trained at, where it differs: positions are resized"
        )
        trained_frames: int | None = Field(
            default=None, gt=0, description="frames the file was trained on, where they differ: positions are resized"
        )

    @classmethod
    def recognizes(cls, keys: Mapping[str, Tensor]) -> bool:
        """Whether it cuts tubelets, has query and value biases apart, and is what this version writes.

        Only V2 has cosine attention and the giant's width; all other files are left to the first version.
        """
        for layout in (LAYOUT, ENCODER_ALONE):
            patch = keys.get(f"{layout.patch}.weight")
            if patch is not None and patch.dim() == 5 and f"{layout.blocks}.0.attn.q_bias" in keys:
                is_second = f"{layout.blocks}.0.attn.scale" in keys or patch.shape[0] == GIANT
                return is_second == (cls.version == 2)
        return False

    def _read(self, conversion: Conversion) -> ForeignWeights:
        source = conversion.source
        alone = f"{ENCODER_ALONE.classifier}.weight" in source or f"{LAYOUT.patch}.weight" not in source
        return read_clips(conversion, ENCODER_ALONE if alone else LAYOUT)

    def _write(self, writing: Writing) -> None:
        writing.require_statistics()
        allowed = {
            "cosine_attention": (False, True) if self.version == 2 else (False,),
            "qkv_bias": ("query_value", False),
            "positions": ("flat_sinusoid",),
        }
        layout = ENCODER_ALONE if writing.classifier else LAYOUT
        layout.write(writing, writing.patches("frames", "height", "width"), allowed, allowed)


class VideoMAEFormat(VideoMAELayoutFormat):
    """VideoMAE's checkpoints: with the decoder, the encoder alone (`strict=False`), or fine-tuned.

    Positions are computed and not in the files.
    """

    version = 1


class VideoMAEV2Format(VideoMAELayoutFormat):
    """VideoMAE V2's checkpoints: as VideoMAE's, read with dual masking.

    All but the giant's and those with cosine attention look like VideoMAE's: name the format.
    """

    version = 2

    class Config(VideoMAELayoutFormat.Config):
        decoder_mask_ratio: float = Field(
            default=0.5, ge=0.25, lt=1, description="share of the tokens that the decoder does not predict"
        )


def read_clips(
    conversion: Conversion,
    layout: Layout,
    encoder: Mapping[str, object] | None = None,
    unnormalize: bool = True,
) -> ForeignWeights:
    """A masked model; or a classifier of the mean over tokens, normalised, or of the first token after the final norm.

    Args:
        encoder: its settings that neither a key tells nor the layout.
        unnormalize: whether the loss sees pixels in [0, 1] where they are no colours; of colours it always does.
    """
    options = conversion.options
    patches = conversion.patches(layout.patch, "frames, height, width")
    size, frames = (getattr(options, name, None) for name in ("trained_size", "trained_frames"))
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
    }
    if ratio := getattr(options, "decoder_mask_ratio", None):
        # running cells are left out of what the decoder predicts (V2, section 3.2)
        stream["decoder_masker"] = {"name": "running_cell", "mask_ratio": ratio}
    decoder = {"width": width, "depth": depth, "positions": positions}
    return layout.read(conversion, patches, {"videos": stream}, {"positions": positions, **(encoder or {})}, decoder)
