"""Modality: how samples of one kind become tokens and back, and how they are prepared in a worker."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmmask.interfaces.component import Component
from mmmask.interfaces.sample import View
from mmmask.interfaces.tokens import Grid, Mask, Tokens, TokenSpec, patchify, unpatchify

if TYPE_CHECKING:
    import numpy as np


class Preparation(ABC):
    """The worker side of a modality: holds settings, no tensors and nothing that is open.

    Every worker process has a pickled copy. Where threads load (`data.process: false`) one object serves all of a
    stream's, so that `decode` and `prepare` run at the same time in several: they write to no attribute, and what a
    sample needs open (a file, a decoder) is opened within the call.
    """

    extensions: tuple[str, ...] = ()
    """File name endings this modality can decode, lower case with the dot; sources of files look for these."""

    takes_windows: bool = False
    """Whether `decode` keeps to `SourceFile.window`; a source of such windows is refused where it does not."""

    def decode(self, loaded: Any, view: View) -> Any:  # noqa: ANN401 - the plugin's own
        """Makes a decoded sample of what the source loaded; once per sample, however often it is replicated.

        Args:
            loaded: what `Source.load` returned, such as an open `SourceFile`.
            view: the only source of randomness, for what all replicas of a sample share, such as the time window of a
                clip (`view.fraction()`); a generator that is None asks for the deterministic choice.

        Raises:
            BadSample: it cannot be decoded; the run skips it, counts it and writes the reason down.
        """
        return loaded

    def decode_clips(self, loaded: Any, count: int) -> list[Any]:  # noqa: ANN401
        """Decoded samples of the deterministic views 0 .. count - 1 of `count`, each as `decode` gives it.

        By default each is decoded alone; a modality that can decode them in one go does.

        Raises:
            BadSample: it cannot be decoded.
        """
        return [self.decode(loaded, View(index=number, of=count)) for number in range(count)]

    def seconds(self, loaded: Any) -> float | None:  # noqa: ANN401
        """Length of the recording that the source loaded, None where samples have none.

        Raises:
            BadSample: it cannot be read.
        """
        return None

    @abstractmethod
    def prepare(self, decoded: Any, view: View) -> Tensor:  # noqa: ANN401
        """One sample (channels, *extent) as `Modality.tokenize` takes it.

        Args:
            decoded: what `decode` returned, unchanged by replicas that came before.
            view: the only source of randomness: `view.place` draws crops and flips, `view.generator` the rest; a
                generator that is None asks for the deterministic sample (held-out samples, pictures), of which
                `view.index` of `view.of` is one crop of several.
        """

    def collate(self, samples: Sequence[Tensor]) -> Tensor:
        """(batch, ...) of prepared samples."""
        return torch.stack(list(samples))

    def show(self, sample: Tensor) -> np.ndarray:
        """A picture, uint8 (height, width, 3), of one sample (channels, *extent) of raw values, or of ids.

        Where a token is masked, values are `TokenSpec.middle`, and ids are `vocab_size`, one more than the last,
        as they are where an id is missing.

        Raises:
            NotImplementedError: this modality draws no pictures.
        """
        raise NotImplementedError(f"{type(self).__name__} draws no pictures")


class Modality(Component):
    """Conversion of samples of one kind to tokens and back.

    Holds no tensors and no weights: it is no module, so nothing of it would be moved, trained or saved with the model.
    What is learned about its tokens is made by `build_embedding` and belongs to the encoder.
    """

    @property
    @abstractmethod
    def spec(self) -> TokenSpec:
        """Description of a token."""

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

    def grid(self, shape: Sequence[int]) -> Grid:
        """Token layout of a sample of this shape; leading axes (batch, channels) may be there or not.

        By default the last axes divided by `spec.patch_size`.
        """
        patch_size = self.spec.patch_size
        return tuple(size // patch for size, patch in zip(shape[-len(patch_size) :], patch_size, strict=True))

    def tokenize(self, batch: Tensor) -> Tokens:
        """(batch, *sample_shape) -> tokens; rearrangement only. By default patches of stored values.

        Says in `Tokens.normalized` whether the samples hold normalised values, and in `Tokens.valid` which tokens are
        padding, if some are. Tokens that miss all of their values are found by the core.

        Raises:
            ValueError: the shape does not fit; by default extents may be any multiples of the patch size.
        """
        channels = self.sample_shape[0]
        if batch.ndim != 1 + len(self.sample_shape) or batch.shape[1] != channels:
            expected = f"{len(self.sample_shape)} axes, {channels} channels first"
            raise ValueError(f"{self.config.name}: expected samples of {expected}, not {tuple(batch.shape[1:])}")
        return Tokens(patchify(batch, self.spec.patch_size), self.grid(batch.shape), self.spec)

    def detokenize(self, content: Tensor, grid: Grid) -> Tensor:
        """Inverse of `tokenize`: (batch, tokens, content_dim) -> (batch, channels, *extent)."""
        return unpatchify(content, grid, self.spec.patch_size)

    def baseline(self, tokens: Tokens, mask: Mask) -> Tensor:
        """The simplest guess at masked values, which a model should beat: (batch, predicted, content_dim).

        Raw, made of visible tokens alone, of any sample of the batch. By default the mean of a sample's visible tokens,
        per channel, without missing values and tokens that are not valid; `spec.mean` (or 0) where nothing is left.
        Never asked of a modality of ids: their loss has a baseline of its own.
        """
        spec = tokens.spec
        visible = tokens.raw(mask.visible).unflatten(-1, (-1, spec.channels))
        if tokens.valid is None and not spec.gaps:
            guess = visible.mean(dim=(1, 2))
        else:
            present = ~visible.isnan()
            if tokens.valid is not None:
                present &= tokens.valid.gather(1, mask.visible)[:, :, None, None]
            mean = visible.where(present, float("nan")).nanmean(dim=(1, 2))
            guess = mean.where(~mean.isnan(), mean.new_tensor(spec.mean or (0.0,) * spec.channels))
        guess = guess.repeat(1, spec.content_dim // spec.channels)
        return guess.unsqueeze(1).expand(-1, mask.predicted.shape[1], -1)

    def build_embedding(self, width: int) -> nn.Module:
        """The module (batch, tokens, content_dim) -> (batch, tokens, width).

        A Linear, initialised as the published ViTs initialise their patch embedding: Xavier-uniform weight, and
        the bias as a convolution's default, uniform in +-1/sqrt(content_dim). Where the spec has `gaps`, missing
        values are 0, the mean, after normalisation.
        """
        linear = (_LinearWithGaps if self.spec.gaps else nn.Linear)(self.spec.content_dim, width)
        nn.init.xavier_uniform_(linear.weight)
        bound = self.spec.content_dim**-0.5
        nn.init.uniform_(linear.bias, -bound, bound)
        return linear


class _LinearWithGaps(nn.Linear):
    """Linear, with 0 for NaN."""

    def forward(self, input: Tensor) -> Tensor:  # the parent's name for it
        return super().forward(torch.where(input.isnan(), 0, input))
