"""The image modality: pictures cut into patches, or into stills on the tubelet embedding of videos."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from mmmask.interfaces import Grid, Tokens, patchify, unpatchify
from mmmask_image.preparation import ImagePreparation
from mmmask_pixels.modality import PixelModality
from mmmask_pixels.resize import PixelResize
from mmmask_pixels.settings import PixelConfig, Positive, augmentations, cells


class ImageModality(PixelModality):
    """Pictures (channels, height, width).

    With a patch size of three numbers, such as (2, 16, 16), a picture is a still: as many equal frames as the first
    number says, one tubelet deep. Its embedding is then that of videos with the same patch size and channels.
    """

    class Config(PixelConfig):
        patch_size: tuple[Positive, Positive] | tuple[Positive, Positive, Positive] = Field(
            default=(16, 16),
            description="(height, width) of a token in pixels; (frames, height, width) makes a still of that many "
            "equal frames, on the embedding it shares with videos",
        )

    config: Config

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """(channels, height, width)."""
        return (self.config.channels, *self.config.extent)

    @property
    def preparation(self) -> ImagePreparation:
        """The worker side."""
        config = self.config
        resize = PixelResize(config.extent, config.interpolation)
        return ImagePreparation(augmentations(config), resize, config.channels, config.max_pixels)

    def grid(self, shape: Sequence[int]) -> Grid:
        """(rows, columns) of a sample (..., height, width), or (1, rows, columns) of a still.

        Raises:
            ValueError: height or width is not a multiple of the patch size.
        """
        *frames, patch_height, patch_width = self._spec.patch_size
        return (1,) * len(frames) + cells(tuple(shape[-2:]), (patch_height, patch_width))

    def tokenize(self, batch: Tensor) -> Tokens:
        """(batch, channels, height, width) -> tokens, of any height and width that the patch size divides.

        Floating point is taken as normalised, integers as 0 to 255.

        Raises:
            ValueError: the shape does not fit.
        """
        if batch.ndim != 4 or batch.shape[1] != self._spec.channels:
            raise ValueError(
                f"images: expected (batch, {self._spec.channels}, height, width), got {tuple(batch.shape)}"
            )
        grid = self.grid(batch.shape)
        if len(grid) == 3:
            batch = batch.unsqueeze(2).expand(-1, -1, self._spec.patch_size[0], -1, -1)
        return Tokens(patchify(batch, self._spec.patch_size), grid, self._spec, normalized=batch.is_floating_point())

    def detokenize(self, content: Tensor, grid: Grid) -> Tensor:
        """(batch, tokens, content_dim) -> (batch, channels, height, width); of a still, the mean of its frames."""
        dense = unpatchify(content, grid, self._spec.patch_size)
        if dense.ndim == 4:
            return dense
        first = dense[:, :, :1]
        # the mean as a distance from the first frame: equal frames come back exactly, whatever their number
        if dense.dtype == torch.uint8:
            return (first + (dense.float() - first).mean(2, keepdim=True).round()).to(torch.uint8).squeeze(2)
        return (first + (dense - first).mean(2, keepdim=True)).squeeze(2)
