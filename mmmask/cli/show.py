"""`mmmask show EXPERIMENT`."""

from __future__ import annotations

import argparse

from mmmask.cli.arguments import add_experiment, load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """EXPERIMENT [key=value ...]."""
    add_experiment(parser)


def run(arguments: argparse.Namespace) -> int:
    """Prints the experiment as YAML, every default filled in, and what follows from it as comments."""
    experiment = load(arguments)
    print(experiment.to_yaml(), end="")
    from mmmask.training.optimizer import peak_learning_rate

    print(f"# peak learning rate: {peak_learning_rate(experiment):g}")
    if experiment.training.epochs is not None:
        from mmmask.data.streams import total_steps

        print(f"# steps: {total_steps(experiment)}")
    return 0
