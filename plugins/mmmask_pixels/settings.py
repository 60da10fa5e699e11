"""Settings that images and videos share, and what follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field, model_validator

from mmmask.interfaces.modality import Modality
from mmmask.interfaces.tokens import TokenSpec
from mmmask_pixels.crop import Crop, Interpolation
from mmmask_pixels.limits import MAX_PIXELS
from mmmask_pixels.statistics import default_mean, default_std

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]
PositiveNumber = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class PixelConfig(Modality.Config):
    """What `image` and `video` have in common; each adds its own and sets its own defaults."""

    size: Positive | tuple[Positive, Positive] = Field(
        default=224, description="height and width in pixels, one number where they are equal"
    )
    patch_size: tuple[Positive, ...] = Field(default=(16, 16), description="extent of a token along each axis")
    channels: int = Field(default=3, ge=1, description="1 grey, 2 grey and alpha, 3 colour, 4 colour and alpha")
    mean: tuple[float, ...] = Field(
        default=(), description="per channel, of pixels in [0, 1]; empty: ImageNet's for 3 channels, else 0.5"
    )
    std: tuple[PositiveNumber, ...] = Field(
        default=(), description="per channel, of pixels in [0, 1]; empty: ImageNet's for 3 channels, else 0.25"
    )
    crop_scale: tuple[Share, Share] = Field(
        default=(0.2, 1.0), description="least and greatest share of the area that a training crop takes"
    )
    crop_ratio: tuple[PositiveNumber, PositiveNumber] = Field(
        default=(3 / 4, 4 / 3), description="least and greatest width / height of a training crop"
    )
    interpolation: Interpolation = Field(default="bicubic", description="of the resize: bicubic or bilinear")
    flip: float = Field(default=0.5, ge=0, le=1, description="probability of mirroring left and right")
    max_pixels: Positive = Field(
        default=MAX_PIXELS, description="a file whose header announces more pixels is a bad sample, and not decoded"
    )
    embedding: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9_]+$",
        description="streams with the same name share the embedding and the head; "
        "null: those with the same patch size and channels do",
    )

    @property
    def extent(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @model_validator(mode="after")
    def _fits(self) -> PixelConfig:
        if any(size % patch for size, patch in zip(self.extent, self.patch_size[-2:], strict=True)):
            raise ValueError(f"size {self.extent} is not a multiple of the patch size {self.patch_size[-2:]}")
        for name in ("mean", "std"):
            given = getattr(self, name)
            if given and len(given) != self.channels:
                raise ValueError(f"{name} has {len(given)} numbers, but there are {self.channels} channels")
        for name in ("crop_scale", "crop_ratio"):
            least, greatest = getattr(self, name)
            if least > greatest:
                raise ValueError(f"{name}: the least, {least}, comes before the greatest, {greatest}")
        return self


def token_spec(config: PixelConfig) -> TokenSpec:
    """What a token of these pixels is."""
    channels = config.channels
    mean, std = config.mean or default_mean(channels), config.std or default_std(channels)
    return TokenSpec(config.patch_size, channels, mean=mean, std=std)


def embedding_key(config: PixelConfig) -> str:
    """The key under which streams share an embedding, such as `pixels_2x16x16x3`."""
    return config.embedding or f"pixels_{'x'.join(map(str, (*config.patch_size, config.channels)))}"


def crop_settings(config: PixelConfig) -> Crop:
    """How a training crop is drawn."""
    return Crop(config.extent, config.crop_scale, config.crop_ratio, config.interpolation, config.flip)


def cells(extent: Sequence[int], patch_size: Sequence[int]) -> tuple[int, ...]:
    """How many patches lie along each axis.

    Raises:
        ValueError: an extent is not a multiple of the patch size.
    """
    if len(extent) != len(patch_size) or any(
        size < 1 or size % patch for size, patch in zip(extent, patch_size, strict=True)
    ):
        raise ValueError(f"{_times(extent)} is not a multiple of the patch size {_times(patch_size)}")
    return tuple(size // patch for size, patch in zip(extent, patch_size, strict=True))


def _times(extent: Sequence[Any]) -> str:
    return " x ".join(map(str, extent))
