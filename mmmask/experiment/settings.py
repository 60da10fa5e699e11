"""Every key of an experiment file."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field, PlainSerializer, PlainValidator, PrivateAttr, create_model, model_validator
from pydantic_core import PydanticCustomError

from mmmask.components import components
from mmmask.experiment.compose import dump_yaml
from mmmask.interfaces import Objective, Optimizer
from mmmask.interfaces.component import ChosenByName, Component, StrictModel, one_of, validate_strictly
from mmmask.interfaces.naming import full_name
from mmmask_registry import MmmaskError

EncoderChoice = Annotated[Component.Config, ChosenByName("encoder")]
DecoderChoice = Annotated[Component.Config, ChosenByName("decoder")]
ModalityChoice = Annotated[Component.Config, ChosenByName("modality")]
SourceChoice = Annotated[Component.Config, ChosenByName("source")]
EvaluatorChoice = Annotated[Component.Config, ChosenByName("evaluator")]
OptimizerChoice = Annotated[Optimizer.Config, ChosenByName("optimizer", default="adamw")]
CallbackChoice = Annotated[Component.Config, ChosenByName("callback")]

PartName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")]

Trainable = (
    Literal["all", "none"]
    | Annotated[int, Field(gt=0)]
    | Annotated[float, Field(gt=0, multiple_of=0.5)]
    | Annotated[tuple[str, ...], Field(min_length=1)]
)


class _SourceOfWeights(StrictModel):
    """Source of weights: a mapping, or `from` alone."""

    format: str | None = Field(default=None, description="layout of the file; null: told by its keys")
    options: dict[str, Any] = Field(
        default_factory=dict, description="what the file's keys do not tell, as its format needs: {num_heads: 12}"
    )

    @model_validator(mode="before")
    @classmethod
    def _from_alone(cls, data: Any) -> Any:  # noqa: ANN401 - raw input
        return {"from": data} if isinstance(data, str) else data


class _WeightsSettings(_SourceOfWeights):
    """Weights that training starts from."""

    without: list[str] = Field(  # no tuple: after a validator "before" a list is none
        default_factory=list,
        description="patterns of keys that are not taken: norm.* for the encoder's norm, objectives.* for all but it",
    )


class _TeacherSettings(_SourceOfWeights):
    """Encoder whose latents are targets: a moving average of the model's own, or frozen weights."""

    decay: float = Field(default=0.9998, ge=0, le=1, description="of ema: share of the average that a step keeps")
    end_decay: float = Field(default=0.99999, ge=0, le=1, description="of ema: the same after `over` steps")
    over: int = Field(default=0, ge=0, description="of ema: steps from decay to end_decay, linearly; 0: decay stays")
    encoder: EncoderChoice | None = Field(
        default=None, description="of frozen weights; told by them, and written down with the run"
    )
    modalities: dict[str, ModalityChoice] = Field(
        default_factory=dict, description="what frozen weights were trained on; told by them, as the encoder is"
    )

    @model_validator(mode="after")
    def _is_the_models_own(self) -> _TeacherSettings:
        if getattr(self, "from") == "ema" and (self.format or self.options or self.encoder or self.modalities):
            raise ValueError("ema is the model's own encoder: it has no format, options, encoder or modalities")
        return self


# made so because `from` is a word of Python's
WeightsSettings = create_model(
    "WeightsSettings",
    __base__=_WeightsSettings,
    **{"from": (str, Field(min_length=1, description="a run's folder, a published name, a file or its address"))},  # pyright: ignore[reportArgumentType, reportCallIssue]
)
TeacherSettings = create_model(
    "TeacherSettings",
    __base__=_TeacherSettings,
    **{"from": (str, Field(min_length=1, description="ema, or a run's folder, a published name, a file, its address"))},  # pyright: ignore[reportArgumentType, reportCallIssue]
)


class ModelSettings(StrictModel):
    """The model: what all streams share."""

    encoder: EncoderChoice = Field(description="turns visible tokens into latents")
    decoder: DecoderChoice | None = Field(
        default=None, description="predicts masked tokens; required by the objective masked"
    )
    trainable: Trainable = Field(
        default="all",
        description="what trains of the encoder, besides the objectives: all, none, a number of its last stages and "
        "the final norm (0.5: the MLP half of the last one), or patterns of parameter names: [blocks.11.*, norm.*]",
    )
    weights: WeightsSettings | None = Field(  # pyright: ignore[reportInvalidTypeForm]
        default=None, description="what training starts from: a run, a published name, a file; null: random weights"
    )
    teacher: TeacherSettings | None = Field(  # pyright: ignore[reportInvalidTypeForm]
        default=None, description="encoder whose latents are targets, such as {from: ema}; null: none"
    )


