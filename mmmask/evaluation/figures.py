"""Held-out loss, and whether the model does better than the simplest guess."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from mmmask.data.samples import SampleLoader
from mmmask.interfaces import BadSample, Mask, Tokens
from mmmask.interfaces.source import SourceError
from mmmask.model.masked_model import MaskedModel

BATCH = 32


@dataclass(frozen=True)
class Evaluation:
    """One stream's held-out figures.

    Attributes:
        loss: mean loss, in the unit of the stream's loss.
        loss_shuffled: the same with every sample given the visible tokens of another: what the loss is worth when
            what is seen says nothing about what is masked. None with a single sample.
        loss_baseline: mean loss of the loss's own baseline (of ids: how often each is seen); None where it has none.
        psnr: decibels on masked tokens, of values in [0, 1]; None where predictions are no values.
        psnr_baseline: the same for the modality's baseline, such as the mean of the visible tokens.
    """

    loss: float
    loss_shuffled: float | None
    loss_baseline: float | None
    psnr: float | None
    psnr_baseline: float | None

    def to_dict(self) -> dict[str, float | None]:
        """The figures by name."""
        return asdict(self)


def held_out_samples(loader: SampleLoader, count: int) -> list[Tensor]:
    """Samples from all over a source that can be decoded, prepared without randomness.

    Evenly spaced first, as sources are often sorted by label; then whichever are needed in place of bad ones.

    Raises:
        SourceError: not one can be decoded.
    """
    samples: list[Tensor] = []
    reason = ""
    size = len(loader.source)
    spaced = [number * size // count for number in range(count)] if count < size else list(range(size))
    for index in dict.fromkeys([*spaced, *range(size)]):
        if len(samples) == count:
            break
        try:
            samples.append(loader.plain(index).parts[loader.stream])
        except BadSample as error:
            reason = f"{loader.source.describe(index)}: {error}"
    if not samples:
        raise SourceError(f"streams.{loader.stream}: not one sample could be decoded; the last: {reason}")
    return samples


@torch.no_grad()
def evaluate(model: MaskedModel, stream: str, samples: Sequence[Tensor], device: torch.device) -> Evaluation:
    """Evaluates one stream, in batches, always with the same masks."""
    was_training = model.training
    model.eval()
    totals = torch.zeros(5, dtype=torch.float64)
    restorable = model.streams[stream].modality.spec.vocab_size is None
    has_baseline = True
    for first in range(0, len(samples), BATCH):
        part = samples[first : first + BATCH]
        batch = torch.stack(list(part)).to(device)
        others = torch.stack([samples[(first + row + 1) % len(samples)] for row in range(len(part))]).to(device)
        tokens = model.tokenize(stream, batch)
        mask = model.draw_masks({stream: tokens}, {}, 0, {stream: (first, len(samples))})[stream]
        prediction = _predict(model, stream, tokens, mask)
        loss = model.stream_loss(stream, prediction, tokens, mask)
        shuffled = model.stream_loss(
            stream, _predict(model, stream, model.tokenize(stream, others), mask), tokens, mask
        )
        guess = model.streams[stream].loss.baseline(tokens, mask)
        has_baseline = guess is not None
        baseline = 0.0 if guess is None else float(model.stream_loss(stream, guess, tokens, mask))
        errors = (0.0, 0.0)
        if restorable:
            try:
                errors = _squared_errors(model, stream, prediction, tokens, mask)
            except NotImplementedError:
                restorable = False
        totals += len(part) * torch.tensor([float(loss), float(shuffled), baseline, *errors], dtype=torch.float64)
    model.train(was_training)
    loss, shuffled, loss_baseline, error, error_baseline = (totals / len(samples)).tolist()
    return Evaluation(
        loss,
        shuffled if len(samples) > 1 else None,
        loss_baseline if has_baseline else None,
        _decibels(error) if restorable else None,
        _decibels(error_baseline) if restorable else None,
    )


def _predict(model: MaskedModel, stream: str, tokens: Tokens, mask: Mask) -> Tensor:
    latents = model.latents({stream: tokens}, {stream: mask})
    return model.predictions({stream: tokens}, {stream: mask}, latents)[stream]


def _squared_errors(
    model: MaskedModel, stream: str, prediction: Tensor, tokens: Tokens, mask: Mask
) -> tuple[float, float]:
    """Mean squared error of prediction and of the modality's baseline on masked tokens, in the unit of the source."""
    truth = tokens.raw(mask.predicted)
    restored = model.restore(stream, prediction, tokens, mask.predicted, mask.visible)
    guess = model.streams[stream].modality.baseline(tokens, mask)
    return (restored.clamp(0, 1) - truth).square().mean().item(), (guess - truth).square().mean().item()


def _decibels(squared_error: float) -> float:
    return -10 * math.log10(max(squared_error, 1e-12))
