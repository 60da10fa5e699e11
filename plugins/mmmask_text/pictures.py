"""Tokens as a picture, in cells of equal size, so that pictures of a text line up whatever is masked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CELL_WIDTH, CELL_HEIGHT, FONT_SIZE = 10, 20, 15  # pixels, of one letter
COLUMNS = 80  # letters of a line
LEAST_HEIGHT = 100  # pixels: lower pictures would be enlarged where they are shown, and their letters are not meant to
INK, PAPER, MASKED = (30, 30, 30), (255, 255, 255), (240, 150, 60)
FONTS = ("DejaVuSansMono.ttf", "LiberationMono-Regular.ttf", "Menlo.ttc", "consola.ttf")


def draw_tokens(texts: Sequence[str | None], widest: int) -> np.ndarray:
    """Draws every token in a cell of its own, in lines; uint8 (height, width, 3).

    Args:
        texts: of the tokens; None is a masked one, drawn as a block of colour. An empty text leaves its cell to the one
            before.
        widest: width of a cell in letters; longer texts are cut.
    """
    columns = min(len(texts), COLUMNS // widest)
    lines = -(-len(texts) // columns)
    cell = CELL_WIDTH * widest
    page = Image.new("RGB", (columns * cell, max(lines * CELL_HEIGHT, LEAST_HEIGHT)), PAPER)
    draw, font = ImageDraw.Draw(page), _font()
    for number, text in enumerate(texts):
        left, top = number % columns * cell, number // columns * CELL_HEIGHT
        if text is None:
            # a line of paper between blocks: they can be counted
            draw.rectangle((left, top, left + cell - 2, top + CELL_HEIGHT - 2), fill=MASKED)
        elif text and not text.isspace():
            shown = text if len(text) <= widest else text[: widest - 1] + "\u2026"
            middle = left + CELL_WIDTH * len(shown) // 2
            draw.text((middle, top + CELL_HEIGHT // 2), shown, fill=INK, font=font, anchor="mm")
    return np.asarray(page)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The first of these fonts that the machine has; Pillow's own knows few letters beyond ASCII."""
    for name in FONTS:
        try:
            return ImageFont.truetype(name, FONT_SIZE)
        except OSError:
            continue
    return ImageFont.load_default(size=FONT_SIZE)
