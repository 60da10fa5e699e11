"""Samples that a caller hands in, checked and cut into tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from mmmask.interfaces import Batch, Modality, Tokens, TokenSpec
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
        _check_samples(samples, modality.spec)
        tokens = modality.tokenize(samples)
    except ValueError as error:
        raise MmmaskError(f"streams.{stream}: {error}") from error
    if not tokens.spec.gaps or (tokens.spec.vocab_size is None and not tokens.content.is_floating_point()):
        return tokens
    present = ~tokens.spec.missing(tokens.content).all(-1)  # a token without any present value is not valid
    return replace(tokens, valid=present if tokens.valid is None else tokens.valid & present)


def tokenize_all(modalities: Mapping[str, Modality], batch: Mapping[str, Tensor | Batch]) -> dict[str, Tokens]:
    """The samples of every stream of a batch as tokens.

    Raises:
        MmmaskError: the batch is empty, or some samples do not fit.
    """
    if not batch:
        raise MmmaskError(f"the batch holds no stream; the model has {', '.join(modalities)}")
    contents = {name: part.content if isinstance(part, Batch) else part for name, part in batch.items()}
    return {name: tokenize(modalities, name, samples) for name, samples in contents.items()}


def _check_samples(samples: Tensor, spec: TokenSpec) -> None:
    """Raises a ValueError unless ids are integers within the vocabulary, and values real numbers."""
    if not isinstance(samples, Tensor):
        raise ValueError(f"expected a tensor, not {type(samples).__name__}")
    if not samples.dim() or not samples.shape[0]:
        raise ValueError(f"an empty batch {tuple(samples.shape)}: give at least one sample, first axis the batch")
    if spec.vocab_size is None:
        if samples.is_complex():
            raise ValueError(f"values must be integers or floating point, not {samples.dtype}: convert the samples")
        return
    if samples.is_floating_point() or samples.is_complex() or samples.dtype == torch.bool:
        raise ValueError(f"ids must be integers, not {samples.dtype}: convert the samples")
    if samples.device.type == "cpu":  # elsewhere the check would synchronise with the device
        least, most = (int(bound) for bound in samples.aminmax())
        highest = spec.vocab_size - (not spec.gaps)
        if least < 0 or most > highest:
            raise ValueError(f"ids {least} to {most} do not fit a vocab_size of {spec.vocab_size} (0 to {highest})")
