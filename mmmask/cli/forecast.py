"""`mmmask check EXPERIMENT --nodes 16 --gpus 8 --gpu h200`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from mmmask.cli.arguments import above_zero, load, positive
from mmmask.profiling.machines import GPUS, find_machine
from mmmask_registry import MmmaskError, UnknownName

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mmmask.experiment import Experiment
    from mmmask.profiling.forecast import Forecast

FITS = {True: "fits", False: "does not fit"}
CLASSES = 1000
"""Classes of a stream whose source is not there to tell."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--gpu --nodes --gpus --price --samples --decode."""
    group = parser.add_argument_group("forecast of a run on machines that need not be there; no data is needed")
    group.add_argument("--gpu", metavar="NAME", help=f"{', '.join(GPUS)}, or cpu for this machine's")
    group.add_argument("--nodes", type=positive, metavar="N", help="number of nodes (default 1)")
    group.add_argument("--gpus", type=positive, metavar="N", help="GPUs, or processes, of each node (default 1)")
    group.add_argument("--price", type=above_zero, metavar="P", help="price of a GPU for an hour")
    group.add_argument(
        "--samples", action="append", default=[], metavar="STREAM=N", help="samples of a source that is not there"
    )
    group.add_argument(
        "--decode", action="append", default=[], metavar="STREAM=N", help="samples that a core decodes in a second"
    )


def is_wanted(arguments: argparse.Namespace) -> bool:
    """Whether any option of a forecast is given."""
    return any(getattr(arguments, name) for name in ("gpu", "nodes", "gpus", "price", "samples", "decode"))


def run(arguments: argparse.Namespace) -> None:
    """Prints memory on one GPU, seconds of a step, communication, and what the whole training takes."""
    from mmmask.data.streams import classes_of
    from mmmask.experiment import ExperimentError
    from mmmask.interfaces import SourceError
    from mmmask.interop import with_teacher
    from mmmask.profiling.forecast import Layout, forecast

    if arguments.gpu is None:
        options = "--nodes, --gpus, --price, --samples and --decode"
        raise MmmaskError(f"--gpu: required with {options}; one of {', '.join([*GPUS, 'cpu'])}")
    for name in ("pictures", "verbose", "device"):
        if getattr(arguments, name):
            raise MmmaskError(f"--{name}: not with a forecast, which reads and tries nothing; leave it out, or --gpu")
    experiment = with_teacher(load(arguments))
    samples = _numbers("--samples", arguments.samples, experiment)
    rates = _numbers("--decode", arguments.decode, experiment)
    training, gpus = experiment.training, arguments.gpus or 1
    layout = Layout(arguments.nodes or 1, gpus, training.sharding)
    machine = find_machine(arguments.gpu, gpus, training.precision)
    try:
        classes: Mapping[str, Mapping[str, Sequence[str]]] = classes_of(experiment)
    except (SourceError, ExperimentError) as error:  # missing or empty, or none is given
        classes = _assumed_classes(experiment)
        sets = (
            f"{len(names)} classes" + (f" of {label_set}" if label_set != "label" else "")
            for found in classes.values()
            for label_set, names in found.items()
        )
        print(f"{', '.join(sets)} are assumed, as {error}")
    found = forecast(experiment, machine, layout, classes, rates)
    _print(found)
    _print_whole(found, samples, arguments.price)


def _assumed_classes(experiment: Experiment) -> dict[str, dict[str, Sequence[str]]]:
    """{stream: {label set: classes}}: as many as the sources' settings say, 1000 where they do not."""
    found: dict[str, dict[str, Sequence[str]]] = {}
    for name, stream in experiment.streams.items():
        if (learned := stream.labelled()) is not None:
            told = getattr(stream.source, "classes", None)
            counts = told if isinstance(told, dict) else {}
            default = told if isinstance(told, int) else CLASSES
            sets = getattr(learned, "label_sets", None) or [*counts] or ["label"]
            numbers = {label_set: counts.get(label_set, default) for label_set in sets}
            found[name] = {
                label_set: [str(label) for label in range(number if isinstance(number, int) else CLASSES)]
                for label_set, number in numbers.items()
            }
    return found


