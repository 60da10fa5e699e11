"""Masked modelling: a decoder predicts what the encoder was not shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from mmmask.experiment.errors import ExperimentError
from mmmask.experiment.settings import PartName
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
    StrictModel,
    Tokens,
    build,
    one_of,
)
from mmmask.interfaces.naming import full_name, name_within, stream_of
from mmmask.model.blocks import initialize
from mmmask.model.build import unusable_names
from mmmask.model.masks import (
    MaskError,
    draw_mask,
    given_mask,
    joined_given,
    joined_masks,
    mask_of_part,
    require_masked,
)
from mmmask.model.precision import full_precision
from mmmask.randomness import Noise

MaskerChoice = Annotated[Component.Config, ChosenByName("masker")]
LossChoice = Annotated[Component.Config, ChosenByName("loss")]


KnownLatents = dict[tuple[tuple[str, ...], tuple[int, ...]], Latents]
"""{(parts that the teacher saw, stages asked for): its latents}."""


@dataclass(frozen=True)
class MaskedPlan(Plan):
    """A plan, the mask of the part that every target predicts, and in training the noise of its decoder."""

    masks: Mapping[str, Mask]
    noises: Mapping[str, Noise]


DecoderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$", description="targets with one name share a decoder")]
HeadName = Annotated[
    str | None,
    Field(pattern=r"^[A-Za-z0-9_]+$", description="targets with one name share a head; default: the embedding's"),
]


class TargetSettings(StrictModel):
    """One of several predictions of a stream."""

    part: str | None = Field(default=None, description="the part that is predicted; default: that of the target's name")
    loss: LossChoice = Field(description="what is predicted, and how far off a prediction is")
    decoder: DecoderName = "shared"
    head: HeadName = None
    weight: float = Field(default=1.0, ge=0, description="weight of this loss among those of the stream")
    average: Literal["tokens", "samples"] = Field(
        default="tokens",
        description="mean over all predicted tokens that count, or over samples of the mean of each (MultiMAE)",
    )


@dataclass(frozen=True)
class Target:
    """A prediction: the full names of its stream and part, the part's place in the sample, and its settings."""

    stream: str
    part: str
    number: int
    settings: TargetSettings


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
        self._encoder = (context.encoder,)  # in a tuple: registered once, by the model
        self._teacher: tuple[Any] = (context.teacher,)
        self._target_std: dict[str, Tensor] = {}
        self.targets: dict[str, Target] = {}
        self.masker_of: dict[str, Masker] = {}
        for name, settings in streams.items():
            self.targets |= _targets(name, settings, parts[name])
            self.masker_of |= _maskers(name, settings, parts[name])
        self.loss_of: dict[str, Loss] = {name: self._build_loss(name) for name in self.targets}
        self.decoder_masker_of: dict[str, Masker] = {
            name: build("masker", part.decoder_masker) for name, part in streams.items() if part.decoder_masker
        }
        self.head_of = {
            name: target.settings.head or self.modalities[target.part].embedding
            for name, target in self.targets.items()
        }
        if problems := self._problems():
            raise ExperimentError(problems)
        decoders = self._build_decoders(context)
        self.decoders = nn.ModuleDict(decoders)
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
            mask, of_parts = self._masks(stream, own, context)
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
        return MaskedPlan(tokens, batches, inputs, counts, masks, noises)

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
        """What a target's predictions are compared with: (batch, predicted, ...); arguments as of `term`."""
        mask, tokens = plan.masks[target], plan.tokens[self.targets[target].part]
        taught = self._taught(plan, target, {} if known is None else known)
        with full_precision(mask.predicted.device):
            return cast("Any", self.loss_of[target]).target(tokens, mask.predicted, *taught)

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
        several = averaged or len(parts) > 1 and (stream in self.masker_of or self.streams[stream].missing == "mask")
        gaps = any(self.modalities[part].spec.gaps for part in parts)
        return several or gaps or stream in self.decoder_masker_of

    def _decoder_input(self, plan: MaskedPlan, target: str, latents: Mapping[str, Latents]) -> DecoderInput:
        own = self.targets[target]
        shown = plan.inputs[own.stream]
        part = shown.parts[own.number]
        layout = shown.layout if len(shown.parts) > 1 else ()
        noise = plan.noises.get(target)
        return DecoderInput(
            part.key, latents[own.stream], plan.masks[target], part.tokens.grid, noise, layout, own.number
        )

    def _masks(self, stream: str, tokens: Mapping[str, Tokens], context: StepContext) -> tuple[Mask, dict[str, Mask]]:
        """The mask of a sample's tokens, and {part: the mask of its own}."""
        contents = {part: own.content for part, own in tokens.items()}
        sizes = {part: content.shape[1] for part, content in contents.items()}
        (rows, *_), device = next((content.shape, content.device) for content in contents.values())
        given = context.given.get(stream)
        if isinstance(given, Mapping):
            given = joined_given(stream, given, {name_within(part): size for part, size in sizes.items()}, rows)
        if given is None and stream not in self.masker_of:
            masks = {}
            for part, own in tokens.items():
                noise = context.noise(stream, f"mask/{name_within(part)}")
                look = partial(self._features, part, own)
                asked = MaskContext(own.grid, rows, device, noise, context.step, own, part, look)
                masks[part] = self._drawn(part, f"maskers.{name_within(part)}", stream, asked, whole=True)
            try:
                return joined_masks(list(masks.values())), masks
            except MaskError as error:
                raise MaskError(f"streams.{stream}.maskers: {error}") from error
        alone = tokens[stream] if stream in tokens and len(tokens) == 1 else None
        valid = _joined_valid(tokens)
        if given is not None:
            mask = given_mask(stream, given, (rows, sum(sizes.values())), device)
        else:
            grid = (sum(sizes.values()),) if alone is None else alone.grid
            parts = {} if alone is not None else {name_within(part): size for part, size in sizes.items()}
            look = None if alone is None else partial(self._features, stream, alone)
            noise = context.noise(stream, "mask")
            asked = MaskContext(grid, rows, device, noise, context.step, alone, stream, look, parts)
            mask = self._drawn(stream, "masker", stream, asked, valid)
        if alone is not None:
            return mask, {stream: mask}
        first, of_parts = 0, {}
        for part, size in sizes.items():
            of_parts[part] = mask_of_part(mask, first, size, valid)
            first += size
        return mask, of_parts

    def _drawn(
        self, name: str, key: str, stream: str, asked: MaskContext, valid: Tensor | None = None, whole: bool = False
    ) -> Mask:
        masker = self.masker_of[name]
        try:
            mask = draw_mask(masker, self.decoder_masker_of.get(name), asked, valid, whole)
            if not whole:
                require_masked(mask, masker, asked.grid)
            return mask
        except MaskError as error:
            raise MaskError(f"streams.{stream}.{key}: {error}") from error

    @torch.no_grad()
    def _features(self, part: str, tokens: Tokens) -> Latents:
        """Latents of whole samples, by the encoder as it stands, in evaluation mode."""
        (encoder,) = self._encoder
        training = encoder.training
        encoder.eval()
        (latents,) = encoder([EncoderInput.whole(Part(self.modalities[part].embedding, tokens))])
        encoder.train(training)
        return latents

    def _build_loss(self, target: str) -> Loss:
        own = self.targets[target]
        config = cast("Loss.Config", own.settings.loss)
        if not config.needs_teacher:
            return build("loss", config)
        (teacher,) = self._teacher
        if teacher is None:
            raise ExperimentError(
                [
                    f"{_where(target)}.loss: {config.name!r} is of a teacher's latents, and there is no "
                    "teacher: set model.teacher, to {from: ema} or to the weights of another model"
                ]
            )
        for part in self._shown(target):
            teacher.admit(f"streams.{own.stream}", self.modalities[part])
        return build("loss", config, teacher=teacher.encoder)

    def _shown(self, target: str) -> tuple[str, ...]:
        """Parts that the teacher sees: a moving average all of the sample, another encoder the predicted one alone."""
        own, (teacher,) = self.targets[target], self._teacher
        return self.parts[own.stream] if teacher.follows else (own.part,)

    def _taught(self, plan: MaskedPlan, target: str, known: KnownLatents) -> tuple[Latents, ...]:
        """The teacher's latents of the predicted part, in whole samples, for losses that need them."""
        (teacher,), loss = self._teacher, self.loss_of[target]
        if not loss.config.needs_teacher:
            return ()
        names, stages = self._shown(target), tuple(loss.stages)
        if (names, stages) not in known:
            parts = [Part(self.modalities[name].embedding, plan.tokens[name]) for name in names]
            known[names, stages] = teacher.latents(parts, stages)
        latents = known[names, stages]
        if len(names) == 1:
            return (latents,)
        sizes = [plan.tokens[name].content.shape[1] for name in names]
        number = names.index(self.targets[target].part)
        values, *outputs = (part.split(sizes, dim=1)[number] for part in (latents.values, *latents.stages))
        return (replace(latents, values=values, index=None, stages=tuple(outputs)),)

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
                        f"{_where(name)}.head: {key!r} predicts {head.out_features} numbers for an earlier stream or "
                        f"target and {dim} for this one: give this one a `head` of its own"
                    ]
                )
        return heads

    def _problems(self) -> list[str]:
        """Names that no module can have, and decoder maskers that cannot be."""
        named: dict[str, str] = {}
        for name, target in self.targets.items():
            named[f"{_where(name)}.decoder"] = target.settings.decoder
            if target.settings.head:
                named[f"{_where(name)}.head"] = target.settings.head
            if isinstance(self.loss_of[name], nn.Module):
                named[f"streams.{name}"] = name
        named |= {f"streams.{name}": name for name, masker in self.masker_of.items() if isinstance(masker, nn.Module)}
        return [
            *unusable_names(named),
            *(
                f"streams.{name}.decoder_masker: {masker.config.name!r} has weights, which only a `masker` can train"
                for name, masker in self.decoder_masker_of.items()
                if isinstance(masker, nn.Module)
            ),
            *(
                f"streams.{name}.decoder_masker: of aligned parts all that is masked is decoded: leave it out"
                for name in self.decoder_masker_of
                if len(self.parts[name]) > 1
            ),
        ]


