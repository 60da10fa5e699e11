"""Samples that a caller hands in, checked and cut into tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from mmmask.interfaces import Batch, Modality, Tokens, TokenSpec
from mmmask_registry import MmmaskError, UnknownName


def tokenize(modalities: Mapping[str, Modality], part: str, samples: Tensor, present: Tensor | None = None) -> Tokens:
    """The samples of one part as tokens.

    Args:
        part: name of a stream of one modality, or `STREAM/PART`.
        present: bool (batch,), which samples have this part; None: all.

    Raises:
        UnknownName: there is no such part.
        MmmaskError: the samples do not fit the modality.
    """
    if part not in modalities:
        raise UnknownName("stream", part, modalities)
    modality = modalities[part]
    try:
        _check_samples(samples, modality.spec)
        tokens = modality.tokenize(samples)
    except ValueError as error:
        raise MmmaskError(f"streams.{part}: {error}") from error
    valid = tokens.valid
    if tokens.spec.gaps and (tokens.spec.vocab_size is not None or tokens.content.is_floating_point()):
        valued = ~tokens.spec.missing(tokens.content).all(-1)  # a token without any present value is not valid
        valid = valued if valid is None else valid & valued
    if present is not None:
        there = present.unsqueeze(1).expand(tokens.content.shape[:2])
        valid = there if valid is None else valid & there
    return tokens if valid is tokens.valid else replace(tokens, valid=valid)


Given = Tensor | Batch | Mapping[str, Tensor]
"""Samples of a stream: (batch, *sample_shape), or {name of a part: such a tensor}."""


def batches_of(parts: Mapping[str, Mapping[str, str]], batch: Mapping[str, Given]) -> dict[str, Batch]:
    """{stream: its samples}.

    Args:
        parts: {stream: {name within the stream: part}}.

    Raises:
        MmmaskError: the batch is empty, has an unknown stream, or a stream's parts are not there or do not go together.
    """
    if not batch:
        raise MmmaskError(f"the batch holds no stream; the model has {', '.join(parts)}")
    found = {}
    for stream, given in batch.items():
        if stream not in parts:
            raise UnknownName("stream", stream, parts)
        own = given if isinstance(given, Batch) else Batch(given if isinstance(given, Mapping) else {stream: given})
        if own.parts.keys() != parts[stream].keys():
            wanted = ", ".join(parts[stream])
            raise MmmaskError(f"streams.{stream}: expected samples of the parts {wanted}, not {', '.join(own.parts)}")
        if len(sizes := {part.shape[:1] for part in own.parts.values() if isinstance(part, Tensor)}) > 1:
            raise MmmaskError(f"streams.{stream}: parts of {' and '.join(str(*size) for size in sizes)} samples")
        found[stream] = own
    return found


def tokenize_all(
    modalities: Mapping[str, Modality], parts: Mapping[str, Mapping[str, str]], batches: Mapping[str, Batch]
) -> dict[str, Tokens]:
    """{part: its samples as tokens}, of every stream of `batches_of`.

    Raises:
        MmmaskError: some samples do not fit.
    """
    return {
        part: tokenize(modalities, part, batches[stream].parts[name], batches[stream].present.get(name))
        for stream in batches
        for name, part in parts[stream].items()
    }


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
