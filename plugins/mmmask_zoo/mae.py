"""MAE's published layout (facebookresearch/mae), and masked models of pictures in others like it.

Its names are timm's for the encoder, `decoder_*` for the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from mmmask.interfaces import ForeignWeights, Format, Grid
from mmmask.interop import HEADS, resize_kernel, sincos_2d_table
from mmmask_zoo.conversion import Conversion, Patches, pixel_patches, square
from mmmask_zoo.correspondence import learned_table, learned_tables, read_all
from mmmask_zoo.layout import PART_KEYS, Layout, LayoutFormat
from mmmask_zoo.options import DecoderNumHeads, FilesSize, MaskRatio, NormalizedTokens, NumHeads
from mmmask_zoo.writing import Part, Writing

LAYOUT = Layout(pool="prefix")
PUBLISHED_DECODER = {"width": 512, "depth": 8}
"""Sizes of the decoder that was published with every encoder."""


class PictureOptions(Format.Config):
    """Options of formats of pictures."""

    size: FilesSize = None
    num_heads: NumHeads = None
    decoder_num_heads: DecoderNumHeads = 16
    mask_ratio: MaskRatio = 0.75
    normalize: NormalizedTokens = "token"


class MAEFormat(LayoutFormat):
    """MAE's checkpoints: with the decoder, the encoder alone (`strict=False`), or fine-tuned.

    `num_frames` makes the paper's baseline for clips of it: an image model inflated to tubelets.
    """

    class Config(PictureOptions):
        num_frames: int | None = Field(
            default=None, gt=0, description="inflates the model to clips of so many frames, and stills beside them"
        )
        tubelet: int = Field(default=2, gt=0, description="frames of a token, where it is inflated")

    @classmethod
    def recognizes(cls, keys: Mapping[str, Tensor]) -> bool:
        """Whether it has a cls token, one table of positions, square patches and plain attention."""
        patch = f"{LAYOUT.patch}.weight"
        needed = (LAYOUT.cls_token, LAYOUT.positions, patch, "blocks.0.attn.qkv.weight")
        return all(key in keys for key in needed) and keys[patch].dim() == 4

    def _read(self, conversion: Conversion) -> ForeignWeights:
        return read_pictures(conversion, LAYOUT)

    def _write(self, writing: Writing) -> None:
        writing.require_statistics()
        write_pictures(writing, LAYOUT)


def read_positions(
    conversion: Conversion, layout: Layout, patches: Patches, num_prefix: int = 1, frames: int | None = None
) -> tuple[int, dict[Part, dict[str, Any]]]:
    """Height and width of the wanted pictures, and settings of positions of encoder and decoder.

    They are MAE's sinusoid, of a file without tables too, or a learned table, which is taken. The encoder's table tells
    the size of the file's pictures.

    Args:
        num_prefix: rows that tables begin with, of the cls token; those of a decoder's must be zero.
        frames: of the grid of a clip, each of which starts as the picture; None for pictures.
    """
    axes, encoder_table = "1, positions, width", layout.positions
    height, width = patches.size[-2:]
    if height != width:
        raise conversion.error(f"patches of {height} x {width} are no squares")
    rows = conversion.shape(encoder_table, axes)[1]
    side = square(rows - num_prefix)
    if side is None:
        what = f"{rows - num_prefix} positions{' and a cls token' if num_prefix else ''}"
        raise conversion.error(f"{encoder_table}: {what}, which are no square")
    size = conversion.options.size or side * height
    plane, wanted = (side, side), (size // height,) * 2
    trained, grid = ((1, *plane), (frames, *wanted)) if frames else (plane, wanted)
    sinusoid = {"name": "sincos_2d", **({} if wanted == plane else {"trained_grid": list(plane)})}
    settings: dict[Part, dict[str, Any]] = {}
    for part, table in layout.tables.items():
        own = f"{PART_KEYS[part]}.positions.{patches.key}"
        settings[part] = sinusoid
        if table not in conversion.source:
            continue
        if conversion.shape(table, axes)[1] != rows:
            raise conversion.error(f"{table} has another number of positions than {encoder_table}")
        if _is_sinusoid(conversion, table, plane, num_prefix):
            continue
        settings[part] = {"name": "learned"}
        if part == "encoder":
            read_all(learned_tables(table, own, trained, grid, num_prefix), conversion)
        elif num_prefix and conversion.tensor(table, axes)[0, 0].any():
            raise conversion.error(f"{table} adds to the cls token, which here is as the encoder left it")
        else:
            learned_table(table, f"{own}.table", trained, grid, num_prefix).read(conversion)
    return size, settings


def _is_sinusoid(conversion: Conversion, table: str, grid: Grid, num_prefix: int) -> bool:
    """Whether a table is MAE's sinusoid, with zeros for the cls token; it is computed then and left out."""
    width = conversion.shape(table, "1, positions, width")[2]
    if width % 4:
        return False  # there is no such sinusoid
    computed = torch.cat([torch.zeros(num_prefix, width), sincos_2d_table(grid, width)])
    return conversion.is_computed(table, computed)


