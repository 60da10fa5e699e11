"""Masked models of clips, and classifiers, in layouts like VideoMAE's: its own, V2's, transformers'."""

from __future__ import annotations

from typing import Any

from mmmask.interfaces import ForeignWeights, Format
from mmmask_zoo.conversion import Conversion
from mmmask_zoo.layout import NORM_EPSILON, Layout
from mmmask_zoo.options import DecoderNumHeadsOfWidth, MaskRatio, NormalizedChannels, NumFrames, NumHeads, Size

DECODER_HEADS = {192: 3, 384: 6, 512: 8, 640: 8}
"""Width of a published decoder -> its attention heads, which no key tells."""
PUBLISHED_DECODERS = {384: (192, 4), 768: (384, 4), 1024: (512, 12), 1280: (640, 12), 1408: (512, 4)}
"""Width of a published encoder -> width and depth of its decoder; the base's for any other."""

CLIP_DECODER = {"embed_bias": (False,), "positions_at": ("decoder",)}
"""Settings of every decoder, as `Writing.require_part` takes them."""


class ClipOptions(Format.Config):
    """Options of formats of clips."""

    size: Size = 224
    num_frames: NumFrames = 16
    num_heads: NumHeads = None
    decoder_num_heads: DecoderNumHeadsOfWidth = None
    mask_ratio: MaskRatio = 0.9
    normalize: NormalizedChannels = "channel"


def read_clips(
    conversion: Conversion,
    layout: Layout,
    options: Any,  # noqa: ANN401 - ClipOptions, perhaps with the size the file was trained at
    system: str,
    norm_epsilon: float = NORM_EPSILON,
    last_norm_epsilon: float = NORM_EPSILON,
    unnormalize: bool = True,
    final_norm: bool = True,
    **masks: Any,  # noqa: ANN401 - settings
) -> ForeignWeights:
    """A masked model; or a classifier of the mean over tokens, normalised, or of the first token after the final norm.

    Args:
        conversion: of the file.
        layout: its names.
        options: of the format.
        system: its name, for descriptions.
        norm_epsilon: of the LayerNorms.
        last_norm_epsilon: of the decoder's last LayerNorm, and of one after pooling.
        unnormalize: whether the loss sees pixels in [0, 1] where they are no colours; of colours it always does.
        final_norm: whether a masked model's encoder has one.
        masks: settings of the stream that say what is masked and predicted, besides tubes.

    Raises:
        InteropError: a key is missing or of another shape, or the number of heads is not known.
    """
    patches = conversion.patches(f"{layout.patch}.weight", "frames, height, width")
    conversion.require_filled(options, patches.size)
    size, frames = getattr(options, "trained_size", None), getattr(options, "trained_frames", None)
    positions: dict[str, Any] = {"name": "flat_sinusoid"}
    if size or frames:
        clip = (frames or options.num_frames, size or options.size, size or options.size)
        positions["trained_grid"] = [extent // side for extent, side in zip(clip, patches.size, strict=True)]
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
        **masks,
    }
    return layout.read(
        conversion,
        patches,
        system,
        {"videos": stream},
        options,
        encoder={"final_norm": final_norm, "positions": positions},
        decoder={"embed_bias": False, "positions_at": "decoder", "positions": positions},
        published={"width": width, "depth": depth},
        decoder_heads=DECODER_HEADS,
        pool="first",
        norm_epsilon=norm_epsilon,
        last_norm_epsilon=last_norm_epsilon,
    )
