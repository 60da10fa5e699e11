"""Predicting which id a token is."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from mmmask.interfaces import Loss, Mask, Tokens, TokenSpec
from mmmask_registry import MmmaskError


class CrossEntropyLoss(Loss):
    """Cross-entropy of ids in nats, averaged over the ids of a token (BERT, Devlin et al. 2018, section 3.1).

    A token of several ids has the logits of its first id, then those of its second, and so on. Missing ids count
    nowhere.
    """

    class Config(Loss.Config):
        label_smoothing: float = Field(
            default=0.0, ge=0, lt=1, description="share of the target that is spread evenly over all ids"
        )

    config: Config

    def prediction_dim(self, spec: TokenSpec) -> int:
        """One logit per id of `vocab_size`, for every id that a token holds.

        Raises:
            MmmaskError: the modality's tokens hold values, not ids.
        """
        if spec.vocab_size is None:
            raise MmmaskError("loss 'cross_entropy' is for ids, and these tokens hold values: use 'pixels'")
        return spec.content_dim * spec.vocab_size

    @torch.no_grad()
    def target(self, tokens: Tokens, index: Tensor) -> Tensor:
        """(batch, predicted, content_dim) ids, int64."""
        return tokens.values(index).long()

    def error(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Mean over the present ids of a token, 0 without any: (batch, predicted), float32 or wider."""
        wide = prediction.to(torch.promote_types(prediction.dtype, torch.float32))
        logits = wide.unflatten(-1, (target.shape[-1], -1))  # (batch, predicted, ids of a token, vocabulary)
        missing = logits.shape[-1]  # the id after the last
        error = F.cross_entropy(
            logits.flatten(0, 2),
            target.flatten(),
            reduction="none",
            ignore_index=missing,
            label_smoothing=self.config.label_smoothing,
        )
        present = (target != missing).sum(-1).clamp(min=1)
        return error.unflatten(0, target.shape).sum(-1) / present

    def baseline(self, tokens: Tokens, mask: Mask) -> Tensor:
        """Log frequencies of the visible ids of the batch, with add-one smoothing: (batch, predicted, dim)."""
        assert tokens.spec.vocab_size is not None  # `prediction_dim` would have refused
        ids = tokens.values(mask.visible).long()
        if tokens.valid is not None:
            ids = ids[tokens.valid.gather(1, mask.visible)]
        # a missing id is one more than the last
        counts = torch.bincount(ids.flatten(), minlength=tokens.spec.vocab_size)[: tokens.spec.vocab_size] + 1
        logits = (counts / counts.sum()).log().repeat(tokens.spec.content_dim)
        return logits.expand(*mask.predicted.shape, -1)

    @torch.no_grad()
    def restore(self, prediction: Tensor, tokens: Tokens, index: Tensor, statistics: Tensor | None) -> Tensor:
        """Most likely ids, (batch, predicted, content_dim) int64."""
        return prediction.unflatten(-1, (tokens.spec.content_dim, -1)).argmax(-1)
