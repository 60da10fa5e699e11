"""Samples that a caller hands in, checked and cut into tokens."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mmmask.interfaces import Modality, Tokens
from mmmask_registry import MmmaskError, UnknownName


def tokenize(modalities: Mapping[str, Modality], stream: str, samples: Tensor) -> Tokens:
    """The samples of one stream as tokens.

    Raises:
        UnknownName: there is no such stream.
        MmmaskError: the samples do not fit the modality.
    """
    if stream not in modalities:
        raise UnknownName("stream", stream, modalities)
    modality = modalities[stream]
    try:
        _check_samples(samples, discrete=modality.spec.vocabulary is not None)
        return modality.tokenize(samples)
    except ValueError as error:
        raise MmmaskError(f"streams.{stream}: {error}") from error


def tokenize_all(modalities: Mapping[str, Modality], batch: Mapping[str, Tensor]) -> dict[str, Tokens]:
    """The samples of every stream of a batch as tokens.

    Raises:
        MmmaskError: the batch is empty, or some samples do not fit.
    """
    if not batch:
        raise MmmaskError(f"the batch holds no stream; the model has {', '.join(modalities)}")
    return {name: tokenize(modalities, name, samples) for name, samples in batch.items()}


def _check_samples(samples: Tensor, discrete: bool) -> None:
    """What no modality takes: ids may be any integers, values are uint8 or floating point."""
    if not isinstance(samples, Tensor):
        raise ValueError(f"expected a tensor, not {type(samples).__name__}")
    if not samples.dim() or not samples.shape[0]:
        raise ValueError(f"an empty batch {tuple(samples.shape)}: give at least one sample, first axis the batch")
    if not (discrete or samples.is_floating_point() or samples.dtype == torch.uint8):
        raise ValueError(f"values must be uint8 or floating point, not {samples.dtype}: convert the samples")
