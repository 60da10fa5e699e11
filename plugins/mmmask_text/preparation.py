"""The worker side of texts: reads a text, turns it into ids, cuts a piece out, shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmmask.interfaces import BadSample, Preparation, SourceFile, View
from mmmask_text.decoding import open_vocabulary
from mmmask_text.pictures import draw_tokens


@dataclass(frozen=True)
class TextPreparation(Preparation):
    """Texts as ids, int64 (1, length).

    Attributes:
        length: tokens of a sample.
        tokenizer: path of a `tokenizer.json`, or None for bytes; opened once in every process.
        max_bytes: most bytes of a text; a longer one is a bad sample.
    """

    length: int
    tokenizer: str | None
    max_bytes: int

    extensions = (".txt", ".md")

    def decode(self, loaded: Any, view: View) -> Tensor:  # noqa: ANN401
        """Ids (tokens,) of a whole text: a `SourceFile`, bytes in UTF-8, or a str.

        Raises:
            BadSample: it cannot be read, is too long, empty, or no text.
        """
        text = self._text(loaded)
        if not text:
            raise BadSample("the text is empty")
        if len(text) > self.max_bytes:
            raise BadSample(
                f"the text has more than max_bytes = {self.max_bytes} bytes: cut it into windows with the source "
                "text_files"
            )
        if b"\0" in text:
            raise BadSample("holds a zero byte: no text, or not in UTF-8")
        return open_vocabulary(self.tokenizer).ids(text)

    def prepare(self, decoded: Tensor, view: View) -> Tensor:
        """int64 (1, length): a random piece, or piece i of n, which starts at i / n of the spare length.

        Raises:
            BadSample: the text is shorter.
        """
        spare = decoded.shape[0] - self.length
        if spare < 0:
            raise BadSample(
                f"a text of {decoded.shape[0]} tokens, and a sample has length {self.length}: set a smaller length, or "
                "join texts with the source text_files"
            )
        if view.place is None:
            start = spare * view.index // view.of
        else:
            start = int(torch.randint(spare + 1, (), generator=view.place))
        return decoded[start : start + self.length].long().unsqueeze(0)

    def show(self, sample: Tensor) -> np.ndarray:
        """The text in lines, uint8 (height, width, 3); a block stands where a token is masked."""
        vocabulary = open_vocabulary(self.tokenizer)
        return draw_tokens(vocabulary.texts(sample.flatten().tolist()), vocabulary.widest)

    def _text(self, loaded: Any) -> bytes:  # noqa: ANN401
        """The text, at most one byte more than `max_bytes`."""
        if isinstance(loaded, str):
            return loaded.encode("utf-8", "replace")
        if isinstance(loaded, bytes):
            return loaded
        if not isinstance(loaded, SourceFile):
            raise BadSample(f"expected a file, bytes or a str, got {type(loaded).__name__}")
        try:
            with open(loaded.local_path(), "rb") as file:
                return file.read(self.max_bytes + 1)
        except OSError as error:
            raise BadSample(f"{type(error).__name__}: {error}") from error
