"""Objective: the learning task of the streams that name it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from mmmask.interfaces.component import Component, StrictModel
from mmmask.interfaces.modality import Modality
from mmmask.interfaces.sample import Batch
from mmmask.interfaces.tokens import Embedding, EncoderInput, Latents, Mask, Tokens
from mmmask.randomness import Noise
from mmmask_registry import MmmaskError

if TYPE_CHECKING:
    from mmmask.interfaces.encoder import Encoder


@dataclass(frozen=True)
class ObjectiveContext:
    """Inputs of an objective's constructor, besides the settings of its streams.

    Attributes:
        modalities: {part: modality}, a stream's only part named like the stream, others `STREAM/PART`.
        parts: {stream: {name of a part within it: the part}}.
        embeddings: {embedding key: what decoders are built with}, in the experiment's order.
        encoder: shared by all objectives; it belongs to the model and is not registered again.
        decoder: settings of the experiment's `model.decoder`, None where it has none.
        classes: {stream: {label set: names of the classes}}, empty where a stream has no labels.
        seed: of the experiment.
        teacher: the model's (`mmmask.model.teacher.Teacher`), which belongs to it; None where it has none.
    """

    modalities: Mapping[str, Modality]
    embeddings: Mapping[str, Embedding]
    encoder: Encoder
    decoder: Component.Config | None = None
    classes: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)
    seed: int = 0
    parts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    teacher: Any = None

    def modality(self, stream: str) -> Modality:
        """The only modality of a stream.

        Raises:
            MmmaskError: it has several parts.
        """
        if stream not in self.modalities:
            raise MmmaskError(f"streams.{stream}.modalities: its objective takes streams of one modality: set modality")
        return self.modalities[stream]


@dataclass(frozen=True)
class StepContext:
    """Position of a batch in training.

    Attributes:
        step: of training, from 0.
        noise: `noise(stream, purpose)` gives uniform numbers for the rows of a stream, for one purpose such as "mask".
        given: {stream: what the caller gives instead of a random draw}, such as a mask.
        training: whether randomness that only training has (dropout, mixing) is wanted.
    """

    step: int
    noise: Callable[[str, str], Noise]
    given: Mapping[str, Any] = field(default_factory=dict)
    training: bool = True


@dataclass(frozen=True)
class Plan:
    """All randomness and all counts of one micro-batch, made before any forward. Objectives add fields of their own.

    Attributes:
        tokens: {part: the samples as tokens}.
        batches: {stream: the samples and their labels}.
        inputs: {stream: what the encoder is shown}; further inputs of a stream are named `STREAM/anything`.
        counts: {target: how many errors enter the loss}, a scalar tensor or a number; a target is named like its
            stream, or `STREAM/anything` where a stream has several.
        stages: numbers of the encoder's stages whose outputs `losses` gets as `Latents.stages`.
    """

    tokens: Mapping[str, Tokens]
    batches: Mapping[str, Batch]
    inputs: Mapping[str, EncoderInput]
    counts: Mapping[str, Tensor | float]
    stages: Sequence[int] = field(default=(), kw_only=True)


@dataclass(frozen=True)
class LossTerm:
    """A stream's loss before it is divided.

    Attributes:
        sum: scalar, the counted errors added up; float32 or wider.
        count: how many they are, as in the plan.
        predictions: the head's answers, (batch, predicted, dim) or (batch, classes); None where there are none.
        tokens, mask: of the part that is predicted; None where a stream has only one.
    """

    sum: Tensor
    count: Tensor | float
    predictions: Tensor | None = None
    tokens: Tokens | None = None
    mask: Mask | None = None


class Objective(Component, nn.Module):
    """Learning objective of streams: one object serves all streams that name it.

    Built with `streams`, {stream: its settings}, and a context. A stream's settings are the common keys plus those of
    this class's `Config`.
    """

    class Config(StrictModel):  # pyright: ignore[reportIncompatibleVariableOverride] - the stream's block holds the name
        pass

    evaluators: ClassVar[tuple[str, ...]] = ()
    """Names of the evaluators of a stream that names none itself."""

    needs_labels: ClassVar[bool] = False
    """Whether it learns labels: held-out samples then have the classes of the training source, and no others."""

    def __init__(self, streams: Mapping[str, Any], context: ObjectiveContext) -> None:
        nn.Module.__init__(self)
        self.streams = dict(streams)

    @property
    def counts_vary(self) -> tuple[str, ...]:
        """Streams whose counts differ from batch to batch: the step's are added up before its first forward."""
        return ()

    @property
    def stages(self) -> Sequence[nn.Module]:
        """Units of depth of its own, such as a decoder's blocks: what is compiled and sharded one by one."""
        return ()

    @abstractmethod
    def plan(self, tokens: Mapping[str, Tokens], batches: Mapping[str, Batch], context: StepContext) -> Plan:
        """Draws all randomness of a micro-batch, cheaply, on the device of the samples."""

    @abstractmethod
    def losses(self, plan: Plan, latents: Mapping[str, Latents]) -> dict[str, LossTerm]:
        """{target: loss} of every stream of the plan, named as in its `counts`, given latents of `plan.inputs`."""

    def weights(self, stream: str) -> Mapping[str, float]:
        """{target: weight} of a stream's losses among each other; by default one target, the stream's."""
        return {stream: 1.0}

    def after_step(self, step: int) -> None:
        """Called after every optimiser step, such as for a queue."""

    def metrics(self) -> Mapping[str, float]:
        """Figures of the last step besides losses, asked for where one is logged; their keys end in `/STREAM`."""
        return {}

    def features(self, stream: str, latents: Latents) -> Tensor:
        """(batch, width), one vector of a whole sample: by default the mean over its tokens."""
        return latents.values.mean(dim=1)

    def logits(self, stream: str, latents: Latents) -> dict[str, Tensor]:
        """{label set: (batch, classes)} of a whole sample; empty where classes are not told."""
        return {}

    def probabilities(self, stream: str, logits: Tensor) -> Tensor:
        """(batch, classes) of a label set's logits, float32: by default their softmax."""
        return logits.float().softmax(-1)

    def restore(self, plan: Any, stream: str, predictions: Tensor, true_statistics: bool = False) -> Tensor:  # noqa: ANN401 - its own plan
        """Predictions as raw content, for pictures: (batch, predicted, content_dim).

        Args:
            true_statistics: undo a normalised target with the tokens' true statistics, which a model cannot know.

        Raises:
            NotImplementedError: this objective does not predict content.
        """
        raise NotImplementedError(f"{type(self).__name__} does not predict content")

    def needs_statistics(self, stream: str) -> bool:
        """Whether `restore` depends on statistics of the tokens."""
        return False
