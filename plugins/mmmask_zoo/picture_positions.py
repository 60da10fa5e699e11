"""Positions of square pictures in files of MAE and its kin: MAE's sinusoid, or a table trained in its place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mmmask.interop import sincos_2d_table
from mmmask_zoo.conversion import Conversion, square
from mmmask_zoo.correspondence import take_table

AXES = "1, positions, width"


class PicturePositions:
    """Tables of encoder and decoder, and the size of pictures that the encoder's tells.

    Args:
        conversion: of the file.
        table: key of the encoder's table (1, positions, width).
        patch: height and width in pixels.
        size: wanted height and width in pixels; None for the file's.
        cls_token: whether tables begin with a row for the cls token.
        frames: of the grid of a clip, each of which starts as the picture; None for pictures.

    Attributes:
        trained: grid of the file's pictures.
        size: height and width in pixels of the wanted pictures.
        grid: of the wanted pictures, or of clips of them.

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
        frames: int | None = None,
    ) -> None:
        self._conversion, self._table, self._cls_token = conversion, table, cls_token
        height, width = patch
        if height != width:
            raise conversion.error(f"patches of {height} x {width} are no squares")
        rows = conversion.shape(table, AXES)[1] - cls_token
        side = square(rows)
        if side is None:
            what = f"{rows} positions{' and a cls token' if cls_token else ''}"
            raise conversion.error(f"{table}: {what}, which are no square")
        self.size = size or side * height
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

    def read(self, table: str, own: str, num_prefix: int) -> dict[str, Any]:
        """Settings of MAE's sinusoid, or of a learned table, which is taken.

        Args:
            table: key of a table whose first row is the cls token's; of a file without it, the sinusoid is meant.
            own: mmmask's key of the positions.
            num_prefix: 1 for an encoder, to whose cls token the first row adds; 0 for a decoder, where it must be zero.

        Raises:
            InteropError: it has not as many rows as the encoder's, or adds to a decoder's cls token.
        """
        if table not in self._conversion.source or self.is_sinusoid(table):
            return self.sinusoid
        conversion, is_clip = self._conversion, len(self.grid) > len(self.trained)
        if not num_prefix and conversion.tensor(table, AXES)[0, 0].any():
            raise conversion.error(f"{table} adds to the cls token, which here is as the encoder left it")
        trained = (1, *self.trained) if is_clip else self.trained
        take_table(conversion, table, own, 1, trained, self.grid, takes_prefix=num_prefix > 0)
        return {"name": "learned"}
