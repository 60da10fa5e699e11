"""Limit on the size that a file's header announces, checked before anything is decoded."""

from __future__ import annotations

from mmmask.interfaces import BadSample

MAX_PIXELS = 2**26
"""Pixels of a picture or a frame, 8192 x 8192: 192 MiB of colour. A few bytes of a header can announce thousands of
times as much."""


def check_size(height: int, width: int, max_pixels: int) -> None:
    """Refuses a picture or frame that is too large.

    Raises:
        BadSample: the header announces more than `max_pixels`, or nothing at all.
    """
    if height < 1 or width < 1:
        raise BadSample(f"the header announces {width} x {height} pixels")
    if height * width > max_pixels:
        raise BadSample(
            f"the header announces {width} x {height} pixels, more than max_pixels = {max_pixels}; not decoded"
        )
