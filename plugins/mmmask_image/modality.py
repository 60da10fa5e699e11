"""The image modality: pictures cut into patches, or into stills on the tubelet embedding of videos."""

from __future__ import annotations

from pydantic import Field, PositiveInt

from mmmask_image.preparation import ImagePreparation
from mmmask_pixels.modality import PixelModality


class ImageModality(PixelModality):
    """Pictures (channels, height, width).

    With a patch size of three numbers, such as (2, 16, 16), the embedding is that of videos with the same patch size
    and channels.
    """

    axes = ("height", "width")

    class Config(PixelModality.Config):
        patch_size: tuple[PositiveInt, PositiveInt] | tuple[PositiveInt, PositiveInt, PositiveInt] = Field(
            default=(16, 16),
            description="(height, width) of a token in pixels; (frames, height, width) makes a still of that many "
            "equal frames, on the embedding it shares with videos",
        )

    config: Config

    @property
    def preparation(self) -> ImagePreparation:
        """The worker side."""
        return ImagePreparation(self.config, self.spec)