def picture_stream(options: PictureOptions) -> dict[str, Any]:
    """Settings of a stream of pictures, but for its modality."""
    return {
        "masker": {"name": "random", "mask_ratio": options.mask_ratio, "round_down": "visible"},
        "loss": {"name": "pixels", "normalize": options.normalize, "unnormalize": False},
    }


def read_pictures(conversion: Conversion, layout: Layout, **encoder: object) -> ForeignWeights:
    """A masked model; or a classifier of the cls token after the final norm, or of the mean, normalised.

    Where the options have `num_frames`, it is inflated to clips.

    Args:
        encoder: its settings that neither a key tells nor the layout.
    """
    options = conversion.options
    num_frames, tubelet = getattr(options, "num_frames", None), getattr(options, "tubelet", 1)
    if num_frames and num_frames % tubelet:
        raise conversion.error(f"num_frames {num_frames} is not a multiple of tubelet {tubelet}")
    patches = conversion.patches(layout.patch, "height, width")
    frames = num_frames // tubelet if num_frames else None
    tokens = pixel_patches(patches.width, patches.channels, tubelet, *patches.size) if num_frames else patches
    size, positions = read_positions(conversion, layout, tokens, frames=frames)
    modalities = {"images": tokens.modality("image", size)}
    if num_frames:
        modalities["videos"] = tokens.modality("video", size, num_frames=num_frames)
    weights = layout.read(
        conversion,
        replace(patches, key=tokens.key),
        {name: picture_stream(options) | {"modality": modality} for name, modality in modalities.items()},
        {"positions": positions["encoder"], **encoder},
        {**PUBLISHED_DECODER, "positions": positions["decoder"]},
    )
    if num_frames:
        _inflate(conversion, tokens)
    return weights


def _inflate(conversion: Conversion, tokens: Patches) -> None:
    """Repeats embedding and head for every frame of a tubelet.

    The embedding is divided by their number, so that a still gives what its picture gave (the baseline of OmniMAE).
    """
    tubelet, *plane = tokens.size
    divided = f"repeated over {tubelet} frames and divided by their number"
    repeated = f"repeated: each of the {tubelet} frames is predicted as the picture was"

    def inflated(kernel: Tensor) -> Tensor:
        return resize_kernel(kernel, plane, tokens.size)

    weights = conversion.weights
    for own, axes, make, how in (
        (f"encoder.embeddings.{tokens.key}.weight", 2, inflated, divided),
        (f"{HEADS}.{tokens.key}.weight", 2, lambda weight: weight.repeat(tubelet, 1), repeated),
        (f"{HEADS}.{tokens.key}.bias", 1, lambda bias: bias.repeat(tubelet), repeated),
    ):
        if (tensor := weights.state.get(own)) is not None:
            (foreign,) = weights.origin[own]
            if tensor.dim() != axes or not tensor.is_floating_point():
                raise conversion.error(f"{foreign}: shape {tuple(tensor.shape)} of {tensor.dtype} cannot be inflated")
            conversion.add([foreign], own, make(tensor), how)


def write_pictures(writing: Writing, layout: Layout, **allowed: Any) -> None:  # noqa: ANN401 - as Writing.require_part
    """Writes a masked model of pictures, or a classifier of the cls token or of the mean.

    Args:
        allowed: what settings of encoder and decoder may be, as `Writing.require_part`.
    """
    layout.write(writing, writing.patches("height", "width"), allowed, allowed)
    writing.written[layout.positions] = writing.position_table("encoder", 1)
    if not writing.classifier:
        # no position is added to the cls token, so its row is zero
        writing.written[layout.decoder_positions] = writing.position_table("decoder", 0, zeros=1)
