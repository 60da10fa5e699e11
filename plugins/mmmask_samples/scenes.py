"""Sample scenes: a textured shape that moves over a smooth, textured background.

One picture shows which shape it is; only a clip shows how it moves, because every motion starts from the same
distribution of first frames. Large shapes, gradients and mild textures make masked patches predictable from visible
ones, so that a tiny model learns something within a minute.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mmmask_samples.shapes import SHAPES

Array = np.ndarray

# What a clip adds, from its first frame to its last, to x, y (in shorter sides of the picture), to the logarithm of the
# size, and to the angle (radians, clockwise on the screen).
MOTIONS: dict[str, tuple[float, float, float, float]] = {
    "clockwise": (0, 0, 0, 2.4),
    "counterclockwise": (0, 0, 0, -2.4),
    "down": (0, 0.3, 0, 0),
    "growing": (0, 0, 0.5, 0),
    "left": (-0.3, 0, 0, 0),
    "right": (0.3, 0, 0, 0),
    "shrinking": (0, 0, -0.5, 0),
    "up": (0, -0.3, 0, 0),
}

# Patterns in [-1, 1] of phases along and across their direction. tanh squares the waves off without hard edges.
PATTERNS: dict[str, Callable[[Array, Array], Array | float]] = {
    "plain": lambda a, b: 0.0,
    "stripes": lambda a, b: np.tanh(2 * np.sin(a)),
    "waves": lambda a, b: np.sin(a + np.sin(b / 2)),
    "dots": lambda a, b: np.tanh(3 * (np.cos(a) * np.cos(b) - 0.3)),
    "checks": lambda a, b: np.tanh(3 * np.sin(a / 2) * np.sin(b / 2)),
    "rings": lambda a, b: np.tanh(2 * np.sin(np.hypot(a, b))),
}

_LIGHT = (-0.6, -0.8)  # where it comes from, in every scene: the upper left
_SHADOW_OFFSET = 0.045  # lengths in shorter sides of the picture
_SHADOW_BLUR = 0.09
_RIM_WIDTH = 0.06

# Source: B. Ottosson, "A perceptual color space for image processing" (2020).
_OKLAB_TO_CONES = np.array(
    [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]]
)
_CONES_TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


@dataclass(frozen=True)
class Surface:
    """A gradient between two colours (2, 3), RGB in [0, 1], with a mild pattern from `PATTERNS` on it.

    Direction and angle are in radians, the period in the unit of the coordinates, the contrast in that of the colours.
    """

    colours: Array
    direction: float
    pattern: str
    period: float
    angle: float
    contrast: float

    def paint(self, x: Array, y: Array, extent: float) -> Array:
        """Colours (3, height, width) at float32 coordinates `x`, `y`; the gradient runs from -extent to extent."""
        # math's numbers leave arrays float32; numpy's would make them float64
        x_share, y_share = math.cos(self.direction) / (2 * extent), math.sin(self.direction) / (2 * extent)
        share = np.clip(x * x_share + y * y_share + 0.5, 0, 1)
        k = 2 * math.pi / self.period
        cos, sin = k * math.cos(self.angle), k * math.sin(self.angle)
        wave = PATTERNS[self.pattern](x * cos + y * sin, y * cos - x * sin)
        start, end = self.colours[..., None, None]
        return start + share * (end - start) + self.contrast * wave


class Pose(NamedTuple):
    """Placement of a shape: x, y (downwards) from the picture's middle, in shorter sides of it; radians clockwise."""

    x: float
    y: float
    radius: float
    angle: float

    def own(self, x: Array, y: Array) -> tuple[Array, Array]:
        """The picture's points in the shape's own coordinates."""
        x, y = (x - np.float32(self.x)) / np.float32(self.radius), (y - np.float32(self.y)) / np.float32(self.radius)
        cos, sin = np.float32(np.cos(self.angle)), np.float32(np.sin(self.angle))
        return cos * x + sin * y, cos * y - sin * x


@dataclass(frozen=True)
class Scene:
    """Everything that is seen in the first frame.

    The surface is in the shape's own coordinates, so that the texture turns with the shape. Clouds (waves, 4) are slow
    waves over the background: x and y frequency, phase, amplitude.
    """

    size: tuple[int, int]
    shape: str
    pose: Pose
    background: Surface
    surface: Surface
    clouds: Array


def draw_scene(generator: np.random.Generator, shape: str, size: tuple[int, int]) -> Scene:
    """A random scene with this shape from `SHAPES`, of this height and width in pixels."""
    uniform = generator.uniform
    hue = uniform(0, 2 * np.pi)
    dark = generator.random() < 0.6  # a light shape on a dark ground, or the reverse
    ground, figure = ((0.28, 0.74), (0.78, 0.92)) if dark else ((0.58, 0.96), (0.36, 0.58))
    other_hue = hue + np.pi + uniform(-1.2, 1.2)
    patterns = list(PATTERNS)
    # rings would always lie in the middle of the picture
    background = _draw_surface(generator, ground, hue, (0.06, 0.12), patterns[:-1], (0.16, 0.3), (0.015, 0.035))
    surface = _draw_surface(generator, figure, other_hue, (0.12, 0.19), patterns, (0.5, 0.9), (0.04, 0.09))
    clouds = np.stack([*uniform(-1.4, 1.4, (2, 4)), uniform(0, 2 * np.pi, 4), uniform(0.01, 0.035, 4)], axis=1)
    pose = Pose(uniform(-0.09, 0.09), uniform(-0.09, 0.09), uniform(0.24, 0.31), uniform(-0.35, 0.35))
    return Scene(size, shape, pose, background, surface, clouds.astype(np.float32))


