"""MAE-ST's published layout (facebookresearch/mae_st): MAE's names, with queries, keys and values apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field
from torch import Tensor

from mmmask.interfaces import ForeignWeights, Grid
from mmmask_zoo.conversion import Conversion, Patches, square
from mmmask_zoo.correspondence import Pair, learned_table, learned_tables, read_all, vector, write_all
from mmmask_zoo.layout import PART_KEYS, Block, Layout, LayoutFormat
from mmmask_zoo.mae import PictureOptions, picture_stream
from mmmask_zoo.options import MaskRatio
from mmmask_zoo.writing import Part, Writing

LAYOUT = Layout(
    system="an MAE-ST",
    block=Block(projections=("attn.q", "attn.k", "attn.v"), query_value=()),
    pooled_norm="norm",
    encoder={},
    decoder={"prefix": "drop", "prefix_tokens": 1, "positions_at": "decoder"},
)
PUBLISHED_DECODER = {"width": 512, "depth": 4}
STATISTICS = ((0.45,) * 3, (0.225,) * 3)
"""Mean and standard deviation of colours: its own, not ImageNet's."""


class MAESTFormat(LayoutFormat):
    """MAE-ST's checkpoints: with the decoder, the encoder alone (`strict=False`), or fine-tuned.

    `stills` makes OmniMAE's baseline for images: each is repeated over the frames of one tubelet.
    """

    class Config(PictureOptions):
        num_frames: int | None = Field(default=None, gt=0, description="frames of a clip; null: the file's")
        stills: bool = Field(default=False, description="images too, each repeated over the frames of one tubelet")
        mask_ratio: MaskRatio = 0.9

    config: Config

    @classmethod
    def recognizes(cls, keys: Mapping[str, Tensor]) -> bool:
        """Whether it cuts tubelets and has projections of its own for queries."""
        patch = f"{LAYOUT.patch}.weight"
        return {patch, "blocks.0.attn.q.weight"} <= keys.keys() and keys[patch].dim() == 5

    def _read(self, conversion: Conversion) -> ForeignWeights:
        config, prefix = self.config, int(LAYOUT.cls_token in conversion.source)
        patches = conversion.patches(LAYOUT.patch, "frames, height, width")
        depth, side, _ = patches.size
        trained = _trained_grid(conversion, (config.num_frames or 16) // depth, prefix)
        size, frames = config.size or trained[1] * side, config.num_frames or trained[0] * depth
        grid = (frames // depth, size // side, size // side)
        colours = {"mean": list(STATISTICS[0]), "std": list(STATISTICS[1])} if patches.channels == 3 else {}
        modalities = {"videos": patches.modality("video", size, num_frames=frames, **colours)}
        if config.stills:
            modalities = {"images": patches.modality("image", size, **colours)} | modalities
        positions: dict[Part, dict[str, Any]] = {}
        for part, table in LAYOUT.tables.items():
            own, num_prefix = f"{PART_KEYS[part]}.positions.{patches.key}", prefix if part == "encoder" else 1
            if table in conversion.source and f"{table}_spatial" not in conversion.source:
                read_all(learned_tables(table, own, trained, grid, num_prefix), conversion)
                positions[part] = {"name": "learned"}
            else:
                read_all(_separable(table, own, trained, grid), conversion)
                positions[part] = {"name": "learned_separable"}
        stream = picture_stream(config)
        stream["loss"]["slices"] = _slices(conversion, patches)
        return LAYOUT.read(
            conversion,
            patches,
            {name: stream | {"modality": modality} for name, modality in modalities.items()},
            {"prefix_tokens": prefix, "positions": positions["encoder"]},
            {**PUBLISHED_DECODER, "positions": positions["decoder"]},
        )

    def _write(self, writing: Writing) -> None:
        writing.require_statistics(*STATISTICS)
        patches, biases = writing.patches("frames", "height", "width"), {"qkv_bias": (True, False)}
        LAYOUT.write(writing, patches, {"prefix_tokens": (0, 1), **biases}, biases)
        for part in writing.parts:
            settings, table = writing.part(part), LAYOUT.tables[part]
            if settings.positions.name == "learned_separable":
                own = f"{writing.key(part)}.positions.{patches.key}"
                write_all(_separable(table, own, writing.grid, writing.grid), writing)
            else:
                writing.written[table] = writing.position_table(part, settings.prefix_tokens)


def _trained_grid(conversion: Conversion, assumed_frames: int, num_prefix: int) -> Grid:
    """(frames, height, width) of the grid that the encoder's tables are for; one table for all tells no frames."""
    table = LAYOUT.positions
    if f"{table}_spatial" in conversion.source:
        cells = conversion.shape(f"{table}_spatial", "1, places, width")[1]
        frames = conversion.shape(f"{table}_temporal", "1, frames, width")[1]
    else:
        tokens, frames = conversion.shape(table, "1, positions, width")[1] - num_prefix, assumed_frames
        cells = tokens // frames
        if cells * frames != tokens:
            raise conversion.error(f"{table}: {tokens} positions are not {frames} frames: give num_frames")
    side = square(cells)
    if side is None:
        raise conversion.error(f"the positions of a frame, {cells}, are no square: give num_frames")
    return frames, side, side


def _separable(table: str, own: str, trained: Grid, grid: Grid) -> Iterator[Pair]:
    """Tables of places and of frames, and a row for the cls token."""
    yield learned_table(f"{table}_spatial", f"{own}.space", trained[1:], grid[1:])
    yield learned_table(f"{table}_temporal", f"{own}.time", trained[:1], grid[:1])
    yield vector(f"{table}_class", f"{own}.prefix_table", row=True)


def _slices(conversion: Conversion, patches: Patches) -> int | None:
    """Frames that a token predicts, told from the head; None for all of its own."""
    (depth, height, width), key = patches.size, f"{LAYOUT.head}.weight"
    if key not in conversion.source:
        return 1
    numbers = conversion.shape(key, "numbers of a token, decoder width")[0]
    slices = numbers // (height * width * patches.channels)
    return None if slices == depth else slices
