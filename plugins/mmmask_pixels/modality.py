"""Bases of the modalities of pictures, clips and maps: settings, and tokens that are patches of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from mmmask.interfaces import AugmentationChoice, Grid, Modality, Tokens, TokenSpec, patchify, unpatchify
from mmmask_pixels.augmentations import Crop, Flip, PositiveNumber, Share
from mmmask_pixels.limits import MAX_PIXELS
from mmmask_pixels.resize import Interpolation, Resampling

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class PlaneModality(Modality):
    """Modality of samples whose last two axes are the height and the width of a picture."""

    class Config(Modality.Config):
        size: PositiveInt | tuple[PositiveInt, PositiveInt] = Field(
            default=224, description="height and width in pixels, one number where they are equal"
        )
        patch_size: tuple[PositiveInt, ...] = Field(default=(16, 16), description="extent of a token along each axis")
        augment: tuple[AugmentationChoice, ...] = Field(
            default=(Crop.Config(name="crop"), Flip.Config(name="flip")),
            description="augmentations of training samples, in order; a sample of another size after the last of "
            "them, and every held-out one, is resized and cropped at the centre",
        )
        crop_share: Share = Field(
            default=1.0,
            description="share of the short side that crops of held-out samples take: 0.875 resizes it to 256 pixels "
            "and crops 224 of them",
        )
        max_pixels: PositiveInt = Field(
            default=MAX_PIXELS, description="a file whose header announces more pixels is a bad sample, and not decoded"
        )
        embedding: str | None = Field(
            default=None,
            pattern=r"^[A-Za-z0-9_]+$",
            description="streams with the same name share the embedding and the head; null: those with equal tokens do",
        )

        @property
        def extent(self) -> tuple[int, int]:
            """(height, width) in pixels."""
            return (self.size, self.size) if isinstance(self.size, int) else self.size

        @property
        def resampling(self) -> Resampling:
            """Resampling of a resize: by default the nearest pixel."""
            return "nearest"

        @model_validator(mode="after")
        def _fits(self) -> PlaneModality.Config:
            if any(size % patch for size, patch in zip(self.extent, self.patch_size[-2:], strict=True)):
                raise ValueError(f"size {self.extent} is not a multiple of the patch size {self.patch_size[-2:]}")
            return self


class PixelModality(PlaneModality):
    """Modality of samples (channels, *axes) of pixels.

    With one number more in the patch size than axes, a sample is a still: as many equal frames as the first number
    says, one tubelet deep.
    """

    axes: ClassVar[tuple[str, ...]]
    """Names of a sample's axes after the channels, of which height and width are the last."""

    class Config(PlaneModality.Config):
        channels: int = Field(default=3, gt=0, le=1024, description="1 grey, 2 with alpha, 3 colour, 4 with alpha")
        mean: tuple[float, ...] = Field(
            default=(), description="per channel, of pixels in [0, 1]; empty: ImageNet's for 3 channels, else 0.5"
        )
        std: tuple[PositiveNumber, ...] = Field(
            default=(), description="per channel, of pixels in [0, 1]; empty: ImageNet's for 3 channels, else 0.25"
        )
        interpolation: Interpolation = Field(default="bicubic", description="of every resize: bicubic or bilinear")

        @property
        def resampling(self) -> Resampling:
            """The setting `interpolation`."""
            return self.interpolation

        @model_validator(mode="after")
        def _channels_fit(self) -> PixelModality.Config:
            for name in ("mean", "std"):
                given = getattr(self, name)
                if given and len(given) != self.channels:
                    raise ValueError(f"{name} has {len(given)} numbers, but there are {self.channels} channels")
            return self

    @property
    def spec(self) -> TokenSpec:
        """Patch of pixels: bytes that stand for [0, 1]."""
        config, channels = self.config, self.config.channels
        mean = config.mean or (IMAGENET_MEAN if channels == 3 else (0.5,) * channels)
        std = config.std or (IMAGENET_STD if channels == 3 else (0.25,) * channels)
        return TokenSpec(config.patch_size, channels, mean=mean, std=std, scale=255.0, range=(0.0, 1.0))

    @property
    def embedding(self) -> str:
        """The name in the settings, or one such as `pixels_2x16x16x3`, by which pictures and clips share it."""
        config = self.config
        return config.embedding or f"pixels_{'x'.join(map(str, (*config.patch_size, config.channels)))}"

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """(channels, height, width)."""
        return (self.config.channels, *self.config.extent)

    def grid(self, shape: Sequence[int]) -> Grid:
        """Number of patches along each axis of a sample (..., *axes), with a 1 in front where it is a still."""
        extent, patch_size = shape[-len(self.axes) :], self.config.patch_size[-len(self.axes) :]
        stills = (1,) * (len(self.config.patch_size) - len(self.axes))
        return stills + tuple(size // patch for size, patch in zip(extent, patch_size, strict=True))

    def tokenize(self, batch: Tensor) -> Tokens:
        """(batch, channels, *axes) -> tokens, of any extent that the patch size divides.

        Floating point is taken as normalised, integers as 0 to 255.

        Raises:
            ValueError: the shape does not fit.
        """
        config = self.config
        if batch.ndim != 2 + len(self.axes) or batch.shape[1] != config.channels:
            expected = ", ".join(("batch", str(config.channels), *self.axes))
            raise ValueError(f"{config.name}: expected ({expected}), got {tuple(batch.shape)}")
        grid = self.grid(batch.shape)
        if len(grid) > len(self.axes):
            batch = batch.unsqueeze(2).expand(-1, -1, config.patch_size[0], -1, -1)
        return Tokens(patchify(batch, config.patch_size), grid, self.spec, normalized=batch.is_floating_point())

    def detokenize(self, content: Tensor, grid: Grid) -> Tensor:
        """(batch, tokens, content_dim) -> (batch, channels, *axes); of a still, the mean of its frames."""
        dense = unpatchify(content, grid, self.config.patch_size)
        if len(grid) == len(self.axes):
            return dense
        if not dense.is_floating_point():
            return self.detokenize(content.float(), grid).round().to(content.dtype)
        # the mean as a distance from the first frame: equal frames come back exactly, whatever their number
        first = dense[:, :, :1]
        return (first + (dense - first).mean(2, keepdim=True)).squeeze(2)
