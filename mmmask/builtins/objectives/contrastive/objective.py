"""Contrastive learning: which views, or which parts, are of one sample, told from pooled latents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise, permutations
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
    MaskContext,
    Masker,
    Objective,
    ObjectiveContext,
    Part,
    Plan,
    StepContext,
    Tokens,
    build,
)
from mmmask.interfaces.naming import name_within, stream_of
from mmmask.model.blocks import initialize
from mmmask.model.build import unusable_names
from mmmask.model.masks import MaskError, draw_mask
from mmmask.model.precision import full_precision
from mmmask.model.processes import gather_rows_of_all
from mmmask_registry import MmmaskError


class ContrastiveObjective(Objective):
    """Tells the views of a sample, or its aligned parts, from those of all others (InfoNCE).

    With z the l2-normalised projections of the views of a micro-batch, of all processes, and P(i) those of them that
    belong to view i:

        error_i = -mean over p in P(i) of log(exp(z_i z_p / t) / sum over k != i of exp(z_i z_k / t)),  t = temperature

    loss = sum(error) / number of errors. Of one modality, P(i) are the other views of the sample, and `replicate` sets
    how many a sample has: NT-Xent of SimCLR (Chen et al. 2020, section 2.1), for more than two equation 2 of Khosla et
    al. 2020. Of several parts, each is encoded alone, and k runs over the views of one other part, for every ordered
    pair of parts: the contrastive loss of CAV-MAE (Gong et al. 2023, section 2.3), in both directions. Evaluation
    compares within a batch on its own process.
    """

    class Config(Objective.Config):
        pool: Annotated[Component.Config, ChosenByName("pool")] = Field(
            default="mean", validate_default=True, description="one vector out of the latents of a view"
        )
        view_masker: Annotated[Component.Config, ChosenByName("masker")] | None = Field(
            default=None, description="what the encoder is not shown of a view or part; null: it is shown whole"
        )
        layers: int = Field(default=2, gt=0, le=16, description="linear layers of the projection, ReLU between them")
        hidden_dim: int = Field(default=2048, gt=0, description="width between the layers of the projection")
        output_dim: int = Field(default=128, gt=0, description="width of the projections that are compared")
        temperature: float = Field(default=0.1, gt=0, description="what cosines are divided by")

    evaluators = ("effective_rank", "retrieval")

    def __init__(self, streams: Mapping[str, Any], context: ObjectiveContext) -> None:
        super().__init__(streams, context)
        self.parts = {name: tuple(context.parts.get(name, {name: name}).values()) for name in streams}
        self.maskers: dict[str, Masker] = {
            name: build("masker", own.view_masker) for name, own in streams.items() if own.view_masker
        }
        problems = [
            f"streams.{name}.view_masker: {masker.config.name!r} has weights, which only a `masker` of masked can train"
            for name, masker in self.maskers.items()
            if isinstance(masker, nn.Module)
        ]
        if problems := problems + unusable_names({f"streams.{name}": name for name in streams}):
            raise ExperimentError(problems)
        self.modalities, width = context.modalities, context.encoder.width
        self.pools = nn.ModuleDict({name: build("pool", own.pool, width=width) for name, own in streams.items()})
        self.projections = nn.ModuleDict(
            {part: _projection(own, width) for name, own in streams.items() for part in self.parts[name]}
        )

    @property
    def counts_vary(self) -> tuple[str, ...]:
        """Streams in which samples may lack a part."""
        return tuple(name for name, own in self.streams.items() if len(self.parts[name]) > 1 and own.missing == "mask")

    def plan(self, tokens: Mapping[str, Tokens], batches: Mapping[str, Batch], context: StepContext) -> Plan:
        """Shows the encoder every view, and each part of a sample alone.

        Raises:
            MmmaskError: a stream of one modality trains on one view of each sample, or a mask does not fit.
        """
        inputs: dict[str, EncoderInput] = {}
        counts: dict[str, Tensor | float] = {}
        for stream, batch in batches.items():
            parts = self.parts[stream]
            if len(parts) == 1 and context.training and self.streams[stream].replicate < 2:
                raise MmmaskError(
                    f"streams.{stream}.replicate: 1, and the objective contrastive compares views of a sample: set 2 "
                    "or more"
                )
            for part in parts:
                shown = EncoderInput.whole(Part(self.modalities[part].embedding, tokens[part]))
                inputs[part] = self._masked(stream, part, shown, context)
            counts[stream] = float(len(batch)) * max(1, len(parts) * (len(parts) - 1))
            if stream in self.counts_vary:
                there = [present(tokens[part]) for part in parts]
                counts[stream] = torch.stack([(one & other).sum() for one, other in permutations(there, 2)]).sum()
        return Plan(tokens, batches, inputs, counts)

    def losses(self, plan: Plan, latents: Mapping[str, Latents]) -> dict[str, LossTerm]:
        """The summed error of every stream.

        `predictions` are the projections, of length 1: (batch, output_dim), or (batch, parts, output_dim).
        """
        terms = {}
        for stream, batch in plan.batches.items():
            found = []
            for part in self.parts[stream]:
                projected = self.projections[part](self.features(stream, latents[part]))
                with full_precision(projected.device):
                    views = F.normalize(projected.float(), dim=1)
                found.append(_Views(views, self._samples(stream, batch), present(plan.tokens[part])))
            pairs = list(permutations(found, 2)) or [(found[0], found[0])]
            with full_precision(found[0].values.device):
                temperature = self.streams[stream].temperature
                errors = [_error(one, other, temperature, everywhere=self.training).sum() for one, other in pairs]
            views = torch.stack([part.values for part in found], dim=1)
            views = views.squeeze(1) if len(found) == 1 else views
            terms[stream] = LossTerm(torch.stack(errors).sum(), plan.counts[stream], views)
        return terms

    def features(self, stream: str, latents: Latents) -> Tensor:
        """(batch, width), pooled: what the projection sees."""
        return self.pools[stream_of(stream)](latents)

    def _masked(self, stream: str, part: str, shown: EncoderInput, context: StepContext) -> EncoderInput:
        masker, tokens = self.maskers.get(stream), shown.part.tokens
        if masker is None:
            return shown
        noise = context.noise(stream, "/".join(filter(None, ("contrastive", name_within(part)))))
        rows, device = len(tokens.content), tokens.content.device
        asked = MaskContext(tokens.grid, rows, device, noise, context.step, tokens, part)
        # in a part that is missing whole, any token may stand for it
        valid = None if tokens.valid is None else tokens.valid | ~present(tokens).unsqueeze(1)
        try:
            mask = draw_mask(masker, None, asked, valid)
        except MaskError as error:
            raise MaskError(f"streams.{stream}.view_masker: {error}") from error
        return replace(shown, mask=mask)

    def _samples(self, stream: str, batch: Batch) -> Tensor:
        """The sample that each view is of, int64 (batch,); side by side where the batch does not tell."""
        if batch.index is not None:
            return batch.index
        device = next(iter(batch.parts.values())).device
        return torch.arange(len(batch), device=device) // getattr(self.streams[stream], "replicate", 2)


@dataclass(frozen=True)
class _Views:
    """Projections (batch, dim), the sample that each is of (batch,), and whether it is of anything, bool (batch,)."""

    values: Tensor
    samples: Tensor
    present: Tensor


def present(tokens: Tokens) -> Tensor:
    """(batch,) bool: whether a sample has any valid token."""
    if tokens.valid is None:
        return torch.ones(len(tokens.content), dtype=torch.bool, device=tokens.content.device)
    return tokens.valid.any(1)


def _error(views: _Views, others: _Views, temperature: float, everywhere: bool) -> Tensor:
    """(batch,) errors of views; 0 where none of the others belongs to one.

    Args:
        others: what they are compared with, `views` themselves or another part; a view never with itself.
        everywhere: compare with the others of all processes.
    """
    first, keys = 0, others
    if everywhere:
        first, values = gather_rows_of_all(others.values)
        keys = _Views(values, *(gather_rows_of_all(part)[1] for part in (others.samples, others.present)))
    compared = keys.present.expand(len(views.values), -1)
    if others is views:
        rows = torch.arange(len(views.values), device=views.values.device).unsqueeze(1) + first
        compared = compared & (rows != torch.arange(len(keys.values), device=views.values.device))
    positive = (views.samples.unsqueeze(1) == keys.samples) & compared & views.present.unsqueeze(1)
    lowest = torch.finfo(views.values.dtype).min  # not infinity: a view may be alone
    cosines = (views.values @ keys.values.mT / temperature).masked_fill(~compared, lowest)
    return -cosines.log_softmax(dim=1).where(positive, 0).sum(1) / positive.sum(1).clamp(min=1)


def _projection(settings: Any, width: int) -> nn.Sequential:  # noqa: ANN401 - a stream's
    widths = [width, *[settings.hidden_dim] * (settings.layers - 1), settings.output_dim]
    layers = [layer for pair in pairwise(widths) for layer in (nn.ReLU(), nn.Linear(*pair))]
    projection = nn.Sequential(*layers[1:])
    initialize(projection)
    return projection
