"""Frozen features of labelled samples, and how well classes can be told from them: no fine-tuning, no recipe."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from mmmask.components import components
from mmmask.evaluation import frozen
from mmmask.evaluation.extraction import check_pool, features_of
from mmmask.evaluation.inputs import (
    SourceChoice,
    Spread,
    built_source,
    is_run,
    known_precision,
    open_inputs,
    portions,
    read_model,
    stream_preparation,
    streams_that_take,
)
from mmmask.interfaces import BadSample, Batch, Source, SourceFile
from mmmask.interfaces.writing import written_whole
from mmmask.interop import InteropError, Report
from mmmask.interop.checkpoint_file import new_file, read_plain, write_tensors
from mmmask.interop.loading import model_settings
from mmmask.interop.runs import load_run
from mmmask.model.build import build_model
from mmmask.model.memory import size
from mmmask.model.precision import find_device
from mmmask_registry import MmmaskError, UnknownName

KINDS = ("knn", "linear", "attentive", "effective_rank")
UNSUPERVISED = "effective_rank"
MOST_TOKENS = 16 * 2**30
"""Bytes of all tokens of a source, in half precision, that are written to disk for the attentive probe."""

Progress = Callable[[str, int, int, Sequence[str]], None]
"""Called with (what is being done, how much of it is done, in all, reasons of newly skipped samples)."""


@dataclass(frozen=True)
class Probe:
    """One line of the table.

    Attributes:
        stream: of the model, which decoded the samples.
        kind: `knn`, `linear`, `attentive` or `effective_rank`.
        label_set: whose classes were told; None where no labels are needed.
        figures: `top1`, where there are more than 5 classes `top5`, as shares; or `effective_rank`, and `most`, which
            it cannot be more than.
        chance: top-1 of always naming the class that most training samples have.
        control: the same figures with random weights, where asked for.
        chosen: what was fixed or chosen on a part of the training samples: k, penalty, rate.
        classes, train, test: how many; samples without a label are not counted.
        predictions: class of each test sample, in the order of `Probes.names`; None of one without a label.
    """

    stream: str
    kind: str
    label_set: str | None
    figures: dict[str, float]
    chance: float | None = None
    control: dict[str, float] | None = None
    chosen: dict[str, float] = field(default_factory=dict)
    classes: int = 0
    train: int = 0
    test: int = 0
    predictions: tuple[str | None, ...] = ()


@dataclass(frozen=True)
class Probes:
    """Results of probing frozen features.

    Attributes:
        rows: a probe of every stream, label set and kind.
        names: {stream: what the source calls each test sample}.
        labels: {stream: {label set: class of each test sample}}.
        notes: what was left out, a line each.
        skipped: why samples could not be decoded, a line each.
        cache: the folder that keeps features; None where they are not kept.
        report: how the model was read; None where a model was given.
    """

    rows: tuple[Probe, ...]
    names: dict[str, list[str]]
    labels: dict[str, dict[str, list[str | None]]]
    notes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    cache: Path | None = None
    report: Report | None = None

    def __getitem__(self, key: tuple[str, str]) -> Probe:
        """The first row of (stream, kind).

        Raises:
            KeyError: there is none.
        """
        for row in self.rows:
            if (row.stream, row.kind) == key:
                return row
        raise KeyError(key)

    def save(self, path: str | Path) -> None:
        """Writes all of it as JSON, whole or not at all.

        Raises:
            MmmaskError: the name does not end in .json, the file is there already, or it cannot be written.
        """
        data = {
            "probes": [asdict(row) for row in self.rows], "samples": self.names, "labels": self.labels,
            "notes": self.notes, "skipped": self.skipped,
        }  # fmt: skip
        with written_whole(new_file(path, (".json",))) as file:
            file.write(json.dumps(data, indent=1).encode())

    def __str__(self) -> str:
        top5, control = (any(test(row) for row in self.rows) for test in (lambda row: "top5" in row.figures, _control))
        lines = [["stream", "probe", "top-1", *["top-5"] * top5, "chance", *["random weights"] * control]]
        several = {row.stream for row in self.rows if row.label_set not in (None, _first_set(self.rows, row.stream))}
        for row in self.rows:
            name = f"{row.stream} ({row.label_set})" if row.stream in several and row.label_set else row.stream
            if row.kind == UNSUPERVISED:
                figures = [f"{row.figures[UNSUPERVISED]:.1f} of {row.figures['most']:.0f}", *[""] * top5, ""]
                more = [f"{row.control[UNSUPERVISED]:.1f}"] if row.control else [""]
            else:
                figures = [_percent(row.figures.get(key)) for key in ("top1", *["top5"] * top5)]
                figures.append(_percent(row.chance))
                more = [_percent((row.control or {}).get("top1"))]
            lines.append([name, row.kind.replace("_", " "), *figures, *more * control])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        texts = []
        for line in lines:
            left = [cell.ljust(width) for cell, width in zip(line[:2], widths[:2], strict=True)]
            right = [cell.rjust(width) for cell, width in zip(line[2:], widths[2:], strict=True)]
            texts.append("  ".join([*left, *right]).rstrip())
        return "\n".join(texts)


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
    if train is not None:
        named = True
        if stream is None:
            stream = _stream_of(opened, train)
        sources = {stream: (train, test)}
    else:
        named = stream is not None
        streams = load_run(str(model)).experiment.streams
        sources = {name: (part.source, part.held_out) for name, part in streams.items() if stream in (None, name)}
    folder = None if cache is False else _cache_folder() if cache is True else Path(cache).expanduser()
    models = {"": opened}
    if control:
        models["random weights"] = build_model(*model_settings(opened.plain_settings(), "the model")).eval()
    rows: list[Probe] = []
    first_row = 0
    found = Probes((), {}, {}, cache=folder, report=report)
    notes: list[str] = []
    skipped: list[str] = []
    for name, (first, second) in sources.items():
        task = _task(opened, name, first, second, by_labels, label_set, samples, k, notes, named)
        wanted = [kind for kind in kinds if kind == UNSUPERVISED or task.labels]
        if not wanted:
            continue
        with _working_folder(folder) as working:
            for words, probed in models.items():
                encode = _Encode(
                    probed, name, pool, precision, batch_size, chosen_device,
                    "attentive" in wanted, folder, working, words, progress,
                )  # fmt: skip
                train_set = encode(task.train, "training")
                test_set = encode(task.test, "test") if task.labels and task.test is not None else None
                skipped += [*train_set.skipped, *(test_set.skipped if test_set else [])] if not words else []
                measured = _measured(task, wanted, train_set, test_set, k, epochs, seed, chosen_device, words, progress)
                if not words:
                    first_row = len(rows)
                    rows += measured
                    if test_set is not None and task.test is not None:
                        found.names[name] = [task.test.describe(number) for number in test_set.index]
                        found.labels[name] = {
                            key: [labels[number] for number in test_set.index]
                            for key, (_, labels) in task.labels.items()
                        }
                else:
                    for number, row in enumerate(measured, first_row):
                        rows[number] = _with_control(rows[number], row)
    if not rows:
        raise MmmaskError(notes[0] if notes else "there is nothing to probe")
    found = Probes(tuple(rows), found.names, found.labels, tuple(notes), tuple(skipped), folder, report)
    if output is not None:
        found.save(output)
    return found


@dataclass(frozen=True)
class _Task:
    """A stream's sources, and {label set: (labels of all training samples, of all test samples)}."""

    stream: str
    train: Source
    test: Source | None
    labels: dict[str, tuple[list[str | None], list[str | None]]]


