"""Very many texts, such as the names of a source's samples."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import overload


class Texts(Sequence[str]):
    """Texts in one block of memory, 8 bytes more than the bytes of each, where a list of `str` takes some 60 more.

    Nothing is counted within the block, so that worker processes go on sharing it, however many of them look.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._joined, self._ends = bytearray(), array("q", [0])
        self.extend(texts)

    def extend(self, texts: Iterable[str]) -> None:
        """Adds several at the end."""
        for text in texts:
            self.append(text)

    def append(self, text: str) -> None:
        """Adds one at the end."""
        self._joined += text.encode("utf-8", "surrogatepass")
        self._ends.append(len(self._joined))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __iter__(self) -> Iterator[str]:
        for first, end in pairwise(self._ends):
            yield self._joined[first:end].decode("utf-8", "surrogatepass")

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Texts: ...
    def __getitem__(self, index: int | slice) -> str | Texts:
        places = range(len(self))[index]
        if isinstance(places, range):
            return Texts(self[place] for place in places)
        return self._joined[self._ends[places] : self._ends[places + 1]].decode("utf-8", "surrogatepass")
