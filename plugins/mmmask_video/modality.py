"""The video modality: clips cut into tubelets."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field, model_validator
from torch import Tensor

from mmmask.interfaces import AugmentationChoice, Grid, Tokens, patchify, unpatchify
from mmmask_pixels.crop import Crop
from mmmask_pixels.modality import PixelModality
from mmmask_pixels.resize import Interpolation, PixelResize
from mmmask_pixels.settings import PixelConfig, Positive, PositiveNumber, augmentations, cells
from mmmask_video.preparation import VideoPreparation
from mmmask_video.sampling import ClipSampler


class VideoModality(PixelModality):
    """Clips (channels, frames, height, width)."""

    class Config(PixelConfig):
        num_frames: Positive = Field(default=16, description="frames of a clip")
        patch_size: tuple[Positive, Positive, Positive] = Field(
            default=(2, 16, 16), description="extent of a token: (frames, height, width)"
        )
        channels: int = Field(default=3, description="1 grey, 3 colour")
        clip_seconds: PositiveNumber = Field(
            default=2.7,
            description="length of the window over which a clip's frames are spaced evenly; a shorter video is taken "
            "whole, and frames repeat, in order, where it has fewer than the clip",
        )
        stride: Positive | None = Field(
            default=None,
            description="temporal stride: take every n-th frame, instead of spacing frames evenly over clip_seconds",
        )
        augment: tuple[AugmentationChoice, ...] = Field(
            default=(Crop.Config(name="crop", scale=(0.08, 1.0)),),
            description="augmentations of training clips, in order, all frames alike; no flip by default, because a "
            "motion's direction may be its meaning; held-out clips are resized and cropped at the centre",
        )
        interpolation: Interpolation = Field(default="bilinear", description="of every resize: bicubic or bilinear")
        short_side: Positive | None = Field(
            default=256,
            description="frames whose short side is longer, in pixels, are shrunk to it as they are decoded; null "
            "keeps every frame at full size until it is cropped",
        )
        max_frames: Positive = Field(
            default=200_000, description="a video of more frames is a bad sample, and not decoded"
        )

        @model_validator(mode="after")
        def _frames_fit(self) -> VideoModality.Config:
            if self.num_frames % self.patch_size[0]:
                raise ValueError(
                    f"num_frames {self.num_frames} is not a multiple of the patch size {self.patch_size[0]}"
                )
            if self.channels not in (1, 3):
                raise ValueError(f"channels {self.channels}: videos are decoded as grey (1) or colour (3)")
            return self

    config: Config

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """(channels, frames, height, width)."""
        return (self.config.channels, self.config.num_frames, *self.config.extent)

    @property
    def preparation(self) -> VideoPreparation:
        """The worker side."""
        config = self.config
        return VideoPreparation(
            sampler=ClipSampler(config.num_frames, config.clip_seconds, config.stride),
            augment=augmentations(config),
            resize=PixelResize(config.extent, config.interpolation),
            channels=config.channels,
            short_side=config.short_side,
            max_pixels=config.max_pixels,
            max_frames=config.max_frames,
        )

    def grid(self, shape: Sequence[int]) -> Grid:
        """(tubelets in time, rows, columns) of a sample (..., frames, height, width).

        Raises:
            ValueError: an extent is not a multiple of the patch size.
        """
        return cells(tuple(shape[-3:]), self._spec.patch_size)

    def tokenize(self, batch: Tensor) -> Tokens:
        """(batch, channels, frames, height, width) -> tokens, of any extent that the patch size divides.

        Floating point is taken as normalised, integers as 0 to 255.

        Raises:
            ValueError: the shape does not fit.
        """
        if batch.ndim != 5 or batch.shape[1] != self._spec.channels:
            raise ValueError(
                f"videos: expected (batch, {self._spec.channels}, frames, height, width), got {tuple(batch.shape)}"
            )
        grid = self.grid(batch.shape)
        return Tokens(patchify(batch, self._spec.patch_size), grid, self._spec, normalized=batch.is_floating_point())

    def detokenize(self, content: Tensor, grid: Grid) -> Tensor:
        """(batch, tokens, content_dim) -> (batch, channels, frames, height, width)."""
        return unpatchify(content, grid, self._spec.patch_size)
