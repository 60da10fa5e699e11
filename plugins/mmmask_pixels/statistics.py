"""Mean and standard deviation of pixels in [0, 1], per channel."""

from __future__ import annotations

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def default_mean(channels: int) -> tuple[float, ...]:
    """ImageNet's for three channels; one half for every channel of any other number."""
    return IMAGENET_MEAN if channels == 3 else (0.5,) * channels


def default_std(channels: int) -> tuple[float, ...]:
    """ImageNet's for three channels; one quarter for every channel of any other number."""
    return IMAGENET_STD if channels == 3 else (0.25,) * channels