class StreamSettings(StrictModel):
    """One flow of samples into training: the keys that every stream has; its objective adds its own."""

    objectives: Any = Field(
        default=None,
        description="instead of objective, {objective: its settings, and its weight among the others}; all learn from "
        "the same samples",
    )
    objective: str | None = Field(
        default="masked", description="what is learned from it; its settings are keys of the stream"
    )
    modalities: dict[PartName, ModalityChoice] | None = Field(
        default=None,
        min_length=2,
        description="instead of modality, {part: modality} of the aligned parts of a sample, such as rgb and depth, "
        "which share crops, flips and windows of time",
    )
    modality: ModalityChoice | None = Field(
        default=None, validate_default=True, description="how samples become tokens; required, or `modalities`"
    )
    missing: Literal["skip", "mask"] = Field(
        default="skip",
        description="a sample of `modalities` that lacks a part: skip and count it, or mask the part whole",
    )
    source: SourceChoice | None = Field(default=None, description="where training samples come from")
    held_out: SourceChoice | None = Field(default=None, description="samples never trained on, for evaluation")
    batch_size: int = Field(
        default=32, gt=0, le=2**20, description="samples per step, of all processes, after replication"
    )
    replicate: int = Field(default=1, gt=0, le=2**20, description="crops and masks trained on per decoded sample")
    loss_weight: float = Field(default=1.0, ge=0, description="weight of this stream's loss")
    sampling_weight: float = Field(
        default=1.0,
        gt=0,
        description="share of steps with `mixing: alternate`, of a step's operations with `mixing: budget`",
    )
    evaluators: tuple[EvaluatorChoice, ...] | None = Field(
        default=None, description="what is measured on held-out samples; default: what suits the objective"
    )
    activation_checkpointing: bool | None = Field(
        default=None,
        description="recompute the blocks of encoder and decoder in backward for this stream, or not; "
        "null: as model.encoder and model.decoder say",
    )

    _modality_or_modalities = one_of("modality", "modalities")

    @model_validator(mode="after")
    def _one_modality_lacks_no_part(self) -> StreamSettings:
        if self.modality is not None and self.missing != "skip":
            raise ValueError(f"missing: {self.missing} is for a stream with `modalities`; this one has one `modality`")
        return self

    def parts(self, stream: str) -> dict[str, tuple[str, Component.Config]]:
        """{part: its name within the stream, and its modality}; the only one is named like the stream."""
        if self.modality is not None:
            return {stream: (stream, self.modality)}
        return {full_name(stream, name): (name, modality) for name, modality in (self.modalities or {}).items()}

    def learned(self) -> dict[str, tuple[Any, float]]:
        """{objective: settings of the stream as if it were the only one, and its weight}."""
        if self.objectives is None:
            return {str(self.objective): (self, 1.0)}
        common, found = {key: getattr(self, key) for key in StreamSettings.model_fields}, {}
        for name in type(self.objectives).model_fields:
            own, objective = getattr(self.objectives, name), components().get("objective", name)
            settings = common | {key: getattr(own, key) for key in objective.Config.model_fields}
            settings |= {"objectives": None, "objective": name}
            found[name] = stream_settings(objective).model_construct(**settings), own.weight
        return found

    def labelled(self) -> Any | None:  # noqa: ANN401 - with the objective's keys
        """Settings of the objective that learns labels; None where none does."""
        learned = self.learned().items()
        return next((own for name, (own, _) in learned if components().get("objective", name).needs_labels), None)


class _Share(StrictModel):
    """One of several objectives of a stream."""

    weight: float = Field(default=1.0, ge=0, description="weight of this objective's loss among those of the stream")


@cache
def stream_settings(objective: type[Objective]) -> type[StreamSettings]:
    """The settings of a stream with this objective: the common keys and those of the objective's Config.

    Raises:
        MmmaskError: the objective claims a common key.
    """
    if taken := sorted(StreamSettings.model_fields.keys() & objective.Config.model_fields.keys()):
        raise MmmaskError(f"objective {objective.__name__}: {', '.join(taken)} are keys of every stream: rename them")
    return create_model("StreamSettings", __base__=(objective.Config, StreamSettings))  # type: ignore[return-value]


