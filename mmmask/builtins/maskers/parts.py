"""The masker of samples of several parts: one budget of visible tokens, split among them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from mmmask.builtins.maskers.random import TokenMasker
from mmmask.interfaces import MaskContext
from mmmask_registry import MmmaskError

ATTEMPTS = 16
"""Draws of Marsaglia and Tsang's method for one number, of which each is taken with a probability of 95 % or more."""


class BudgetMasker(TokenMasker):
    """Masks a share of the tokens of all parts, and splits the visible ones among the parts (MultiMAE, section 3.2).

    Shares are drawn for every sample from a symmetric Dirichlet distribution: with `alpha` 1 all splits are equally
    likely, a small one shows mostly one part, a large one equal numbers. Within a part tokens are random. Where a part
    has fewer tokens than its share, the others show more.
    """

    class Config(TokenMasker.Config):
        alpha: float = Field(default=1.0, gt=0, description="of the Dirichlet distribution of the shares")
        shares: dict[str, Annotated[float, Field(ge=0)]] | None = Field(
            default=None, description="{part: share of the visible tokens}, the same in every sample; null: drawn"
        )

    config: Config  # pyright: ignore[reportIncompatibleVariableOverride] - with more settings

    def scores(self, context: MaskContext) -> Tensor:
        """(batch, tokens): above 1 what is beyond the share of its part, both in random order."""
        sizes = context.parts or {"": math.prod(context.grid)}
        noise = context.noise((context.batch, sum(sizes.values())))
        visible = noise.shape[1] - self.num_masked((noise.shape[1],), context.step)
        wanted = (self._shares(sizes, context) * visible).round()
        scores = []
        for part, count in zip(noise.split(list(sizes.values()), dim=1), wanted.unbind(1), strict=True):
            rank = part.argsort(dim=1, stable=True).argsort(dim=1)
            scores.append(part + (rank >= count.unsqueeze(1)))
        return torch.cat(scores, dim=1)

    def _shares(self, sizes: Mapping[str, int], context: MaskContext) -> Tensor:
        """(batch, parts), each row sums to 1."""
        if self.config.shares is not None:
            given = self.config.shares
            if given.keys() != sizes.keys() or not sum(given.values()):
                raise MmmaskError(f"masker 'budget': shares for {', '.join(given)}; the parts are {', '.join(sizes)}")
            shares = torch.tensor([given[part] for part in sizes], device=context.device)
            return (shares / shares.sum()).expand(context.batch, -1)
        return log_gamma_draws(context.noise, self.config.alpha, (context.batch, len(sizes))).softmax(dim=1)


def log_gamma_draws(noise: Callable[[tuple[int, ...]], Tensor], alpha: float, shape: tuple[int, int]) -> Tensor:
    """Logarithms of Gamma(alpha) numbers; normalised over a row they are a Dirichlet draw.

    Marsaglia and Tsang (2000), of alpha + 1, times U^(1 / alpha) (their section 6); in logarithms, as small alphas
    underflow.
    """
    d = alpha + 1 - 1 / 3
    uniform = noise((*shape, ATTEMPTS, 3)).double().clamp(min=2**-25)
    normal = (-2 * uniform[..., 0].log()).sqrt() * (2 * math.pi * uniform[..., 1]).cos()  # Box and Muller
    v = (1 + normal / math.sqrt(9 * d)) ** 3
    positive = v.clamp(min=1e-12)
    taken = (v > 0) & (uniform[..., 2].log() < normal**2 / 2 + d - d * v + d * positive.log())
    first = taken.to(torch.uint8).argmax(dim=-1, keepdim=True)
    drawn = (d * positive).gather(-1, first).squeeze(-1).log()
    return drawn + noise(shape).double().clamp(min=2**-25).log() / alpha
