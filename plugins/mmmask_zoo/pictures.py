"""Masked models of pictures, and classifiers, in layouts like MAE's: its own, timm's, transformers' ViTMAE."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mmmask.interfaces import ForeignWeights, Format
from mmmask.interop import HEADS
from mmmask_zoo.conversion import Conversion, embedding_key
from mmmask_zoo.layout import NORM_EPSILON, SHARED, Layout
from mmmask_zoo.options import DecoderNumHeads, FilesSize, MaskRatio, NormalizedTokens, NumHeads
from mmmask_zoo.picture_positions import PicturePositions
from mmmask_zoo.writing import Writing

PUBLISHED_DECODER = {"width": 512, "depth": 8}
"""Sizes of the decoder that was published with every encoder."""


class PictureOptions(Format.Config):
    """Options of formats of pictures."""

    size: FilesSize = None
    num_heads: NumHeads = None
    decoder_num_heads: DecoderNumHeads = 16
    mask_ratio: MaskRatio = 0.75
    normalize: NormalizedTokens = "token"


def picture_stream(options: PictureOptions) -> dict[str, Any]:
    """Settings of a stream of pictures, but for its modality."""
    return {
        "masker": {"name": "random", "mask_ratio": options.mask_ratio, "round_down": "visible"},
        "loss": {"name": "pixels", "normalize": options.normalize, "unnormalize": False},
    }


def read_pictures(
    conversion: Conversion,
    layout: Layout,
    options: PictureOptions,
    system: str,
    norm_epsilon: float = NORM_EPSILON,
    tubelet: int | None = None,
    num_frames: int = 0,
    **encoder: object,
) -> ForeignWeights:
    """A masked model; or a classifier of the cls token after the final norm, or of the mean, normalised.

    Args:
        conversion: of the file.
        layout: its names.
        options: of the format.
        system: its name, for descriptions.
        norm_epsilon: of every LayerNorm.
        tubelet: frames of a token of the clips to which the model is inflated, None for pictures alone.
        num_frames: of these clips.
        encoder: its settings that no key tells.

    Raises:
        InteropError: a key is missing or of another shape, or the number of heads is not known.
    """
    patches = conversion.patches(f"{layout.patch}.weight", "height, width")
    conversion.require_filled(options, patches.size)
    frames = num_frames // tubelet if tubelet else None
    positions = PicturePositions(conversion, layout.positions, patches.size, options.size, frames=frames)
    tokens = patches
    if tubelet:
        size = (tubelet, *patches.size)
        tokens = replace(patches, size=size, key=embedding_key(size, patches.channels))
    modalities = {"images": tokens.modality("image", positions.size)}
    if tubelet:
        modalities["videos"] = tokens.modality("video", positions.size, num_frames=num_frames)
    at_encoder = positions.read(layout.positions, f"encoder.positions.{tokens.key}", num_prefix=1)
    at_decoder = positions.read(layout.decoder_positions, f"{SHARED}.positions.{tokens.key}", num_prefix=0)
    weights = layout.read(
        conversion,
        replace(patches, key=tokens.key),
        system,
        {name: picture_stream(options) | {"modality": modality} for name, modality in modalities.items()},
        options,
        encoder={"prefix_tokens": 1, "positions": at_encoder, **encoder},
        decoder={"positions_at": "decoder", "positions": at_decoder},
        published=PUBLISHED_DECODER,
        pool="prefix",
        norm_epsilon=norm_epsilon,
    )
    if tubelet:
        _inflate(conversion, tokens.key, tubelet)
    return weights


def _inflate(conversion: Conversion, key: str, tubelet: int) -> None:
    """Repeats embedding and head for every frame of a tubelet.

    The embedding is divided by their number, so that a still gives what its picture gave (I3D, Carreira and Zisserman
    2017, section 2.1; the baseline of OmniMAE).
    """
    divided = f"repeated over {tubelet} frames and divided by their number"
    repeated = f"repeated: each of the {tubelet} frames is predicted as the picture was"
    for own, repeats, divisor, how in (
        (f"encoder.embeddings.{key}.weight", (1, tubelet), tubelet, divided),
        (f"{HEADS}.{key}.weight", (tubelet, 1), 1, repeated),
        (f"{HEADS}.{key}.bias", (tubelet,), 1, repeated),
    ):
        if (tensor := conversion.state.get(own)) is not None:
            (foreign,) = conversion.origin[own]
            if tensor.dim() != len(repeats) or not tensor.is_floating_point():
                raise conversion.error(f"{foreign}: shape {tuple(tensor.shape)} of {tensor.dtype} cannot be inflated")
            conversion.convert(foreign, own, (tensor / divisor).repeat(repeats), how)


def write_pictures(writing: Writing, layout: Layout, **allowed: Any) -> None:  # noqa: ANN401 - as Writing.require_part
    """Writes a masked model of pictures, or a classifier of the cls token or of the mean.

    Args:
        allowed: what settings of encoder and decoder may be, as `Writing.require_part`.

    Raises:
        InteropError: the layout cannot say what the model is.
    """
    encoder, decoder = {"prefix_tokens": (1,), **allowed}, {"positions_at": ("decoder",), **allowed}
    layout.write(writing, writing.patches("height", "width"), encoder, decoder, pools=("prefix",))
    writing.written[layout.positions] = writing.position_table("encoder", 1)
    if not writing.classifier:
        # no position is added to the cls token, so its row is zero
        writing.written[layout.decoder_positions] = writing.position_table("decoder", 0, zeros=1)
