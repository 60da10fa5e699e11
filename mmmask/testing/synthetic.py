"""Samples out of nothing: a modality on a grid of any rank, in any unit, so that models can be checked without data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from mmmask.interfaces import (
    Component,
    Embedding,
    EncoderInput,
    Grid,
    Mask,
    Modality,
    Part,
    Preparation,
    Tokens,
    TokenSpec,
    build,
)
from mmmask.interfaces.component import ChosenByName
from mmmask.model.masks import mask_from_bool
from mmmask.randomness import seeded_generator

UNITS: dict[str, dict[str, Any]] = {
    "bytes": {"mean": 0.5, "std": 0.25, "scale": 255.0, "range": (0.0, 1.0)},
    "around_5": {"mean": 5.0, "std": 2.0},
    "int16": {"mean": -400.0, "std": 500.0, "range": (-1024.0, None)},
    "gaps": {"mean": 5.0, "std": 2.0, "gaps": True},
}
"""{unit: fields of a token spec, mean and std of every channel}; samples of `around_5` and `gaps` are float32."""


def chosen(kind: str, block: str | dict[str, Any]) -> Component.Config:
    """The settings of an experiment's block `{name: ..., ...}`.

    Raises:
        pydantic.ValidationError: there is no such component, or these are none of its settings.
    """
    return TypeAdapter(Annotated[Component.Config, ChosenByName(kind)]).validate_python(block)


class SyntheticModality(Modality):
    """Numbers, or ids, on a grid of as many axes as wanted."""

    class Config(Modality.Config):
        grid: tuple[int, ...] = (16,)
        patch_size: tuple[int, ...] = (4,)
        channels: int = 2
        vocab_size: int | None = None
        unit: str = "bytes"

    config: Config

    @property
    def spec(self) -> TokenSpec:
        """Description of a token."""
        patch_size, channels, unit = self.config.patch_size, self.config.channels, UNITS[self.config.unit]
        if self.config.vocab_size is not None:
            return TokenSpec(patch_size, channels, self.config.vocab_size)
        per_channel: dict[str, Any] = {name: (unit[name],) * channels for name in ("mean", "std")}
        return TokenSpec(patch_size, channels, **unit | per_channel)

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
    def preparation(self) -> Preparation:
        """None."""
        raise NotImplementedError

    def build_embedding(self, width: int) -> nn.Module:
        """A Linear of numbers; of ids, one to a token, a learned vector each."""
        if self.config.vocab_size is None:
            return super().build_embedding(width)
        return nn.Sequential(nn.Embedding(self.config.vocab_size, width), nn.Flatten(2))


@dataclass(frozen=True)
class Scene:
    """A modality and the samples, tokens and masks that checks need of it; all are functions of a seed."""

    modality: Modality

    def __str__(self) -> str:
        spec, unit = self.modality.spec, getattr(self.modality.config, "unit", "numbers")
        return f"of grid {self.grid}, tokens {spec.patch_size} x {spec.channels} {'ids' if self.holds_ids else unit}"

    @property
    def holds_ids(self) -> bool:
        """Whether content is discrete."""
        return self.modality.spec.vocab_size is not None

    @cached_property
    def grid(self) -> Grid:
        """Token layout of a sample."""
        return self.modality.grid(self.modality.sample_shape)

    @property
    def embeddings(self) -> dict[str, Embedding]:
        """Embeddings to build encoders and decoders with."""
        return {self.modality.embedding: Embedding(self.modality.spec, (self.grid,), self.modality.build_embedding)}

    def samples(self, count: int, seed: int = 0) -> Tensor:
        """Stored samples (count, *sample_shape): ids as int64, bytes as uint8, others as int16 or float32."""
        spec, shape = self.modality.spec, (count, *self.modality.sample_shape)
        generator = seeded_generator("samples", seed)
        if spec.vocab_size is not None:
            return torch.randint(spec.vocab_size, shape, generator=generator)
        if spec.scale == 255:
            return torch.randint(256, shape, generator=generator, dtype=torch.uint8)
        channel = (-1, *(1,) * (len(shape) - 2))
        mean, std = torch.tensor(spec.mean or (0.0,)).view(channel), torch.tensor(spec.std or (1.0,)).view(channel)
        raw = spec.clamp(torch.randn(shape, generator=generator) * std + mean)
        if getattr(self.modality.config, "unit", None) == "int16":
            return raw.round().to(torch.int16)
        missing = torch.rand(shape, generator=generator) < (0.1 if spec.gaps else 0)
        return torch.where(missing, torch.nan, raw * spec.scale)

    def tokens(self, count: int, seed: int = 0, dtype: torch.dtype | None = None) -> Tokens:
        """A batch of samples as tokens; of a `dtype` their normalised values, which ids are not changed to."""
        tokens = self.modality.tokenize(self.samples(count, seed))
        if dtype is None or self.holds_ids:
            return tokens
        return replace(tokens, content=tokens.values().to(dtype), normalized=True)

    def mask(self, count: int, ratio: float = 0.5, seed: int = 0) -> Mask:
        """Masks about so many tokens at random, at least one and not all; with a ratio of 0 none."""
        tokens = math.prod(self.grid)
        masked = min(max(round(tokens * ratio), 1), tokens - 1) if ratio else 0
        ranks = torch.rand(count, tokens, generator=seeded_generator("mask", seed)).argsort(1).argsort(1)
        return mask_from_bool(ranks < masked)

    def input(self, tokens: Tokens, mask: Mask) -> EncoderInput:
        """The tokens on their way into an encoder."""
        return EncoderInput((Part(self.modality.embedding, tokens),), mask)

    def with_other_masked_content(self, tokens: Tokens, mask: Mask) -> Tokens:
        """The same visible tokens, others where they are masked."""
        dtype = tokens.content.dtype if tokens.normalized else None
        other = self.tokens(len(tokens.content), 99, dtype).content
        return replace(tokens, content=torch.where(mask.masked.unsqueeze(-1), other, tokens.content))


def synthetic(grid: Grid, patch_size: Sequence[int], **settings: Any) -> Scene:  # noqa: ANN401 - plain data
    """A scene of synthetic samples."""
    return Scene(SyntheticModality(SyntheticModality.Config(grid=grid, patch_size=tuple(patch_size), **settings)))


def scenes(modality: str | dict[str, Any] | None) -> list[Scene]:
    """The scene of an experiment's block `modality`, or synthetic ones.

    Those are of one to three axes, odd and unequal sides, small and large tokens, numbers of several units and ids.
    """
    if modality is not None:
        return [Scene(build("modality", chosen("modality", modality)))]
    return [
        synthetic((16,), (4,)),
        synthetic((7,), (3,), unit="around_5"),
        synthetic((4, 4), (2, 2)),
        synthetic((3, 5), (4, 2), unit="int16"),
        synthetic((4, 4), (16, 16)),
        synthetic((2, 6), (16, 16)),
        synthetic((2, 3, 4), (2, 2, 2), unit="gaps"),
        synthetic((12,), (1,), channels=1),
        synthetic((12,), (1,), vocab_size=11, channels=1),
    ]
