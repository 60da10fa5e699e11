"""Errors of names. `MmmaskError` is the root of every error a user can cause."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

LONGEST_LINE = 600
"""Characters of a line of a message."""


class MmmaskError(Exception):
    """A mistake a user can make and mend: its message says where, what, and what to do.

    A line that is too long to be read, since it quotes a long value, is cut in the middle.
    """

    def __str__(self) -> str:
        return "\n".join(map(_cut, super().__str__().split("\n")))


def _cut(line: str) -> str:
    if len(line) <= LONGEST_LINE:
        return line
    line = re.sub(r"\S{120,}", lambda word: f"{word[0][:70]}...{word[0][-30:]}", line)
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 250]} ... {line[-240:]}"


class UnknownName(MmmaskError, LookupError):
    """No entry has this name."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        self.kind, self.name, self.known = kind, name, sorted(known)
        super().__init__(
            f"no {kind} is named {name!r}.{did_you_mean(name, self.known)} "
            f"Known: {', '.join(self.known) or 'none'}.{hint}"
        )


class DuplicateName(MmmaskError, ValueError):
    """Two suppliers claim one name."""

    def __init__(self, kind: str, name: str, first: str, second: str) -> None:
        self.kind, self.name, self.first, self.second = kind, name, first, second
        super().__init__(
            f"the {kind} {name!r} is supplied by {first} already, and {second} supplies it again: "
            "rename or uninstall one of them."
        )


class BrokenComponent(MmmaskError, ImportError):
    """A registered class cannot be imported or does not keep its interface."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'tube'?`, or nothing where no known name is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def reason_of(error: BaseException) -> str:
    """A failure in one line; our own messages need no name of a class before them."""
    text = " ".join(str(error).split())
    return text if isinstance(error, MmmaskError) else f"{type(error).__name__}: {text}"
