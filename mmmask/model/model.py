"""The model: modalities, one encoder, objectives. Tokens -> plans -> encoder -> losses, for all streams of a step."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from mmmask.interfaces import (
    Encoder,
    EncoderInput,
    Latents,
    Mask,
    Modality,
    Objective,
    Part,
    Plan,
    StepContext,
    Tokens,
)
from mmmask.interfaces.naming import full_name, name_within, stream_of
from mmmask.model.compiling import compile_stages
from mmmask.model.teacher import Teacher
from mmmask.model.tokenizing import Given, batches_of, tokenize, tokenize_all
from mmmask.randomness import Noise, derive_seed, sample_noise
from mmmask_registry import MmmaskError, UnknownName

NOTHING_COUNTS = (
    "its loss is 0 from the start, as if no prediction counted: look at its maskers, and whether samples have values"
)
"""Problem of a stream that would train to the end without learning."""

Shard = Mapping[str, tuple[int, int]]
"""{stream: (first row, rows in all)}: where a batch lies in the global batch. Draws depend on the global row alone."""


@dataclass(frozen=True)
class StreamOutput:
    """One stream's part of a step.

    Attributes:
        loss: scalar, `sum` divided by the counted errors, before the stream's weight.
        sum: scalar, the counted errors of this batch added up.
        count: how many errors of this batch count.
        mask: what was masked and predicted.
        latents: (batch, latents, width) of the encoder, in token order.
        predictions: the head's answers, such as (batch, predicted, dim) in token order.
        prefix: (batch, prefix tokens, width) or None.
        tokens: the samples as tokens.
    """

    loss: Tensor
    sum: Tensor
    count: Tensor | float
    mask: Mask
    latents: Tensor
    predictions: Tensor
    prefix: Tensor | None
    tokens: Tokens


@dataclass(frozen=True)
class Output:
    """A step: the weighted sum of the streams' losses, which is what is optimised, and the streams."""

    loss: Tensor
    streams: dict[str, StreamOutput] = field(default_factory=dict)


