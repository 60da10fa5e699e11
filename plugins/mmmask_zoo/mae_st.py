"""MAE-ST's published layout (facebookresearch/mae_st): MAE's names, with queries, keys and values apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field
from torch import Tensor

from mmmask.interfaces import ForeignWeights, Format, Grid, Written
from mmmask_zoo.conversion import Conversion, square
from mmmask_zoo.correspondence import LearnedTable, Pair, Vector, read_all, write_all
from mmmask_zoo.layout import SHARED, Block, Layout
from mmmask_zoo.options import DecoderNumHeads, FilesSize, MaskRatio, NormalizedTokens, NumHeads
from mmmask_zoo.writing import Part, Writing

LAYOUT = Layout(block=Block(projections=("attn.q", "attn.k", "attn.v"), query_value=None), pooled_norm="norm")
PUBLISHED_DECODER = {"width": 512, "depth": 4}
STATISTICS = ((0.45,) * 3, (0.225,) * 3)
"""Mean and standard deviation of colours: its own, not ImageNet's."""
TABLES: dict[Part, str] = {"encoder": LAYOUT.positions, "decoder": LAYOUT.decoder_positions}


class MAESTFormat(Format):
    """MAE-ST's checkpoints: with the decoder, the encoder alone (`strict=False`), or fine-tuned.

    `stills` makes OmniMAE's baseline for images: each is repeated over the frames of one tubelet.
    """

    class Config(Format.Config):
        size: FilesSize = None
        num_frames: int | None = Field(default=None, gt=0, description="frames of a clip; null: the file's")
        stills: bool = Field(default=False, description="images too, each repeated over the frames of one tubelet")
        num_heads: NumHeads = None
        decoder_num_heads: DecoderNumHeads = 16
        mask_ratio: MaskRatio = 0.9
        normalize: NormalizedTokens = "token"

    config: Config

    @classmethod
    def recognizes(cls, keys: Mapping[str, Tensor]) -> bool:
        """Whether it cuts tubelets and has projections of its own for queries."""
        patch = f"{LAYOUT.patch}.weight"
        return {patch, "blocks.0.attn.q.weight"} <= keys.keys() and keys[patch].dim() == 5

    def read(self, state: Mapping[str, Tensor]) -> ForeignWeights:
        """Converts a state dict.

        Raises:
            InteropError: a key is missing or of another shape, or the number of heads is not known.
        """
        reading = _Reading(self.config, Conversion(self.config.name, state))
        return reading.classifier() if "head.weight" in state else reading.pretraining()

    def write(self, settings: Mapping[str, Any], state: Mapping[str, Tensor]) -> Written:
        """Converts a masked model of clips, or a classifier of the mean over patches.

        Raises:
            InteropError: the layout cannot say what the model is.
        """
        writing = Writing(self.config.name, settings, state)
        writing.require_statistics(*STATISTICS)
        patches, biases = writing.patches("frames", "height", "width"), {"qkv_bias": (True, False)}
        encoder = LAYOUT.write_encoder(writing, patches, prefix_tokens=(0, 1), **biases)
        _write_positions(writing, "encoder", "encoder", encoder.prefix_tokens)
        if not LAYOUT.write_classifier(writing):
            kept = ("drop",) if encoder.prefix_tokens else ("keep", "drop")
            LAYOUT.write_decoder(writing, prefix=kept, prefix_tokens=(1,), positions_at=("decoder",), **biases)
            _write_positions(writing, "decoder", writing.decoder_key, 1)
        return writing.finished()


