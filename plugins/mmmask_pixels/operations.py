"""Changes of a picture's colours and geometry, each with a strength, by Pillow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from mmmask import MmmaskError


class Canvas(NamedTuple):
    """Drawing of moved pixels: the colour of what comes in from outside, and the interpolation."""

    fill: tuple[int, ...]
    interpolation: Image.Resampling


Apply = Callable[[Image.Image, float, Canvas], Image.Image]
"""Changes a picture, as much as the strength says."""


class Operation(NamedTuple):
    """An operation on a picture of 8 bits, grey or in colour.

    Attributes:
        strength: of a magnitude in [-1, 1], with increasing severity or without; see `OPERATIONS`.
        apply: changes a picture.
    """

    strength: Callable[[float, bool], float]
    apply: Apply


def auto_contrast(image: Image.Image, strength: float, canvas: Canvas) -> Image.Image:
    """Stretches each channel to its full range."""
    return ImageOps.autocontrast(image)


def equalize(image: Image.Image, strength: float, canvas: Canvas) -> Image.Image:
    """Flattens each channel's histogram."""
    return ImageOps.equalize(image)


def invert(image: Image.Image, strength: float, canvas: Canvas) -> Image.Image:
    """Negative."""
    return ImageOps.invert(image)


def rotate(image: Image.Image, strength: float, canvas: Canvas) -> Image.Image:
    """Rotates by degrees, counterclockwise."""
    return image.rotate(strength, canvas.interpolation, fillcolor=_colour(image, canvas))


def posterize(image: Image.Image, strength: float, canvas: Canvas) -> Image.Image:
    """Keeps the high bits of each value, as many as the strength says."""
    return ImageOps.posterize(image, int(strength))


def solarize(image: Image.Image, strength: float, canvas: Canvas) -> Image.Image:
    """Inverts values from a threshold on."""
    return ImageOps.solarize(image, int(strength))


def solarize_add(image: Image.Image, strength: float, canvas: Canvas) -> Image.Image:
    """Adds to values below 128."""
    table = [min(255, value + int(strength)) if value < 128 else value for value in range(256)]
    return image.point(table * len(image.getbands()))


def saturate(image: Image.Image, strength: float, canvas: Canvas) -> Image.Image:
    """Saturation: 0 is grey, 1 the picture."""
    return ImageEnhance.Color(image).enhance(strength)


def contrast(image: Image.Image, strength: float, canvas: Canvas) -> Image.Image:
    """Contrast: 0 is the mean, 1 the picture."""
    return ImageEnhance.Contrast(image).enhance(strength)


def brighten(image: Image.Image, strength: float, canvas: Canvas) -> Image.Image:
    """Brightness: 0 is black, 1 the picture."""
    return ImageEnhance.Brightness(image).enhance(strength)


def sharpen(image: Image.Image, strength: float, canvas: Canvas) -> Image.Image:
    """Sharpness: 0 is smoothed, 1 the picture."""
    return ImageEnhance.Sharpness(image).enhance(strength)


def shear_x(image: Image.Image, strength: float, canvas: Canvas) -> Image.Image:
    """Moves each row sideways, in proportion to its number."""
    return _affine(image, (1, strength, 0, 0, 1, 0), canvas)


def shear_y(image: Image.Image, strength: float, canvas: Canvas) -> Image.Image:
    """Moves each column up or down, in proportion to its number."""
    return _affine(image, (1, 0, 0, strength, 1, 0), canvas)


def translate_x(image: Image.Image, strength: float, canvas: Canvas) -> Image.Image:
    """Moves sideways, by a share of the width."""
    return _affine(image, (1, 0, strength * image.width, 0, 1, 0), canvas)


def translate_y(image: Image.Image, strength: float, canvas: Canvas) -> Image.Image:
    """Moves up or down, by a share of the height."""
    return _affine(image, (1, 0, 0, 0, 1, strength * image.height), canvas)


