"""Frozen features of labelled samples, and how well classes can be told from them: no fine-tuning, no recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmmask.evaluation import frozen
from mmmask.evaluation.extraction import check_pool
from mmmask.evaluation.inputs import is_run, known_precision, read_model
from mmmask.evaluation.probing.features import Encoded, FeatureReader, Progress, cache_folder, working_folder
from mmmask.evaluation.probing.results import UNSUPERVISED, Probe, Probes
from mmmask.evaluation.probing.samples import ProbedSamples, probed_samples, stream_of
from mmmask.evaluation.sources import SourceChoice
from mmmask.interop.checkpoint_file import new_file
from mmmask.interop.loading import model_settings
from mmmask.interop.runs import load_run
from mmmask.model.build import build_model
from mmmask.model.precision import find_device
from mmmask_registry import MmmaskError, UnknownName

KINDS = ("knn", "linear", "attentive", UNSUPERVISED)
RANDOM = "random weights"


def probe(
    model: nn.Module | str | Path,
    *,
    train: SourceChoice = None,
    test: SourceChoice = None,
    kinds: Sequence[str] = KINDS,
    stream: str | None = None,
    pool: str | None = None,
    label_set: str | None = None,
    samples: int | None = None,
    control: bool = False,
    k: int = 20,
    epochs: int = 20,
    seed: int = 0,
    batch_size: int = 64,
    device: str | None = None,
    precision: str = "fp32",
    reading: Mapping[str, Any] | None = None,
    cache: str | Path | bool = True,
    output: str | Path | None = None,
    progress: Progress = lambda doing, done, total, skipped: None,
) -> Probes:
    """Measures how well classes can be told from frozen features; the model learns nothing.

    - `knn`: the k nearest training samples by cosine vote with exp(similarity / 0.07) (DINO).
    - `linear`: logistic regression on standardised features, its L2 penalty chosen on a part of the training samples.
    - `attentive`: cross-attention over all tokens with a learned query, then a linear layer (V-JEPA). All tokens are
      written to a temporary file in half precision, in the folder of the cache; memory holds a few samples of them.
    - `effective_rank`: how many directions the training samples' features fill (RankMe); needs no labels.

    Args:
        model: a model, or what `mmmask.interop.load` reads: a published name, a file, a run's folder.
        train, test: labelled sources, such as `{"name": "folder", "path": ...}` or a folder's path. By default the
            `source` and `held_out` of a run, of every stream; always in the deterministic view.
        kinds: of probes.
        stream: decodes the samples; by default told from a folder's files, and of a run all streams.
        pool: features by a pool's name; by default the mean of all tokens, and of a classifier what its head sees.
        label_set: where samples have several labels; by default all of them.
        samples: most training samples, evenly spaced.
        control: also probe the same network with random weights.
        k: neighbours of `knn`.
        epochs: passes of `attentive`.
        seed: of the part that settings are chosen on, and of `attentive`.
        batch_size: samples in a forward.
        device, precision, reading: as of `mmmask.extract`.
        cache: the folder that keeps features by the content of weights and settings, and by names, sizes and times of
            files; True: `mmmask/features` in the user's cache, False: nothing is kept.
        output: a .json file to write; looked at before the work begins.

    Raises:
        MmmaskError: something of this cannot be, there are no labels, or a test sample has a class that no training
            sample has.
    """
    if output is not None:
        new_file(output, (".json",))
    for kind in kinds:
        if kind not in KINDS:
            raise UnknownName("kind", kind, KINDS)
    known_precision(precision)
    check_pool(pool)
    if pool == "none":
        raise MmmaskError("pool none: a probe takes one vector of a sample; `attentive` sees all tokens by itself")
    by_labels = [kind for kind in kinds if kind != UNSUPERVISED]
    if (train is None and test is not None) or (train is not None and test is None and by_labels):
        raise MmmaskError("give train= and test=, or neither of them for a run's own samples")
    if train is None and not is_run(model):
        raise MmmaskError("only a run has samples of its own; give a run's folder, or train= and test=")
    chosen_device = find_device(device)
    opened, report = read_model(model, reading)
    if stream is not None and stream not in (known := opened.modalities.keys() | opened.parts):
        raise UnknownName("stream", stream, sorted(known))
    required = train is not None or stream is not None  # or else streams without labels are only noted
    if train is not None:
        sources = {stream or stream_of(opened, train): (train, test)}
    else:
        streams = load_run(str(model)).experiment.streams
        sources = {name: (part.source, part.held_out) for name, part in streams.items() if stream in (None, name)}
    folder = None if cache is False else cache_folder() if cache is True else Path(cache).expanduser()
    random = build_model(*model_settings(opened.plain_settings(), "the model")).eval() if control else None
    fit = _Fit(k, epochs, seed, chosen_device, progress)
    rows: list[Probe] = []
    names: dict[str, list[str]] = {}
    labels: dict[str, dict[str, list[str | None]]] = {}
    notes: list[str] = []
    skipped: list[str] = []
    for name, (first, second) in sources.items():
        given = probed_samples(opened, name, first, second, by_labels, label_set, samples, k)
        if given.lacks:
            if required:
                raise MmmaskError(given.lacks)
            notes.append(given.lacks)
        wanted = [kind for kind in kinds if kind == UNSUPERVISED or given.labels]
        if not wanted:
            continue
        with working_folder(folder) as working:
            read = FeatureReader(
                name, pool, precision, batch_size, chosen_device, "attentive" in wanted, folder, working, progress
            )
            train_set, test_set = read.both(opened, given, "")
            measured = fit.probes(given, wanted, train_set, test_set, "")
            if random is not None:
                controls = fit.probes(given, wanted, *read.both(random, given, RANDOM), RANDOM)
                measured = [replace(row, control=other.figures) for row, other in zip(measured, controls, strict=True)]
        rows += measured
        skipped += train_set.skipped
        if test_set is not None and given.test is not None:
            skipped += test_set.skipped
            names[name] = [given.test.describe(number) for number in test_set.index]
            labels[name] = {
                key: [asked[number] for number in test_set.index] for key, (_, asked) in given.labels.items()
            }
    if not rows:
        raise MmmaskError(notes[0] if notes else "there is nothing to probe")
    found = Probes(tuple(rows), names, labels, tuple(notes), tuple(skipped), folder, report)
    if output is not None:
        found.save(output)
    return found


@dataclass(frozen=True)
class _Fit:
    """Settings of classifiers of features, as of `probe`."""

    k: int
    epochs: int
    seed: int
    device: torch.device
    progress: Progress

    def probes(
        self, samples: ProbedSamples, kinds: Sequence[str], train: Encoded, test: Encoded | None, words: str
    ) -> list[Probe]:
        """The probes of a stream; `words` says in the progress which model's."""
        stream, found = samples.stream, []
        if test is not None:
            for label_set in samples.labels:
                found += self._by_labels(samples, label_set, kinds, train, test, words)
        if UNSUPERVISED in kinds:
            figures = {UNSUPERVISED: frozen.effective_rank(train.features), "most": float(min(train.features.shape))}
            found.append(Probe(stream, UNSUPERVISED, None, figures, train=len(train.index)))
        return found

    def _by_labels(
        self, samples: ProbedSamples, label_set: str, kinds: Sequence[str], train: Encoded, test: Encoded, words: str
    ) -> list[Probe]:
        known, asked = samples.labels[label_set]
        names = sorted({name for name in known if name is not None})
        number = {name: place for place, name in enumerate(names)} | {None: -1}
        train_labels = torch.tensor([number[known[place]] for place in train.index])
        test_labels = torch.tensor([number[asked[place]] for place in test.index])
        train_rows, test_rows = ((labels >= 0).nonzero().squeeze(1) for labels in (train_labels, test_labels))
        learned, told = train_labels[train_rows], test_labels[test_rows]
        if not len(learned) or not len(told):
            raise MmmaskError(f"{samples.stream}: no sample that could be decoded has a label")
        luck = frozen.chance(learned, told)
        found = []
        for kind in (kind for kind in kinds if kind != UNSUPERVISED):
            doing = f"{samples.stream}: {'passes of ' * (kind == 'attentive')}{kind}" + (f", {words}" if words else "")
            scores, chosen = self._scores(kind, train, test, train_rows, test_rows, learned, len(names), doing)
            predictions: list[str | None] = [None] * len(test.index)
            for place, best in zip(test_rows.tolist(), frozen.ranked(scores, 1)[:, 0].tolist(), strict=True):
                predictions[place] = names[best]
            found.append(
                Probe(
                    samples.stream,
                    kind,
                    label_set,
                    frozen.accuracy(scores, told),
                    luck,
                    chosen=chosen,
                    classes=len(names),
                    train=len(learned),
                    test=len(told),
                    predictions=tuple(predictions),
                )  # fmt: skip
            )
        return found

    def _scores(
        self, kind: str, train: Encoded, test: Encoded, train_rows: Tensor, test_rows: Tensor, labels: Tensor,
        classes: int, doing: str,
    ) -> tuple[Tensor, dict[str, float]]:  # fmt: skip
        """Scores (test samples, classes) on the CPU, and what was fixed or chosen."""
        if kind == "attentive":
            assert train.tokens is not None
            assert test.tokens is not None
            attentive = frozen.fit_attentive(
                train.tokens, labels, classes, train_rows, self.device, self.epochs, self.seed,
                lambda done, total: self.progress(doing, done, total, ()),
            )  # fmt: skip
            return attentive.scores(test.tokens, test_rows).float().cpu(), {"rate": attentive.rate}
        features, labels = train.features[train_rows].to(self.device), labels.to(self.device)
        asked = test.features[test_rows].to(self.device)
        if kind == "knn":
            scores = frozen.nearest_neighbours(features, labels, asked, classes, self.k)
            return scores.float().cpu(), {"k": float(self.k)}
        self.progress(doing, 0, 1, ())
        classifier = frozen.fit_linear(features, labels, classes, self.seed)
        scores = classifier(asked)
        self.progress(doing, 1, 1, ())
        return scores.float().cpu(), {"penalty": classifier.penalty}
