"""What every source promises."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from torch import nn

from mmmask.interfaces import BadSample, Source
from mmmask.testing.check import Case, NotApplicable, expect, promise
from mmmask.testing.compare import expect_no_global_randomness, fingerprint, in_threads

LOOKED_AT = 6
"""Samples at the start and at the end that are loaded."""
THREADS = 4
Looked = list[tuple[int, str, str | None, tuple[str, Any]]]

ANOTHER_PROCESS = """
import importlib.util, pickle, sys
path, name, file, pickled = pickle.load(sys.stdin.buffer)
sys.path[:] = path
try:
    importlib.import_module(name)
except ModuleNotFoundError:  # a plugin file, a test's module
    spec = importlib.util.spec_from_file_location(name, file)
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
from mmmask.testing.source import look
component, config, extensions = pickle.loads(pickled)
sys.__stdout__.write(repr(look(component(config, extensions=extensions))))
"""


class SourceCase(Case):
    """A source; `extensions` are the file name endings that its stream's modality would decode."""

    kind, interface, extras = "source", Source, {"extensions": ()}

    def build(self) -> Source:
        """A new source."""
        return self.subject.component(self.subject.config, extensions=tuple(self.subject.extras["extensions"]))

    @promise
    def has_samples(self) -> None:
        """It has samples, and knows how many."""
        expect(len(self.component) > 0, "one sample or more", len(self.component))
        loaded = [_loaded(self.component, index) for index in _indices(self.component)]
        expect(any(what != "bad" for what, _ in loaded), "a sample that can be loaded", repr(loaded[0][1]))

    @promise
    def numbers_its_samples_for_good(self) -> None:
        """A number stands for the same sample every time, in whatever order they are asked for."""
        self._expect_the_same("the same object, asked backwards", self.component, look(self.build()))
        self._expect_the_same("another object, asked backwards", self.build(), look(self.component))

    @promise
    def names_its_samples(self) -> None:
        """No name stands for two samples; labels are texts, and `classes` has them all, sorted."""
        looked = look(self.component)
        names = [name for _, name, _, _ in looked]
        expect(all(type(name) is str and name for name in names), "names for messages", names)
        expect(len(set(names)) == len(names), f"{len(names)} names", f"{len(set(names))} different ones")
        labels = [label for _, _, label, _ in looked]
        expect(all(label is None or type(label) is str for label in labels), "labels, texts or None", labels)
        classes = self.component.classes
        for names_of, found in classes.items():
            expect(list(found) == sorted(set(found)), f"sorted names of {names_of}, each once", found)
        for index, *_ in looked:
            strange = {
                key: name for key, name in self.component.labels(index).items() if name not in classes.get(key, ())
            }
            expect(not strange, "labels that stand in `classes`", strange)

    @promise
    def can_be_pickled(self) -> None:
        """A copy out of a pickle has the same samples."""
        wanted = look(self.component)
        for when, source in (("made as it was built", self.build()), ("made after it was used", self.component)):
            self._expect_the_same(f"a copy {when}", pickle.loads(pickle.dumps(source)), wanted)

    @promise
    def serves_several_threads(self) -> None:
        """One object serves several threads at once."""
        source, indices = self.component, _indices(self.component)
        alone = self.build()
        wanted = {index: _loaded(alone, index) for index in indices}

        def task(first: int) -> Callable[[], list[tuple[int, object]]]:
            turn = indices[first % len(indices) :] + indices[: first % len(indices)]
            return lambda: [(index, _loaded(source, index)) for _ in range(3) for index in turn]

        for found in in_threads([task(first) for first in range(THREADS)]):
            different = sorted({index for index, sample in found if sample != wanted[index]})
            expect(not different, f"the same samples in {THREADS} threads at once", f"others at {different}")

    @promise
    def leaves_global_random_state_alone(self) -> None:
        """Its samples neither depend on global random state nor change it."""
        expect_no_global_randomness(lambda: look(self.build()), "what a source loads")

    @promise
    def is_the_same_in_another_process(self) -> None:
        """Another process, in which strings hash otherwise, finds the same samples."""
        module = sys.modules.get(self.subject.component.__module__)
        file = getattr(module, "__file__", None)
        if module is None or file is None or module.__name__ == "__main__":
            raise NotApplicable(f"{self.subject.name} stands in no file that another process could import")
        made_of = self.subject.component, self.subject.config, self.component.extensions
        request = pickle.dumps((list(sys.path), module.__name__, file, pickle.dumps(made_of)))
        seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
        code = [sys.executable, "-c", ANOTHER_PROCESS]
        done = subprocess.run(code, input=request, capture_output=True, env=os.environ | {"PYTHONHASHSEED": seed})
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        expect(done.returncode == 0, "no error in another process", last)
        expect(done.stdout.decode() == repr(look(self.component)), "the same samples in another process", "others")

    @promise
    def holds_no_weights(self) -> None:
        """It holds no weights: nothing of it would be moved, trained or saved."""
        look(self.component)
        held = [name for name, value in vars(self.component).items() if isinstance(value, nn.Parameter | nn.Module)]
        expect(not isinstance(self.component, nn.Module), "no torch.nn.Module", "it is one")
        expect(not held, "no parameter and no module", ", ".join(held))

    def _expect_the_same(self, whose: str, source: Source, wanted: Looked) -> None:
        found = look(source, backwards=True)
        expect(len(found) == len(wanted), f"{len(wanted)} samples of {whose}", len(found))
        different = [one[0] for one, other in zip(found, wanted, strict=True) if one != other]
        expect(not different, f"the same samples of {whose}", f"others at {different}")


def look(source: Source, backwards: bool = False) -> Looked:
    """(number, name, label, content) of the first and last few samples, asked for in this order or backwards."""
    asked = _indices(source)[:: -1 if backwards else 1]
    looked = [(index, source.describe(index), source.label(index), _loaded(source, index)) for index in asked]
    return looked[:: -1 if backwards else 1]


def _indices(source: Source) -> list[int]:
    count = len(source)
    if not count:
        raise NotApplicable("it has no sample")
    return sorted({*range(min(count, LOOKED_AT)), *range(max(0, count - LOOKED_AT), count)})


def _loaded(source: Source, index: int) -> tuple[str, Any]:
    """A sample, as far as it can be compared; one that cannot be had is bad every time."""
    try:
        return "loaded", fingerprint(source.load(index))
    except BadSample as error:
        return "bad", str(error)
