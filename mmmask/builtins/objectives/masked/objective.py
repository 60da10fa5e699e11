"""Masked modelling: a decoder predicts what the encoder was not shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from mmmask.builtins.objectives.masked.masking import MaskerChoice, Masking
from mmmask.builtins.objectives.masked.targets import (
    DecoderName,
    HeadName,
    LossChoice,
    Target,
    TargetSettings,
    targets_of,
    where,
)
from mmmask.builtins.objectives.masked.teaching import KnownLatents, Teaching
from mmmask.experiment.errors import ExperimentError
from mmmask.experiment.settings import PartName
from mmmask.interfaces import (
    Batch,
    Decoder,
    DecoderInput,
    EncoderInput,
    Latents,
    Loss,
    LossTerm,
    Mask,
    Objective,
    ObjectiveContext,
    Part,
    Plan,
    StepContext,
    Tokens,
    build,
    one_of,
)
from mmmask.interfaces.naming import name_within
from mmmask.model.blocks import initialize
from mmmask.model.build import unusable_names
from mmmask.model.precision import full_precision
from mmmask.randomness import Noise


@dataclass(frozen=True)
class MaskedPlan(Plan):
    """A plan, the mask of the part that every target predicts, and in training the noise of its decoder."""

    masks: Mapping[str, Mask]
    noises: Mapping[str, Noise]


class MaskedObjective(Objective):
    """Masks tokens, decodes them from the visible ones, compares (MAE, section 3).

    loss = sum(error * counted) / sum(counted), over the predicted tokens.

    Of aligned parts, tokens of all of them are encoded together, and each target predicts one (MultiMAE, section 3).
    The maskers of `maskers` mask an exact number in each part; a `masker` sees the tokens of all parts, one part after
    the other, and then all tokens of a part are decoded and the masked ones count, as their number varies.
    """

    class Config(Objective.Config):
        maskers: dict[str, MaskerChoice] | None = Field(
            default=None, description="instead of masker, {part: which of its tokens are masked}, for all parts"
        )
        masker: MaskerChoice | None = Field(
            default=None, validate_default=True, description="which tokens are masked; required, or `maskers`"
        )
        decoder_masker: MaskerChoice | None = Field(
            default=None, description="chooses tokens NOT to be decoded; without it all masked tokens are"
        )
        targets: dict[PartName, TargetSettings] | None = Field(
            default=None,
            min_length=1,
            description="instead of loss, decoder and head, {target: what is predicted}; for several parts, or several "
            "predictions of one",
        )
        loss: LossChoice | None = Field(
            default=None,
            validate_default=True,
            description="what is predicted, and how far off a prediction is; required, or `targets`",
        )
        decoder: DecoderName = "shared"
        head: HeadName = None

        _masker_or_maskers = one_of("masker", "maskers")
        _loss_or_targets = one_of("loss", "targets")

    evaluators = ("reconstruction",)

    def __init__(self, streams: Mapping[str, Any], context: ObjectiveContext) -> None:
        super().__init__(streams, context)
        parts = {name: context.parts.get(name, {name: name}) for name in streams}
        self.parts = {name: tuple(own.values()) for name, own in parts.items()}
        self.modalities = {part: context.modalities[part] for own in self.parts.values() for part in own}
        self._target_std: dict[str, Tensor] = {}
        self.targets: dict[str, Target] = {}
        for name, settings in streams.items():
            self.targets |= targets_of(name, settings, parts[name])
        # neither is a module: encoder and teacher are registered once, by the model
        self.teaching = Teaching(context.teacher, self.parts, self.modalities)
        self.masking = Masking(streams, parts, self.modalities, context.encoder, self.teaching)
        self.masker_of = self.masking.masker_of
        self.loss_of: dict[str, Loss] = {name: self._build_loss(name) for name in self.targets}
        self.head_of = {
            name: target.settings.head or self.modalities[target.part].embedding
            for name, target in self.targets.items()
        }
        if problems := self._problems():
            raise ExperimentError(problems)
        decoders = self._build_decoders(context)
        self.decoders = nn.ModuleDict(decoders)
        depth = len(context.encoder.stages)
        wanted = max(decoder.latent_stages for decoder in decoders.values())
        if wanted > depth:
            raise ExperimentError(
                [f"model.decoder: outputs of {wanted} stages, and the encoder has {depth}: take fewer"]
            )
        self._latent_stages = tuple(range(depth - wanted, depth))
        self.heads = nn.ModuleDict(self._build_heads(decoders))
        # losses and maskers with weights of their own move, train and save with the model
        self.learned_losses = _modules(self.loss_of)
        self.learned_maskers = _modules(self.masker_of)

    def weights(self, stream: str) -> dict[str, float]:
        """{target: weight} of a stream."""
        return {name: own.settings.weight for name, own in self.targets.items() if own.stream == stream}

    @property
    def stages(self) -> list[nn.Module]:
        """The decoders' blocks."""
        return [stage for decoder in self.decoders.values() for stage in cast(Decoder, decoder).stages]

    @property
    def counts_vary(self) -> tuple[str, ...]:
        """Streams in which some predicted tokens do not count.

        Visible ones (dual masking, one masker over several parts), or ones without values.
        """
        return tuple(name for name in self.streams if self._counts_vary(name))

    def plan(self, tokens: Mapping[str, Tokens], batches: Mapping[str, Batch], context: StepContext) -> MaskedPlan:
        """Draws a mask for every stream that is given none.

        Raises:
            MaskError: a given mask does not fit, or a masker leaves nothing visible.
        """
        inputs: dict[str, EncoderInput] = {}
        masks: dict[str, Mask] = {}
        counts: dict[str, Tensor | float] = {}
        for stream in batches:
            own = {part: tokens[part] for part in self.parts[stream]}
            mask, of_parts = self.masking.masks(stream, own, context)
            inputs[stream] = EncoderInput(tuple(Part(self.modalities[part].embedding, own[part]) for part in own), mask)
            varies = self._counts_vary(stream) or stream in context.given
            for name in self.weights(stream):
                target = self.targets[name]
                masks[name] = of_parts[target.part]
                counted = masks[name].counted
                if target.settings.average == "samples":
                    counted = counted.to(torch.promote_types(counted.dtype, next(self.heads.parameters()).dtype))
                    counted = counted / counted.sum(dim=1, keepdim=True).clamp(min=1)
                    masks[name], varies = replace(masks[name], counted=counted), True
                counts[name] = counted.sum() if varies else float(counted.numel())
        noises = {name: self._decoder_noise(name, context) for name in masks} if context.training else {}
        return MaskedPlan(tokens, batches, inputs, counts, masks, noises, stages=self._latent_stages)

    def losses(self, plan: MaskedPlan, latents: Mapping[str, Latents]) -> dict[str, LossTerm]:  # pyright: ignore[reportIncompatibleMethodOverride] - its own plan
        """The summed error of the counted predictions of every target."""
        self._target_std = {}
        known: KnownLatents = {}
        return {name: self.term(plan, name, found, known) for name, found in self.predict(plan, latents).items()}

    def predict(self, plan: MaskedPlan, latents: Mapping[str, Latents]) -> dict[str, Tensor]:
        """The heads' answers for every target's predicted tokens: {target: (batch, predicted, dim)}."""
        features: dict[str, Tensor] = {}
        for key, decoder in self.decoders.items():
            names = [name for name in plan.masks if self.targets[name].settings.decoder == key]
            inputs = [self._decoder_input(plan, name, latents) for name in names]
            features |= zip(names, decoder(inputs), strict=True) if names else ()
        return {name: self.heads[self.head_of[name]](features[name]) for name in plan.masks}

    def term(self, plan: MaskedPlan, target: str, predictions: Tensor, known: KnownLatents | None = None) -> LossTerm:
        """The summed error of predictions (batch, predicted, dim) for a target; float32 or wider.

        Args:
            known: latents of the teacher that the plan's earlier targets asked for.
        """
        loss, mask, tokens = self.loss_of[target], plan.masks[target], plan.tokens[self.targets[target].part]
        expected = self.expected(plan, target, known)
        with full_precision(predictions.device):
            if loss.config.needs_teacher and self.training and expected.is_floating_point():
                self._target_std[target] = expected.detach().flatten(0, 1).std(0, correction=0).mean()
            error = loss.error(predictions, expected)
            if self.training and mask.scores is not None:
                learned = self.masker_of[self.targets[target].part].loss(mask, error.detach())
                error = error if learned is None else error + learned
            return LossTerm((error * mask.counted).sum(), plan.counts[target], predictions, tokens, mask)

    def expected(self, plan: MaskedPlan, target: str, known: KnownLatents | None = None) -> Tensor:
        """Values that a target's predictions are compared with: (batch, predicted, ...); arguments as of `term`."""
        mask, tokens = plan.masks[target], plan.tokens[self.targets[target].part]
        loss = self.loss_of[target]
        taught = self.teaching.latents(loss, self.targets[target], plan.tokens, {} if known is None else known)
        with full_precision(mask.predicted.device):
            return cast("Any", loss).target(tokens, mask.predicted, *taught)

    def metrics(self) -> dict[str, float]:
        """Standard deviation of a teacher's targets over the tokens of a batch, mean over channels; 0 is collapse."""
        return {f"target_std/{name}": float(value) for name, value in self._target_std.items()}

    def restore(self, plan: MaskedPlan, target: str, predictions: Tensor, true_statistics: bool = False) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride] - of one of several targets
        """Predictions as raw content, float32: (batch, predicted, content_dim); see `Loss.restore`."""
        loss, mask, tokens = self.loss_of[target], plan.masks[target], plan.tokens[self.targets[target].part]
        predictions = predictions.float()
        with full_precision(predictions.device):
            if true_statistics or len(self.parts[self.targets[target].stream]) == 1:
                known = None if true_statistics else mask.visible
                return loss.restore(predictions, tokens, mask.predicted, known)
            return torch.cat(  # sample by sample: they show different numbers of the part's tokens
                [
                    loss.restore(predictions[row : row + 1], tokens.sample(row), one.predicted, one.visible)
                    for row, one in enumerate(map(mask.sample, range(len(predictions))))
                ]
            )

    def needs_statistics(self, stream: str) -> bool:
        """Whether a loss of the stream predicts normalised content."""
        return any(self.loss_of[name].needs_statistics for name in self.weights(stream))

    def _decoder_noise(self, target: str, context: StepContext) -> Noise:
        purpose = f"decoder/{name_within(target)}" if name_within(target) else "decoder"
        return context.noise(self.targets[target].stream, purpose)

    def _counts_vary(self, stream: str) -> bool:
        parts = self.parts[stream]
        averaged = any(self.targets[name].settings.average == "samples" for name in self.weights(stream))
        gaps = any(self.modalities[part].spec.gaps for part in parts)
        return averaged or gaps or self.masking.varies(stream, len(parts))

    def _decoder_input(self, plan: MaskedPlan, target: str, latents: Mapping[str, Latents]) -> DecoderInput:
        own = self.targets[target]
        shown = plan.inputs[own.stream]
        part = shown.parts[own.number]
        layout = shown.layout if len(shown.parts) > 1 else ()
        noise = plan.noises.get(target)
        return DecoderInput(
            part.key, latents[own.stream], plan.masks[target], part.tokens.grid, noise, layout, own.number,
            shown.activation_checkpointing,
        )  # fmt: skip

    def _build_loss(self, name: str) -> Loss:
        target = self.targets[name]
        config = cast("Loss.Config", target.settings.loss)
        taught = {"teacher": self.teaching.encoder_for(target, where(name))} if config.needs_teacher else {}
        return build("loss", config, **taught)

    def _build_decoders(self, context: ObjectiveContext) -> dict[str, Decoder]:
        if context.decoder is None:
            raise ExperimentError(["model.decoder: required by the objective 'masked'; such as {name: transformer}"])
        decoders = {}
        for key in dict.fromkeys(target.settings.decoder for target in self.targets.values()):
            # only what its streams use: positions that nobody asks for would be parameters without gradient
            streams = {target.stream for target in self.targets.values() if target.settings.decoder == key}
            used = {self.modalities[part].embedding for stream in streams for part in self.parts[stream]}
            embeddings = {name: embedding for name, embedding in context.embeddings.items() if name in used}
            decoders[key] = build("decoder", context.decoder, embeddings=embeddings, latent_width=context.encoder.width)
        return decoders

    def _build_heads(self, decoders: Mapping[str, Decoder]) -> dict[str, nn.Linear]:
        heads: dict[str, nn.Linear] = {}
        for name, target in self.targets.items():
            width = decoders[target.settings.decoder].width
            dim, key = self.loss_of[name].prediction_dim(self.modalities[target.part].spec), self.head_of[name]
            head = heads.get(key)
            if head is None:
                heads[key] = nn.Linear(width, dim)
                initialize(heads[key], xavier=False)
            elif (head.in_features, head.out_features) != (width, dim):
                raise ExperimentError(
                    [
                        f"{where(name)}.head: {key!r} predicts {head.out_features} numbers for an earlier stream or "
                        f"target and {dim} for this one: give this one a `head` of its own"
                    ]
                )
        return heads

    def _problems(self) -> list[str]:
        """Names that no module can have."""
        named: dict[str, str] = {}
        for name, target in self.targets.items():
            named[f"{where(name)}.decoder"] = target.settings.decoder
            if target.settings.head:
                named[f"{where(name)}.head"] = target.settings.head
            if isinstance(self.loss_of[name], nn.Module):
                named[f"streams.{name}"] = name
        named |= {f"streams.{name}": name for name, masker in self.masker_of.items() if isinstance(masker, nn.Module)}
        return unusable_names(named)


def _modules(parts: Mapping[str, object]) -> nn.ModuleDict:
    return nn.ModuleDict({name: part for name, part in parts.items() if isinstance(part, nn.Module)})
