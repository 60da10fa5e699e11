"""From a masker's scores to exact index sets."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mmmask.interfaces import Grid, Mask, MaskContext, Masker
from mmmask_registry import MmmaskError


class MaskError(MmmaskError, ValueError):
    """A mask, or a masker's count, that does not fit the tokens."""


def draw_mask(masker: Masker, decoder_masker: Masker | None, context: MaskContext) -> Mask:
    """Masks exactly `masker.num_masked` tokens of every sample, the highest scores first.

    The sort is stable: ties fall in token order, so what a grouped masker scores alike stays together.

    Args:
        decoder_masker: chooses tokens NOT to be predicted (dual masking, VideoMAE V2 section 3.2); None predicts all
            masked tokens. Predicted tokens that are visible have `counted` 0.

    Raises:
        MaskError: a masker chooses all tokens, a negative number, or scores another number of tokens.
    """
    visible, masked_index, masked = _choose(masker, context)
    if decoder_masker is None:
        return Mask(visible, masked_index, torch.ones_like(masked_index, dtype=torch.float32), masked)
    predicted, _, _ = _choose(decoder_masker, context)
    return Mask(visible, predicted, masked.gather(1, predicted).float(), masked)


def mask_from_bool(masked: Tensor) -> Mask:
    """The mask a caller gives as bool (batch, tokens), True = masked.

    Raises:
        MaskError: rows mask different numbers of tokens, or some row masks all of them.
    """
    if masked.dtype != torch.bool or masked.dim() != 2:
        raise MaskError(f"a mask must be bool (batch, tokens), not {masked.dtype} {tuple(masked.shape)}")
    counts = masked.sum(dim=1)
    if masked.shape[0] and bool((counts != counts[0]).any()):
        raise MaskError(f"every row of a mask must mask the same number of tokens, not {sorted(set(counts.tolist()))}")
    count = int(counts[0]) if masked.shape[0] else 0
    if count == masked.shape[1]:
        raise MaskError("a mask covers every token: at least one must stay visible")
    order = masked.to(torch.uint8).argsort(dim=1, stable=True)
    visible, masked_index = order[:, : masked.shape[1] - count], order[:, masked.shape[1] - count :]
    return Mask(visible, masked_index, torch.ones_like(masked_index, dtype=torch.float32), masked)


def nothing_masked(batch: int, grid: Grid, device: torch.device) -> Mask:
    """The mask of feature extraction: all tokens visible, none predicted."""
    tokens = math.prod(grid)
    visible = torch.arange(tokens, device=device).expand(batch, -1)
    none = visible[:, :0]
    return Mask(visible, none, none.float(), torch.zeros(batch, tokens, dtype=torch.bool, device=device))


def _choose(masker: Masker, context: MaskContext) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of tokens left and masked, both ascending, and the bool mask."""
    tokens = math.prod(context.grid)
    count = masker.num_masked(context.grid, context.step)
    name = masker.config.name or type(masker).__name__
    if not 0 <= count < tokens:
        raise MaskError(f"masker {name!r} masks {count} of the {tokens} tokens of grid {context.grid}: lower its ratio")
    scores = masker.scores(context)
    if scores.shape != (context.batch, tokens):
        raise MaskError(f"masker {name!r} scored {tuple(scores.shape)}, expected {(context.batch, tokens)}")
    order = scores.argsort(dim=1, descending=True, stable=True)
    masked = torch.zeros(context.batch, tokens, dtype=torch.bool, device=scores.device)
    masked.scatter_(1, order[:, :count], True)
    return order[:, count:].sort(dim=1).values, order[:, :count].sort(dim=1).values, masked