def _task(
    model: Any, stream: str, train: SourceChoice, test: SourceChoice, by_labels: Sequence[str],  # noqa: ANN401
    label_set: str | None, samples: int | None, k: int, notes: list[str], named: bool,
) -> _Task:  # fmt: skip
    """Samples and labels of a stream that are probed; where it lacks labels, a note says why.

    Raises:
        MmmaskError: the labels cannot be learned or told; or there are none, and the stream was `named`.
    """

    preparation, _ = stream_preparation(model, stream)
    train_source = built_source(train, preparation)
    test_source = None if test is None else built_source(test, preparation)
    if samples is not None and samples < len(train_source):
        train_source = Spread(train_source, samples)
    if not by_labels:
        return _Task(stream, train_source, None, {})
    several = train_source.several
    sets = [name for name in train_source.classes if name not in several]
    lacks = None
    if label_set is not None:
        if label_set not in sets:
            lacks = f"no label set {label_set!r} of one class a sample; known: {', '.join(sets) or 'none'}"
        sets = [label_set]
    elif not sets:
        lacks = "its training samples have no labels"
    elif test_source is None:
        lacks = "there are no held-out samples"
    if lacks or test_source is None:
        text = f"{stream}: {', '.join(by_labels)}: labels are needed: {lacks}"
        if named:
            raise MmmaskError(text)
        notes.append(text)
        return _Task(stream, train_source, None, {})
    labels = {name: (_labels(train_source, name), _labels(test_source, name)) for name in sets}
    for name, (known, asked) in labels.items():
        where = f"{stream}, labels {name!r}" if len(sets) > 1 else stream
        classes = {label for label in known if label is not None}
        if len(classes) < 2:
            raise MmmaskError(f"{where}: all training samples are of one class, {min(classes, default='none')!r}")
        strange = sorted(set(asked) - classes - {None}, key=str)
        if strange:
            raise MmmaskError(
                f"{where}: class {strange[0]!r} of test samples is none of the {len(classes)} of training samples "
                f"({', '.join(sorted(map(str, classes))[:8])}{', ...' if len(classes) > 8 else ''})"
            )
        if set(asked) == {None}:
            raise MmmaskError(f"{where}: the test samples have no labels")
        count = sum(label is not None for label in known)
        if "knn" in by_labels and k > count:
            raise MmmaskError(f"{where}: knn: k = {k}, and there are {count} labelled training samples: take less")
    return _Task(stream, train_source, test_source, labels)


