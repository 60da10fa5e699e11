"""Masking of spans, for grids of one axis."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from mmmask import MmmaskError
from mmmask.interfaces import Grid, MaskContext, Masker


class SpanMasker(Masker):
    """Masks spans of consecutive tokens, an exact number in all (SpanBERT, Joshi et al. 2019, section 3.1).

    Spans are added until enough is masked. Their lengths are geometric, truncated at `max_length`: 3.8 tokens on
    average by default, as published. Their first tokens are drawn uniformly without replacement. Spans may overlap or
    touch, and end with the sample at the latest; the surplus of the last one stays visible.
    """

    class Config(Masker.Config):
        mask_ratio: float = Field(
            default=0.15, ge=0, lt=1, description="share of the tokens that is masked, rounded down"
        )
        stop_probability: float = Field(
            default=0.2, gt=0, lt=1, description="p of the geometric distribution of lengths: a span ends after a token"
        )
        max_length: int = Field(default=10, gt=0, description="tokens of the longest span")

    config: Config

    def scores(self, context: MaskContext) -> Tensor:
        """Minus the rank of the first span that holds the token: (batch, tokens).

        A span begins at every token, in a random order, so that there are enough spans for every ratio.
        """
        (tokens,) = context.grid
        order = context.noise((context.batch, tokens)).argsort(dim=1, stable=True)
        lengths = self._lengths(context.noise((context.batch, tokens)))
        turns = torch.arange(tokens, device=order.device).expand_as(order)
        turn = torch.empty_like(order).scatter_(1, order, turns)  # of the span that begins at a token
        first = turn.clone()
        for step in range(1, min(self.config.max_length, tokens)):
            reaching = torch.where(lengths[:, :-step] > step, turn[:, :-step], tokens)
            first[:, step:] = torch.minimum(first[:, step:], reaching)
        return -first

    def num_masked(self, grid: Grid, step: int) -> int:
        """int(ratio * tokens).

        Raises:
            MmmaskError: the grid has several axes.
        """
        if len(grid) != 1:
            raise MmmaskError(f"masker 'span' needs a grid of one axis, not {tuple(grid)}: use 'block' or 'random'")
        return int(self.config.mask_ratio * grid[0])

    def _lengths(self, noise: Tensor) -> Tensor:
        """Lengths 1 to `max_length` with probabilities p * (1 - p) ** (length - 1), up to a factor; int64."""
        going_on = torch.tensor(1 - self.config.stop_probability, dtype=torch.float64)
        # the inverse of the distribution function, on the part of [0, 1) that leads to no longer spans
        within = noise.double() * (1 - going_on**self.config.max_length).item()
        return ((1 - within).log() / going_on.log().item()).long().clamp(max=self.config.max_length - 1) + 1
