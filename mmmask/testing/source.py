"""What every source promises."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

from torch import nn

from mmmask.interfaces import BadSample, Source
from mmmask.testing.check import NotApplicable, Promises, Subject, expect
from mmmask.testing.comparison import fingerprint
from mmmask.testing.component import promise_of_every_component
from mmmask.testing.other_process import elsewhere
from mmmask.testing.randomness import expect_no_global_randomness
from mmmask.testing.threads import at_once

LOOKED_AT = 6
"""Samples at the start and at the end that are loaded."""
THREADS = 4


class SourceSubject(Subject):
    """A source.

    Args:
        component: as for every subject.
        extensions: file name endings that the modality of the stream would decode.
        settings: of the source, such as the path of a few files.
    """

    kind, interface = "source", Source

    def __init__(
        self,
        component: str | type[Any],
        extensions: tuple[str, ...] = (),
        **settings: Any,  # noqa: ANN401 - plain data
    ) -> None:
        super().__init__(component, **settings)
        self.extensions = tuple(extensions)

    def source(self) -> Source:
        """A new one."""
        return self.component(self.config, extensions=self.extensions)


promises = Promises(SourceSubject)
promise_of_every_component(promises)


@promises
def has_samples(subject: SourceSubject) -> None:
    """It has samples, and knows how many."""
    source = subject.source()
    count = len(source)
    expect(count > 0, "one sample or more", count)
    loaded = [_loaded(source, index) for index in _indices(source)]
    expect(any(part != "bad" for part, _ in loaded), "a sample that can be loaded", f"{loaded[0][1]!r}")


@promises
def numbers_its_samples_for_good(subject: SourceSubject) -> None:
    """A number stands for the same sample every time, in whatever order they are asked for."""
    source, again = subject.source(), subject.source()
    expect(len(again) == len(source), f"{len(source)} samples, as of another object", len(again))
    indices = _indices(source)
    first = [_loaded(source, index) for index in indices]
    for what, other in (("the same object", source), ("another object", again)):
        backwards = [_loaded(other, index) for index in reversed(indices)][::-1]
        different = [index for index, a, b in zip(indices, first, backwards, strict=True) if a != b]
        expect(not different, f"the same samples of {what}, asked backwards", f"others at {different}")


@promises
def names_its_samples(subject: SourceSubject) -> None:
    """What it calls its samples, and their labels, are the same every time, and no name stands for two."""
    source, again = subject.source(), subject.source()
    names = [source.describe(index) for index in _indices(source)]
    expect(all(type(name) is str and name for name in names), "names for messages", names)
    expect(len(set(names)) == len(names), f"{len(names)} names", f"{len(set(names))} different ones")
    labels = [source.label(index) for index in _indices(source)]
    expect(all(label is None or type(label) is str for label in labels), "labels, texts or None", labels)
    for what, found, wanted in (
        ("names", [again.describe(index) for index in _indices(again)], names),
        ("labels", [again.label(index) for index in _indices(again)], labels),
    ):
        expect(found == wanted, f"the {what} {wanted}", found)


@promises
def can_be_pickled(subject: SourceSubject) -> None:
    """A copy out of a pickle has the same samples."""
    source = subject.source()
    before = _samples(source)
    for when, copy in (("as it was built", subject.source()), ("after it was used", source)):
        found = _samples(pickle.loads(pickle.dumps(copy)))
        expect(found == before, f"the same samples of a copy, made {when}", "others")


@promises
def serves_several_threads(subject: SourceSubject) -> None:
    """One object serves several threads at once."""
    source, indices = subject.source(), _indices(subject.source())
    alone = subject.source()
    wanted = {index: _loaded(alone, index) for index in indices}

    def task(first: int) -> Callable[[], list[tuple[int, object]]]:
        turn = indices[first % len(indices) :] + indices[: first % len(indices)]
        return lambda: [(index, _loaded(source, index)) for _ in range(3) for index in turn]

    for found in at_once([task(first) for first in range(THREADS)]):
        different = sorted({index for index, sample in found if sample != wanted[index]})
        expect(not different, f"the same samples in {THREADS} threads at once", f"others at {different}")


@promises
def leaves_global_random_state_alone(subject: SourceSubject) -> None:
    """Its samples neither depend on global random state nor change it."""
    expect_no_global_randomness(lambda: _samples(subject.source()), "what a source loads")


@promises.optional
def is_the_same_in_another_process(subject: SourceSubject) -> None:
    """Another process, in which strings hash otherwise, finds the same samples."""
    settings = {key: value for key, value in subject.settings.items() if key != "name"}
    there = elsewhere(subject.component, _samples_of, subject.component, subject.extensions, settings)
    here = _samples(subject.source())
    expect(len(there) == len(here), f"{len(here)} samples", f"{len(there)} in another process")
    different = [number for number, (a, b) in enumerate(zip(there, here, strict=True)) if a != b]
    expect(not different, "the same samples in another process", f"others: {len(different)} of {len(here)}")


@promises
def holds_no_weights(subject: SourceSubject) -> None:
    """It holds no weights: nothing of it would be moved, trained or saved."""
    source = subject.source()
    _samples(source)
    # tensors may be its samples
    weights = [name for name, value in vars(source).items() if isinstance(value, nn.Parameter | nn.Module)]
    expect(not isinstance(source, nn.Module), "no torch.nn.Module", "it is one")
    expect(not weights, "no parameter and no module", ", ".join(weights))


def _indices(source: Source) -> list[int]:
    """The first and the last few."""
    count = len(source)
    if not count:
        raise NotApplicable("it has no sample")
    return sorted({*range(min(count, LOOKED_AT)), *range(max(0, count - LOOKED_AT), count)})


def _loaded(source: Source, index: int) -> tuple[str, object]:
    """A sample, as far as it can be compared; one that cannot be had is bad every time."""
    try:
        return "loaded", fingerprint(source.load(index))
    except BadSample as error:
        return "bad", str(error)


def _samples(source: Source) -> list[tuple[str, str | None, tuple[str, object]]]:
    """Name, label and content of the samples that are looked at."""
    return [(source.describe(index), source.label(index), _loaded(source, index)) for index in _indices(source)]


def _samples_of(
    component: type[Source], extensions: tuple[str, ...], settings: dict[str, Any]
) -> list[tuple[str, str | None, tuple[str, object]]]:
    return _samples(SourceSubject(component, extensions=extensions, **settings).source())
