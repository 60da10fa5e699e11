"""The text modality: bytes, or tokens of a vocabulary, one after the other."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field
from torch import Tensor, nn

from mmmask.interfaces import Grid, Modality, Tokens, TokenSpec
from mmmask_text.decoding import Vocabulary, open_vocabulary
from mmmask_text.preparation import TextPreparation


class TextModality(Modality):
    """Texts (1, length), ids of bytes or of a vocabulary's tokens, on a grid of one axis."""

    class Config(Modality.Config):
        length: int = Field(default=256, gt=0, description="number of tokens of a sample")
        tokenizer: str | None = Field(
            default=None,
            description="path of a tokenizer.json of the library tokenizers, which the extra `text` installs; null "
            "takes the bytes of UTF-8",
        )
        max_bytes: int = Field(default=2**24, gt=0, description="a longer text, in bytes, is a bad sample")

    config: Config

    @property
    def spec(self) -> TokenSpec:
        """One id.

        Raises:
            MmmaskError: the tokenizer cannot be read.
        """
        return TokenSpec((1,), channels=1, vocab_size=self._vocabulary.size)

    @property
    def embedding(self) -> str:
        """`text_bytes`, or a name made of the vocabulary's content: equal vocabularies share it."""
        return self._vocabulary.key

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """(1, length)."""
        return (1, self.config.length)

    @property
    def preparation(self) -> TextPreparation:
        """The worker side."""
        return TextPreparation(self.config.length, self.config.tokenizer, self.config.max_bytes)

    def grid(self, shape: Sequence[int]) -> Grid:
        """(tokens,) of a sample (..., tokens), from 1 to `length`.

        Raises:
            ValueError: not as many.
        """
        if not 1 <= shape[-1] <= self.config.length:
            raise ValueError(f"a text of {shape[-1]} tokens: the modality's length allows 1 to {self.config.length}")
        return (shape[-1],)

    def tokenize(self, batch: Tensor) -> Tokens:
        """Ids (batch, 1, tokens) -> tokens."""
        if batch.ndim != 3 or batch.shape[1] != 1:
            raise ValueError(f"texts: expected ids (batch, 1, tokens), got {tuple(batch.shape)}")
        return Tokens(batch.transpose(1, 2), self.grid(batch.shape), self.spec)

    def detokenize(self, content: Tensor, grid: Grid) -> Tensor:
        """(batch, tokens, 1) -> (batch, 1, tokens)."""
        return content.transpose(1, 2)

    def build_embedding(self, width: int) -> nn.Module:
        """Learned vectors of ids."""
        return IdEmbedding(self._vocabulary.size, width)

    @property
    def _vocabulary(self) -> Vocabulary:
        return open_vocabulary(self.config.tokenizer)


class IdEmbedding(nn.Embedding):
    """Ids (batch, tokens, 1) -> (batch, tokens, width).

    Initialised with standard deviation 1, like the sines that are added as positions (Vaswani et al. 2017, section 3.4,
    multiply smaller vectors by the square root of the width). With BERT's 0.02 and sines, a small model took twice as
    many steps to make use of visible tokens; with learned positions both did equally well.
    """

    def forward(self, input: Tensor) -> Tensor:  # the parent's name for it
        """Vectors of ids of any integer type."""
        return super().forward(input.squeeze(-1).long())
