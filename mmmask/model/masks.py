"""From a masker's scores to exact index sets."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mmmask.interfaces import Grid, Mask, MaskContext, Masker
from mmmask_registry import MmmaskError


class MaskError(MmmaskError, ValueError):
    """A mask, or a masker's count, that does not fit the tokens."""


def draw_mask(
    masker: Masker,
    decoder_masker: Masker | None,
    context: MaskContext,
    valid: Tensor | None = None,
    whole: bool = False,
) -> Mask:
    """Masks exactly `masker.num_masked` tokens of every sample, the highest scores first.

    The sort is stable: ties fall in token order, so what a grouped masker scores alike stays together.

    Args:
        decoder_masker: chooses tokens NOT to be predicted (dual masking, VideoMAE V2 section 3.2); None predicts all
            masked tokens. Predicted tokens that are visible have `counted` 0.
        valid: bool (batch, tokens), by default that of the context's tokens.
        whole: whether all tokens may be masked, as others of the sample are visible.

    Raises:
        MaskError: a masker masks all tokens, or does not keep its interface.
    """
    if valid is None and context.tokens is not None:
        valid = context.tokens.valid
    visible, predicted, masked, scores = _choose(masker, context, valid, whole)
    if decoder_masker is not None:
        predicted, *_ = _choose(decoder_masker, context, valid)
    counted = (masked if valid is None else masked & valid).gather(1, predicted).float()
    return Mask(visible, predicted, counted, masked, scores if scores.requires_grad else None)


def joined_masks(masks: Sequence[Mask]) -> Mask:
    """The mask of a sample of several parts, from those of its parts.

    Raises:
        MaskError: nothing is visible.
    """
    first, moved = 0, []
    for mask in masks:
        moved.append((mask.visible + first, mask.predicted + first, mask.counted, mask.masked))
        first += mask.masked.shape[1]
    visible, predicted, counted, masked = (torch.cat(each, dim=1) for each in zip(*moved, strict=True))
    if not visible.shape[1]:
        raise MaskError("the maskers of all parts mask everything: leave something visible")
    return Mask(visible, predicted, counted, masked)


def mask_of_part(mask: Mask, first: int, tokens: int, valid: Tensor | None) -> Mask:
    """The mask of the part whose tokens begin at `first`: all of them are predicted, and the masked ones count.

    Samples mask different numbers of its tokens, so that only this keeps shapes the same.
    """
    masked = mask.masked[:, first : first + tokens]
    every = torch.arange(tokens, device=masked.device).expand(len(masked), -1)
    counted = masked if valid is None else masked & valid[:, first : first + tokens]
    return Mask(every[:, :0], every, counted.float(), masked)


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


