"""Texts to ids and back: bytes, or the tokens of a file of the library tokenizers."""

from __future__ import annotations

import codecs
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmmask import MmmaskError
from mmmask.interfaces import BadSample, SourceFile

if TYPE_CHECKING:
    from tokenizers import Tokenizer

UNSHOWN = "\u00b7"
"""Middle dot, shown for bytes without a printable character."""


class Vocabulary(ABC):
    """Ids of texts.

    Attributes:
        size: number of ids, 0 to size - 1.
        key: embedding key; equal vocabularies have equal keys.
        widest: width of a token in a picture, in letters.
    """

    size: int
    key: str
    widest: int

    @abstractmethod
    def ids(self, text: bytes) -> Tensor:
        """(tokens,) integers of a text in UTF-8; invalid bytes are no error."""

    @abstractmethod
    def texts(self, ids: Sequence[int]) -> list[str | None]:
        """Text to show for each id; None for the id `size`, which marks a masked token."""


class ByteVocabulary(Vocabulary):
    """The bytes themselves."""

    size, key, widest = 256, "text_bytes", 1

    def ids(self, text: bytes) -> Tensor:
        """(bytes,) uint8."""
        return torch.frombuffer(bytearray(text), dtype=torch.uint8)

    def texts(self, ids: Sequence[int]) -> list[str | None]:
        """A character stands at its first byte, with nothing at the others; incomplete ones are middle dots."""
        shown: list[str | None] = []
        for masked, run in groupby(ids, key=self.size.__le__):
            if masked:
                shown += [None for _ in run]
                continue
            # surrogates stand for bytes that belong to no character
            for character in bytes(run).decode("utf-8", "surrogateescape"):
                num_bytes = len(character.encode("utf-8", "surrogateescape"))
                shown += [_visible(character), *[""] * (num_bytes - 1)]
        return shown


class TokenizerVocabulary(Vocabulary):
    """Tokens of a `tokenizer.json`: those of its model and added ones."""

    widest = 9

    def __init__(self, tokenizer: Tokenizer) -> None:
        # a file may set truncation and padding
        tokenizer.no_truncation()
        tokenizer.no_padding()
        known = tokenizer.get_vocab(with_added_tokens=True)
        self.tokenizer = tokenizer
        self.size = max(known.values()) + 1  # there may be gaps
        self.key = f"text_{hashlib.sha256(json.dumps(sorted(known.items())).encode()).hexdigest()[:12]}"

    def ids(self, text: bytes) -> Tensor:
        """int64, without the special tokens that a tokenizer puts around a text.

        A window of bytes may begin and end within a character, which is then left out. Other bytes that are not UTF-8
        become the replacement character.

        Raises:
            BadSample: a character that the tokenizer has no token for, not even an unknown one.
        """
        within = next((place for place, byte in enumerate(text[:4]) if byte & 0xC0 != 0x80), 0)
        decoded = codecs.getincrementaldecoder("utf-8")("replace").decode(text[within:])
        try:
            ids = self.tokenizer.encode(decoded, add_special_tokens=False).ids
        except Exception as error:  # the library raises Exception itself, of a character that a model does not know
            raise BadSample(f"the tokenizer cannot encode it: {error}") from error
        return torch.tensor(ids, dtype=torch.int64)

    def texts(self, ids: Sequence[int]) -> list[str | None]:
        """Each token decoded alone; a character split over several tokens shows as replacement characters."""

        def text(token: int) -> str:
            decoded = self.tokenizer.decode([token], skip_special_tokens=False)
            return "".join(map(_visible, decoded)) or UNSHOWN

        return [None if token >= self.size else text(token) for token in ids]


@lru_cache(maxsize=16)
def open_vocabulary(path: str | None) -> Vocabulary:
    """The vocabulary of a `tokenizer.json`, read once in a process; without a path, bytes.

    Raises:
        MmmaskError: the library is missing, or the file cannot be read.
    """
    if path is None:
        return ByteVocabulary()
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MmmaskError(
            f"modality text: tokenizer {path} needs the library tokenizers: pip install 'mmmask[text]'"
        ) from error
    try:
        # two threads that come here first both read it, which does no harm
        return TokenizerVocabulary(Tokenizer.from_file(SourceFile(path).local_path()))
    except Exception as error:  # the library raises Exception itself
        raise MmmaskError(
            f"modality text: tokenizer {path} cannot be read ({error}). Name a tokenizer.json of the library "
            "tokenizers, or leave it out for bytes."
        ) from error


def _visible(character: str) -> str:
    return character if character.isprintable() else UNSHOWN