def shift_hue(image: Image.Image, strength: float, canvas: Canvas) -> Image.Image:
    """Turns the hue by a share of the circle."""
    if image.mode == "L":
        return image
    hue, saturation, value = image.convert("HSV").split()
    turned = hue.point([(number + round(strength * 255)) % 256 for number in range(256)])
    return Image.merge("HSV", (turned, saturation, value)).convert(image.mode)


def _factor(magnitude: float, increasing: bool) -> float:
    return max(0.1, 1 + 0.9 * magnitude) if increasing else 0.1 + 1.8 * abs(magnitude)


def _bits(magnitude: float, increasing: bool) -> float:
    return 4 - int(4 * abs(magnitude)) if increasing else int(4 * abs(magnitude))


def _threshold(magnitude: float, increasing: bool) -> float:
    return 256 - int(256 * abs(magnitude)) if increasing else int(256 * abs(magnitude))


def _addition(magnitude: float, increasing: bool) -> float:
    return int(110 * abs(magnitude))


def _share_of(most: float) -> Callable[[float, bool], float]:
    return lambda magnitude, increasing: most * magnitude


OperationName = Literal[
    "auto_contrast", "equalize", "invert", "rotate", "posterize", "solarize", "solarize_add", "color", "contrast",
    "brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y",
]  # fmt: skip

OPERATIONS: dict[OperationName, Operation] = {
    "auto_contrast": Operation(_share_of(1), auto_contrast),
    "equalize": Operation(_share_of(1), equalize),
    "invert": Operation(_share_of(1), invert),
    "rotate": Operation(_share_of(30), rotate),
    "posterize": Operation(_bits, posterize),
    "solarize": Operation(_threshold, solarize),
    "solarize_add": Operation(_addition, solarize_add),
    "color": Operation(_factor, saturate),
    "contrast": Operation(_factor, contrast),
    "brightness": Operation(_factor, brighten),
    "sharpness": Operation(_factor, sharpen),
    "shear_x": Operation(_share_of(0.3), shear_x),
    "shear_y": Operation(_share_of(0.3), shear_y),
    "translate_x": Operation(_share_of(0.45), translate_x),
    "translate_y": Operation(_share_of(0.45), translate_y),
}
"""RandAugment's operations with the strengths of the recipes: {name: operation}.

Rotation up to 30 degrees, shear up to 0.3, translation up to 0.45 of the extent. Without increasing severity the
factors of colour, contrast, brightness and sharpness go from 0.1 to 1.9, so that magnitude 5 changes nothing; with it
they are 1 plus or minus 0.9 of the magnitude, at least 0.1, and fewer bits are kept and more values are solarized the
greater it is.

Source: Cubuk et al., RandAugment, 2020, in the form of `rand-m9-mstd0.5-inc1`.
"""


def change_pictures(content: Tensor, changes: Sequence[tuple[Apply, float]], canvas: Canvas) -> Tensor:
    """Changes every picture of uint8 content (..., channels, height, width), in order, with the strengths given.

    Raises:
        MmmaskError: content of another dtype, or neither grey nor in colour.
    """
    channels, height, width = content.shape[-3:]
    if content.dtype != torch.uint8 or channels not in (1, 3):
        raise MmmaskError(
            "modality.augment: rand_augment and color_jitter change pictures and clips of 8 bits with 1 or 3 channels, "
            f"not {str(content.dtype).removeprefix('torch.')} with {channels}"
        )
    if not changes:
        return content
    frames = content.reshape(-1, channels, height, width).permute(0, 2, 3, 1).contiguous().numpy()
    changed = np.empty_like(frames)
    for number, frame in enumerate(frames):
        image = Image.fromarray(frame[:, :, 0] if channels == 1 else frame)
        for apply, strength in changes:
            image = apply(image, strength, canvas)
        changed[number] = np.asarray(image).reshape(frame.shape)
    return torch.from_numpy(changed).permute(0, 3, 1, 2).reshape(content.shape)


def _affine(image: Image.Image, matrix: tuple[float, ...], canvas: Canvas) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, canvas.interpolation, fillcolor=_colour(image, canvas)
    )


def _colour(image: Image.Image, canvas: Canvas) -> int | tuple[int, ...]:
    return canvas.fill[0] if image.mode == "L" else canvas.fill
