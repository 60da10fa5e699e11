"""`mmmask show EXPERIMENT`."""

from __future__ import annotations

import argparse

from mmmask.cli.arguments import add_experiment, load
from mmmask_registry import MmmaskError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """EXPERIMENT [key=value ...]."""
    add_experiment(parser)


def run(arguments: argparse.Namespace) -> None:
    """Prints the experiment as YAML, every default filled in, and what follows from it as comments."""
    experiment = load(arguments)
    print(experiment.to_yaml(), end="")
    from mmmask.training.optimizer import peak_learning_rate

    for part, config in (("encoder", experiment.model.encoder), ("decoder", experiment.model.decoder)):
        if config is None:
            continue
        written = config.model_dump(mode="json")
        implied = [f"{key} {value}" for key, value in config if key not in written]
        if implied:  # what a size sets is not written beside it
            print(f"# model.{part} of size {written.get('size')}: {', '.join(implied)}")
    print(f"# peak learning rate: {peak_learning_rate(experiment):g}")
    if experiment.training.epochs is not None:
        from mmmask.data.streams import total_steps

        try:
            print(f"# steps: {total_steps(experiment)}")
        except MmmaskError as error:  # the experiment is shown where its data is not
            print(f"# steps: unknown ({error})")
