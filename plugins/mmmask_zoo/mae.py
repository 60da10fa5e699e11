"""MAE's published layout (facebookresearch/mae), and masked models of pictures in others like it.

Its names are timm's for the encoder, `decoder_*` for the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from mmmask.interfaces import ForeignWeights, Format
from mmmask.interop import HEADS, sincos_2d_table
from mmmask_zoo.conversion import Conversion, pixel_patches, square
from mmmask_zoo.correspondence import learned_table, learned_tables, read_all
from mmmask_zoo.layout import DECODER_KEY, Layout, LayoutFormat
from mmmask_zoo.options import DecoderNumHeads, FilesSize, MaskRatio, NormalizedTokens, NumHeads
from mmmask_zoo.writing import Writing

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


class PicturePositions:
    """Tables of encoder and decoder: MAE's sinusoid, or a table trained in its place; the encoder's tells a size.

    Args:
        conversion: of the file.
        table: key of the encoder's table (1, positions, width).
        patch: height and width in pixels.
        num_prefix: rows that tables begin with, of the cls token.
        frames: of the grid of a clip, each of which starts as the picture; None for pictures.

    Attributes:
        trained: grid of the file's pictures.
        size: height and width in pixels of the wanted pictures.
        grid: of the wanted pictures, or of clips of them.

    Raises:
        InteropError: patches or pictures are no squares.
    """

    AXES = "1, positions, width"

    def __init__(
        self, conversion: Conversion, table: str, patch: Sequence[int], num_prefix: int, frames: int | None = None
    ) -> None:
        height, width = patch
        if height != width:
            raise conversion.error(f"patches of {height} x {width} are no squares")
        self.conversion, self.table, self.num_prefix = conversion, table, num_prefix
        self.rows = conversion.shape(table, self.AXES)[1]
        side = square(self.rows - num_prefix)
        if side is None:
            what = f"{self.rows - num_prefix} positions{' and a cls token' if num_prefix else ''}"
            raise conversion.error(f"{table}: {what}, which are no square")
        self.size = conversion.options.size or side * height
        cells = self.size // height
        self.trained = (side, side)
        self.grid = (frames, cells, cells) if frames else (cells, cells)

    @property
    def sinusoid(self) -> dict[str, Any]:
        """Settings of MAE's sinusoid, resized where the wanted pictures have another size."""
        return {"name": "sincos_2d", **({} if self.grid[-2:] == self.trained else {"trained_grid": list(self.trained)})}

    def is_sinusoid(self, table: str) -> bool:
        """Whether a table is MAE's sinusoid, with zeros for the cls token; it is computed then and left out.

        Raises:
            InteropError: it has not as many rows as the encoder's.
        """
        rows, width = self.conversion.shape(table, self.AXES)[1:]
        if rows != self.rows:
            raise self.conversion.error(f"{table} has another number of positions than {self.table}")
        if width % 4:
            return False  # there is no such sinusoid
        computed = torch.cat([torch.zeros(self.num_prefix, width), sincos_2d_table(self.trained, width)])
        return self.conversion.is_computed(table, computed)

    def read(self, table: str, own: str, takes_prefix: bool) -> dict[str, Any]:
        """Settings of MAE's sinusoid, or of a learned table, which is taken.

        Args:
            table: key of a table; of a file without it, the sinusoid is meant.
            own: mmmask's key of the positions.
            takes_prefix: whether the first row adds to the cls token, as an encoder's does; a decoder's must be zero.

        Raises:
            InteropError: it has not as many rows as the encoder's, or adds to a decoder's cls token.
        """
        conversion = self.conversion
        if table not in conversion.source or self.is_sinusoid(table):
            return self.sinusoid
        trained = (1, *self.trained) if len(self.grid) == 3 else self.trained
        if takes_prefix:
            read_all(learned_tables(table, own, trained, self.grid, self.num_prefix), conversion)
        elif conversion.tensor(table, self.AXES)[0, 0].any():
            raise conversion.error(f"{table} adds to the cls token, which here is as the encoder left it")
        else:
            learned_table(table, f"{own}.table", trained, self.grid, self.num_prefix).read(conversion)
        return {"name": "learned"}


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

    Raises:
        InteropError: a key is missing or of another shape, or the number of heads is not known.
    """
    options = conversion.options
    num_frames, tubelet = getattr(options, "num_frames", None), getattr(options, "tubelet", 1)
    if num_frames and num_frames % tubelet:
        raise conversion.error(f"num_frames {num_frames} is not a multiple of tubelet {tubelet}")
    patches = conversion.patches(layout.patch, "height, width")
    conversion.require_filled(patches.size)
    frames = num_frames // tubelet if num_frames else None
    positions = PicturePositions(conversion, layout.positions, patches.size, 1, frames)
    tokens = pixel_patches(patches.width, patches.channels, tubelet, *patches.size) if num_frames else patches
    modalities = {"images": tokens.modality("image", positions.size)}
    if num_frames:
        modalities["videos"] = tokens.modality("video", positions.size, num_frames=num_frames)
    at_encoder = positions.read(layout.positions, f"encoder.positions.{tokens.key}", takes_prefix=True)
    at_decoder = positions.read(layout.decoder_positions, f"{DECODER_KEY}.positions.{tokens.key}", takes_prefix=False)
    weights = layout.read(
        conversion,
        replace(patches, key=tokens.key),
        {name: picture_stream(options) | {"modality": modality} for name, modality in modalities.items()},
        {"positions": at_encoder, **encoder},
        {**PUBLISHED_DECODER, "positions": at_decoder},
    )
    if num_frames:
        _inflate(conversion, tokens.key, tubelet)
    return weights


def _inflate(conversion: Conversion, key: str, tubelet: int) -> None:
    """Repeats embedding and head for every frame of a tubelet.

    The embedding is divided by their number, so that a still gives what its picture gave (I3D, Carreira and Zisserman
    2017, section 2.1; the baseline of OmniMAE).
    """
    divided = f"repeated over {tubelet} frames and divided by their number"
    repeated = f"repeated: each of the {tubelet} frames is predicted as the picture was"
    weights = conversion.weights
    for own, repeats, divisor, how in (
        (f"encoder.embeddings.{key}.weight", (1, tubelet), tubelet, divided),
        (f"{HEADS}.{key}.weight", (tubelet, 1), 1, repeated),
        (f"{HEADS}.{key}.bias", (tubelet,), 1, repeated),
    ):
        if (tensor := weights.state.get(own)) is not None:
            (foreign,) = weights.origin[own]
            if tensor.dim() != len(repeats) or not tensor.is_floating_point():
                raise conversion.error(f"{foreign}: shape {tuple(tensor.shape)} of {tensor.dtype} cannot be inflated")
            conversion.add([foreign], own, (tensor / divisor).repeat(repeats), how)


def write_pictures(writing: Writing, layout: Layout, **allowed: Any) -> None:  # noqa: ANN401 - as Writing.require_part
    """Writes a masked model of pictures, or a classifier of the cls token or of the mean.

    Args:
        allowed: what settings of encoder and decoder may be, as `Writing.require_part`.

    Raises:
        InteropError: the layout cannot say what the model is.
    """
    layout.write(writing, writing.patches("height", "width"), allowed, allowed)
    writing.written[layout.positions] = writing.position_table("encoder", 1)
    if not writing.classifier:
        # no position is added to the cls token, so its row is zero
        writing.written[layout.decoder_positions] = writing.position_table("decoder", 0, zeros=1)
