"""The step before training on ids: k-means of a loss's targets."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from mmmask.builtins.losses.codebook import CodebookLoss, present_values, save_codebook
from mmmask.builtins.losses.k_means import ROUNDS, k_means
from mmmask.builtins.objectives.masked.objective import MaskedObjective, MaskedPlan
from mmmask.data.order import Draw
from mmmask.data.pipeline import read_ahead
from mmmask.data.process import guarded
from mmmask.data.samples import LoadedBatch, SampleLoader
from mmmask.data.streams import classes_of, sample_loader
from mmmask.experiment import Experiment, experiment_from_data
from mmmask.interfaces.naming import full_name, stream_of
from mmmask.interop.checkpoint_file import new_file
from mmmask.interop.teaching import teach, with_teacher
from mmmask.model.build import build_model
from mmmask.model.model import Model
from mmmask.model.precision import autocast, find_device
from mmmask.model.teacher import EMA
from mmmask.randomness import seeded_generator
from mmmask_registry import MmmaskError, UnknownName

MASKED, CODEBOOK = "masked", "codebook"
BATCH = 32
"""Samples of one forward, before replication."""
TOKENS_PER_ID = 256
"""Tokens that k-means sees at most for each id; more hardly move the centroids."""
FEWEST_TOKENS_PER_ID = 4
"""Tokens that k-means needs for each id, so that ids do not tell single tokens apart."""

Progress = Callable[[str, int, int, Sequence[str]], None]
"""Called with (what is being done, how much of it is done, in all, reasons of newly skipped samples)."""


@dataclass(frozen=True)
class Codebook:
    """A codebook that was written.

    Attributes:
        path: of its file.
        target: whose it is: a stream, or `STREAM/TARGET`.
        centroids: (ids, dim), on the CPU.
        counts: (ids,) tokens that are nearest to each.
        error: mean squared distance of a token to its centroid, as a share of that to the mean of all tokens.
        samples: that the tokens are of.
    """

    path: Path
    target: str
    centroids: Tensor
    counts: Tensor
    error: float
    samples: int

    @property
    def used(self) -> int:
        """Ids that some token has."""
        return int((self.counts > 0).sum())

    @property
    def perplexity(self) -> float:
        """Exponential of the entropy of the ids: so many, used evenly, would be as hard to guess."""
        shares = self.counts.double() / self.counts.sum()
        return float(torch.special.entr(shares).sum().exp())


@torch.no_grad()
def write_codebook(
    experiment: Experiment,
    stream: str | None = None,
    *,
    samples: int = 4096,
    seed: int = 0,
    device: str | None = None,
    overwrite: bool = False,
    progress: Progress = lambda doing, done, total, skipped: None,
) -> Codebook:
    """Makes the codebook of a loss `codebook` by k-means, and writes it where the loss looks for it.

    Takes training samples of the stream, evenly spaced in its source and cropped as in training, and of these the
    targets of tokens that its masker masks, at most 256 for each id.

    Args:
        stream: or `STREAM/TARGET`; by default the only one with this loss.
        samples: at most.
        seed: of the tokens that are taken, and of the centroids to begin with.
        device: by default a GPU where there is one.
        overwrite: whether a file that is there is replaced.

    Raises:
        MmmaskError: there is no such stream, or nothing to make a codebook of.
    """
    target, config = _chosen(experiment, stream)
    teacher = experiment.model.teacher
    if config.needs_teacher and teacher is not None and getattr(teacher, "from") == EMA:
        raise MmmaskError(
            "model.teacher: a moving average has learned nothing yet, and its latents move: a codebook is made of "
            "those of frozen weights, model.teacher={from: RUN}"
        )
    path = new_file(os.path.expanduser(config.path), (".safetensors",), overwrite)
    experiment = with_teacher(experiment)
    data = experiment.to_data()
    experiment = experiment_from_data(data | {"streams": _inner(data["streams"])})
    model = build_model(experiment, classes_of(experiment)).eval().to(find_device(device))
    teach(model, experiment)
    ids = config.ids
    values, present, count = _values(experiment, model, target, ids, samples, seed, progress)
    if len(values) < FEWEST_TOKENS_PER_ID * ids:
        raise MmmaskError(
            f"streams.{target}: {len(values)} tokens of {count} samples are too few for {ids} ids: take more samples, "
            f"or at most {len(values) // FEWEST_TOKENS_PER_ID} `ids`"
        )
    centroids, counts, error = k_means(values, present, ids, seed, lambda done: progress("rounds", done, ROUNDS, ()))
    save_codebook(path, centroids, counts, config.of)
    return Codebook(path, target, centroids.cpu(), counts.cpu(), error, count)


def _values(
    experiment: Experiment,
    model: Model,
    target: str,
    ids: int,
    samples: int,
    seed: int,
    progress: Progress,
) -> tuple[Tensor, Tensor | None, int]:
    """(tokens, dim) of what a target's loss expects, which are present, and the number of samples."""
    stream, device = stream_of(target), next(model.parameters()).device
    objective: MaskedObjective = model.objective(stream, MASKED)
    spec = objective.modalities[objective.targets[target].part].spec
    dim, count, found = objective.loss_of[target].prediction_dim(spec), 0, []
    loader = sample_loader(experiment, stream)
    total = min(samples, size := len(loader.source))
    draws = [(0, number * size // total) for number in range(total)]
    batches = [draws[first : first + BATCH] for first in range(0, total, BATCH)]
    most = math.ceil(TOKENS_PER_ID * ids / len(batches))
    for number, loaded in enumerate(_loaded(experiment, loader, batches)):
        with autocast(device, experiment.training.precision):
            batch = {stream: loaded.batch.map(lambda part: part.to(device))}
            plan = cast(MaskedPlan, model.plan(batch, step=number, objectives=[MASKED])[MASKED])
            values, present = present_values(objective.expected(plan, target), dim, spec.gaps)
        usable = plan.masks[target].counted.bool()
        usable = usable if present is None else usable & present.any(-1)
        chosen = usable.flatten().nonzero().squeeze(1)
        order = torch.randperm(len(chosen), generator=seeded_generator(seed, "codebook", number))
        chosen = chosen[order[:most].to(device)]
        found.append([part if part is None else part.flatten(0, 1)[chosen] for part in (values, present)])
        count += len(batches[number])
        progress("samples", count, total, [f"{bad.sample}: {bad.reason}" for bad in loaded.bad])
    values, present = ([part[number] for part in found] for number in (0, 1))
    return torch.cat(values), torch.cat(present) if spec.gaps else None, count


def _loaded(experiment: Experiment, loader: SampleLoader, batches: list[list[Draw]]) -> Iterator[LoadedBatch]:
    """Batches, while workers load the next."""
    with guarded({loader.stream: loader}, experiment.data) as loaders:
        load, workers = loaders[loader.stream].batch, experiment.data.workers
        for loaded in read_ahead(batches, load, workers, ready=2, pin=False):
            if isinstance(loaded, MmmaskError):
                raise loaded
            yield loaded


def _chosen(experiment: Experiment, stream: str | None) -> tuple[str, CodebookLoss.Config]:
    """The target that a codebook is of, and the settings of its loss."""
    known = {
        full_name(name, short): target.loss
        for name, settings in experiment.streams.items()
        for objective, (own, _) in settings.learned().items()
        if objective == MASKED
        for short, target in (own.targets or {"": own}).items()
        if target.loss.name == CODEBOOK
    }
    if not known:
        raise MmmaskError(
            "no stream has the loss codebook; such as loss: {name: codebook, path: book.safetensors, ids: 512, "
            "of: {name: hog}}"
        )
    if stream is None and len(known) > 1:
        raise MmmaskError(f"several targets have the loss codebook: give stream={' or stream='.join(known)}")
    name = stream or next(iter(known))
    if name not in known:
        raise UnknownName("target of the loss codebook", name, known)
    return name, known[name]


def _inner(data: Any) -> Any:  # noqa: ANN401 - settings as plain data
    """The same settings with the inner loss of every loss `codebook` in its place, whose targets k-means sees."""
    if isinstance(data, dict):
        return data["of"] if data.get("name") == CODEBOOK else {key: _inner(part) for key, part in data.items()}
    return [_inner(part) for part in data] if isinstance(data, list) else data
