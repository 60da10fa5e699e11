"""Loading one sample: decode once, prepare each replica, replace what cannot be decoded."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from mmmask.data.aligned import AlignedPreparation
from mmmask.data.order import Draw
from mmmask.interfaces import BadSample, Batch, Preparation, Sample, Source, SourceFile, TokenSpec, View
from mmmask.interfaces.source import SourceError
from mmmask.randomness import seeded_generator
from mmmask_registry import MmmaskError

ATTEMPTS = 20
UNLABELLED = -1
"""Class number of a sample without a label, in a source whose other samples have one; of several classes, each."""
LONGEST_REASON = 400


@dataclass(frozen=True)
class BadRecord:
    """Bad sample of a stream: what the source calls it, and what is wrong."""

    stream: str
    sample: str
    reason: str


@dataclass(frozen=True)
class LoadedBatch:
    """Micro-batch of a stream, as a worker made it.

    Attributes:
        batch: replicas of a sample side by side.
        bad: samples that were replaced on the way.
    """

    batch: Batch
    bad: tuple[BadRecord, ...]


@dataclass(frozen=True)
class Examined:
    """A sample that was loaded to see whether it can be.

    Attributes:
        path: of its file; empty where it is no file of its own.
        size: bytes of its file or files, None where they are not known, or it is a part of a recording.
        seconds: length of a recording.
        reason: why it is bad; empty where it is not.
    """

    path: str
    size: int | None
    seconds: float | None
    reason: str


class TooManyBad(SourceError):
    """Many bad samples in a row; carries their records, to be written down."""

    def __init__(self, records: tuple[BadRecord, ...]) -> None:
        self.records = records
        last = records[-1]
        super().__init__(
            f"streams.{last.stream}.source: {ATTEMPTS} samples in a row could not be decoded; the last: "
            f"{last.sample}: {last.reason}"
        )

    def __reduce__(self) -> tuple[type[TooManyBad], tuple[tuple[BadRecord, ...]]]:
        return TooManyBad, (self.records,)


@contextmanager
def bad_sample_of_any_error() -> Iterator[None]:
    """Turns whatever a source or a preparation raises into a bad sample; an error for the user stays what it is.

    The reason names the line, as the error may be a mistake in a plugin instead of in the sample.
    """
    try:
        yield
    except (BadSample, MmmaskError):
        raise
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST_REASON]
        raise BadSample(f"{text}{_place(error)}") from error


def _place(error: Exception) -> str:
    """The last line in the package that was called; the innermost one is often in numpy or torch.

    Defaults of the interface are passed over.
    """
    called = [
        (str(frame.f_globals.get("__name__")).partition(".")[0], f" ({frame.f_code.co_filename}:{line})")
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_filename != __file__ and frame.f_globals.get("__name__") != Preparation.__module__
    ]
    return [place for package, place in called if package == called[0][0]][-1] if called else ""


class SampleLoader:
    """Turns draws into batches; a pure function of (seed, stream, draw), whichever worker runs it.

    Random draws within a sample come from (seed, stream, epoch, index), of a replica's crop from (..., replica).

    Args:
        spec: of the modality's tokens, or {part: spec}; says whether NaN may stand for what is missing.
        replicate: prepared samples per decoded one.
        stream: its name, which a sample's only part has too.
        classes: {label set: names}; the number of a class is its place among these. None takes the source's own.

    Attributes:
        unusable: {number of a sample: why}, of samples that are not tried any more.
        watch: entered with the number of every sample while it is loaded.
    """

    def __init__(
        self,
        source: Source,
        preparation: Preparation,
        spec: TokenSpec | Mapping[str, TokenSpec],
        replicate: int,
        seed: int,
        stream: str,
        classes: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.source, self.preparation = source, preparation
        self.specs = {stream: spec} if isinstance(spec, TokenSpec) else spec
        self.replicate, self.seed, self.stream = replicate, seed, stream
        self.unusable: dict[int, str] = {}
        self.watch: Callable[[int], AbstractContextManager[Any]] = nullcontext
        found = source.classes if classes is None else classes
        self.classes = {label_set: tuple(names) for label_set, names in found.items()}
        self._numbers = {
            label_set: {name: number for number, name in enumerate(names)} for label_set, names in self.classes.items()
        }

    def batch(self, draws: Sequence[Draw]) -> LoadedBatch:
        """The samples of the draws; a bad one is replaced, deterministically.

        Raises:
            SourceError: many samples in a row are bad.
        """
        samples: list[Sample] = []
        bad: list[BadRecord] = []
        for draw in draws:
            samples.extend(self._replicas(draw, bad))
        return LoadedBatch(Batch.of(samples, self.preparation.collate), tuple(bad))

    def plain(self, index: int) -> Sample:
        """One sample, prepared without any randomness.

        Raises:
            BadSample: it cannot be decoded, or holds values that are no numbers.
        """
        return self.views(index)[0]

    def views(self, index: int, clips: int = 1, crops: int = 1) -> list[Sample]:
        """Crops of clips of one sample, without any randomness: all crops of the first clip come first.

        Raises:
            BadSample: it cannot be decoded, or holds values that are no numbers.
        """
        with self._loading(index):
            parts = self._prepared(self._loaded(index), clips, crops)
        return [self._sample(index, part) for part in parts]

    def examine(self, index: int, clips: int = 1) -> Examined:
        """Examines a sample: prepares it as `views` does, and forgets it."""
        path, size, seconds, reason = "", None, None, ""
        try:
            with self._loading(index):
                loaded = self._loaded(index)
                if isinstance(loaded, SourceFile) and loaded.data is None and loaded.window is None:
                    path = loaded.path
                files = loaded.values() if isinstance(loaded, Mapping) else [loaded]
                found = [file for file in files if isinstance(file, SourceFile) and file.window is None]
                size = sum(file.size() for file in found) if found else None
                seconds = self.preparation.seconds(loaded)
                parts = self._prepared(loaded, clips)
            for part in parts:
                self._sample(index, part)
        except BadSample as error:
            reason = str(error)
        return Examined(path, size, seconds, reason)

    def _prepared(self, loaded: Any, clips: int, crops: int = 1) -> list[Any]:  # noqa: ANN401 - the source's, and the preparation's
        """Crops of clips of what the source loaded, as `views` has them."""
        looks = [View(index=number, of=crops) for number in range(crops)]
        decoded = self.preparation.decode_clips(loaded, clips)
        return [self.preparation.prepare(clip, look) for clip in decoded for look in looks]

    def _replicas(self, draw: Draw, bad: list[BadRecord]) -> list[Sample]:
        epoch, index = draw
        substitutes = seeded_generator(self.seed, "substitute", self.stream, epoch, index)
        for _ in range(ATTEMPTS):
            try:
                return self._load(epoch, index)
            except BadSample as error:
                bad.append(BadRecord(self.stream, self.source.describe(index), str(error)))
                index = int(torch.randint(len(self.source), (), generator=substitutes))
        raise TooManyBad(tuple(bad))

    def _load(self, epoch: int, index: int) -> list[Sample]:
        where = (self.seed, "sample", self.stream, epoch, index)
        with self._loading(index):
            decoded = self.preparation.decode(self._loaded(index), View(seeded_generator(*where)))
            parts = [
                self.preparation.prepare(decoded, View(seeded_generator(*where, replica)))
                for replica in range(self.replicate)
            ]
        return [self._sample(index, part) for part in parts]

    @contextmanager
    def _loading(self, index: int) -> Iterator[None]:
        if index in self.unusable:
            raise BadSample(self.unusable[index])
        with bad_sample_of_any_error(), self.watch(index):
            yield

    def _loaded(self, index: int) -> Any:  # noqa: ANN401 - whatever the source hands out
        loaded = self.source.load(index)
        if isinstance(loaded, SourceFile) and loaded.window and not self.preparation.takes_windows:
            raise SourceError(
                f"streams.{self.stream}: {self.source.describe(index)}: a window of time, which the modality does not "
                "keep to. Take a modality of recordings, or a source without start and end."
            )
        return loaded

    def _sample(self, index: int, prepared: Tensor | Mapping[str, Tensor | None]) -> Sample:
        if isinstance(prepared, Tensor):
            self._check_values(self.stream, prepared)
            return Sample({self.stream: prepared}, self._labels(index), index)
        aligned = cast(AlignedPreparation, self.preparation)
        parts = {name: aligned.empty(name) if part is None else part for name, part in prepared.items()}
        for name, part in parts.items():
            self._check_values(name, part)
        present = {} if aligned.missing == "skip" else {name: part is not None for name, part in prepared.items()}
        return Sample(parts, self._labels(index), index, present)

    def _check_values(self, name: str, part: Tensor) -> None:
        if not part.is_floating_point():
            return
        gaps = self.specs[name].gaps
        unusable = part.isinf() if gaps else ~part.isfinite()
        if count := int(unusable.sum()):
            kind = "infinite" if gaps else "NaN or infinite"
            raise BadSample(f"holds {kind} values: {count} of {part.numel()}")

    def _labels(self, index: int) -> dict[str, int | Tensor]:
        if not self.classes:
            return {}
        named = self.source.labels(index)
        try:
            return {label_set: self._number(label_set, named.get(label_set)) for label_set in self.classes}
        except KeyError as error:
            raise SourceError(
                f"streams.{self.stream}: {self.source.describe(index)}: class {error} is none of the source's classes"
            ) from error

    def _number(self, label_set: str, given: str | tuple[str, ...] | None) -> int | Tensor:
        numbers = self._numbers[label_set]
        if label_set not in self.source.several:
            return UNLABELLED if given is None else numbers[given]  # type: ignore[index] - KeyError of a tuple
        if given is None:
            return torch.full((len(numbers),), float(UNLABELLED))
        row = torch.zeros(len(numbers))
        row[[numbers[name] for name in ((given,) if isinstance(given, str) else given)]] = 1
        return row