def _labels(source: Source, label_set: str) -> list[str | None]:
    """Class of every sample, in a set of one class a sample."""
    return [cast("str | None", source.labels(index).get(label_set)) for index in range(len(source))]


@dataclass(frozen=True)
class _Encoded:
    """Features (samples, width) of the samples `index` of a source; `tokens` (samples, tokens, width) lie in a file."""

    features: Tensor
    index: list[int]
    skipped: list[str]
    tokens: Tensor | None = None


@dataclass(frozen=True)
class _Encode:
    """Computes features of a source, or takes those that are kept."""

    model: Any
    stream: str
    pool: str | None
    precision: str
    batch_size: int
    device: torch.device
    tokens: bool
    cache: Path | None
    working: Path
    words: str
    progress: Progress

    def __call__(self, source: Source, part: str) -> _Encoded:
        doing = f"{self.stream}: {part} samples" + (f", {self.words}" if self.words else "")
        kept = self._kept(source)
        if kept is not None and not self.tokens and (found := _read(kept)) is not None:
            return found
        total = len(source)
        features: list[Tensor] = []
        index: list[int] = []
        skipped: list[str] = []
        tokens = None
        self.progress(doing, 0, total, ())
        inputs = open_inputs(self.model, (), source, None, self.stream, str(self.device), self.precision, None)

        def forward(stream: str, rows: Batch) -> dict[str, Tensor]:
            return features_of(self.model, stream, rows, self.pool, tokens=self.tokens)

        for some in portions(inputs, forward, self.batch_size, self.precision):
            if some.index:
                if self.tokens:
                    layers = some.tensors[f"{self.stream}.tokens"]
                    if tokens is None:
                        tokens = self._file(total, layers.shape[1:], len(list(self.working.iterdir())))
                    tokens[len(index) : len(index) + len(layers)] = layers.clamp(-65504, 65504).numpy()
                features.append(some.tensors[self.stream])
                index += some.index
            skipped += some.skipped
            self.progress(doing, len(index) + len(skipped), total, some.skipped)
        if not index:
            raise MmmaskError(f"not one of {total} samples could be decoded; the last: {skipped[-1]}")
        found = _Encoded(torch.cat(features), index, skipped, None if tokens is None else torch.from_numpy(tokens))
        if kept is not None and not skipped:  # what could not be read may be there the next time
            _keep(kept, found)
        return found

    def _file(self, samples: int, shape: Sequence[int], number: int) -> np.memmap:
        """A file for all tokens, on disk and not in memory.

        Raises:
            MmmaskError: they are too large for that.
        """
        needed = samples * int(np.prod(shape)) * 2
        most = min(MOST_TOKENS, int(0.8 * shutil.disk_usage(self.working).free))
        if needed > most:
            raise MmmaskError(
                f"{self.stream}: attentive: {samples} samples of {' x '.join(map(str, shape))} tokens take "
                f"{size(needed)} on disk ({self.working.parent}), at most {size(most)}: take samples="
                f"{samples * most // needed}, or other kinds"
            )
        path = self.working / f"{number}.npy"
        return np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(samples, *shape))

    def _kept(self, source: Source) -> Path | None:
        """The file that keeps these features: its name says what they were made of."""
        if self.cache is None or (content := _source_digest(source)) is None:
            return None
        settings = [
            self.model.plain_settings(), self.stream, self.pool, self.precision, dict(components().plugins), content
        ]  # fmt: skip
        digest = hashlib.blake2b(json.dumps(settings, sort_keys=True, default=str).encode(), digest_size=20)
        for key, tensor in self.model.state_dict().items():
            digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return self.cache / f"{digest.hexdigest()}.safetensors"


