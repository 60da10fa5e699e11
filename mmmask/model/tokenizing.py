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
        _check_samples(samples, modality.spec.vocab_size)
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


def _check_samples(samples: Tensor, vocabulary: int | None) -> None:
    """What no modality takes: ids are integers within the vocabulary, values are uint8 or floating point."""
    if not isinstance(samples, Tensor):
        raise ValueError(f"expected a tensor, not {type(samples).__name__}")
    if not samples.dim() or not samples.shape[0]:
        raise ValueError(f"an empty batch {tuple(samples.shape)}: give at least one sample, first axis the batch")
    if vocabulary is None:
        if not (samples.is_floating_point() or samples.dtype == torch.uint8):
            raise ValueError(f"values must be uint8 or floating point, not {samples.dtype}: convert the samples")
        return
    if samples.is_floating_point() or samples.is_complex() or samples.dtype == torch.bool:
        raise ValueError(f"ids must be integers, not {samples.dtype}: convert the samples")
    if samples.device.type == "cpu":  # elsewhere a look would cost a wait for the device
        least, most = (int(bound) for bound in samples.aminmax())
        if least < 0 or most >= vocabulary:
            raise ValueError(f"ids {least} to {most} do not fit a vocabulary of {vocabulary} (0 to {vocabulary - 1})")