def _targets(stream: str, settings: Any, parts: Mapping[str, str]) -> dict[str, Target]:  # noqa: ANN401 - a stream's
    """{full name: target} of a stream.

    Raises:
        ExperimentError: one has no part, or a stream of several parts says what to predict of none.
    """
    places = {part: number for number, part in enumerate(parts.values())}
    (alone, *others) = parts
    if settings.targets is None:
        if others:
            raise ExperimentError([f"streams.{stream}.loss: of several parts; set targets, one for each prediction"])
        own = TargetSettings(loss=settings.loss, decoder=settings.decoder, head=settings.head)
        return {stream: Target(stream, parts[alone], 0, own)}
    found = {}
    for name, own in settings.targets.items():
        short = own.part or (name if others else alone)
        if short not in parts:
            raise ExperimentError([f"streams.{stream}.targets.{name}.part: {short!r} is none of {', '.join(parts)}"])
        part = parts[short]
        found[full_name(stream, name)] = Target(stream, part, places[part], own)
    return found


def _maskers(stream: str, settings: Any, parts: Mapping[str, str]) -> dict[str, Masker]:  # noqa: ANN401 - a stream's
    """The stream's masker by its name, or those of its parts by theirs.

    Raises:
        ExperimentError: maskers of other parts than the stream has.
    """
    if settings.maskers is None:
        return {stream: build("masker", settings.masker)}
    if settings.maskers.keys() != parts.keys() or len(parts) == 1:
        raise ExperimentError([f"streams.{stream}.maskers: one for each of the stream's parts, {', '.join(parts)}"])
    return {part: build("masker", settings.maskers[short]) for short, part in parts.items()}


def _where(target: str) -> str:
    """Key of a target's settings."""
    stream, name = stream_of(target), name_within(target)
    return f"streams.{stream}.targets.{name}" if name else f"streams.{stream}"


def _joined_valid(tokens: Mapping[str, Tokens]) -> Tensor | None:
    """(batch, tokens of all parts) bool, None where all are valid."""
    if all(own.valid is None for own in tokens.values()):
        return None
    return torch.cat(
        [
            torch.ones_like(own.content[..., 0], dtype=torch.bool) if own.valid is None else own.valid
            for own in tokens.values()
        ],
        dim=1,
    )


def _modules(parts: Mapping[str, object]) -> nn.ModuleDict:
    return nn.ModuleDict({name: part for name, part in parts.items() if isinstance(part, nn.Module)})
