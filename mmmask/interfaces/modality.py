"""Modality: how samples of one kind become tokens and back, and how they are prepared in a worker."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmmask.interfaces.component import Component
from mmmask.interfaces.tokens import Grid, Mask, Tokens, TokenSpec

if TYPE_CHECKING:
    import numpy as np


class Preparation(ABC):
    """The worker side of a modality: holds settings, no tensors and nothing that is open.

    One object serves all worker threads of a stream, so `decode` and `prepare` run at the same time in several
    threads: they write to no attribute, and what a sample needs open (a file, a decoder) is opened within the call.
    It must be picklable, so that samples can also be prepared by other processes.
    """

    extensions: tuple[str, ...] = ()
    """File name endings this modality can decode, lower case with the dot; sources of files look for these."""

    def decode(self, loaded: Any, generator: torch.Generator | None) -> Any:  # noqa: ANN401 - the plugin's own
        """Makes a decoded sample of what the source loaded; once per sample, however often it is replicated.

        Args:
            loaded: what `Source.load` returned, such as an open `SourceFile`.
            generator: for what all replicas of a sample share, such as the time window of a clip; None asks for
                the deterministic choice (held-out samples, pictures).

        Raises:
            BadSample: it cannot be decoded; the run skips it, counts it and writes the reason down.
        """
        return loaded

    @abstractmethod
    def prepare(self, decoded: Any, generator: torch.Generator | None) -> Tensor:  # noqa: ANN401
        """One training sample (channels, *extent), augmented from `generator` alone, or plainly where it is None."""

    def collate(self, samples: Sequence[Tensor]) -> Tensor:
        """(batch, ...) of prepared samples."""
        return torch.stack(list(samples))

    def show(self, sample: Tensor) -> np.ndarray:
        """A picture, uint8 (height, width, 3), of one sample (channels, *extent) in the unit of the source.

        In a sample of ids the id that follows the last of the vocabulary stands where a token is masked.

        Raises:
            NotImplementedError: this modality draws no pictures.
        """
        raise NotImplementedError(f"{type(self).__name__} draws no pictures")


class Modality(Component):
    """How samples of one kind become tokens.

    Holds no tensors and no weights: it is no module, so nothing of it would be moved, trained or saved with the model.
    What is learned about its tokens is made by `build_embedding` and belongs to the encoder.
    """

    @property
    @abstractmethod
    def spec(self) -> TokenSpec:
        """What a token is."""

    @property
    @abstractmethod
    def embedding(self) -> str:
        """Streams whose modalities return the same key share the encoder's embedding, and the head."""

    @property
    @abstractmethod
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one prepared sample, such as (3, 224, 224)."""

    @property
    @abstractmethod
    def preparation(self) -> Preparation:
        """The worker side."""

    @abstractmethod
    def grid(self, shape: Sequence[int]) -> Grid:
        """The token layout of a sample of this shape; leading axes (batch, channels) may be there or not."""

    @abstractmethod
    def tokenize(self, batch: Tensor) -> Tokens:
        """(batch, *sample_shape) -> tokens; rearrangement only.

        Raises:
            ValueError: the shape does not fit.
        """

    @abstractmethod
    def detokenize(self, content: Tensor, grid: Grid) -> Tensor:
        """The inverse of `tokenize`: (batch, tokens, content_dim) -> (batch, channels, *extent)."""

    def baseline(self, tokens: Tokens, mask: Mask) -> Tensor:
        """The simplest guess at masked values, which a model should beat: (batch, predicted, content_dim).

        In the unit of the source, made of visible tokens alone, of any sample of the batch. By default the mean of a
        sample's visible tokens, per channel. Never asked of a modality of ids: their loss has a baseline of its own.
        """
        visible = tokens.raw(mask.visible).unflatten(-1, (-1, tokens.spec.channels))
        guess = visible.mean(dim=(1, 2)).repeat(1, tokens.spec.content_dim // tokens.spec.channels)
        return guess.unsqueeze(1).expand(-1, mask.predicted.shape[1], -1)

    def build_embedding(self, width: int) -> nn.Module:
        """The module (batch, tokens, content_dim) -> (batch, tokens, width).

        A Linear, initialised as the published ViTs initialise their patch embedding: Xavier-uniform weight, and
        the bias as a convolution's default, uniform in +-1/sqrt(content_dim).
        """
        linear = nn.Linear(self.spec.content_dim, width)
        nn.init.xavier_uniform_(linear.weight)
        bound = self.spec.content_dim**-0.5
        nn.init.uniform_(linear.bias, -bound, bound)
        return linear
