"""The video modality: clips cut into tubelets."""

from __future__ import annotations

from pydantic import Field, PositiveInt, model_validator

from mmmask.interfaces import AugmentationChoice
from mmmask_pixels.augmentations import Crop, PositiveNumber
from mmmask_pixels.modality import PixelModality
from mmmask_pixels.resize import Interpolation
from mmmask_video.preparation import VideoPreparation


class VideoModality(PixelModality):
    """Clips (channels, frames, height, width)."""

    axes = ("frames", "height", "width")

    class Config(PixelModality.Config):
        num_frames: PositiveInt = Field(default=16, description="frames of a clip")
        patch_size: tuple[PositiveInt, PositiveInt, PositiveInt] = Field(
            default=(2, 16, 16), description="extent of a token: (frames, height, width)"
        )
        channels: int = Field(default=3, description="1 grey, 3 colour")
        clip_seconds: PositiveNumber = Field(
            default=2.7,
            description="length of the window over which a clip's frames are spaced evenly; a shorter video is taken "
            "whole, and frames repeat, in order, where it has fewer than the clip",
        )
        stride: PositiveInt | None = Field(
            default=None,
            description="temporal stride: take every n-th frame, instead of spacing frames evenly over clip_seconds",
        )
        augment: tuple[AugmentationChoice, ...] = Field(
            default=(Crop.Config(name="crop", scale=(0.08, 1.0)),),
            description="augmentations of training clips, in order, all frames alike; no flip by default, because a "
            "motion's direction may be its meaning; held-out clips are resized and cropped at the centre",
        )
        interpolation: Interpolation = Field(default="bilinear", description="of every resize: bicubic or bilinear")
        short_side: PositiveInt | None = Field(
            default=256,
            description="frames whose short side is longer, in pixels, are shrunk to it as they are decoded; null "
            "keeps every frame at full size until it is cropped",
        )
        max_frames: PositiveInt = Field(
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
        return VideoPreparation(self.config, self.spec)
