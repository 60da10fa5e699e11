"""An experiment -> its model."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from mmmask.components import components
from mmmask.experiment.errors import ExperimentError
from mmmask.experiment.settings import Experiment
from mmmask.interfaces import Embedding, Encoder, Modality, ObjectiveContext, build
from mmmask.interfaces.component import every_setting
from mmmask.model.freezing import freeze
from mmmask.model.memory import MOST_TOKENS, bounded_weights
from mmmask.model.model import Model
from mmmask.model.teacher import EMA, Teacher
from mmmask.randomness import seeded
from mmmask_registry import MmmaskError

OF_TRAINING = (
    "source", "held_out", "batch_size", "replicate", "sampling_weight", "evaluators", "missing",
    "activation_checkpointing",
)  # fmt: skip
"""Keys of a stream that say how it is trained."""


def build_model(experiment: Experiment, classes: Mapping[str, Mapping[str, Sequence[str]]] | None = None) -> Model:
    """Builds the model of an experiment, on the current default device.

    Weights depend on `training.seed` alone, not on global random state, which is left as it was.

    Args:
        classes: {stream: {label set: names of the classes}}, for objectives that learn labels; `Model.classes`.

    Raises:
        MmmaskError: streams that share an embedding or a head do not fit together.
    """
    with seeded(experiment.training.seed, "weights"), bounded_weights():
        modalities: dict[str, Modality] = {}
        parts: dict[str, dict[str, str]] = {}
        where: dict[str, str] = {}  # {part: key of its modality in the experiment}
        for name, stream in experiment.streams.items():
            for part, (short, config) in stream.parts(name).items():
                modalities[part] = build("modality", config)
                parts.setdefault(name, {})[short] = part
                where[part] = f"streams.{name}.{'modality' if part == name else f'modalities.{short}'}"
        for own in parts.values():
            shared = Counter(modalities[part].embedding for part in own.values())
            if twice := [part for part in own.values() if shared[modalities[part].embedding] > 1]:
                key = modalities[twice[0]].embedding
                problem = (
                    f"{where[twice[1]]}.embedding: {key!r} is that of another part: give this one a name of its own"
                )
                raise ExperimentError([problem])
        aligned = {modalities[part].embedding for own in parts.values() if len(own) > 1 for part in own.values()}
        embeddings = _embeddings(modalities, where, aligned)
        keys = {f"{where[name]}.embedding": part.embedding for name, part in modalities.items()}
        if problems := unusable_names(keys):
            raise ExperimentError(problems)
        try:
            encoder: Encoder = build("encoder", experiment.model.encoder, embeddings=embeddings)
            teacher = _teacher(experiment, encoder, embeddings)
            context = ObjectiveContext(
                modalities,
                embeddings,
                encoder,
                experiment.model.decoder,
                classes or {},
                experiment.training.seed,
                parts,
                teacher,
            )
            members: dict[str, dict[str, Any]] = {}
            for name, stream in experiment.streams.items():
                for objective, (own, _) in stream.learned().items():
                    members.setdefault(objective, {})[name] = own
            objectives = {
                name: components().get("objective", name)(streams, context) for name, streams in members.items()
            }
        except ExperimentError:
            raise
        except ValueError as error:
            raise ExperimentError([f"model: {error}"]) from error
    weights = {name: stream.loss_weight for name, stream in experiment.streams.items()}
    shares = {
        name: {objective: weight for objective, (_, weight) in stream.learned().items()}
        for name, stream in experiment.streams.items()
    }
    try:
        freeze(encoder, experiment.model.trainable)
    except ValueError as error:
        raise ExperimentError([f"model.trainable: {error}"]) from error
    if experiment.model.trainable == "none" and not any(list(part.parameters()) for part in objectives.values()):
        raise ExperimentError(["model.trainable: none, and the objectives have no parameters: nothing would train"])
    settings = _settings(experiment, classes or {})
    recomputed = {name: stream.activation_checkpointing for name, stream in experiment.streams.items()}
    return Model(
        modalities, encoder, objectives, weights, experiment.training.seed, settings, parts, teacher, shares, recomputed
    )


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
            key: value for key, value in every_setting(stream).items() if key not in OF_TRAINING and value is not None
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
        modalities = {name: build("modality", config) for name, config in settings.modalities.items()}
        where = {name: f"model.teacher.modalities.{name}" for name in modalities}
        known = _embeddings(modalities, where, {part.embedding for name, part in modalities.items() if "/" in name})
        return Teacher(build("encoder", settings.encoder, embeddings=known), known, settings)


def _embeddings(
    modalities: Mapping[str, Modality], where: Mapping[str, str], aligned: Collection[str]
) -> dict[str, Embedding]:
    """Constructor inputs of encoder and decoders by embedding key, in the experiment's order."""
    found: dict[str, Embedding] = {}
    for name, modality in modalities.items():
        try:
            grid = modality.grid(modality.sample_shape)
        except (ValueError, MmmaskError) as error:
            raise ExperimentError([f"{where[name]}: {error}"]) from error
        if (tokens := math.prod(grid)) > MOST_TOKENS:
            problem = f"{' x '.join(map(str, grid))} = {tokens:,} tokens a sample, more than {MOST_TOKENS:,}"
            raise ExperimentError([f"{where[name]}: {problem}: take smaller samples or larger patches"])
        key = modality.embedding
        own = Embedding(modality.spec, (grid,), modality.build_embedding, key in aligned)
        earlier = found.setdefault(key, own)
        if earlier.spec.shape != modality.spec.shape:
            raise ExperimentError(
                [
                    f"{where[name]}.embedding: {key!r} belongs to tokens of another shape "
                    f"({earlier.spec}, here {modality.spec}): name another embedding"
                ]
            )
        if grid not in earlier.grids:
            found[key] = replace(earlier, grids=(*earlier.grids, grid))
    return found