def _source_digest(source: Source) -> str | None:
    """Digest of names, sizes and times of files, and of what is no local file all of it; None where it has none."""
    digest = hashlib.blake2b(digest_size=20)
    for index in range(len(source)):
        digest.update(source.describe(index).encode("utf-8", "surrogateescape") + b"\0")
        try:
            loaded = source.load(index)
            for part in loaded.values() if isinstance(loaded, Mapping) else (loaded,):
                if isinstance(part, SourceFile) and part.data is None:
                    stat = os.stat(part.path)
                    digest.update(f"{stat.st_size} {stat.st_mtime_ns}\0".encode())
                if isinstance(part, Tensor):  # whose pickle differs from time to time
                    part = (part.dtype, part.numpy())  # noqa: PLW2901
                digest.update(pickle.dumps(part))
        except BadSample:
            digest.update(b"bad")
        except Exception:  # a remote file, or what cannot be pickled
            return None
    return digest.hexdigest()


def _read(path: Path) -> _Encoded | None:
    """Kept features; None where there are none that can be read."""
    try:
        found = read_plain(path)
        skipped = json.loads(bytes(found["skipped"].tolist()))
        return _Encoded(found["features"], found["index"].tolist(), skipped)
    except (FileNotFoundError, InteropError, KeyError, ValueError):
        return None


def _keep(path: Path, found: _Encoded) -> None:
    skipped = torch.tensor(list(json.dumps(found.skipped).encode()), dtype=torch.uint8)
    write_tensors(path, {"features": found.features, "index": torch.tensor(found.index), "skipped": skipped}, {})


def _measured(
    task: _Task, kinds: Sequence[str], train: _Encoded, test: _Encoded | None, k: int, epochs: int, seed: int,
    device: torch.device, words: str, progress: Progress,
) -> list[Probe]:  # fmt: skip
    """The rows of a stream."""
    rows = []
    if test is not None:
        for name, (known, asked) in task.labels.items():
            rows += _by_labels(
                task.stream, name, known, asked, kinds, train, test, k, epochs, seed, device, words, progress
            )
    if UNSUPERVISED in kinds:
        figures = {UNSUPERVISED: frozen.effective_rank(train.features), "most": float(min(train.features.shape))}
        rows.append(Probe(task.stream, UNSUPERVISED, None, figures, train=len(train.index)))
    return rows


