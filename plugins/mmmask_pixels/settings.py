"""Settings that images and videos share, and what is derived from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field, model_validator

from mmmask.interfaces import Augmentation, AugmentationChoice, Modality, TokenSpec, build
from mmmask_pixels.crop import Crop
from mmmask_pixels.flip import Flip
from mmmask_pixels.limits import MAX_PIXELS
from mmmask_pixels.resize import Interpolation
from mmmask_pixels.statistics import default_mean, default_std

Positive = Annotated[int, Field(ge=1)]
PositiveNumber = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class PixelConfig(Modality.Config):
    """Settings of `image` and `video`; each adds its own and sets its own defaults."""

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
    augment: tuple[AugmentationChoice, ...] = Field(
        default=(Crop.Config(name="crop"), Flip.Config(name="flip")),
        description="augmentations of training samples, in order; a sample of another size after the last of them, and "
        "every held-out one, is resized and cropped at the centre",
    )
    interpolation: Interpolation = Field(default="bicubic", description="of every resize: bicubic or bilinear")
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
        return self


def token_spec(config: PixelConfig) -> TokenSpec:
    """Token of pixels: bytes that stand for [0, 1]."""
    channels = config.channels
    mean, std = config.mean or default_mean(channels), config.std or default_std(channels)
    return TokenSpec(config.patch_size, channels, mean=mean, std=std, scale=255.0, range=(0.0, 1.0))


def embedding_key(config: PixelConfig) -> str:
    """The key under which streams share an embedding, such as `pixels_2x16x16x3`."""
    return config.embedding or f"pixels_{'x'.join(map(str, (*config.patch_size, config.channels)))}"


def augmentations(config: PixelConfig) -> tuple[Augmentation, ...]:
    """The augmentations of training samples."""
    return tuple(build("augmentation", chosen) for chosen in config.augment)


def cells(extent: Sequence[int], patch_size: Sequence[int]) -> tuple[int, ...]:
    """Number of patches along each axis.

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
