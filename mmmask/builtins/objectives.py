"""Masked modelling: a decoder predicts what the encoder was not shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from mmmask.components import components
from mmmask.experiment.errors import ExperimentError
from mmmask.interfaces import (
    Batch,
    ChosenByName,
    Component,
    Decoder,
    DecoderInput,
    EncoderInput,
    Latents,
    Loss,
    LossTerm,
    Mask,
    MaskContext,
    Masker,
    Objective,
    ObjectiveContext,
    Part,
    Plan,
    StepContext,
    Tokens,
    build,
    nothing_masked,
)
from mmmask.model.blocks import initialize
from mmmask.model.build import unusable_names
from mmmask.model.masks import MaskError, draw_mask, given_mask, require_masked
from mmmask.model.precision import full_precision
from mmmask.randomness import Noise

MaskerChoice = Annotated[Component.Config, ChosenByName("masker")]
LossChoice = Annotated[Component.Config, ChosenByName("loss")]


@dataclass(frozen=True)
class MaskedPlan(Plan):
    """A plan, and in training the noise of every stream's decoder."""

    noises: Mapping[str, Noise]

    @property
    def masks(self) -> dict[str, Mask]:
        """{stream: its mask}, which is that of its input."""
        return {name: part.mask for name, part in self.inputs.items()}