class Model(nn.Module):
    """One encoder for all streams, and one object per objective.

    Args:
        modalities: {part: modality}; a stream's only part is named like the stream, others `STREAM/PART`.
        encoder: shared by all streams.
        objectives: {name: objective}, each built with the streams that name it.
        weights: {stream: weight of its loss}.
        parts: {stream: {name within the stream: part}}; by default each stream is its only part.
        seed: of all random draws.
        settings: plain data that the model can be built from again.
        teacher: whose latents the objectives predict; None where there is none.
        shares: {stream: {objective: weight among those of the stream}}; by default what the objectives say, at 1.
        recomputed: {stream: `EncoderInput.activation_checkpointing`}, None where the components' settings decide.
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality],
        encoder: Encoder,
        objectives: Mapping[str, Objective],
        weights: Mapping[str, float],
        seed: int = 0,
        settings: Mapping[str, Any] | None = None,
        parts: Mapping[str, Mapping[str, str]] | None = None,
        teacher: Teacher | None = None,
        shares: Mapping[str, Mapping[str, float]] | None = None,
        recomputed: Mapping[str, bool | None] | None = None,
    ) -> None:
        super().__init__()
        self.parts = {name: {name: name} for name in modalities} if parts is None else dict(parts)
        self.modalities = dict(modalities)
        self.encoder = encoder
        self.objectives = nn.ModuleDict(objectives)
        self.teacher = teacher
        self.seed = seed
        self._recomputed = recomputed or {}
        self._plain_settings = dict(settings or {})
        self._shares = shares or {
            stream: {name: 1.0 for name, own in objectives.items() if stream in own.streams} for stream in weights
        }
        self.weights: dict[str, float] = {}
        self.learned_by: dict[str, tuple[str, str]] = {}  # {target: its objective, and its name there}
        for stream, named in self._shares.items():
            for name, share in named.items():
                for target, weight in objectives[name].weights(stream).items():
                    key = self.target_name(name, target)
                    if key in self.weights:
                        raise MmmaskError(f"streams.{stream}.objectives: two losses are called {key!r}: rename one")
                    self.weights[key] = weights[stream] * share * weight
                    self.learned_by[key] = name, target
        self.train()

    def train(self, mode: bool = True) -> Model:
        """As `nn.Module.train`; a frozen encoder stays in evaluation mode: nothing is dropped."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.encoder.parameters()):
            self.encoder.eval()
        return self

    def plain_settings(self) -> dict[str, Any]:
        """Plain data of an experiment without sources and training, and `classes` where some are learned."""
        return dict(self._plain_settings)

    @property
    def sample_shapes(self) -> dict[str, tuple[tuple[int, ...], ...]]:
        """{stream: shape of each part of a sample}."""
        return {
            stream: tuple(tuple(self.modalities[part].sample_shape) for part in parts.values())
            for stream, parts in self.parts.items()
        }

    @property
    def classes(self) -> dict[str, dict[str, list[str]]]:
        """{stream: {label set: names of its classes}}; numbers as texts where a foreign file told no names."""
        return self._plain_settings.get("classes", {})

    def forward(
        self,
        batch: Mapping[str, Given] | None = None,
        masks: Mapping[str, Tensor | Mask | Mapping[str, Tensor]] | None = None,
        step: int = 0,
        shard: Shard | None = None,
        *,
        plans: Mapping[str, Plan] | None = None,
        counts: Mapping[str, Tensor | float] | None = None,
    ) -> Output:
        """One training step's forward.

        Args:
            batch: {stream: samples (batch, *sample_shape)}, any of the streams; of aligned parts {stream: {part:
                samples}}.
            masks: {stream: bool (batch, tokens), True = masked, or a Mask}; overrides the stream's masker. Of aligned
                parts over the tokens of one part after the other, or {stream: {part: bool (batch, tokens)}}.
            step: of training; draws are a function of (seed, stream, step, row).
            shard: where this batch lies in the global batch; by default it is the global batch.
            plans: what `plan` made of a batch, instead of the batch.
            counts: {stream: what its sum of errors is divided by}, above 0; by default the errors of this batch that
                count, at least 1.

        Raises:
            UnknownName: a stream that the experiment does not have.
            MmmaskError: a sample or a mask does not fit.
        """
        if plans is None:
            plans = self.plan(batch or {}, masks, step, shard)
        latents = self.latents(plans)
        streams: dict[str, StreamOutput] = {}
        for name, plan in plans.items():
            terms = self.objective_named(name).losses(plan, latents[name])
            for own, term in terms.items():
                target, stream = self.target_name(name, own), stream_of(own)
                shown = next(key for key in plan.inputs if stream_of(key) == stream)
                tokens = term.tokens or next(part for key, part in plan.tokens.items() if stream_of(key) == stream)
                streams[target] = StreamOutput(
                    term.sum / (at_least_one(term.count) if counts is None else counts[target]),
                    term.sum, term.count, term.mask or plan.inputs[shown].mask, latents[name][shown].values,
                    term.predictions, latents[name][shown].prefix, tokens,
                )  # fmt: skip
        loss = torch.stack([self.weights[target] * output.loss for target, output in streams.items()]).sum()
        return Output(loss, streams)

    def plan(
        self,
        batch: Mapping[str, Given],
        masks: Mapping[str, Tensor | Mask | Mapping[str, Tensor]] | None = None,
        step: int = 0,
        shard: Shard | None = None,
        objectives: Collection[str] | None = None,
    ) -> dict[str, Plan]:
        """{objective: all randomness and all counts of a batch}; arguments as of `forward`.

        Args:
            objectives: those that are wanted; by default all of the streams.
        """
        batches = batches_of(self.parts, batch)
        tokens = tokenize_all(self.modalities, self.parts, batches)
        if unknown := set(masks or {}) - set(batches):
            raise MmmaskError(f"masks: {sorted(unknown)} are not in the batch, which holds {sorted(batches)}")
        context = StepContext(step, self._noise(tokens, step, shard or {}), masks or {}, self.training)
        plans = {}
        for name in dict.fromkeys(name for stream in batches for name in self._shares[stream]):
            if objectives is not None and name not in objectives:
                continue
            own = {stream: part for stream, part in batches.items() if name in self._shares[stream]}
            shown = {part: tokens[part] for stream in own for part in self.parts[stream].values()}
            plan = self.objective_named(name).plan(shown, own, context)
            inputs = {
                key: replace(
                    own,
                    noise=self._input_noise(context, name, key) if self.encoder.training else own.noise,
                    activation_checkpointing=self._recomputed.get(stream_of(key)),
                )
                for key, own in plan.inputs.items()
            }
            plans[name] = replace(plan, inputs=inputs)
        return plans

    def counts(self, plans: Mapping[str, Plan]) -> dict[str, Tensor | float]:
        """{target: how many errors enter its loss}."""
        return {
            self.target_name(name, key): count for name, plan in plans.items() for key, count in plan.counts.items()
        }

    def latents(self, plans: Mapping[str, Plan]) -> dict[str, dict[str, Latents]]:
        """{objective: {input of its plan: latents}}, by one call of the encoder."""
        asked = sorted({number for plan in plans.values() for number in plan.stages})
        found = iter(self.encoder([shown for plan in plans.values() for shown in plan.inputs.values()], asked))
        return {
            name: {key: _with_stages(next(found), asked, plan.stages) for key in plan.inputs}
            for name, plan in plans.items()
        }

    def tokenize(self, part: str, samples: Tensor) -> Tokens:
        """The samples of one part as tokens; raises as `mmmask.model.tokenizing.tokenize`."""
        return tokenize(self.modalities, part, samples)

    def encode(self, batch: Mapping[str, Given], stages: Sequence[int] = ()) -> dict[str, Latents]:
        """{stream: Latents} of whole samples, values (batch, tokens, width) in token order.

        Args:
            batch: {stream: samples}.
            stages: numbers of the encoder's stages whose outputs are wanted as `Latents.stages`.

        Raises:
            MmmaskError: the batch is empty, some samples do not fit, or there is no such stage.
        """
        return dict(zip(batch, self.encoder(self._unmasked(batch), stages), strict=True))

    def feature_maps(self, batch: Mapping[str, Given]) -> dict[str, list[Tensor]]:
        """Features of whole samples, laid out on grids, finest first: {stream: (batch, channels, *grid) each}.

        Raises:
            MmmaskError: the batch is empty, or some samples do not fit.
        """
        return dict(zip(batch, self.encoder.feature_maps(self._unmasked(batch)), strict=True))

    def features(self, batch: Mapping[str, Given]) -> dict[str, Tensor]:
        """{stream: (batch, width)} of whole samples, as their objectives pool them: what a classifier's head sees.

        Raises:
            MmmaskError: the batch is empty, or some samples do not fit.
        """
        return {name: self.objective(name).features(name, latents) for name, latents in self.encode(batch).items()}

    def logits(self, batch: Mapping[str, Given]) -> dict[str, Tensor]:
        """{stream: (batch, classes)} of whole samples, label sets side by side in the stream's order.

        Raises:
            MmmaskError: the batch is empty, some samples do not fit, or a stream has no classes.
        """
        found = {}
        for name, latents in self.encode(batch).items():
            if not (logits := self.objective(name).logits(name, latents)):
                raise MmmaskError(
                    f"streams.{name}: its objective, {next(iter(self._shares[name]))}, has no logits: take features or "
                    "encode"
                )
            found[name] = torch.cat(list(logits.values()), dim=1)
        return found

    def objective(self, stream: str, name: str | None = None) -> Any:  # noqa: ANN401 - the Objective; its own methods are its evaluators' affair
        """Objective of a stream, or of a part of it.

        Args:
            name: of the objective; by default of several the one that learns labels, or else the first, whose features
                and logits are the stream's.

        Raises:
            UnknownName: there is no such stream, or it does not have the objective.
        """
        stream = stream_of(stream)
        if stream not in self._shares:
            raise UnknownName("stream", stream, self._shares)
        known = self._shares[stream]
        if name is not None and name not in known:
            raise UnknownName(f"objective of streams.{stream}", name, known)
        labelled = (each for each in known if self.objective_named(each).needs_labels)
        return self.objectives[name or next(labelled, next(iter(known)))]

    def objectives_of(self, stream: str) -> dict[str, Any]:
        """{name: objective} of a stream, in its order."""
        return {name: self.objectives[name] for name in self._shares[stream]}

    def objective_named(self, name: str) -> Any:  # noqa: ANN401 - ModuleDict says Module
        """The objective of this name."""
        return self.objectives[name]

    def target_name(self, objective: str, target: str) -> str:
        """Full name of an objective's target: with several objectives, `STREAM/OBJECTIVE` where it has one."""
        alone = len(self._shares[stream_of(target)]) == 1 or name_within(target)
        return target if alone else full_name(target, objective)

    def counts_vary(self, streams: Iterable[str]) -> bool:
        """Whether some of these streams count another number of errors from batch to batch."""
        named = [stream_of(stream) for stream in streams]
        return any(stream in own.counts_vary for stream in named for own in self.objectives_of(stream).values())

    def after_step(self, step: int) -> None:
        """Called after every optimiser step: the teacher follows, then objectives."""
        if self.teacher is not None:
            self.teacher.update(self.encoder, step)
        for name in self.objectives:
            self.objective_named(name).after_step(step)

    def metrics(self) -> dict[str, float]:
        """Figures of the last step that objectives tell besides losses."""
        return {key: value for name in self.objectives for key, value in self.objective_named(name).metrics().items()}

    def compile(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - as nn.Module.compile
        """Compiles the stages; masks and losses stay as they are, outside of graphs."""
        compile_stages(self.stages, **kwargs)

    @property
    def stages(self) -> list[nn.Module]:
        """The stages of encoder, objectives and teacher: what is compiled, sharded and recomputed one by one."""
        own = [stage for name in self.objectives for stage in self.objective_named(name).stages]
        taught = [] if self.teacher is None else self.teacher.encoder.stages
        return [*self.encoder.stages, *own, *taught]

    def _unmasked(self, batch: Mapping[str, Given]) -> list[EncoderInput]:
        """Encoder inputs with nothing masked, in the order of the batch; a part may stand for a stream of its own."""
        known = {part: {part: part} for part in self.modalities} | self.parts
        batches = batches_of(known, batch)
        tokens = tokenize_all(self.modalities, known, batches)
        inputs = []
        for stream in batches:
            parts = tuple(Part(self.modalities[part].embedding, tokens[part]) for part in known[stream].values())
            inputs.append(EncoderInput.whole(*parts))
        return inputs

    def _input_noise(self, context: StepContext, objective: str, key: str) -> Noise:
        stream, name = stream_of(key), name_within(key)
        several = len(self._shares[stream]) > 1
        return context.noise(stream, "/".join(filter(None, ("encoder", name, objective if several else ""))))

    def _noise(self, tokens: Mapping[str, Tokens], step: int, shard: Shard) -> Callable[[str, str], Noise]:
        def noise(stream: str, purpose: str) -> Noise:
            content = tokens[next(iter(self.parts[stream].values()))].content
            first, total = shard.get(stream) or (0, len(content))
            return sample_noise(derive_seed(self.seed, purpose, stream, step), first, total, content.device)

        return noise


def _with_stages(latents: Latents, asked: Sequence[int], wanted: Sequence[int]) -> Latents:
    """Latents with the outputs of the wanted stages only, of those asked for."""
    if not asked:
        return latents
    return replace(latents, stages=tuple(latents.stages[asked.index(number)] for number in wanted))


def at_least_one(count: Tensor | float) -> Tensor | float:
    """Divisor of a sum of errors: 1 where none counts."""
    return count.clamp(min=1) if isinstance(count, Tensor) else max(1.0, count)
