"""Picture of a confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mmmask.evaluation.pictures import INK, MARGIN, PAPER

MOST_CLASSES = 4000
"""A cell is at least a pixel."""

SIDE, WIDEST_CELL, NUMBERED_CELL = 880, 64, 26
NAMED, LONGEST_NAME = 60, 28
"""Classes whose names are written, and letters of a name; of more, some numbers are."""
BLUE, EMPTY = np.array([14, 52, 120]), np.array([232, 232, 232])
LEGEND = 120


def confusion_picture(counts: Tensor, names: Sequence[str], title: str = "") -> Image.Image:
    """A row per true class, a column per predicted one, coloured by the share of the row.

    With few classes names and counts are written; with many, every so many numbers, and shares are coloured by their
    square root, so that what is rare can be seen.

    Args:
        counts: int64 (classes, classes), of class i taken for class j.
        names: of the classes.
    """
    table = counts.numpy()
    classes = len(table)
    of = table.sum(axis=1, keepdims=True)
    shares = table / np.maximum(of, 1)
    root = classes > NAMED
    shade = np.sqrt(shares) if root else shares
    colours = np.where(of[..., None] > 0, 255 + (BLUE - 255) * shade[..., None], EMPTY).astype(np.uint8)
    cell = max(1, min(WIDEST_CELL, SIDE // classes))
    size = min(13, cell - 1) if not root else 12
    font = ImageFont.load_default(size)
    labels = {number: _short(names[number]) for number in range(classes)} if not root else _some_numbers(classes)
    room = max(8, *(round(font.getlength(text)) for text in labels.values())) + 8
    left, top, side = MARGIN + 22 + room, MARGIN + 44 + room, classes * cell
    page = Image.new("RGB", (max(left + side + LEGEND, 360) + MARGIN, top + side + MARGIN), PAPER)
    write = partial(ImageDraw.Draw(page).text, fill=INK, font=font)
    write((MARGIN, MARGIN), title, font=ImageFont.load_default(15))
    write((left, MARGIN + 24), "predicted class", font=ImageFont.load_default(13))
    _write_up(page, "true class", (MARGIN, top), 13, 70)
    page.paste(Image.fromarray(colours.repeat(cell, axis=0).repeat(cell, axis=1)), (left, top))
    ImageDraw.Draw(page).rectangle((left - 1, top - 1, left + side, top + side), outline=(150, 150, 150))
    for number, text in labels.items():
        middle = number * cell + cell // 2
        write((left - 5, top + middle), text, anchor="rm")
        _write_up(page, text, (left + middle - size // 2 - 2, MARGIN + 40), size, room)
    if cell >= NUMBERED_CELL:
        for row, column in zip(*np.nonzero(table), strict=True):
            at = left + column * cell + cell // 2, top + row * cell + cell // 2
            write(at, str(table[row, column]), anchor="mm", fill=PAPER if shares[row, column] > 0.45 else INK)
    _legend(page, (left + side + 24, top), root)
    return page


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 3]}..."


def _some_numbers(classes: int) -> dict[int, str]:
    """{number of a class: the same as text}, about ten of them."""
    every = next(step for step in (10, 20, 50, 100, 200, 500) if classes / step <= 12 or step == 500)
    return {number: str(number) for number in range(0, classes, every)}


def _write_up(page: Image.Image, text: str, at: tuple[int, int], size: int, height: int) -> None:
    """Text from bottom to top, ending at the bottom of `height` pixels below `at`."""
    strip = Image.new("RGB", (max(1, height), size + 6), PAPER)
    ImageDraw.Draw(strip).text((0, 0), text, fill=INK, font_size=size)
    page.paste(strip.rotate(90, expand=True), at)


def _legend(page: Image.Image, at: tuple[int, int], root: bool) -> None:
    left, top = at
    height = 100
    shares = np.linspace(1, 0, height)[:, None, None]
    bar = 255 + (BLUE - 255) * (np.sqrt(shares) if root else shares)
    page.paste(Image.fromarray(bar.astype(np.uint8).repeat(14, axis=1)), (left, top))
    write = partial(ImageDraw.Draw(page).text, fill=INK, font_size=12)
    for share in (0, 50, 100):
        write((left + 20, top + height * (1 - share / 100)), f"{share} %", anchor="lm")
    write((left, top + height + 12), "of the row")
