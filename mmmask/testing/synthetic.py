"""Samples out of nothing: a modality on a grid of any rank, so that models can be checked where no plugin is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from mmmask.interfaces import (
    Component,
    Embedding,
    Grid,
    Mask,
    Modality,
    Preparation,
    Tokens,
    TokenSpec,
    View,
    build,
    patchify,
    unpatchify,
)
from mmmask.interfaces.component import ChosenByName, StrictModel, validate_strictly
from mmmask.model.masks import mask_from_bool
from mmmask.randomness import seeded_generator

Size = Annotated[int, Field(gt=0)]


class _Chosen(StrictModel):
    modality: Annotated[Component.Config, ChosenByName("modality")]


class SyntheticPreparation(Preparation):
    """The worker side: samples are ready as they are."""

    def prepare(self, decoded: Tensor, view: View) -> Tensor:
        """The sample itself."""
        return decoded


class SyntheticModality(Modality):
    """Numbers, or ids, on a grid of as many axes as wanted."""

    class Config(Modality.Config):
        grid: tuple[Size, ...] = Field(default=(16,), description="tokens along each axis")
        patch_size: tuple[Size, ...] = Field(default=(4,), description="numbers of a token along each axis")
        channels: int = Field(default=2, gt=0, description="numbers per place")
        vocab_size: int | None = Field(default=None, gt=1, description="number of ids; null: numbers, not ids")

    config: Config

    @property
    def spec(self) -> TokenSpec:
        """What a token is."""
        settings = self.config
        if settings.vocab_size is not None:
            return TokenSpec(settings.patch_size, settings.channels, settings.vocab_size)
        mean, deviation = (0.5,) * settings.channels, (0.25,) * settings.channels
        return TokenSpec(
            settings.patch_size, settings.channels, mean=mean, std=deviation, scale=255.0, range=(0.0, 1.0)
        )

    @property
    def embedding(self) -> str:
        """One for each kind of token."""
        return "synthetic_" + "x".join(map(str, (*self.config.patch_size, self.config.channels)))

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """(channels, *extent)."""
        extent = (cells * patch for cells, patch in zip(self.config.grid, self.config.patch_size, strict=True))
        return (self.config.channels, *extent)

    @property
    def preparation(self) -> SyntheticPreparation:
        """The worker side."""
        return SyntheticPreparation()

    def grid(self, shape: Sequence[int]) -> Grid:
        """Tokens along each axis."""
        rank = len(self.config.patch_size)
        return tuple(size // patch for size, patch in zip(shape[-rank:], self.config.patch_size, strict=True))

    def tokenize(self, batch: Tensor) -> Tokens:
        """(batch, channels, *extent) -> tokens.

        Raises:
            ValueError: the shape does not fit.
        """
        content = patchify(batch, self.config.patch_size)
        return Tokens(content, self.grid(batch.shape), self.spec, normalized=batch.is_floating_point())

    def detokenize(self, content: Tensor, grid: Grid) -> Tensor:
        """The inverse of `tokenize`."""
        return unpatchify(content, grid, self.config.patch_size)

    def build_embedding(self, width: int) -> nn.Module:
        """A Linear of numbers; of ids the sum of a learned vector each."""
        if self.config.vocab_size is None:
            return super().build_embedding(width)
        return nn.Sequential(nn.Embedding(self.config.vocab_size, width), _SumOverIds())


class _SumOverIds(nn.Module):
    """(batch, tokens, ids of a token, width) -> (batch, tokens, width)."""

    def forward(self, vectors: Tensor) -> Tensor:
        return vectors.sum(dim=2)


@dataclass(frozen=True)
class Scene:
    """A modality and the samples, tokens and masks that checks need of it; all are functions of a seed."""

    modality: Modality

    def __str__(self) -> str:
        spec, of = self.modality.spec, "ids" if self.holds_ids else "numbers"
        return f"grid {self.grid} of tokens {spec.patch_size} x {spec.channels} {of}"

    @property
    def holds_ids(self) -> bool:
        """Whether content is discrete."""
        return self.modality.spec.vocab_size is not None

    @property
    def key(self) -> str:
        """Of the embedding."""
        return self.modality.embedding

    @cached_property
    def grid(self) -> Grid:
        """Of a sample."""
        return self.modality.grid(self.modality.sample_shape)

    @property
    def embeddings(self) -> dict[str, Embedding]:
        """What encoders and decoders are built with."""
        return {self.key: Embedding(self.modality.spec, (self.grid,), self.modality.build_embedding)}

    def samples(self, count: int, seed: int = 0) -> Tensor:
        """(count, *sample_shape), uint8, or int64 where they are ids."""
        spec, shape = self.modality.spec, (count, *self.modality.sample_shape)
        generator = seeded_generator("samples", seed)
        if spec.vocab_size is not None:
            return torch.randint(spec.vocab_size, shape, generator=generator)
        return torch.randint(256, shape, generator=generator, dtype=torch.uint8)

    def tokens(self, count: int, seed: int = 0, dtype: torch.dtype | None = None) -> Tokens:
        """A batch of samples as tokens; of a `dtype` their normalised values, which ids are not changed to."""
        tokens = self.modality.tokenize(self.samples(count, seed))
        if dtype is None or self.holds_ids:
            return tokens
        return Tokens(tokens.values().to(dtype), tokens.grid, tokens.spec, normalized=True)

    def mask(self, count: int, ratio: float = 0.5, seed: int = 0) -> Mask:
        """Masks about so many tokens at random, at least one and not all; with a ratio of 0 none."""
        tokens = math.prod(self.grid)
        masked = min(max(round(tokens * ratio), 1), tokens - 1) if ratio else 0
        ranks = torch.rand(count, tokens, generator=seeded_generator("mask", seed)).argsort(1).argsort(1)
        return mask_from_bool(ranks < masked)

    def with_other_masked_content(self, tokens: Tokens, mask: Mask) -> Tokens:
        """The same visible tokens, others where they are masked."""
        other = self.tokens(len(tokens.content), seed=99, dtype=tokens.content.dtype).content
        if tokens.content.dtype == torch.uint8:
            other = 255 - tokens.content
        return replace(tokens, content=torch.where(mask.masked.unsqueeze(-1), other, tokens.content))


def synthetic(
    grid: tuple[int, ...], patch_size: tuple[int, ...], vocab_size: int | None = None, channels: int = 2
) -> Scene:
    """A scene of synthetic samples."""
    config = SyntheticModality.Config(
        name="synthetic", grid=grid, patch_size=patch_size, vocab_size=vocab_size, channels=channels
    )
    return Scene(SyntheticModality(config))


def synthetic_scenes() -> list[Scene]:
    """One to three axes, odd and unequal sides, small and large tokens, numbers and ids."""
    return [
        synthetic((16,), (4,)),
        synthetic((7,), (3,)),
        synthetic((4, 4), (2, 2)),
        synthetic((3, 5), (4, 2)),
        synthetic((4, 4), (16, 16)),
        synthetic((2, 6), (16, 16)),
        synthetic((2, 3, 4), (2, 2, 2)),
        synthetic((12,), (1,), channels=1),
        synthetic((12,), (1,), vocab_size=11, channels=1),
    ]


def scene_of(modality: str | dict[str, Any]) -> Scene:
    """The scene of a registered modality, given as an experiment's block `modality`.

    Raises:
        pydantic.ValidationError: there is no such modality, or these are none of its settings.
    """
    return Scene(build("modality", validate_strictly(_Chosen, {"modality": modality}).modality))
