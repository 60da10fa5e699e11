"""The depth modality: maps of distances cut into patches."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from mmmask.interfaces import TokenSpec
from mmmask_depth.preparation import DepthPreparation
from mmmask_pixels.augmentations import Finite, PositiveNumber
from mmmask_pixels.modality import PlaneModality


class DepthModality(PlaneModality):
    """Depth maps (1, height, width) in metres, NaN where it is missing."""

    class Config(PlaneModality.Config):
        patch_size: tuple[PositiveInt, PositiveInt] = Field(
            default=(16, 16), description="(height, width) of a token in pixels"
        )
        scale: PositiveNumber = Field(
            default=0.001, description="metres per stored integer; floating point is metres already"
        )
        missing: Finite | None = Field(
            default=0.0,
            description="the stored number of missing values, besides NaN and infinity; null: none",
        )
        mean: Finite = Field(default=3.0, description="in metres; the default is that of rooms")
        std: PositiveNumber = Field(default=2.0, description="in metres; the default is that of rooms")
        standardize: bool = Field(
            default=False,
            description="samples are standardised, each by its mean and deviation without the nearest and the farthest "
            "tenth, as MultiMAE's are; metres are lost then, and mean and std not used",
        )
        interpolation: Literal["nearest", "bilinear"] = Field(
            default="nearest",
            description="of every resize: the nearest pixel, or antialiased, where what touches a missing value is "
            "missing too",
        )

        @property
        def resampling(self) -> Literal["nearest", "bilinear"]:
            """The setting `interpolation`."""
            return self.interpolation

    config: Config

    @property
    def spec(self) -> TokenSpec:
        """Patch of metres, or of a sample's deviations around its mean."""
        config = self.config
        if config.standardize:
            return TokenSpec(config.patch_size, channels=1, mean=(0.0,), std=(1.0,), gaps=True)
        return TokenSpec(
            config.patch_size, channels=1, mean=(config.mean,), std=(config.std,), range=(0.0, None), gaps=True
        )

    @property
    def embedding(self) -> str:
        """The name in the settings, or one such as `depth_16x16`."""
        return self.config.embedding or f"depth_{'x'.join(map(str, self.config.patch_size))}"

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """(1, height, width)."""
        return (1, *self.config.extent)

    @property
    def preparation(self) -> DepthPreparation:
        """The worker side."""
        return DepthPreparation(self.config, self.spec)