def _by_labels(
    stream: str, label_set: str, known: list[str | None], asked: list[str | None], kinds: Sequence[str],
    train: _Encoded, test: _Encoded, k: int, epochs: int, seed: int, device: torch.device, words: str,
    progress: Progress,
) -> list[Probe]:  # fmt: skip
    names = sorted({name for name in known if name is not None})
    number = {name: place for place, name in enumerate(names)} | {None: -1}
    train_labels = torch.tensor([number[known[place]] for place in train.index])
    test_labels = torch.tensor([number[asked[place]] for place in test.index])
    rows_of = {"train": (train_labels >= 0).nonzero().squeeze(1), "test": (test_labels >= 0).nonzero().squeeze(1)}
    learned, told = train_labels[rows_of["train"]], test_labels[rows_of["test"]]
    if not len(learned) or not len(told):
        raise MmmaskError(f"{stream}: no sample that could be decoded has a label")
    features = train.features[rows_of["train"]].to(device)
    asked_features = test.features[rows_of["test"]].to(device)
    luck = frozen.chance(learned, told)
    rows = []
    for kind in kinds:
        if kind == UNSUPERVISED:
            continue
        if kind == "knn":
            scores = frozen.nearest_neighbours(features, learned.to(device), asked_features, len(names), k)
            chosen = {"k": float(k)}
        elif kind == "linear":
            doing = f"{stream}: {kind}" + (f", {words}" if words else "")
            progress(doing, 0, 1, ())
            classifier = frozen.fit_linear(features, learned.to(device), len(names), seed)
            scores, chosen = classifier(asked_features), {"penalty": classifier.penalty}
            progress(doing, 1, 1, ())
        else:
            assert train.tokens is not None
            assert test.tokens is not None
            doing = f"{stream}: passes of {kind}" + (f", {words}" if words else "")
            attentive = frozen.fit_attentive(
                train.tokens, learned, len(names), rows_of["train"], device, epochs, seed,
                lambda done, total, doing=doing: progress(doing, done, total, ()),
            )  # fmt: skip
            scores, chosen = attentive.scores(test.tokens, rows_of["test"]), {"rate": attentive.rate}
        scores = scores.float().cpu()
        predictions: list[str | None] = [None] * len(test.index)
        for place, best in zip(rows_of["test"].tolist(), frozen.ranked(scores, 1)[:, 0].tolist(), strict=True):
            predictions[place] = names[best]
        rows.append(
            Probe(
                stream,
                kind,
                label_set,
                frozen.accuracy(scores, told),
                luck,
                None,
                chosen,
                len(names),
                len(learned),
                len(told),
                tuple(predictions),
            )  # fmt: skip
        )
    return rows


def _stream_of(model: Any, source: SourceChoice) -> str:  # noqa: ANN401
    """The only stream that can decode a source.

    Raises:
        MmmaskError: none or several can.
    """
    found = streams_that_take(model.modalities, source)
    if len(found) != 1:
        which = ", ".join(found or model.modalities)
        raise MmmaskError(f"several streams could be meant ({which}): name one with stream=")
    return found[0]


def _with_control(row: Probe, control: Probe) -> Probe:
    return Probe(**{**vars(row), "control": control.figures})


def _control(row: Probe) -> bool:
    return row.control is not None


def _first_set(rows: Sequence[Probe], stream: str) -> str | None:
    return next((row.label_set for row in rows if row.stream == stream and row.label_set), None)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmmask" / "features"


@contextmanager
def _working_folder(cache: Path | None) -> Iterator[Path]:
    """A folder for what is too large for memory, removed afterwards; on the disk of the cache.

    Raises:
        MmmaskError: the cache's folder cannot be made.
    """
    try:
        if cache is not None:
            cache.mkdir(parents=True, exist_ok=True)
        found = tempfile.TemporaryDirectory(dir=cache, prefix="tokens_", ignore_cleanup_errors=True)
    except OSError as error:
        raise MmmaskError(f"cache {cache}: cannot be written: {error.strerror}") from error
    with found as folder:
        yield Path(folder)
