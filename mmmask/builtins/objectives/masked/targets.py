"""Targets of a stream, and their settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from mmmask.experiment.errors import ExperimentError
from mmmask.interfaces import ChosenByName, Component, StrictModel
from mmmask.interfaces.naming import full_name, name_within, stream_of

LossChoice = Annotated[Component.Config, ChosenByName("loss")]
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


def targets_of(stream: str, settings: Any, parts: Mapping[str, str]) -> dict[str, Target]:  # noqa: ANN401 - a stream's
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


def where(target: str) -> str:
    """Key of a target's settings."""
    stream, name = stream_of(target), name_within(target)
    return f"streams.{stream}.targets.{name}" if name else f"streams.{stream}"
