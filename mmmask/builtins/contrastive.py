"""Contrastive learning: which views are of one sample, told from pooled latents."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from mmmask.experiment.errors import ExperimentError
from mmmask.interfaces import (
    Batch,
    ChosenByName,
    Component,
    EncoderInput,
    Latents,
    LossTerm,
    Objective,
    ObjectiveContext,
    Part,
    Plan,
    StepContext,
    Tokens,
    build,
)
from mmmask.model.blocks import initialize
from mmmask.model.build import unusable_names
from mmmask.model.precision import full_precision
from mmmask.model.processes import gather_rows_of_all
from mmmask_registry import MmmaskError


class ContrastiveObjective(Objective):
    """Tells the views of a sample from those of all others (InfoNCE; NT-Xent of SimCLR, Chen et al. 2020, section 2.1).

    With z the l2-normalised projections of all views of a micro-batch, of all processes, and P(i) the other views of
    the sample of view i:

        error_i = -mean over p in P(i) of log(exp(z_i z_p / t) / sum over k != i of exp(z_i z_k / t)),  t = temperature

    loss = sum(error) / number of views. `replicate` sets how many views a sample has; for more than two this is
    equation 2 of Khosla et al. 2020. Evaluation compares the views of a batch on its own process.
    """

    class Config(Objective.Config):
        pool: Annotated[Component.Config, ChosenByName("pool")] = Field(
            default="mean", validate_default=True, description="one vector out of the latents of a view"
        )
        layers: int = Field(default=2, gt=0, le=16, description="linear layers of the projection, ReLU between them")
        hidden_dim: int = Field(default=2048, gt=0, description="width between the layers of the projection")
        output_dim: int = Field(default=128, gt=0, description="width of the projections that are compared")
        temperature: float = Field(default=0.1, gt=0, description="what cosines are divided by")

    evaluators = ("effective_rank",)

    def __init__(self, streams: Mapping[str, Any], context: ObjectiveContext) -> None:
        super().__init__(streams, context)
        if problems := unusable_names({f"streams.{name}": name for name in streams}):
            raise ExperimentError(problems)
        self.modalities, width = {name: context.modality(name) for name in streams}, context.encoder.width
        self.pools = nn.ModuleDict({name: build("pool", part.pool, width=width) for name, part in streams.items()})
        self.projections = nn.ModuleDict({name: _projection(part, width) for name, part in streams.items()})

    def plan(self, tokens: Mapping[str, Tokens], batches: Mapping[str, Batch], context: StepContext) -> Plan:
        """Shows the encoder every view whole.

        Raises:
            MmmaskError: a stream trains on one view of each sample.
        """
        inputs: dict[str, EncoderInput] = {}
        for name, part in tokens.items():
            if context.training and getattr(self.streams[name], "replicate", 2) < 2:
                raise MmmaskError(
                    f"streams.{name}.replicate: 1, and the objective contrastive compares views of a sample: set 2 or "
                    "more"
                )
            inputs[name] = EncoderInput.whole(Part(self.modalities[name].embedding, part))
        return Plan(tokens, batches, inputs, {name: float(len(part.content)) for name, part in tokens.items()})

    def losses(self, plan: Plan, latents: Mapping[str, Latents]) -> dict[str, LossTerm]:
        """The summed error of every stream; `predictions` are the projections (batch, output_dim), of length 1."""
        terms = {}
        for name, found in latents.items():
            projected = self.projections[name](self.features(name, found))
            with full_precision(projected.device):
                views = F.normalize(projected.float(), dim=1)
                samples = self._samples(name, plan.batches[name])
                error = _error(views, samples, self.streams[name].temperature, everywhere=self.training)
            terms[name] = LossTerm(error.sum(), plan.counts[name], views)
        return terms

    def features(self, stream: str, latents: Latents) -> Tensor:
        """(batch, width), pooled: what the projection sees."""
        return self.pools[stream](latents)

    def _samples(self, stream: str, batch: Batch) -> Tensor:
        """The sample that each view is of, int64 (batch,); side by side where the batch does not tell."""
        if batch.index is not None:
            return batch.index
        return torch.arange(len(batch), device=batch.content.device) // getattr(self.streams[stream], "replicate", 2)


def _error(views: Tensor, samples: Tensor, temperature: float, everywhere: bool) -> Tensor:
    """(batch,) errors of views (batch, dim); 0 where a sample has no other view.

    Args:
        samples: (batch,) the sample that each view is of.
        everywhere: compare with the views of all processes.
    """
    first, others, samples_of_others = 0, views, samples
    if everywhere:
        first, others = gather_rows_of_all(views)
        _, samples_of_others = gather_rows_of_all(samples)
    rows = torch.arange(len(views), device=views.device).unsqueeze(1) + first
    self_ = rows == torch.arange(len(others), device=views.device)
    positive = (samples.unsqueeze(1) == samples_of_others) & ~self_
    cosines = (views @ others.mT / temperature).masked_fill(
        self_, torch.finfo(views.dtype).min
    )  # not infinity: a view may be alone
    log_shares = cosines.log_softmax(dim=1).where(positive, 0)
    return -log_shares.sum(1) / positive.sum(1).clamp(min=1)


def _projection(settings: Any, width: int) -> nn.Sequential:  # noqa: ANN401 - a stream's
    widths = [width, *[settings.hidden_dim] * (settings.layers - 1), settings.output_dim]
    layers = [layer for pair in pairwise(widths) for layer in (nn.ReLU(), nn.Linear(*pair))]
    projection = nn.Sequential(*layers[1:])
    initialize(projection)
    return projection