class _Reading:
    """Sizes that a file tells, and the model part by part."""

    def __init__(self, config: MAESTFormat.Config, conversion: Conversion) -> None:
        self.config, self.conversion = config, conversion
        self.patches = conversion.patches(f"{LAYOUT.patch}.weight", "frames, height, width")
        depth, side, _ = self.patches.size
        conversion.require_multiple("num_frames", config.num_frames, depth, "frames")
        conversion.require_multiple("size", config.size, side, "pixels")
        self.prefix_tokens = 1 if LAYOUT.cls_token in conversion.source else 0
        self.trained = self._trained_grid()
        size, frames = config.size or self.trained[1] * side, config.num_frames or self.trained[0] * depth
        self.grid = (frames // depth, size // side, size // side)
        pixels = {"size": size, "patch_size": list(self.patches.size), "channels": self.patches.channels}
        if self.patches.channels == 3:
            pixels |= {"mean": list(STATISTICS[0]), "std": list(STATISTICS[1])}
        self.modalities = {"videos": {"name": "video", "num_frames": frames, **pixels}}
        if config.stills:
            self.modalities = {"images": {"name": "image", **pixels}} | self.modalities

    def pretraining(self) -> ForeignWeights:
        """A masked model; of a file without the decoder, with the published recipe's sizes."""
        config, conversion = self.config, self.conversion
        decoder = LAYOUT.read_decoder(
            conversion,
            self.patches.key,
            config.decoder_num_heads,
            PUBLISHED_DECODER,
            prefix="drop",
            prefix_tokens=1,
            positions_at="decoder",
            positions=self._positions("decoder", SHARED),
        )
        loss = {"name": "pixels", "normalize": config.normalize, "unnormalize": False, "slices": self._slices()}
        masker = {"name": "random", "mask_ratio": config.mask_ratio, "round_down": "visible"}
        return conversion.finished(
            {
                "description": "an MAE-ST checkpoint",
                "model": {"encoder": self._encoder(final_norm=True), "decoder": decoder},
                "streams": {
                    name: {"modality": modality, "masker": masker, "loss": loss}
                    for name, modality in self.modalities.items()
                },
            }
        )

    def classifier(self) -> ForeignWeights:
        """A classifier of the mean over patches, normalised after it."""
        encoder = self._encoder(final_norm=False)
        return LAYOUT.read_classifier(
            self.conversion, "an MAE-ST checkpoint, fine-tuned", encoder, self.modalities, "mean"
        )

    def _encoder(self, final_norm: bool) -> dict[str, Any]:
        return LAYOUT.read_encoder(
            self.conversion,
            self.patches,
            self.config.num_heads,
            prefix_tokens=self.prefix_tokens,
            final_norm=final_norm,
            positions=self._positions("encoder", "encoder"),
        )

    def _trained_grid(self) -> Grid:
        """(frames, height, width) of the grid that the tables of positions are for."""
        conversion, table = self.conversion, LAYOUT.positions
        if f"{table}_spatial" in conversion.source:
            cells = conversion.shape(f"{table}_spatial", "1, places, width")[1]
            frames = conversion.shape(f"{table}_temporal", "1, frames, width")[1]
        else:  # one table for all: of the published size, or of the size that is asked for
            tokens = conversion.shape(table, "1, positions, width")[1] - self.prefix_tokens
            frames = (self.config.num_frames or 16) // self.patches.size[0]
            cells = tokens // frames
            if cells * frames != tokens:
                raise conversion.error(f"{table}: {tokens} positions are not {frames} frames: give num_frames")
        side = square(cells)
        if side is None:
            raise conversion.error(f"the positions of a frame, {cells}, are no square: give num_frames")
        return frames, side, side

    def _positions(self, part: Part, owner: str) -> dict[str, Any]:
        """Takes tables of places and frames, or one for both, resized where the grid differs."""
        conversion, table, own = self.conversion, TABLES[part], f"{owner}.positions.{self.patches.key}"
        if f"{table}_spatial" in conversion.source or table not in conversion.source:
            read_all(_separable(table, own, self.trained, self.grid), conversion)
            return {"name": "learned_separable"}
        rows = conversion.tensor(table, "1, positions, width")[0]
        prefix = self.prefix_tokens if part == "encoder" else 1
        LearnedTable(table, f"{own}.table", self.trained, self.grid).take(conversion, rows[prefix:])
        if prefix:
            conversion.convert(table, f"{own}.prefix_table", rows[:prefix], conversion.converted[table])
        return {"name": "learned"}

    def _slices(self) -> int | None:
        """Frames that a token predicts, told from the head; None for all of its own."""
        (depth, height, width), key = self.patches.size, f"{LAYOUT.head}.weight"
        if key not in self.conversion.source:
            return 1
        numbers = self.conversion.shape(key, "numbers of a token, decoder width")[0]
        slices = numbers // (height * width * self.patches.channels)
        return None if slices == depth else slices


def _separable(table: str, own: str, trained: Grid, grid: Grid) -> Iterator[Pair]:
    """Tables of places and of frames, and a row for the cls token."""
    yield LearnedTable(f"{table}_spatial", f"{own}.space", trained[1:], grid[1:])
    yield LearnedTable(f"{table}_temporal", f"{own}.time", trained[:1], grid[:1])
    yield Vector(f"{table}_class", f"{own}.prefix_table", row=True)


def _write_positions(writing: Writing, part: Part, owner: str, num_prefix: int) -> None:
    """Writes separable positions as they are, and any other as one table."""
    if writing.part(part).positions.name == "learned_separable":
        grid = writing.grid(writing.stream)
        write_all(_separable(TABLES[part], f"{owner}.positions.{writing.modality.embedding}", grid, grid), writing)
    else:
        writing.written[TABLES[part]] = writing.position_table(part, num_prefix)
