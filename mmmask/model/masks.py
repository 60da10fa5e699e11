"""From a masker's scores to exact index sets."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mmmask.interfaces import Grid, Mask, MaskContext, Masker
from mmmask_registry import MmmaskError


class MaskError(MmmaskError, ValueError):
    """A mask, or a masker's count, that does not fit the tokens."""


def draw_mask(masker: Masker, predict: Masker | None, context: MaskContext) -> Mask:
    """Hides exactly `masker.num_hidden` tokens of every sample, the highest scores first.

    The sort is stable: ties fall in token order, so what a grouped masker scores alike stays together.

    Args:
        predict: chooses tokens NOT to be predicted (dual masking, VideoMAE V2 section 3.2); None predicts all hidden
            tokens. Predicted tokens that are visible have `counted` 0.

    Raises:
        MaskError: a masker hides all tokens, a negative number, or scores another number of tokens.
    """
    visible, hidden_index, hidden = _hide(masker, context)
    if predict is None:
        return Mask(visible, hidden_index, torch.ones_like(hidden_index, dtype=torch.float32), hidden)
    predicted, _, _ = _hide(predict, context)
    return Mask(visible, predicted, hidden.gather(1, predicted).float(), hidden)


def mask_from_bool(hidden: Tensor) -> Mask:
    """The mask a caller gives as bool (batch, tokens), True = hidden.

    Raises:
        MaskError: rows hide different numbers of tokens, or some row hides all of them.
    """
    if hidden.dtype != torch.bool or hidden.dim() != 2:
        raise MaskError(f"a mask must be bool (batch, tokens), not {hidden.dtype} {tuple(hidden.shape)}")
    counts = hidden.sum(dim=1)
    if hidden.shape[0] and bool((counts != counts[0]).any()):
        raise MaskError(f"every row of a mask must hide the same number of tokens, not {sorted(set(counts.tolist()))}")
    count = int(counts[0]) if hidden.shape[0] else 0
    if count == hidden.shape[1]:
        raise MaskError("a mask hides every token: at least one must stay visible")
    order = hidden.to(torch.uint8).argsort(dim=1, stable=True)
    visible, hidden_index = order[:, : hidden.shape[1] - count], order[:, hidden.shape[1] - count :]
    return Mask(visible, hidden_index, torch.ones_like(hidden_index, dtype=torch.float32), hidden)


def nothing_hidden(batch: int, grid: Grid, device: torch.device) -> Mask:
    """The mask of feature extraction: all tokens visible, none predicted."""
    tokens = math.prod(grid)
    visible = torch.arange(tokens, device=device).expand(batch, -1)
    none = visible[:, :0]
    return Mask(visible, none, none.float(), torch.zeros(batch, tokens, dtype=torch.bool, device=device))


def _hide(masker: Masker, context: MaskContext) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of tokens left and hidden, both ascending, and the bool mask."""
    tokens = math.prod(context.grid)
    count = masker.num_hidden(context.grid, context.step)
    name = masker.config.name or type(masker).__name__
    if not 0 <= count < tokens:
        raise MaskError(f"masker {name!r} hides {count} of the {tokens} tokens of grid {context.grid}: lower its ratio")
    scores = masker.scores(context)
    if scores.shape != (context.batch, tokens):
        raise MaskError(f"masker {name!r} scored {tuple(scores.shape)}, expected {(context.batch, tokens)}")
    order = scores.argsort(dim=1, descending=True, stable=True)
    hidden = torch.zeros(context.batch, tokens, dtype=torch.bool, device=scores.device)
    hidden.scatter_(1, order[:, :count], True)
    return order[:, count:].sort(dim=1).values, order[:, :count].sort(dim=1).values, hidden
