"""`mmmask check EXPERIMENT`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mmmask.cli import forecast
from mmmask.cli.arguments import add_experiment, load
from mmmask_registry import MmmaskError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from mmmask.data.samples import SampleLoader
    from mmmask.model.model import Model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """EXPERIMENT [key=value ...] --verbose --device --pictures, and those of a forecast."""
    add_experiment(parser)
    parser.add_argument("--verbose", action="store_true", help="say what became of every key of model.weights")
    parser.add_argument("--device", metavar="D", help="of the trial step (default: a GPU where there is one)")
    parser.add_argument("--pictures", metavar="DIR", help="draw samples of every stream as training sees them")
    forecast.add_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Prints parameters, tokens, operations and memory, reads samples of every stream, and tries a step on them.

    With --gpu, --nodes or --gpus it prints what training there would take, and neither reads nor tries anything.
    """
    if forecast.is_wanted(arguments):
        forecast.run(arguments)
        return
    from mmmask.cli.sample_data import write_what_is_asked_for
    from mmmask.data.labels import count_labels
    from mmmask.data.streams import classes_of, sample_loader, total_steps
    from mmmask.interop import with_teacher
    from mmmask.interop.starting import start
    from mmmask.model.build import build_model
    from mmmask.model.cost import BF16_ACTIVATIONS, meta_model, parameters, stream_cost
    from mmmask.model.memory import check_samples, size, within_memory
    from mmmask.model.precision import REDUCED, find_device
    from mmmask.profiling.dry_run import READ, TRIED, free_memory, read_batch, try_step
    from mmmask.profiling.forecast import Layout, count, optimizer_moments, state_bytes
    from mmmask.training.budget import budgeted
    from mmmask.training.optimizer import peak_learning_rate

    experiment = with_teacher(load(arguments))
    device = find_device(arguments.device)
    write_what_is_asked_for(experiment)
    loaders = {name: sample_loader(experiment, name) for name in experiment.streams}
    classes = classes_of(experiment, loaders)
    model = meta_model(experiment, classes)
    parts = ", ".join(f"{name} {numbers:,}" for name, numbers in parameters(model).items() if name != "total")
    counted = count(model)
    some = f"; {counted.trained:,} train" if counted.trained < counted.total else ""
    print(f"parameters: {counted.total:,} ({parts}{some})")
    if experiment.model.weights is not None:
        with within_memory("model.weights"):
            taken = start(build_model(experiment, classes), experiment)
        if taken is not None:
            print(taken.account if arguments.verbose else taken.summary)
    check_samples(model.sample_shapes, dict.fromkeys(experiment.streams, READ))
    written = experiment.streams
    experiment = budgeted(experiment, model)
    training, problems, batches, sizes = experiment.training, [], {}, {}
    half = training.precision in REDUCED
    activations, trial, under_way = 0.0, 2.0 * counted.total if half else 0.0, 0.0  # weights in 16 bits
    flops = {}
    for name, stream in experiment.streams.items():
        with within_memory(f"streams.{name}: its tokens"):
            cost = stream_cost(model, name)
        flops[name] = cost.training_flops
        kept = cost.activation_bytes * (BF16_ACTIVATIONS if half else 1)
        activations += kept * (stream.batch_size // training.accumulate)
        trial += kept * TRIED * stream.replicate
        grids = " + ".join(" x ".join(map(str, grid)) for grid in cost.grids.values())
        print(
            f"{name}: grid {grids} = {cost.tokens} tokens, {cost.visible} visible, "
            f"{cost.predicted} predicted; {cost.forward_flops / 1e9:.2f} GFLOP forward, "
            f"{cost.training_flops / 1e9:.2f} in training, per sample; batch {stream.batch_size}"
        )
        read, seconds = read_batch(experiment, loaders[name])
        source = loaders[name].source
        sizes[name] = len(source)
        batches[name] = read.batch
        parts = {model.parts[name][short]: part[:: stream.replicate] for short, part in read.batch.parts.items()}
        for part, samples in parts.items():
            print(
                f"{part}: {sizes[name]} samples; read {len(samples)} in {seconds:.2f} s as {samples.dtype} "
                f"{tuple(samples.shape)}, values {samples.real.min().item()} to {samples.real.max().item()}"
            )
        if arguments.pictures:
            print(f"{name}: {_draw(loaders[name], model, Path(arguments.pictures))}")
        if source.left_out:
            print(f"{name}: left out: {source.left_out}")
        for label_set, found in count_labels(source).items():
            print(f"{name}: {'labels' if label_set == 'label' else f'labels {label_set}'}: {found}")
        for bad in read.bad:
            print(f"{name}: bad sample {bad.sample}: {bad.reason}")
        if stream.held_out:
            held_out = sample_loader(experiment, name, held_out=True, classes=classes.get(name))
            print(f"{name}: {len(held_out.source)} held-out samples")
        for part, samples in parts.items():
            shape, expected = tuple(samples.shape[1:]), tuple(model.modalities[part].sample_shape)
            if shape != expected:
                problems.append(f"streams.{part}: samples are {shape}, and the modality's sample_shape says {expected}")
        if len(read.bad) > experiment.data.max_bad_share * sizes[name]:
            problems.append(
                f"streams.{name}.source: {len(read.bad)} of {sizes[name]} samples, or more, could not be decoded: more "
                f"than data.max_bad_share = {experiment.data.max_bad_share:g}, so training would stop"
            )
        # being made or ready in the workers, and the micro-batch that trains
        ahead = experiment.data.workers + training.accumulate if experiment.data.workers else 0
        under_way += (
            sum(part[0].nbytes for part in parts.values()) * stream.batch_size / training.accumulate * (1 + ahead)
        )
    if training.mixing == "budget":
        print(_budget(flops, written, experiment.streams))
    moments, average = optimizer_moments(training.optimizer), training.average is not None
    state = state_bytes(counted, Layout(1, 1), half, moments, average, training.accumulate)
    print(
        f"memory on one process: about {size(sum(state.values()))} for weights, gradients and optimiser, "
        f"{size(activations)} for activations of a micro-batch ({training.precision}), {size(under_way)} for batches "
        "under way; more processes divide the last two, training.accumulate the activations"
    )
    steps = total_steps(experiment, sizes)
    print(f"peak learning rate {peak_learning_rate(experiment):g}, {steps} steps, {training.mixing}")
    needed, free = 8 * counted.total + 2 * trial, free_memory(device)
    if not problems and needed < free:
        with within_memory(f"{TRIED} samples of each stream"):
            problems = try_step(experiment, batches, classes, device)
        if not problems:
            print(f"one forward and backward of {TRIED} samples per stream on {device}: finite, with all gradients")
    if problems:
        raise MmmaskError("\n".join(problems))
    if needed >= free:
        print(f"no step was tried: it needs about {size(needed)}, and {size(free)} are free on {device}")
        print("ready to train where there is that much memory")
        return
    print("ready to train")


def _budget(flops: Mapping[str, int], written: Mapping[str, Any], chosen: Mapping[str, Any]) -> str:
    """Says what `mixing: budget` made of the streams' settings, and of the operations of a step.

    Args:
        flops: {stream: operations per sample}.
    """
    before, after = (
        {name: flops[name] * stream.batch_size for name, stream in streams.items()} for streams in (written, chosen)
    )
    total, parts = sum(after.values()), []
    for name, stream in chosen.items():
        as_written = written[name].batch_size
        parts.append(f"{name} {stream.batch_size} samples (as written {as_written}), {after[name] / total:.1%}")
    return (
        f"budget of a step on one process: {'; '.join(parts)}; {total / 1e9:.2f} GFLOP, "
        f"{sum(before.values()) / 1e9:.2f} as written"
    )


def _draw(loader: SampleLoader, model: Model, folder: Path) -> str:
    """Says where the picture of a stream's samples is, or why there is none."""
    from mmmask.evaluation.pictures import draw_training_samples

    path = folder / f"{loader.stream}.png"
    try:
        picture = draw_training_samples(loader, model)
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    except (NotImplementedError, OSError) as error:
        return f"no picture: {error}"
    return f"{path} shows samples as training sees them"
