"""An experiment -> its model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mmmask.experiment.errors import ExperimentError
from mmmask.experiment.settings import Experiment
from mmmask.interfaces import Embedding, Modality, build
from mmmask.model.backbone import Backbone
from mmmask.model.classifier import Classifier, ClassifierSettings
from mmmask.model.masked_model import MaskedModel, Stream
from mmmask.randomness import derive_seed
from mmmask_registry import MmmaskError


def build_model(experiment: Experiment) -> MaskedModel:
    """Builds the model of an experiment, on the current default device.

    Weights depend on `training.seed` alone, not on global random state, which is left as it was.

    Raises:
        MmmaskError: streams that share an embedding or a head do not fit together.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(experiment.training.seed, "weights"))
        return _build(experiment)


def settings_of(model: Backbone) -> dict[str, Any]:
    """Plain data that the model can be built from again: an experiment without sources, or a classifier's settings."""
    return model.plain_settings()


def build_classifier(settings: ClassifierSettings) -> Classifier:
    """Builds a classifier, on the current default device; its weights wait to be loaded or trained.

    Raises:
        ExperimentError: streams that share an embedding do not fit together.
    """
    modalities: dict[str, Modality] = {
        name: build("modality", stream.modality) for name, stream in settings.streams.items()
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(0, "weights"))
        try:
            encoder = build("encoder", settings.encoder, embeddings=_embeddings(modalities))
        except ValueError as error:
            raise ExperimentError([f"encoder: {error}"]) from error
        return Classifier(settings, modalities, encoder)


def _build(experiment: Experiment) -> MaskedModel:
    streams: dict[str, Stream] = {}
    for name, settings in experiment.streams.items():
        modality: Modality = build("modality", settings.modality)
        streams[name] = Stream(
            modality=modality,
            masker=build("masker", settings.masker),
            decoder_masker=build("masker", settings.decoder_masker) if settings.decoder_masker else None,
            loss=build("loss", settings.loss),
            decoder=settings.decoder,
            head=settings.head or modality.embedding,
            weight=settings.loss_weight,
        )
    if problems := _unusable_names(experiment, streams):
        raise ExperimentError(problems)
    embeddings = _embeddings({name: stream.modality for name, stream in streams.items()})
    try:
        encoder = build("encoder", experiment.model.encoder, embeddings=embeddings)
        decoders = {}
        for key in dict.fromkeys(stream.decoder for stream in streams.values()):
            # only what its streams use: positions that nobody asks for would be parameters without gradient
            used = {stream.modality.embedding for stream in streams.values() if stream.decoder == key}
            own = {name: embedding for name, embedding in embeddings.items() if name in used}
            decoders[key] = build("decoder", experiment.model.decoder, embeddings=own, latent_width=encoder.width)
    except ValueError as error:
        raise ExperimentError([f"model: {error}"]) from error
    heads: dict[str, nn.Module] = {}
    for name, stream in streams.items():
        width, dim = decoders[stream.decoder].width, stream.loss.prediction_dim(stream.modality.spec)
        head = heads.get(stream.head)
        if head is None:
            heads[stream.head] = _head(width, dim)
        elif (head.in_features, head.out_features) != (width, dim):
            raise ExperimentError(
                [
                    f"streams.{name}.head: {stream.head!r} predicts {head.out_features} numbers for an earlier stream "
                    f"and {dim} for this one: give this stream a `head` of its own"
                ]
            )
    return MaskedModel(streams, encoder, decoders, heads, seed=experiment.training.seed)


def _unusable_names(experiment: Experiment, streams: dict[str, Stream]) -> list[str]:
    """Keys of the model's module dictionaries that are attributes of every such dictionary, or hold a dot."""
    named: dict[str, str] = {}
    for name, stream in streams.items():
        named[f"streams.{name}.decoder"] = stream.decoder
        if experiment.streams[name].head:
            named[f"streams.{name}.head"] = stream.head
        named[f"streams.{name}.modality.embedding"] = stream.modality.embedding
        if isinstance(stream.loss, nn.Module):
            named[f"streams.{name}"] = name
    taken = nn.ModuleDict()
    return [
        f"{where}: a module cannot be called {name!r}: choose another name"
        for where, name in named.items()
        if not name or "." in name or hasattr(taken, name)
    ]


def _embeddings(modalities: dict[str, Modality]) -> dict[str, Embedding]:
    """What encoder and decoders are built with, by embedding key, in the experiment's order."""
    found: dict[str, Embedding] = {}
    for name, modality in modalities.items():
        try:
            grid = modality.grid(modality.sample_shape)
        except (ValueError, MmmaskError) as error:
            raise ExperimentError([f"streams.{name}.modality: {error}"]) from error
        earlier = found.get(modality.embedding)
        if earlier is None:
            found[modality.embedding] = Embedding(modality.spec, (grid,), modality.build_embedding)
        elif (earlier.spec.patch_size, earlier.spec.channels, earlier.spec.vocab_size) != (
            modality.spec.patch_size, modality.spec.channels, modality.spec.vocab_size
        ):  # fmt: skip
            raise ExperimentError(
                [
                    f"streams.{name}.modality.embedding: {modality.embedding!r} belongs to tokens of another shape "
                    f"({earlier.spec}, here {modality.spec}): name another embedding"
                ]
            )
        elif grid not in earlier.grids:
            found[modality.embedding] = Embedding(earlier.spec, (*earlier.grids, grid), earlier.build)
    return found


def _head(width: int, dim: int) -> nn.Linear:
    """Truncated normal of deviation 0.02 and zero bias, as OmniMAE initialises its head."""
    head = nn.Linear(width, dim)
    nn.init.trunc_normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    return head
