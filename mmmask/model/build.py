"""An experiment -> its model."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from mmmask.components import components
from mmmask.experiment.errors import ExperimentError
from mmmask.experiment.settings import Experiment
from mmmask.interfaces import Embedding, Encoder, Modality, ObjectiveContext, TokenSpec, build
from mmmask.interfaces.component import every_setting
from mmmask.model.freezing import freeze
from mmmask.model.memory import MOST_TOKENS, bounded_weights
from mmmask.model.model import Model
from mmmask.model.teacher import EMA, Teacher
from mmmask.randomness import seeded
from mmmask_registry import MmmaskError


def build_model(experiment: Experiment, classes: Mapping[str, Mapping[str, Sequence[str]]] | None = None) -> Model:
    """Builds the model of an experiment, on the current default device.

    Weights depend on `training.seed` alone, not on global random state, which is left as it was.

    Args:
        classes: {stream: {label set: names of the classes}}, for objectives that learn labels; `Model.classes`.

    Raises:
        MmmaskError: streams that share an embedding or a head do not fit together.
    """
    with seeded(experiment.training.seed, "weights"), bounded_weights():
        modalities = {name: build("modality", stream.modality) for name, stream in experiment.streams.items()}
        embeddings = _embeddings(modalities)
        keys = {f"streams.{name}.modality.embedding": part.embedding for name, part in modalities.items()}
        if problems := unusable_names(keys):
            raise ExperimentError(problems)
        try:
            encoder: Encoder = build("encoder", experiment.model.encoder, embeddings=embeddings)
            teacher = _teacher(experiment, encoder, embeddings)
            context = ObjectiveContext(
                modalities, embeddings, encoder, experiment.model.decoder, classes or {}, experiment.training.seed,
                teacher=teacher,
            )  # fmt: skip
            members: dict[str, dict[str, Any]] = {}
            for name, stream in experiment.streams.items():
                members.setdefault(stream.objective, {})[name] = stream
            objectives = {
                name: components().get("objective", name)(streams, context) for name, streams in members.items()
            }
        except ExperimentError:
            raise
        except ValueError as error:
            raise ExperimentError([f"model: {error}"]) from error
    weights = {name: stream.loss_weight for name, stream in experiment.streams.items()}
    try:
        freeze(encoder, experiment.model.trainable)
    except ValueError as error:
        raise ExperimentError([f"model.trainable: {error}"]) from error
    if experiment.model.trainable == "none" and not any(list(part.parameters()) for part in objectives.values()):
        raise ExperimentError(["model.trainable: none, and the objectives have no parameters: nothing would train"])
    settings = _settings(experiment, classes or {})
    return Model(modalities, encoder, objectives, weights, experiment.training.seed, settings, teacher)


def unusable_names(named: Mapping[str, str]) -> list[str]:
    """Problems with {where: key of a module dictionary}: attributes of every such dictionary, empty, or with a dot."""
    taken = nn.ModuleDict()
    return [
        f"{where}: a module cannot be called {name!r}: choose another name"
        for where, name in named.items()
        if not name or "." in name or hasattr(taken, name)
    ]


def _settings(experiment: Experiment, classes: Mapping[str, Mapping[str, Sequence[str]]]) -> dict[str, Any]:
    """Plain data that the model can be built from again: the experiment without sources and training, and classes."""
    streams = {
        name: {
            key: value
            for key, value in every_setting(stream).items()
            if key not in ("source", "held_out", "batch_size", "replicate", "sampling_weight", "evaluators")
            and value is not None
        }
        for name, stream in experiment.streams.items()
    }
    kept = ("encoder", "decoder", "teacher")  # the others say how it is trained
    model = {key: value for key, value in every_setting(experiment.model).items() if key in kept and value is not None}
    named = {name: {key: list(names) for key, names in found.items()} for name, found in classes.items() if found}
    return {"model": model, "streams": streams, **({"classes": named} if named else {})}


settings_of = Model.plain_settings


def _teacher(experiment: Experiment, encoder: Encoder, embeddings: Mapping[str, Embedding]) -> Teacher | None:
    settings = experiment.model.teacher
    if settings is None:
        return None
    if (source := getattr(settings, "from")) == EMA:
        return Teacher(copy.deepcopy(encoder), embeddings, settings)
    if settings.encoder is None:
        raise ExperimentError(
            [f"model.teacher: {source} has not been read: build the model of mmmask.interop.with_teacher(experiment)"]
        )
    with seeded(experiment.training.seed, "teacher"):  # weights that are read; the others stay what they would be
        known = _embeddings({name: build("modality", config) for name, config in settings.modalities.items()})
        return Teacher(build("encoder", settings.encoder, embeddings=known), known, settings)


def _embeddings(modalities: dict[str, Modality]) -> dict[str, Embedding]:
    """Constructor inputs of encoder and decoders by embedding key, in the experiment's order."""
    found: dict[str, Embedding] = {}
    for name, modality in modalities.items():
        try:
            grid = modality.grid(modality.sample_shape)
        except (ValueError, MmmaskError) as error:
            raise ExperimentError([f"streams.{name}.modality: {error}"]) from error
        if (tokens := math.prod(grid)) > MOST_TOKENS:
            problem = f"{' x '.join(map(str, grid))} = {tokens:,} tokens a sample, more than {MOST_TOKENS:,}"
            raise ExperimentError([f"streams.{name}.modality: {problem}: take smaller samples or larger patches"])
        earlier = found.setdefault(modality.embedding, Embedding(modality.spec, (grid,), modality.build_embedding))
        if _shape(earlier.spec) != _shape(modality.spec):
            raise ExperimentError(
                [
                    f"streams.{name}.modality.embedding: {modality.embedding!r} belongs to tokens of another shape "
                    f"({earlier.spec}, here {modality.spec}): name another embedding"
                ]
            )
        if grid not in earlier.grids:
            found[modality.embedding] = replace(earlier, grids=(*earlier.grids, grid))
    return found


def _shape(spec: TokenSpec) -> tuple[object, ...]:
    return spec.patch_size, spec.channels, spec.vocab_size
