"""`mmmask check EXPERIMENT --nodes 16 --gpus 8 --gpu h200`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from mmmask.cli.arguments import load, positive
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
    group.add_argument("--gpu", metavar="NAME", help="a100-40, a100, h100, h200, b200, or cpu for this machine's")
    group.add_argument("--nodes", type=positive, metavar="N", help="number of nodes (default 1)")
    group.add_argument("--gpus", type=positive, metavar="N", help="GPUs, or processes, of each node (default 1)")
    group.add_argument("--price", type=float, metavar="P", help="price of a GPU for an hour")
    group.add_argument(
        "--samples", action="append", default=[], metavar="STREAM=N", help="samples of a source that is not there"
    )
    group.add_argument(
        "--decode", action="append", default=[], metavar="STREAM=N", help="samples that a core decodes in a second"
    )


def is_wanted(arguments: argparse.Namespace) -> bool:
    """Whether machines were named."""
    return bool(arguments.gpu or arguments.nodes or arguments.gpus)


def run(arguments: argparse.Namespace) -> None:
    """Prints memory on one GPU, seconds of a step, communication, and what the whole training takes."""
    from mmmask.data.streams import classes_of
    from mmmask.interop import with_teacher
    from mmmask.profiling.forecast import Layout, forecast
    from mmmask.profiling.machines import GPUS, find_machine

    if arguments.gpu is None:
        raise MmmaskError(f"--gpu: required with --nodes and --gpus; one of {', '.join([*GPUS, 'cpu'])}")
    experiment = with_teacher(load(arguments))
    samples = _numbers("--samples", arguments.samples, experiment)
    rates = _numbers("--decode", arguments.decode, experiment)
    training, gpus = experiment.training, arguments.gpus or 1
    layout = Layout(arguments.nodes or 1, gpus, training.sharding)
    machine = find_machine(arguments.gpu, gpus, training.precision)
    try:
        classes: Mapping[str, Mapping[str, Sequence[str]]] = classes_of(experiment)
    except MmmaskError as error:
        names = [str(number) for number in range(CLASSES)]
        classes = {name: {"label": names} for name, stream in experiment.streams.items() if stream.labelled()}
        print(f"{CLASSES} classes are assumed, as {error}")
    found = forecast(experiment, machine, layout, classes, rates)
    _print(found, training.precision)
    _print_whole(experiment, found, samples, arguments.price)


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
            found[name] = float(number)
        except ValueError:
            found[name] = 0.0
        if not 0 < found[name] < float("inf"):
            raise MmmaskError(f"{option} {word}: expected a number above 0, such as {name}=1000")
    return found


def _print(found: Forecast, precision: str) -> None:
    from mmmask.model.memory import size

    machine, layout = found.machine, found.layout
    share = " + ".join(f"{count} {name}" for name, count in found.samples.items())
    print(f"{layout.nodes} x {layout.gpus} {machine.name}, sharding {layout.sharding}: {share} a step on each")
    parts = ", ".join(f"{what} {size(count)}" for what, count in found.memory.items())
    print(f"memory: {size(found.needed[layout.sharding])} of {size(machine.memory)} ({parts})")
    each = (f"{name} {size(count)} {FITS[found.fits(name)]}" for name, count in found.needed.items())
    print(f"memory by sharding: {', '.join(each)}")
    peak, share = machine.peak[precision], machine.efficiency[precision]
    print(
        f"compute: {found.compute:.3g} s: {found.flops / 1e12:.3g} TFLOP at {share:.0%} of {peak / 1e12:.3g} TFLOP/s "
        f"({precision}), and {found.passing:.2g} s of memory; no less than {found.calling:.2g} s of calls"
    )
    print(f"optimiser: {found.update:.2g} s")
    for part in found.transfers:
        print(f"communication: {part.name}: {size(part.sent)} sent by each, {part.seconds:.3g} s")
    if found.transfers:
        print(f"communication: {found.waiting:.3g} s of it exposed; links at {machine.link:.0%}")
    print(f"reading: {found.reading:.3g} s on {machine.cores:g} cores, {found.starving:.3g} s of it exposed")
    rate = sum(found.samples.values()) * layout.world / found.seconds
    print(f"shares of peak and links, and seconds of a call, are {machine.basis}")
    print(f"a step: {found.seconds:.3g} s, {rate:,.0f} samples/s")


def _print_whole(experiment: Experiment, found: Forecast, samples: Mapping[str, float], price: float | None) -> None:
    from mmmask.data.streams import sample_loader, total_steps

    training = experiment.training
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
    cost = "" if price is None else f", {gpu_hours * price:,.0f} at {price:g} each"
    print(f"{steps:,} steps: {hours:.1f} hours, {gpu_hours:,.0f} GPU-hours{cost}")
