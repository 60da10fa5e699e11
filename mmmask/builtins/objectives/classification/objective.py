"""Classification: which class a sample is of, from pooled latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from mmmask.builtins.objectives.classification.mixing import Mixing
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
    Pool,
    StepContext,
    Tokens,
    build,
)
from mmmask.model.build import unusable_names
from mmmask.model.precision import full_precision
from mmmask.randomness import Noise
from mmmask_registry import MmmaskError

Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Target:
    """Soft targets of a label set.

    Attributes:
        classes: (batch, classes) float32.
        known: (batch,) bool, False for samples without a label.
    """

    classes: Tensor
    known: Tensor


@dataclass(frozen=True)
class ClassificationPlan(Plan):
    """A plan, {stream: {label set: target}}, and in training the noise of dropout."""

    targets: Mapping[str, Mapping[str, Target]]
    noises: Mapping[str, Noise]


class ClassificationObjective(Objective):
    """Predicts the classes of samples; nothing is masked. Parts of a sample are encoded together, and pooled as one.

    loss = sum(error of a labelled sample) / number of labelled samples; the error is cross-entropy, or with sigmoids
    the mean binary cross-entropy over classes, added up over the label sets.
    """

    class Config(Objective.Config):
        pool: Annotated[Component.Config, ChosenByName("pool")] = Field(
            default="mean", validate_default=True, description="one vector out of the latents of a sample"
        )
        norm: Literal["none", "layer", "batch"] = Field(
            default="layer",
            description="normalisation of pooled features: layer (fine-tuning of MAE and its relatives), batch without "
            "learned factors (MAE's linear probe), or none",
        )
        norm_epsilon: float = Field(default=1e-6, gt=0, description="epsilon of that normalisation")
        dropout: float = Field(default=0.0, ge=0, lt=1, description="share of features dropped before the last layer")
        head: str | None = Field(
            default=None,
            pattern=r"^[A-Za-z0-9_]+$",
            description="streams with one name share pool, norm and head; default: the stream's own",
        )
        head_std: float = Field(default=2e-5, ge=0, description="standard deviation of the head's initial weights")
        activation: Literal["softmax", "sigmoid"] = Field(
            default="softmax", description="softmax: one class a sample; sigmoid: each class for itself"
        )
        label_smoothing: Share = Field(default=0.0, description="share of the target that is spread over all classes")
        class_weights: dict[str, Annotated[float, Field(ge=0)]] = Field(
            default={}, description="{class: factor of its part of the error}; 1 for those not named"
        )
        label_sets: tuple[str, ...] | None = Field(
            default=None, description="which label sets of the source are learned, such as [verb, noun]; null: all"
        )
        unlabelled: bool = Field(
            default=False, description="whether samples without a label may be among them; they do not count"
        )
        mixup: float = Field(default=0.0, ge=0, le=100, description="alpha of mixup's Beta distribution; 0: no mixup")
        cutmix: float = Field(default=0.0, ge=0, le=100, description="alpha of CutMix's Beta distribution; 0: none")
        mix_probability: Share = Field(default=1.0, description="of mixing a pair of samples")
        switch_probability: Share = Field(default=0.5, description="of CutMix instead of mixup, where both are on")
        views: tuple[Annotated[int, Field(gt=0, le=1000)], Annotated[int, Field(gt=0, le=1000)]] = Field(
            default=(1, 1), description="clips and crops of a sample whose probabilities `mmmask evaluate` averages"
        )

    evaluators = ("classification",)
    needs_labels = True

    def __init__(self, streams: Mapping[str, Any], context: ObjectiveContext) -> None:
        super().__init__(streams, context)
        self.parts = {name: tuple(context.parts.get(name, {name: name}).values()) for name in streams}
        self.modalities = {part: context.modalities[part] for own in self.parts.values() for part in own}
        self.classes = {name: _learned_classes(name, part, context.classes) for name, part in streams.items()}
        self.head_of = {name: part.head or name for name, part in streams.items()}
        self.head_of |= {part: self.head_of[name] for name, own in self.parts.items() for part in own}
        self.mixing = {
            name: Mixing(part.mixup, part.cutmix, part.mix_probability, part.switch_probability, part.replicate)
            for name, part in streams.items()
            if part.mixup or part.cutmix
        }
        self.heads = nn.ModuleDict()
        first: dict[str, str] = {}
        for name, part in streams.items():
            key = self.head_of[name]
            earlier = first.setdefault(key, name)
            if earlier != name and (
                self.classes[earlier] != self.classes[name] or _head_settings(streams[earlier]) != _head_settings(part)
            ):
                raise ExperimentError(
                    [
                        f"streams.{name}.head: {key!r} belongs to {earlier!r}, which has other classes or another "
                        "pool, norm or head_std: give this stream a head of its own"
                    ]
                )
            if earlier == name:
                if problems := unusable_names(
                    {f"streams.{name}.head": key} | {f"streams.{name}.label_sets": s for s in self.classes[name]}
                ):
                    raise ExperimentError(problems)
                self.heads[key] = ClassificationHead(part, context.encoder.width, self.classes[name])
        # tables of constants, not saved: settings and classes tell them
        for name, part in streams.items():
            for label_set, names in self.classes[name].items():
                factors = torch.tensor([part.class_weights.get(each, 1.0) for each in names])
                self.register_buffer(f"_factors_{name}_{label_set}", factors, persistent=False)
        self._problems()

    @property
    def counts_vary(self) -> tuple[str, ...]:
        """Streams in which samples may lack labels."""
        return tuple(name for name, part in self.streams.items() if part.unlabelled)

    def plan(
        self, tokens: Mapping[str, Tokens], batches: Mapping[str, Batch], context: StepContext
    ) -> ClassificationPlan:
        """Makes soft targets, and in training mixes pairs of samples.

        A batch without labels has a count of 0: its logits are wanted, and no loss.

        Raises:
            MmmaskError: labels that do not fit the classes, or samples that cannot be mixed.
        """
        inputs: dict[str, EncoderInput] = {}
        counts: dict[str, Tensor | float] = {}
        targets: dict[str, dict[str, Target]] = {}
        for name in batches:
            own = [tokens[part] for part in self.parts[name]]
            rows, device = len(own[0].content), own[0].content.device
            found = {
                key: self._target(name, key, batches[name].labels.get(key), rows, device) for key in self.classes[name]
            }
            shown = own
            if context.training and name in self.mixing and batches[name].labels:
                shown, found = self._mixed(name, own, found, context.noise(name, "mixing"))
            keys = (self.modalities[part].embedding for part in self.parts[name])
            inputs[name] = EncoderInput.whole(*map(Part, keys, shown))
            targets[name] = found
            varies = self.streams[name].unlabelled or not batches[name].labels
            labelled = torch.stack([target.known for target in found.values()])
            counts[name] = labelled.any(0).sum() if varies else float(rows)
        noises = {name: context.noise(name, "head") for name in batches} if context.training else {}
        return ClassificationPlan(tokens, batches, inputs, counts, targets, noises)

    def losses(self, plan: ClassificationPlan, latents: Mapping[str, Latents]) -> dict[str, LossTerm]:  # pyright: ignore[reportIncompatibleMethodOverride] - its own plan
        """The summed error of every stream; `predictions` are the logits of its label sets, side by side."""
        terms = {}
        for name, found in latents.items():
            logits = self.logits(name, found, plan.noises.get(name))
            with full_precision(found.values.device):
                error = sum(
                    (self._error(name, key, part.float(), plan.targets[name][key]) for key, part in logits.items()),
                    start=found.values.new_zeros((), dtype=torch.float32),
                )
            first = plan.tokens[self.parts[name][0]]
            terms[name] = LossTerm(error, plan.counts[name], torch.cat(list(logits.values()), dim=1), first)
        return terms

    def features(self, stream: str, latents: Latents) -> Tensor:
        """(batch, width) of a stream, or of one of its parts, pooled and normalised: what the last layers see."""
        head = cast(ClassificationHead, self.heads[self.head_of[stream]])
        return head.norm(head.pool(latents))

    def logits(self, stream: str, latents: Latents, noise: Noise | None = None) -> dict[str, Tensor]:
        """{label set: (batch, classes)} of a stream; of a part alone classes are not told.

        Args:
            noise: of dropout; None outside training.
        """
        features = self.features(stream, latents)
        if noise is not None and (rate := self.streams[stream].dropout):
            features = (features / (1 - rate)).masked_fill(noise(tuple(features.shape)) < rate, 0.0)
        linear = cast(ClassificationHead, self.heads[self.head_of[stream]]).linear
        return {label_set: linear[label_set](features) for label_set in self.classes.get(stream, ())}

    def probabilities(self, stream: str, logits: Tensor) -> Tensor:
        """(batch, classes), by the stream's activation; float32."""
        logits = logits.float()
        return logits.sigmoid() if self.streams[stream].activation == "sigmoid" else logits.softmax(-1)

    def _error(self, stream: str, label_set: str, logits: Tensor, target: Target) -> Tensor:
        """The summed error of (batch, classes); rows without a label have none."""
        factors = self.get_buffer(f"_factors_{stream}_{label_set}")
        if self.streams[stream].activation == "softmax":
            error = -(target.classes * factors * logits.log_softmax(-1)).sum(1)
        else:
            error = F.binary_cross_entropy_with_logits(logits, target.classes, factors, reduction="none").mean(1)
        return (error * target.known).sum()

    def _target(self, stream: str, label_set: str, labels: Tensor | None, rows: int, device: torch.device) -> Target:
        """Smoothed targets of numbers (batch,), or zeros and ones (batch, classes); -1 is no label."""
        count, where = len(self.classes[stream][label_set]), f"streams.{stream}: label set {label_set!r}"
        if labels is None:
            labels = torch.full((rows,), -1, device=device)
        if labels.dim() == 2:
            if labels.shape[1] != count:
                raise MmmaskError(f"{where}: labels (batch, {labels.shape[1]}) where there are {count} classes")
            classes, known = labels.float().clamp(min=0), (labels >= 0).all(1)
        else:
            if labels.is_cpu and rows and int(labels.max()) >= count:  # elsewhere a check would synchronise
                raise MmmaskError(f"{where}: class {int(labels.max())} where there are {count}, 0 to {count - 1}")
            classes, known = F.one_hot(labels.clamp(min=0), count).float(), labels >= 0
        smoothing = self.streams[stream].label_smoothing
        return Target(classes * (1 - smoothing) + smoothing / count, known)

    def _mixed(
        self, stream: str, tokens: Sequence[Tokens], targets: Mapping[str, Target], noise: Noise
    ) -> tuple[list[Tokens], dict[str, Target]]:
        labelled = torch.stack([target.known for target in targets.values()]).all(0)
        try:
            mixed, own = self.mixing[stream](tokens, noise, labelled)
        except MmmaskError as error:
            raise MmmaskError(f"streams.{stream}: {error}") from error
        mixed_targets = {}
        for key, target in targets.items():
            other = self.mixing[stream].others(target.classes)
            mixed_targets[key] = Target(torch.lerp(other, target.classes, own.unsqueeze(1)), target.known)
        return mixed, mixed_targets

    def _problems(self) -> None:
        problems = []
        for name, part in self.streams.items():
            known = {each for names in self.classes[name].values() for each in names}
            if strange := sorted(part.class_weights.keys() - known):
                problems.append(f"streams.{name}.class_weights: {strange[0]!r} is no class of the source")
            if len(self.parts[name]) > 1:
                problems += self._problems_of_parts(name, part)
        if problems:
            raise ExperimentError(problems)

    def _problems_of_parts(self, stream: str, settings: Any) -> list[str]:  # noqa: ANN401 - a stream's
        problems, own = [], [self.modalities[part] for part in self.parts[stream]]
        if settings.missing == "mask":
            problems.append(f"streams.{stream}.missing: nothing is masked in classification: set skip")
        grids = dict.fromkeys(modality.grid(modality.sample_shape) for modality in own)
        if settings.cutmix and len(grids) > 1:
            known = " and ".join(" x ".join(map(str, grid)) for grid in grids)
            problems.append(
                f"streams.{stream}.cutmix: parts of {known} tokens have no box in common: set it to 0; mixup takes any"
            )
        return problems