@cache
def _settings_of_several(objectives: tuple[tuple[str, type[Objective]], ...]) -> type[StreamSettings]:
    """The settings of a stream with several objectives: the common keys, and a block for each."""
    blocks = {name: create_model("Objective", __base__=(objective.Config, _Share)) for name, objective in objectives}
    fields: dict[str, Any] = {name: (block, ...) for name, block in blocks.items()}
    several = create_model("Objectives", __base__=StrictModel, **fields)
    return create_model("StreamSettings", __base__=StreamSettings, objectives=(several, ...), objective=(None, None))  # type: ignore[return-value]


def _validated_stream(value: object) -> StreamSettings:
    """The settings of a stream, whose keys depend on its `objective`."""
    if isinstance(value, StreamSettings):
        value = value.model_dump(mode="json")
    if not isinstance(value, dict):
        raise PydanticCustomError("no_stream", "{message}", {"message": f"should be an object, not {value!r}"})
    several, at = value.get("objectives"), "objective"
    try:
        if several is None:
            name = value.get("objective", StreamSettings.model_fields["objective"].default)
            model = stream_settings(components().get("objective", str(name)))
        else:
            at = "objectives"
            if not isinstance(several, dict) or len(several) < 2:
                raise MmmaskError("expected two or more, {masked: {...}, contrastive: {weight: 0.1, ...}}")
            if value.get("objective") is not None:
                raise MmmaskError("objective and objectives: one of the two")
            names = map(str, several)
            model = _settings_of_several(tuple((name, components().get("objective", name)) for name in names))
    except MmmaskError as error:
        raise PydanticCustomError("unknown_name", "{message}", {"message": str(error), "at": at}) from None
    # keys of the objective of an experiment that this one extends are taken back by null
    return validate_strictly(
        model, {key: own for key, own in value.items() if own is not None or key in model.model_fields}
    )


# Any: a StreamSettings with the keys of the stream's objective, which no type checker knows
AnyStream = Annotated[
    Any, PlainValidator(_validated_stream), PlainSerializer(lambda settings: settings.model_dump(mode="json"))
]


class ScheduleSettings(StrictModel):
    """The learning rate over training."""

    shape: Literal["cosine", "linear", "constant", "multistep"] = Field(
        default="cosine", description="after the warm-up"
    )
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        default=(), description="of multistep: shares of the progress at which the rate is multiplied by factor"
    )
    factor: float = Field(default=0.1, gt=0, description="of multistep: what the rate is multiplied by")
    warmup: float = Field(default=0.05, ge=0, lt=1, description="share of the steps with a linear warm-up")
    warmup_start: float = Field(default=1e-6, ge=0, description="rate at the first step")
    end: float = Field(default=0.0, ge=0, description="rate at the end")
    progress: Literal["rescaled", "fixed"] = Field(
        default="rescaled",
        description="progress the shape sees after the warm-up: from 0 again (MAE), or that of the whole training "
        "(OmniMAE's release)",
    )

    @model_validator(mode="after")
    def _milestones_suit_the_shape(self) -> ScheduleSettings:
        if (self.shape == "multistep") != bool(self.milestones):
            raise ValueError(
                f"milestones {list(self.milestones)}, shape {self.shape}: multistep has some, no other has"
            )
        if any(later <= earlier for earlier, later in pairwise(self.milestones)):
            raise ValueError(f"milestones must ascend, not {list(self.milestones)}")
        return self


class CheckpointSettings(StrictModel):
    """Intervals of saving."""

    every: int = Field(default=1000, gt=0, description="steps between checkpoints")
    keep: int = Field(default=3, gt=0, description="how many of the newest stay on disk")


class LogSettings(StrictModel):
    """Logs and pictures of a run."""

    every: int = Field(default=20, gt=0, description="steps between lines of metrics.jsonl")
    reconstruct_every: int = Field(
        default=2000, ge=0, description="steps between reconstruction pictures; 0: only at the end"
    )
    tensorboard: bool = Field(default=True, description="write TensorBoard events")