def _draw_surface(
    generator: np.random.Generator,
    lightness: tuple[float, float],
    hue: float,
    chroma: tuple[float, float],
    patterns: Sequence[str],
    period: tuple[float, float],
    contrast: tuple[float, float],
) -> Surface:
    """Between two neighbouring hues, one of them darker than the other."""
    uniform = generator.uniform
    low, high = lightness
    quarter = (high - low) / 4
    ends = (uniform(low, low + quarter), uniform(high - quarter, high))
    hues = hue + uniform(0.4, 0.8) * np.array((-1, 1))
    strength = uniform(*chroma)
    return Surface(
        colours=np.stack([_oklch(end, strength, h) for end, h in zip(ends, hues, strict=True)]).astype(np.float32),
        direction=uniform(0, 2 * np.pi),
        pattern=str(generator.choice(patterns)),
        period=uniform(*period),
        angle=uniform(0, np.pi),
        contrast=uniform(*contrast),
    )


def _oklch(lightness: float, chroma: float, hue: float) -> Array:
    """An sRGB colour (3,) from OKLCH, in which equal steps look equal; clipped where out of gamut."""
    cones = (_OKLAB_TO_CONES * (lightness, chroma * np.cos(hue), chroma * np.sin(hue))).sum(1) ** 3
    linear = (_CONES_TO_RGB * cones).sum(1).clip(0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def render_image(scene: Scene) -> Array:
    """The scene as uint8 RGB (height, width, 3)."""
    return render_clip(scene, None, 1)[0]


def render_clip(scene: Scene, motion: str | None, num_frames: int) -> Array:
    """The scene in motion, at constant speed, as uint8 RGB (num_frames, height, width, 3).

    Args:
        scene: the first frame.
        motion: a name from `MOTIONS`; None stands still.
        num_frames: over which the whole of the motion spreads.
    """
    height, width = scene.size
    pixel = np.float32(1 / min(height, width))
    y = ((np.arange(height, dtype=np.float32) + 0.5) - height / 2)[:, None] * pixel
    x = ((np.arange(width, dtype=np.float32) + 0.5) - width / 2)[None, :] * pixel
    clouds = sum(amplitude * np.sin(2 * np.pi * (fx * x + fy * y) + phase) for fx, fy, phase, amplitude in scene.clouds)
    vignette = 0.08 * (x * x + y * y)
    ground = scene.background.paint(x, y, extent=0.45) + (clouds - vignette)

    move = np.array(MOTIONS[motion] if motion else (0, 0, 0, 0))
    frames = np.repeat(_to_uint8(ground)[None], num_frames, axis=0)
    for frame, time in zip(frames, np.linspace(0, 1, num_frames), strict=True):
        dx, dy, log_scale, turn = move * time
        start = scene.pose
        pose = Pose(start.x + dx, start.y + dy, start.radius * np.exp(log_scale), start.angle + turn)
        # Only the window that the shape and its shadow can reach: a third of the work.
        reach = 1.2 * pose.radius + _SHADOW_OFFSET + _SHADOW_BLUR
        rows, columns = _window(y[:, 0], pose.y, reach), _window(x[0], pose.x, reach)
        frame[rows, columns] = _to_uint8(_paint_shape(scene, ground[:, rows, columns], x[:, columns], y[rows], pose))
    return frames


def _window(axis: Array, center: float, reach: float) -> slice:
    return slice(*np.searchsorted(axis, (center - reach, center + reach)))


def _to_uint8(colours: Array) -> Array:
    """(3, height, width) in [0, 1] as (height, width, 3)."""
    return np.clip(colours * 255 + 0.5, 0, 255).astype(np.uint8).transpose(1, 2, 0)


def _paint_shape(scene: Scene, ground: Array, x: Array, y: Array, pose: Pose) -> Array:
    """Ground (3, height, width), the shape's soft shadow on it, and the shape."""
    distance = SHAPES[scene.shape]
    u, v = pose.own(x, y)
    outside = distance(u, v) * np.float32(pose.radius)
    below = pose._replace(x=pose.x - _SHADOW_OFFSET * _LIGHT[0], y=pose.y - _SHADOW_OFFSET * _LIGHT[1])
    shadow = np.clip(0.5 - distance(*below.own(x, y)) * np.float32(pose.radius / _SHADOW_BLUR), 0, 1)
    shadow = shadow * shadow * (3 - 2 * shadow)

    # The outline's normal is the distance's gradient; its rim catches light or lies in shade.
    pixel = 1 / min(scene.size)
    slope_y, slope_x = np.gradient(outside, pixel)
    rim = np.clip(1 + outside / _RIM_WIDTH, 0, 1) ** 2
    light = 0.16 * rim * (slope_x * _LIGHT[0] + slope_y * _LIGHT[1])

    painted = scene.surface.paint(u, v, 1.0) + light
    coverage = np.clip(0.5 - outside / pixel, 0, 1)
    shaded = ground * (1 - 0.35 * shadow)
    return shaded + coverage * (painted - shaded)