class ClassificationHead(nn.Module):
    """Pool, norm, and a linear layer for each label set."""

    def __init__(self, settings: Any, width: int, classes: Mapping[str, Sequence[str]]) -> None:  # noqa: ANN401 - a stream's
        super().__init__()
        self.pool: Pool = build("pool", settings.pool, width=width)
        self.norm: nn.Module = nn.Identity()
        if settings.norm == "layer":
            self.norm = nn.LayerNorm(width, eps=settings.norm_epsilon)
        elif settings.norm == "batch":
            self.norm = nn.BatchNorm1d(width, eps=settings.norm_epsilon, affine=False)
        self.linear = nn.ModuleDict({label_set: nn.Linear(width, len(names)) for label_set, names in classes.items()})
        for linear in cast("list[nn.Linear]", list(self.linear.values())):
            nn.init.normal_(linear.weight, std=settings.head_std)
            nn.init.zeros_(linear.bias)


def _head_settings(settings: Any) -> list[Any]:  # noqa: ANN401 - a stream's
    return [settings.pool, settings.norm, settings.norm_epsilon, settings.head_std]


def _learned_classes(
    stream: str,
    settings: Any,  # noqa: ANN401 - a stream's
    classes: Mapping[str, Mapping[str, Sequence[str]]],
) -> dict[str, tuple[str, ...]]:
    """{label set: names of its classes} of a stream.

    Raises:
        ExperimentError: its source has no labels, or none of a set.
    """
    found = classes.get(stream, {})
    where = f"streams.{stream}"
    if not found:
        raise ExperimentError([f"{where}.source: the objective classification needs labels, and the source has none"])
    wanted = found if settings.label_sets is None else settings.label_sets
    if missing := [label_set for label_set in wanted if label_set not in found]:
        raise ExperimentError([f"{where}.label_sets: {missing[0]!r} is none of the source's: {', '.join(found)}"])
    if not wanted:
        raise ExperimentError([f"{where}.label_sets: name at least one of the source's: {', '.join(found)}"])
    return {label_set: tuple(found[label_set]) for label_set in wanted}
