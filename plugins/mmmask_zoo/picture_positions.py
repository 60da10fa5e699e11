"""Positions of square pictures in the files of MAE and its kin: MAE's sinusoid, or a table trained in its place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mmmask.builtins.positions import sincos_2d_table
from mmmask_zoo.conversion import Conversion, square

AXES = "1, positions, width"


class PicturePositions:
    """What an encoder's table tells of the pictures; and that table and the decoder's in mmmask's terms.

    Args:
        conversion: of the file.
        table: key of the encoder's table (1, places, width).
        patch: height and width in pixels.
        size: height and width in pixels that are wanted; None for the file's.
        cls_token: whether tables begin with a row for the cls token.
        steps: those of a clip, each of which starts as the picture; None for pictures.

    Attributes:
        trained: the grid of the file's pictures.
        size: height and width in pixels of the wanted ones.
        grid: theirs, or that of a clip of them.

    Raises:
        InteropError: patches or pictures are no squares, or patches do not fill the wanted size.
    """

    def __init__(
        self,
        conversion: Conversion,
        table: str,
        patch: Sequence[int],
        size: int | None,
        cls_token: bool = True,
        steps: int | None = None,
    ) -> None:
        self._conversion, self._table, self._cls_token = conversion, table, cls_token
        height, width = patch
        if height != width:
            raise conversion.error(f"patches of {height} x {width} are no squares")
        places = conversion.shape(table, AXES)[1] - cls_token
        side = square(places)
        if side is None:
            what = f"{places} positions{' and a cls token' if cls_token else ''}"
            raise conversion.error(f"{table}: {what}, which are no square")
        conversion.require_multiple("size", size, height, "pixels")
        self.size = size or side * height
        cells = self.size // height
        self.trained = (side, side)
        self.grid = (steps, cells, cells) if steps else (cells, cells)

    @property
    def sinusoid(self) -> dict[str, Any]:
        """The settings of MAE's sinusoid, resized where the wanted pictures have another size."""
        return {"name": "sincos_2d", **({} if self.grid[-2:] == self.trained else {"trained_grid": list(self.trained)})}

    def is_sinusoid(self, table: str) -> bool:
        """Whether a table is MAE's sinusoid, with zeros for the cls token; it is computed then and left out.

        Raises:
            InteropError: it has not as many rows as the encoder's.
        """
        conversion = self._conversion
        rows, width = conversion.shape(table, AXES)[1:]
        if rows != conversion.shape(self._table, AXES)[1]:
            raise conversion.error(f"{table} has another number of positions than {self._table}")
        if width % 4:
            return False  # there is no such sinusoid
        computed = sincos_2d_table(self.trained, width)
        return conversion.fixed_table(
            table, torch.cat([torch.zeros(1, width), computed]) if self._cls_token else computed
        )

    def sinusoid_or_learned(self, table: str, new: str, num_prefix: int) -> dict[str, Any]:
        """The settings of MAE's sinusoid, or of the table that the file has in its place, which is taken.

        Args:
            table: key of a table whose first row is the cls token's.
            new: mmmask's key of the positions.
            num_prefix: 1 where they belong to an encoder, whose cls token they add to; 0 to a decoder, where they
                must not.

        Raises:
            InteropError: it has not as many rows as the encoder's, or adds to a decoder's cls token.
        """
        if self.is_sinusoid(table):
            return self.sinusoid
        conversion = self._conversion
        rows = conversion.tensor(table, AXES)[0]
        plane, trained = rows[1:], self.trained
        if len(self.grid) > len(trained):
            plane, trained = plane.repeat(self.grid[0], 1), (self.grid[0], *trained)
        conversion.learned_table(table, f"{new}.table", plane, trained, self.grid)
        if num_prefix:
            conversion.convert(table, f"{new}.prefix_table", rows[:1], conversion.converted[table])
        elif rows[0].any():
            raise conversion.error(f"{table} adds to the cls token, which here is as the encoder left it")
        return {"name": "learned"}