def _numbers(option: str, words: Sequence[str], experiment: Experiment) -> dict[str, float]:
    """`STREAM=N` of every word.

    Raises:
        MmmaskError: a word is none such.
    """
    found = {}
    for word in words:
        name, _, number = word.partition("=")
        if name not in experiment.streams:
            raise UnknownName("stream", name, experiment.streams)
        try:
            found[name] = above_zero(number)
        except argparse.ArgumentTypeError:
            raise MmmaskError(f"{option} {word}: expected a number above zero, such as {name}=1000") from None
    return found


def _print(found: Forecast) -> None:
    from mmmask.model.memory import size

    machine, layout, training = found.machine, found.layout, found.experiment.training
    conjunction = " or " if training.mixing == "alternate" else " + "
    streams = conjunction.join(f"{count} {name}" for name, count in found.samples.items())
    print(f"{layout.nodes} x {layout.gpus} {machine.name}, sharding {layout.sharding}: {streams} a step on each")
    parts = ", ".join(f"{what} {size(count)}" for what, count in found.memory.items())
    print(f"memory: {size(found.needed[layout.sharding])} of {size(machine.memory)} ({parts})")
    if layout.sharding in found.gathered:
        whole = size(found.gathered[layout.sharding])
        print(f"memory while evaluation and pictures gather all weights: at least {whole}")
    each = (f"{name} {size(count)} {FITS[found.fits(name)]}" for name, count in found.needed.items())
    print(f"memory by sharding: {', '.join(each)}")
    if not found.fits(layout.sharding):
        fitting = [name for name in found.needed if found.fits(name)]
        others = f"training.sharding={fitting[0]}, " if fitting else "more GPUs with training.sharding=full, "
        print(
            f"it does not fit: take {others}training.accumulate, or activation_checkpointing of a stream or the encoder"
        )
    peak, share = machine.peak[training.precision], machine.efficiency[training.precision]
    print(
        f"compute: {found.compute:.3g} s: {found.flops / 1e12:.3g} TFLOP at {share:.0%} of {peak / 1e12:.3g} TFLOP/s "
        f"({training.precision}), {found.passing:.2g} s for reading and writing memory; launching all operators alone "
        f"takes {found.calling:.2g} s"
    )
    print(f"optimiser: {found.update:.2g} s")
    for part in found.transfers:
        print(f"communication: {part.name}: each GPU sends {size(part.sent)}, {part.seconds:.3g} s")
    if found.transfers:
        links = f"links at {machine.link:.0%} of their rate"
        print(f"communication: {found.waiting:.3g} s that compute does not hide ({links})")
    cores = f"{found.reading:.3g} s on {machine.cores:g} cores"
    print(f"reading: {cores}, {found.starving:.3g} s that the step does not hide")
    rate = sum(found.shares[name] * count for name, count in found.samples.items()) * layout.world / found.seconds
    print(f"the percentages, and the time to launch an operator, are {machine.basis}")
    print(f"a step: {found.seconds:.3g} s, {rate:,.0f} samples/s")


def _print_whole(found: Forecast, samples: Mapping[str, float], price: float | None) -> None:
    from mmmask.data.streams import sample_loader, total_steps

    experiment, training = found.experiment, found.experiment.training
    epochs = {} if training.steps is not None else training.epochs or {}
    try:
        sizes = {name: int(samples.get(name) or len(sample_loader(experiment, name).source)) for name in epochs}
        steps = total_steps(experiment, sizes)
    except MmmaskError as error:
        where = next(iter(epochs), None)
        missing = "" if where is None else f"; give --samples {where}=N"
        print(f"hours: not known: {error}{missing}")
        return
    hours = steps * found.seconds / 3600
    gpu_hours = hours * found.layout.world
    time = f"{hours:,.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"
    cost = "" if price is None else f", cost {gpu_hours * price:,.0f} at {price:g} a GPU-hour"
    print(f"{steps:,} steps: {time}, {gpu_hours:,.1f} GPU-hours{cost}")
