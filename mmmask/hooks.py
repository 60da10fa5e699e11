"""Every hook of mmmask. A plugin is a module (or an object) with some of these, marked `@mmmask.hookimpl`.

The project's own components, log writers and sample writers come in through the same hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pluggy

if TYPE_CHECKING:
    from torch import nn

hookspec = pluggy.HookspecMarker("mmmask")
hookimpl = pluggy.HookimplMarker("mmmask")


@dataclass
class RunState:
    """A run, as hooks see it.

    Attributes:
        experiment: what is trained (`mmmask.Experiment`).
        output: the run's folder.
        model: the model, without any wrapper.
        total_steps: number of optimiser steps of the run.
        step: optimiser steps done.
        is_main: whether this process writes the folder.
        evaluations: {stream: [figures at the start, ..., the newest]}.
        pictures: {stream: path of its newest reconstruction picture}.
        weights: account of the weights that the run starts from (`mmmask.interop.Report`); None where it starts from
            random ones, or goes on.
        stop: whether to end after the step at hand, with a checkpoint, as Ctrl-C does; a hook may set it.
    """

    experiment: Any
    output: Path
    model: nn.Module
    total_steps: int
    step: int = 0
    is_main: bool = True
    evaluations: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    pictures: dict[str, Path] = field(default_factory=dict)
    weights: Any = None
    stop: bool = False


class Register(Protocol):
    """Argument of `register_components`."""

    def __call__(self, kind: str, name: str, target: type[Any] | str, description: str = "") -> None:
        """Names one component.

        Args:
            kind: of component, such as `masker`.
            name: its name in an experiment.
            target: the class, or "package.module:Class", which is imported when it is first used.
            description: one line for `mmmask list`; default: the first line of a class's docstring.
        """


@hookspec
def register_components(register: Register) -> None:
    """Names components: `register(kind, name, "package.module:Class", "one line of description")`."""


class Publish(Protocol):
    """Argument of `publish_checkpoints`."""

    def __call__(
        self, name: str, address: str, format: str, licence: str, description: str = "", by_hand: bool = False,
        encoder_alone: bool = False, options: Mapping[str, object] | None = None,
    ) -> None:  # fmt: skip
        """Names one published checkpoint.

        Args:
            name: what users load it by, such as `system/size/pretrain`.
            address: where its file is.
            format: the format that reads it.
            licence: of the weights, shown before they are first used.
            description: one line: what it was trained on, its published figure.
            by_hand: whether its host hands out files to people only, so that users must download it themselves.
            encoder_alone: whether the decoder is not in the file, and stays as initialised.
            options: of the format, where the file needs them.
        """


@hookspec
def publish_checkpoints(publish: Publish) -> None:
    """Names published checkpoints for `mmmask.interop.load`: `publish(name, address, format, licence, ...)`."""


class PublishExperiment(Protocol):
    """Argument of `publish_experiments`."""

    def __call__(self, name: str, path: str | Path) -> None:
        """Names one experiment.

        Args:
            name: what users train it by, such as `acme/tides`.
            path: its YAML file, inside the plugin's package; the first line, a comment, shows in `mmmask list`.
        """


@hookspec
def publish_experiments(publish: PublishExperiment) -> None:
    """Names experiments that come with the plugin: `publish(name, path)`."""


@hookspec
def write_sample_data(folder: Path, seed: int, progress: Callable[[str], None], parts: Collection[str] | None) -> None:
    """Writes this plugin's parts of a small labelled corpus, one folder each below `folder`.

    Called on the main process only, before every run that has `data.sample_data`: a writer leaves alone what is
    complete already, as `mmmask.interfaces.write_part` does.

    Args:
        folder: the whole corpus, which exists.
        seed: equal seeds give equal files.
        progress: takes a line per file.
        parts: names of the folders that are needed; None: all.
    """


@hookspec
def run_started(run: RunState) -> None:
    """A run begins, or goes on: `run.step` steps are done, `run.output` exists. Called on every process."""


@hookspec
def optimizer_stepped(run: RunState) -> None:
    """An optimiser step is done, `run.step` in all. Called after every step, on every process."""


@hookspec
def step_ended(run: RunState, metrics: dict[str, Any]) -> None:
    """A logged step is done; `metrics` is the line of `metrics.jsonl`. Called on the main process only."""


@hookspec
def evaluated(run: RunState, stream: str, figures: dict[str, Any]) -> None:
    """A stream was evaluated; `figures` are a line of `evaluations.jsonl`. Called on the main process only."""


@hookspec
def picture_drawn(run: RunState, stream: str, path: Path) -> None:
    """A picture of a stream's samples was written. Called on the main process only."""


@hookspec
def checkpoint_saved(run: RunState, path: Path) -> None:
    """A checkpoint is on disk, whole. Called on the main process only."""


@hookspec
def run_ended(run: RunState, outcome: str) -> None:
    """The run ends: `outcome` is `finished`, `interrupted` or `failed`. Called on every process."""
