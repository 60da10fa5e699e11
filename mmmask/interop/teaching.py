"""A teacher of frozen weights: any encoder that can be read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mmmask.experiment import Experiment
from mmmask.experiment.settings import TeacherSettings
from mmmask.interop.errors import InteropError
from mmmask.interop.loading import read
from mmmask.interop.runs import RunFolder
from mmmask.model.model import Model
from mmmask.model.teacher import EMA
from mmmask_registry import MmmaskError

SETTING = "model.teacher"


def with_teacher(experiment: Experiment, run: RunFolder | None = None) -> Experiment:
    """The experiment with what its teacher's weights tell written down: encoder and modalities of `model.teacher`.

    A model can then be built without the weights, which a run has in its checkpoints.

    Args:
        run: whose experiment has it already, where it is a run of this teacher that saved something.

    Raises:
        InteropError: they cannot be read, or lack some of the encoder.
    """
    settings = experiment.model.teacher
    if settings is None or settings.encoder is not None or getattr(settings, "from") == EMA:
        return experiment
    known = run.experiment().model.teacher if run is not None and run.saved.exists() else None
    if known is not None and known.model_copy(update={"encoder": None, "modalities": {}}) == settings:
        return _taught_by(known, experiment)
    found = _read(settings)
    modalities = {name: modality.config for name, modality in found.modalities.items()}
    return _taught_by(
        settings.model_copy(update={"encoder": found.encoder.config, "modalities": modalities}), experiment
    )


def teach(model: Model, experiment: Experiment) -> None:
    """Gives the teacher of a model its weights: those that the experiment names, or those of the encoder as it stands.

    Raises:
        InteropError: they cannot be read, or are of another encoder by now.
    """
    teacher, settings = model.teacher, experiment.model.teacher
    if teacher is None or settings is None:
        return
    if teacher.follows:
        teacher.begin(model.encoder)
        return
    found = _read(settings)
    with _named(settings):
        try:
            teacher.encoder.load_state_dict(found.encoder.state_dict())
        except RuntimeError as error:
            raise InteropError("the weights are of another encoder than model.teacher.encoder says") from error


def _taught_by(settings: TeacherSettings, experiment: Experiment) -> Experiment:  # pyright: ignore[reportInvalidTypeForm]
    return experiment.model_copy(update={"model": experiment.model.model_copy(update={"teacher": settings})})


def _read(settings: TeacherSettings) -> Model:  # pyright: ignore[reportInvalidTypeForm]
    source = os.path.expanduser(getattr(settings, "from"))
    with _named(settings), torch.device("cpu"):
        if taken := sorted({"source", "format", "strict"} & settings.options.keys()):
            raise InteropError(f"{taken[0]} is no option of a format")
        loaded = read(source, settings.format, strict=os.path.isdir(source), **settings.options)
        parameters = dict(loaded.model.named_parameters())
        lacking = [key for key in loaded.report.initialised if key.startswith("encoder.") and key in parameters]
        # a mask token is nothing to an encoder that sees all tokens
        if lacking := [key for key in lacking if not key.endswith(".mask_token")]:
            raise InteropError(f"the weights lack {len(lacking)} tensors of the encoder, such as {lacking[0]}")
    return loaded.model


@contextmanager
def _named(settings: TeacherSettings) -> Iterator[None]:  # pyright: ignore[reportInvalidTypeForm]
    """Names the setting in errors."""
    try:
        yield
    except MmmaskError as error:
        lines = str(error).splitlines()
        raise InteropError("\n".join([f"{SETTING}: {lines[0]}", *lines[1:]])) from error
