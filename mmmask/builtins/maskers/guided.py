"""Maskers that the model guides: by its errors, or by its features. The rest is chance."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from mmmask.builtins.maskers.random import TokenMasker
from mmmask.interfaces import Grid, Mask, MaskContext
from mmmask.model.blocks import initialize
from mmmask.model.precision import full_precision
from mmmask_registry import MmmaskError

AXES = 3
"""Axes of a grid whose places the learned masker sees: the last ones."""


class _GuidedMasker(TokenMasker):
    """Draws tokens without replacement, with odds exp(preference), by Gumbel noise (Kool et al. 2019, section 2)."""

    @abstractmethod
    def preference(self, context: MaskContext) -> Tensor:
        """(batch, tokens) log-odds of being masked; 0 throughout is chance alone."""

    def scores(self, context: MaskContext) -> Tensor:
        """Preference + Gumbel noise: (batch, tokens), float32.

        Raises:
            MmmaskError: the context lacks what the preference is made of.
        """
        with full_precision(context.device):
            preference = self.preference(context)
        uniform = context.noise(tuple(preference.shape)).clamp(min=2.0**-25)
        return preference - (-uniform.log()).log()


class LearnedMasker(_GuidedMasker, nn.Module):
    """Learns where the model's error is high, and masks there more often.

    A small MLP scores each token by what it holds (averages of equal runs of its normalised values, and their
    deviation) and by its place: preference = strength * tanh(MLP). It learns by score function (REINFORCE, Williams
    1992): with a_i the error of masked token i, less the mean over its sample's and in units of their deviation, the
    gradient of its loss is -weight * a_i * grad(preference_i). As the a_i of a sample add up to 0, terms that all
    tokens share drop out of it. That the mask also changes what is visible to other predictions is left aside.
    """

    class Config(TokenMasker.Config):
        strength: float = Field(
            default=2.0, ge=0, le=20, description="largest log-odds, beside noise of deviation 1.28"
        )
        weight: float = Field(default=1.0, gt=0, description="weight of the masker's own loss")
        inputs: int = Field(default=32, gt=0, le=4096, description="averages that a token's values are reduced to")
        width: int = Field(default=32, gt=0, le=4096, description="hidden width of its MLP")

    config: Config  # pyright: ignore[reportIncompatibleVariableOverride] - narrower

    def __init__(self, config: Config) -> None:
        nn.Module.__init__(self)
        super().__init__(config)
        self.mlp = nn.Sequential(
            nn.Linear(config.inputs + 1 + AXES, config.width), nn.GELU(), nn.Linear(config.width, 1)
        )
        initialize(self.mlp, xavier=False)

    def preference(self, context: MaskContext) -> Tensor:
        """(batch, tokens), with its graph.

        Raises:
            MmmaskError: tokens hold ids, or there are none to look at.
        """
        if context.tokens is None or context.tokens.spec.vocab_size is not None:
            raise MmmaskError("masker 'learned' looks at the values of one modality: use 'random', or one a part")
        values = context.tokens.values().float().nan_to_num()
        runs = F.adaptive_avg_pool1d(values, self.config.inputs)
        seen = torch.cat([runs, values.std(-1, correction=0, keepdim=True), _places(context.grid, values)], dim=-1)
        return self.config.strength * self.mlp(seen.to(next(self.mlp.parameters()).dtype)).squeeze(-1).tanh()

    def loss(self, mask: Mask, error: Tensor) -> Tensor:
        """(batch, predicted), 0 each, with the gradient of the score function."""
        assert mask.scores is not None  # otherwise nobody asks
        number = mask.counted.sum(1, keepdim=True).clamp(min=1)
        centred = (error - (error * mask.counted).sum(1, keepdim=True) / number) * mask.counted
        deviation = (centred.square().sum(1, keepdim=True) / number).sqrt()
        chosen = mask.scores.gather(1, mask.predicted)
        return self.config.weight * centred / deviation.clamp(min=1e-12) * (chosen.detach() - chosen)


class AttentionMasker(_GuidedMasker):
    """Masks tokens whose features are like the sample's as a whole more often, as AttMask (Kakogeorgiou et al. 2022).

    Theirs are the attention of the class token in a teacher that is a moving average: here `by: teacher`, and cosines.

    Preference = strength * cosine of the token's latent and the mean latent of the sample (or its first prefix token),
    less the mean over the sample and in units of the deviation. Latents are of the whole sample, which costs one more
    forward without gradient.
    """

    class Config(TokenMasker.Config):
        by: Literal["model", "teacher"] = Field(
            default="model", description="whose latents these are: the encoder's, or those of `model.teacher`"
        )
        strength: float = Field(
            default=1.0,
            ge=-20,
            le=20,
            description="log-odds per deviation of the cosines; below 0: unlike tokens first",
        )

    config: Config  # pyright: ignore[reportIncompatibleVariableOverride] - narrower

    @property
    def needs_teacher(self) -> bool:
        """Setting `by`."""
        return self.config.by == "teacher"

    def preference(self, context: MaskContext) -> Tensor:
        """(batch, tokens), without graph.

        Raises:
            MmmaskError: there is no encoder to ask.
        """
        asked = context.taught if self.needs_teacher else context.features
        if asked is None and context.parts:
            raise MmmaskError(
                "masker 'attention' asks for features of one part: use 'budget', or `maskers`, one a part"
            )
        if asked is None:
            raise MmmaskError(
                f"masker 'attention' asks the {self.config.by} for features, and there is no {self.config.by}: use "
                "'random'"
            )
        latents = asked()
        values = latents.values.float()
        whole = values.mean(1) if latents.prefix is None else latents.prefix[:, 0].float()
        cosines = F.cosine_similarity(values, whole.unsqueeze(1), dim=-1)
        deviation, mean = torch.std_mean(cosines, dim=1, keepdim=True, correction=0)
        return self.config.strength * (cosines - mean) / deviation.clamp(min=1e-6)


def _places(grid: Grid, like: Tensor) -> Tensor:
    """(batch, tokens, AXES), places along the last axes from -1 to 1; 0 along axes that the grid lacks."""
    axes = [torch.linspace(-1, 1, size, device=like.device) if size > 1 else like.new_zeros(1) for size in grid]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)[:, -AXES:]
    return F.pad(places, (AXES - places.shape[1], 0)).expand(len(like), -1, -1)