class MaskedObjective(Objective):
    """Masks tokens, decodes them from the visible ones, compares (MAE, section 3).

    loss = sum(error * counted) / sum(counted), over the predicted tokens.
    """

    class Config(Objective.Config):
        masker: MaskerChoice = Field(description="which tokens are masked")
        decoder_masker: MaskerChoice | None = Field(
            default=None, description="chooses tokens NOT to be decoded; without it all masked tokens are"
        )
        loss: LossChoice = Field(description="what is predicted, and how far off a prediction is")
        decoder: str = Field(
            default="shared", pattern=r"^[A-Za-z0-9_]+$", description="streams with one name share a decoder"
        )
        head: str | None = Field(
            default=None,
            pattern=r"^[A-Za-z0-9_]+$",
            description="streams with one name share a head; default: the embedding's",
        )

    evaluators = ("reconstruction",)

    def __init__(self, streams: Mapping[str, Any], context: ObjectiveContext) -> None:
        super().__init__(streams, context)
        self.modalities = {name: context.modalities[name] for name in streams}
        self._encoder = (context.encoder,)  # in a tuple: registered once, by the model
        self._teacher: tuple[Any] = (context.teacher,)
        self._target_std: dict[str, Tensor] = {}
        self.loss_of: dict[str, Loss] = {name: self._build_loss(name, part.loss) for name, part in streams.items()}
        self.masker_of: dict[str, Masker] = {name: build("masker", part.masker) for name, part in streams.items()}
        self.decoder_masker_of: dict[str, Masker] = {
            name: build("masker", part.decoder_masker) for name, part in streams.items() if part.decoder_masker
        }
        self.head_of = {name: part.head or self.modalities[name].embedding for name, part in streams.items()}
        if problems := self._problems():
            raise ExperimentError(problems)
        decoders = self._build_decoders(context)
        self.decoders = nn.ModuleDict(decoders)
        self.heads = nn.ModuleDict(self._build_heads(decoders))
        # losses and maskers with weights of their own move, train and save with the model
        self.learned_losses = _modules(self.loss_of)
        self.learned_maskers = _modules(self.masker_of)

    @property
    def stages(self) -> list[nn.Module]:
        """The decoders' blocks."""
        return [stage for decoder in self.decoders.values() for stage in cast(Decoder, decoder).stages]

    @property
    def counts_vary(self) -> tuple[str, ...]:
        """Streams in which some predicted tokens do not count: visible ones (dual masking), or ones without values."""
        return tuple(name for name in self.streams if name in self.decoder_masker_of or self.modalities[name].spec.gaps)

    def plan(self, tokens: Mapping[str, Tokens], batches: Mapping[str, Batch], context: StepContext) -> MaskedPlan:
        """Draws a mask for every stream that is given none.

        Raises:
            MaskError: a given mask does not fit, or a masker leaves nothing visible.
        """
        inputs = {
            name: EncoderInput((Part(self.modalities[name].embedding, part),), self._mask(name, part, context))
            for name, part in tokens.items()
        }
        varying = {*self.counts_vary, *context.given}
        counts = {
            name: part.mask.counted.sum() if name in varying else float(part.mask.counted.numel())
            for name, part in inputs.items()
        }
        noises = {name: context.noise(name, "decoder") for name in tokens} if context.training else {}
        return MaskedPlan(tokens, batches, inputs, counts, noises)

    def losses(self, plan: MaskedPlan, latents: Mapping[str, Latents]) -> dict[str, LossTerm]:  # pyright: ignore[reportIncompatibleMethodOverride] - its own plan
        """The summed error of the counted predictions of every stream."""
        self._target_std = {}
        return {name: self.term(plan, name, found) for name, found in self.predict(plan, latents).items()}

    def predict(self, plan: MaskedPlan, latents: Mapping[str, Latents]) -> dict[str, Tensor]:
        """The heads' answers for every stream's predicted tokens: {stream: (batch, predicted, dim)}."""
        features: dict[str, Tensor] = {}
        for key, decoder in self.decoders.items():
            names = [name for name in plan.tokens if self.streams[name].decoder == key]
            shown = [plan.inputs[name] for name in names]
            inputs = [
                DecoderInput(own.part.key, latents[name], own.mask, own.part.tokens.grid, plan.noises.get(name))
                for name, own in zip(names, shown, strict=True)
            ]
            features |= zip(names, decoder(inputs), strict=True) if names else ()
        return {name: self.heads[self.head_of[name]](features[name]) for name in plan.tokens}

    def term(self, plan: MaskedPlan, stream: str, predictions: Tensor) -> LossTerm:
        """The summed error of predictions (batch, predicted, dim) for a stream; float32 or wider."""
        loss, mask = self.loss_of[stream], plan.masks[stream]
        taught = self._taught(plan, stream)
        with full_precision(predictions.device):
            target = cast("Any", loss).target(plan.tokens[stream], mask.predicted, *taught)
            if taught and self.training:
                self._target_std[stream] = target.detach().flatten(0, 1).std(0, correction=0).mean()
            error = loss.error(predictions, target)
            if self.training and mask.scores is not None:
                learned = self.masker_of[stream].loss(mask, error.detach())
                error = error if learned is None else error + learned
            return LossTerm((error * mask.counted).sum(), plan.counts[stream], predictions)

    def metrics(self) -> dict[str, float]:
        """Standard deviation of a teacher's targets over the tokens of a batch, mean over channels; 0 is collapse."""
        return {f"target_std/{name}": float(value) for name, value in self._target_std.items()}

    def restore(self, plan: MaskedPlan, stream: str, predictions: Tensor, true_statistics: bool = False) -> Tensor:
        """Predictions as raw content, float32: (batch, predicted, content_dim); see `Loss.restore`."""
        mask = plan.masks[stream]
        with full_precision(predictions.device):
            statistics = None if true_statistics else mask.visible
            return self.loss_of[stream].restore(predictions.float(), plan.tokens[stream], mask.predicted, statistics)

    def needs_statistics(self, stream: str) -> bool:
        """Whether the stream's loss predicts normalised content."""
        return self.loss_of[stream].needs_statistics

    def _mask(self, stream: str, tokens: Tokens, context: StepContext) -> Mask:
        if stream in context.given:
            return given_mask(stream, context.given[stream], tokens)
        asked = MaskContext(
            tokens.grid, len(tokens.content), tokens.content.device, context.noise(stream, "mask"), context.step,
            tokens, stream, lambda: self._features(stream, tokens),
        )  # fmt: skip
        try:
            mask = draw_mask(self.masker_of[stream], self.decoder_masker_of.get(stream), asked)
            require_masked(mask, self.masker_of[stream], tokens.grid)
            return mask
        except MaskError as error:
            raise MaskError(f"streams.{stream}.masker: {error}") from error

    @torch.no_grad()
    def _features(self, stream: str, tokens: Tokens) -> Latents:
        """Latents of whole samples, by the encoder as it stands, in evaluation mode."""
        (encoder,) = self._encoder
        training = encoder.training
        encoder.eval()
        mask = nothing_masked(len(tokens.content), tokens.grid, tokens.content.device)
        (latents,) = encoder([EncoderInput((Part(self.modalities[stream].embedding, tokens),), mask)])
        encoder.train(training)
        return latents

    def _build_loss(self, stream: str, config: Component.Config) -> Loss:
        if not components().get("loss", config.name).needs_teacher:
            return build("loss", config)
        (teacher,) = self._teacher
        if teacher is None:
            raise ExperimentError(
                [
                    f"streams.{stream}.loss: {config.name!r} is an error of a teacher's latents, and there is no "
                    "teacher: set model.teacher, to {from: ema} or to the weights of another model"
                ]
            )
        teacher.admit(f"streams.{stream}", self.modalities[stream])
        return build("loss", config, teacher=teacher.encoder)

    def _taught(self, plan: MaskedPlan, stream: str) -> tuple[Latents, ...]:
        """The teacher's latents of whole samples, for losses that need them."""
        (teacher,), loss = self._teacher, self.loss_of[stream]
        if not loss.needs_teacher:
            return ()
        return (teacher.latents([Part(self.modalities[stream].embedding, plan.tokens[stream])], loss.stages),)

    def _build_decoders(self, context: ObjectiveContext) -> dict[str, Decoder]:
        if context.decoder is None:
            raise ExperimentError(["model.decoder: required by the objective 'masked'; such as {name: transformer}"])
        decoders = {}
        for key in dict.fromkeys(part.decoder for part in self.streams.values()):
            # only what its streams use: positions that nobody asks for would be parameters without gradient
            used = {self.modalities[name].embedding for name, part in self.streams.items() if part.decoder == key}
            embeddings = {name: embedding for name, embedding in context.embeddings.items() if name in used}
            decoders[key] = build("decoder", context.decoder, embeddings=embeddings, latent_width=context.encoder.width)
        return decoders

    def _build_heads(self, decoders: Mapping[str, Decoder]) -> dict[str, nn.Linear]:
        heads: dict[str, nn.Linear] = {}
        for name, part in self.streams.items():
            width = decoders[part.decoder].width
            dim, key = self.loss_of[name].prediction_dim(self.modalities[name].spec), self.head_of[name]
            head = heads.get(key)
            if head is None:
                heads[key] = nn.Linear(width, dim)
                initialize(heads[key], xavier=False)
            elif (head.in_features, head.out_features) != (width, dim):
                raise ExperimentError(
                    [
                        f"streams.{name}.head: {key!r} predicts {head.out_features} numbers for an earlier stream "
                        f"and {dim} for this one: give this stream a `head` of its own"
                    ]
                )
        return heads

    def _problems(self) -> list[str]:
        """Names that no module can have, and decoder maskers with weights, which no loss would reach."""
        named: dict[str, str] = {}
        for name, part in self.streams.items():
            named[f"streams.{name}.decoder"] = part.decoder
            if part.head:
                named[f"streams.{name}.head"] = part.head
            if isinstance(self.loss_of[name], nn.Module) or isinstance(self.masker_of[name], nn.Module):
                named[f"streams.{name}"] = name
        return unusable_names(named) + [
            f"streams.{name}.decoder_masker: {masker.config.name!r} has weights, which only a `masker` can train"
            for name, masker in self.decoder_masker_of.items()
            if isinstance(masker, nn.Module)
        ]


def _modules(parts: Mapping[str, object]) -> nn.ModuleDict:
    return nn.ModuleDict({name: part for name, part in parts.items() if isinstance(part, nn.Module)})