class EvaluateSettings(StrictModel):
    """Held-out evaluation of the streams that have `held_out`."""

    every: int = Field(default=0, ge=0, description="steps between evaluations; 0: only at the start and at the end")
    samples: int | None = Field(
        default=64, gt=0, description="held-out samples per stream, kept in memory; null: all, read at each evaluation"
    )
    evaluators: tuple[EvaluatorChoice, ...] = Field(
        default=(),
        description="what else is measured, of every stream with held-out samples; knn and linear where it has labels",
    )


class AverageSettings(StrictModel):
    """Exponential moving average of the weights that train, for which it takes memory once more."""

    decay: float = Field(default=0.9999, ge=0, lt=1, description="share of the average that an update keeps")
    every: int = Field(default=1, gt=0, description="steps between updates")
    start: int = Field(
        default=0, ge=0, description="steps before the first update, which takes the weights as they are"
    )


class TrainingSettings(StrictModel):
    """Training."""

    steps: int | None = Field(default=None, gt=0, description="optimiser steps; what counts")
    epochs: dict[str, Annotated[float, Field(gt=0, le=1e9)]] | None = Field(
        default=None, description="instead of steps, {stream: passes over its source}, a replicated sample counted once"
    )
    mixing: Literal["joint", "alternate", "budget"] = Field(
        default="joint",
        description="all streams in every step; alternate: one per step, drawn by sampling_weight; budget: all, and "
        "batch sizes are chosen so that sampling_weight divides the operations that the sizes as written take",
    )
    accumulate: int = Field(default=1, gt=0, description="micro-batches per step")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        default="fp32", description="of matrix products; weights stay float32; with fp16 the loss is scaled"
    )
    sharding: Literal["none", "full", "node"] = Field(
        default="none",
        description="weights, gradients and optimiser state: none: whole on every process (DDP); full: sharded over "
        "all processes (FSDP2); node: sharded within a machine, whole on each (HSDP)",
    )
    seed: int = Field(default=0, ge=0, description="of weights, order, crops and masks")
    compile: bool = Field(default=False, description="torch.compile the encoder and decoders")
    optimizer: OptimizerChoice = Field(
        default_factory=lambda: Component.Config(name="adamw"), validate_default=True, description="how weights change"
    )
    schedule: ScheduleSettings = ScheduleSettings()
    average: AverageSettings | None = Field(
        default=None, description="moving average of the weights, evaluated beside them; null: none"
    )
    checkpoint: CheckpointSettings = CheckpointSettings()
    log: LogSettings = LogSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    hang_minutes: float | None = Field(
        default=30.0,
        gt=0,
        description="minutes without progress after which a process prints its stacks and ends; null: no limit",
    )


class DataSettings(StrictModel):
    """Loading of samples."""

    workers: int = Field(
        default=2, ge=0, le=512, description="workers per stream and process that trains; results do not depend on it"
    )
    process: bool | None = Field(
        default=None,
        description="workers are processes, so that a file which crashes its decoder costs one sample, not threads; "
        "null: on Linux, where there are workers and sources can be pickled",
    )
    sample_seconds: float | None = Field(
        default=30.0, gt=0, description="longest time to load one sample, where workers are processes"
    )
    sample_memory: float | None = Field(
        default=4.0, gt=0, description="GiB that a worker may allocate, where workers are processes"
    )
    max_bad_share: float = Field(
        default=0.05, ge=0, le=1, description="share of undecodable samples above which a run stops"
    )
    sample_data: str | None = Field(
        default=None, description="folder where the sample corpus is written first, if missing"
    )

    @model_validator(mode="after")
    def _a_process_has_workers(self) -> DataSettings:
        if self.process and not self.workers:
            raise ValueError("process true needs workers: set data.workers to 1 or more, or data.process to false")
        return self


class Experiment(StrictModel):
    """A model, one or more streams, the training settings."""

    description: str = Field(default="", description="what the experiment is, and its source")
    model: ModelSettings
    streams: dict[str, AnyStream] = Field(min_length=1)
    training: TrainingSettings = Field(default_factory=TrainingSettings)
    data: DataSettings = DataSettings()
    callbacks: tuple[CallbackChoice, ...] = Field(default=(), description="what is told of every step, in this order")
    _name: str = PrivateAttr("")

    @property
    def name(self) -> str:
        """The name or file it was loaded by, without its ending; `experiment` where it was made from data."""
        return self._name or "experiment"

    def to_data(self) -> dict[str, Any]:
        """Plain data with every default filled in."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """The file that says all this, every default filled in."""
        return dump_yaml(self.to_data())
