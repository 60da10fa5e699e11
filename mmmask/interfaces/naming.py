"""Full names: a stream's own parts, targets and inputs are called `STREAM`, or `STREAM/NAME` where it has several."""

from __future__ import annotations


def full_name(stream: str, name: str) -> str:
    """Full name of what is called `name` within its stream; the stream's where it is the only one, called ``."""
    return f"{stream}/{name}" if name else stream


def stream_of(name: str) -> str:
    """Stream of a full name."""
    return name.partition("/")[0]


def name_within(name: str) -> str:
    """Name within its stream; empty for one that is called like the stream."""
    return name.partition("/")[2]