def _choose(
    masker: Masker, context: MaskContext, valid: Tensor | None, whole: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Indices of tokens left and masked, both ascending, the bool mask, and the scores."""
    tokens = math.prod(context.grid)
    count = masker.num_masked(context.grid, context.step)
    try:
        count = operator.index(count)
    except TypeError:
        raise MaskError(f"{_label(masker)}: num_masked gave {count!r}, expected a whole number") from None
    if not 0 <= count < tokens + whole:
        masks = f"masks {count} of the {tokens} tokens of grid {tuple(context.grid)}"
        raise MaskError(f"{_label(masker)} {masks}: lower its ratio")
    scores = masker.scores(context)
    if not isinstance(scores, Tensor) or scores.is_complex():
        raise MaskError(f"{_label(masker)}: scores gave no tensor of real numbers")
    if scores.shape != (context.batch, tokens):
        raise MaskError(f"{_label(masker)} scored {tuple(scores.shape)}, expected {(context.batch, tokens)}")
    # on a GPU only once, as it waits for the device
    if (scores.is_cpu or not (context.step or scores.is_meta)) and bool(scores.isnan().any()):
        raise MaskError(f"{_label(masker)} scored NaN, which has no rank")
    ranked = scores.detach()
    if valid is not None:
        # padding is not to be seen; of what is missing by chance in one sample, some may be, embedded as missing
        by_chance = context.tokens is not None and context.tokens.spec.gaps
        if not by_chance and not valid.is_meta and bool((valid.sum(dim=1) < tokens - count).any()):
            raise MaskError(
                f"{_label(masker)} leaves {tokens - count} tokens visible, and a sample has fewer valid ones"
            )
        ranked = torch.where(valid, ranked, ranked.max() + 1)  # masked first
    order = ranked.argsort(dim=1, descending=True, stable=True)
    masked = torch.zeros(context.batch, tokens, dtype=torch.bool, device=scores.device)
    masked.scatter_(1, order[:, :count], True)
    return order[:, count:].sort(dim=1).values, order[:, :count].sort(dim=1).values, masked, scores


def _label(masker: Masker) -> str:
    return f"masker {(masker.config.name or type(masker).__name__)!r}"


def require_masked(mask: Mask, masker: Masker, grid: Grid) -> None:
    """Refuses a mask that leaves nothing to learn from.

    Raises:
        MaskError: every token is visible.
    """
    tokens = mask.masked.shape[1]
    if mask.visible.shape[1] == tokens:
        raise MaskError(f"{_label(masker)} masks none of the {tokens} tokens of grid {tuple(grid)}: raise its ratio")


def joined_given(stream: str, given: Mapping[str, Tensor], sizes: Mapping[str, int], batch: int) -> Tensor:
    """A mask of all parts, bool (batch, tokens), from {part: bool (batch, its tokens)}; parts not given are masked.

    Raises:
        MaskError: a part that there is not, or a mask that does not fit.
    """
    if unknown := sorted(given.keys() - sizes.keys()):
        raise MaskError(f"masks.{stream}.{unknown[0]}: there is no such part, only {', '.join(sizes)}")
    for part, mask in given.items():
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or tuple(mask.shape) != (batch, sizes[part]):
            raise MaskError(f"masks.{stream}.{part}: expected bool {(batch, sizes[part])}, (batch, tokens)")
    device = next((mask.device for mask in given.values()), None)
    return torch.cat(
        [given.get(part, torch.ones(batch, size, dtype=torch.bool, device=device)) for part, size in sizes.items()],
        dim=1,
    )


def given_mask(stream: str, mask: Tensor | Mask, shape: tuple[int, int], device: torch.device) -> Mask:
    """The caller's mask of (batch, tokens), checked, on a device."""
    where = f"masks.{stream}"
    if not isinstance(mask, Tensor | Mask):
        raise MaskError(f"{where}: expected a bool tensor or a Mask, not {type(mask).__name__}")
    try:
        mask = mask if isinstance(mask, Mask) else mask_from_bool(mask)
    except MaskError as error:
        raise MaskError(f"{where}: {error}") from error
    if tuple(mask.masked.shape) != shape:
        raise MaskError(f"{where}: {tuple(mask.masked.shape)} does not fit {shape} (batch, tokens)")
    _check_index(f"{where}.visible", mask.visible, *shape)
    _check_index(f"{where}.predicted", mask.predicted, *shape)
    if mask.counted.shape != mask.predicted.shape:
        counted, predicted = tuple(mask.counted.shape), tuple(mask.predicted.shape)
        raise MaskError(f"{where}.counted: {counted} does not fit predicted {predicted}")
    parts = (mask.visible, mask.predicted, mask.counted, mask.masked, mask.scores)
    return Mask(*(part if part is None else part.to(device) for part in parts))  # type: ignore[arg-type]


def _check_index(where: str, index: Tensor, batch: int, tokens: int) -> None:
    if index.dtype != torch.int64 or index.dim() != 2 or index.shape[0] != batch:
        raise MaskError(f"{where}: expected integers ({batch}, n), not {index.dtype} {tuple(index.shape)}")
    if outside := index[(index < 0) | (index >= tokens)].tolist():
        raise MaskError(f"{where}: holds {outside[0]}, tokens are 0 to {tokens - 1}")
    if bool((index.diff(dim=1) <= 0).any()):
        raise MaskError(f"{where}: every row must ascend, without repetition")
