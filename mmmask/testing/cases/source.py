"""Promises of a source."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from torch import nn

from mmmask.interfaces import BadSample, Source
from mmmask.testing import expect
from mmmask.testing.check import Case, NotApplicable

LOOKED_AT = 6
"""Samples at the start and at the end that are loaded."""

Looked = dict[int, tuple[str, str | None, tuple[str, str]]]
"""{number: (name, label, content)}."""

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
from mmmask.testing.cases.source import look
component, config, extensions = pickle.loads(pickled)
source = component(config, extensions=extensions)
sys.__stdout__.write(repr((look(source), source.classes)))
"""


class SourceCase(Case):
    """A source; `extensions` are the file name endings that its stream's modality would decode, or those of parts."""

    kind, interface, extras = "source", Source, ("extensions",)

    def _context(self) -> dict[str, Any]:
        extensions = self.options.get("extensions", ())
        return {"extensions": extensions if isinstance(extensions, Mapping) else tuple(extensions)}

    def has_samples(self) -> None:
        """It has samples, and knows how many."""
        expect.that(len(self.component) > 0, "one sample or more", len(self.component))
        loaded = [content for _, _, content in look(self.component).values()]
        expect.that(any(what != "bad" for what, _ in loaded), "a sample that can be loaded", repr(loaded[0][1]))

    def numbers_its_samples_for_good(self) -> None:
        """A number stands for the same sample every time, in whatever order they are asked for."""
        wanted = look(self.component)
        self._expect_the_same("the same object, asked backwards", self.component, wanted)
        self._expect_the_same("another object, asked backwards", self._make(), wanted)

    def names_its_samples(self) -> None:
        """No name stands for two samples; labels are texts, and `classes` has them all, each once."""
        looked, classes = look(self.component), self.component.classes
        names = [name for name, _, _ in looked.values()]
        expect.that(all(type(name) is str and name for name in names), "names for messages", names)
        expect.equal(len(set(names)), len(names), "different names")
        labels = [label for _, label, _ in looked.values()]
        expect.that(all(label is None or type(label) is str for label in labels), "labels, texts or None", labels)
        for names_of, found in classes.items():
            expect.that(isinstance(found, tuple), f"a tuple of the names of {names_of}", type(found).__name__)
            expect.equal(len(found), len(set(found)), f"names of {names_of}, each once")
        for label_set, given in (pair for index in looked for pair in self.component.labels(index).items()):
            several = label_set in self.component.several
            expect.that(
                isinstance(given, tuple) == several, f"{'tuples' if several else 'texts'} in {label_set}", given
            )
            strange = [name for name in (given if several else (given,)) if name not in classes.get(label_set, ())]
            expect.none(strange, "labels that are in `classes`")

    def can_be_pickled(self) -> None:
        """A copy out of a pickle has the same samples."""
        wanted = look(self.component)
        for when, source in (("made as it was built", self._make()), ("made after it was used", self.component)):
            self._expect_the_same(f"a copy {when}", pickle.loads(pickle.dumps(source)), wanted)

    def serves_several_threads(self) -> None:
        """One object serves several threads at once."""
        wanted = {index: content for index, (_, _, content) in look(self._make()).items()}
        expect.same_in_threads(lambda index: _loaded(self.component, index), wanted, "samples")

    def leaves_global_random_state_alone(self) -> None:
        """Its samples neither depend on global random state nor change it."""
        expect.no_global_randomness(lambda: look(self._make()), "what a source loads")

    def is_the_same_in_another_process(self) -> None:
        """Another process, in which strings hash otherwise, finds the same samples."""
        module = sys.modules.get(self.subject.__module__)
        file = getattr(module, "__file__", None)
        if module is None or file is None or module.__name__ == "__main__":
            raise NotApplicable(f"{self.name} stands in no file that another process could import")
        made_of = self.subject, self.config, self.component.extensions
        request = pickle.dumps((list(sys.path), module.__name__, file, pickle.dumps(made_of)))
        seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
        code = [sys.executable, "-c", ANOTHER_PROCESS]
        done = subprocess.run(code, input=request, capture_output=True, env=os.environ | {"PYTHONHASHSEED": seed})
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        expect.that(done.returncode == 0, "no error in another process", last)
        here = repr((look(self.component), self.component.classes))
        expect.that(done.stdout.decode() == here, "the same samples and classes in another process", "others")

    def holds_no_weights(self) -> None:
        """It holds no weights: nothing of it would be moved, trained or saved."""
        look(self.component)
        expect.not_held(nn.Parameter | nn.Module, self.component)

    def gives_every_part(self) -> None:
        """With `pairs_parts` a sample is {part: what was loaded} of all parts asked for, None where it has none."""
        asked = self.component.extensions
        if not self.subject.pairs_parts or not isinstance(asked, Mapping):
            whole = "it gives every sample as a whole"
            raise NotApplicable("give extensions={part: endings}" if self.subject.pairs_parts else whole)
        for index, (_, _, (what, _)) in look(self.component).items():
            found = {} if what == "bad" else self.component.load(index)
            names = sorted(found) if isinstance(found, Mapping) else type(found).__name__
            expect.that(what == "bad" or names == sorted(asked), f"a sample of {sorted(asked)}", names)
            expect.that(what == "bad" or any(part is not None for part in found.values()), "some part", "none at all")

    def _expect_the_same(self, whose: str, source: Source, wanted: Looked) -> None:
        found = look(source, backwards=True)
        different = [index for index in found | wanted if found.get(index) != wanted.get(index)]
        expect.none(different, f"the same samples of {whose}")


def look(source: Source, backwards: bool = False) -> Looked:
    """The first and last few samples, asked for in this order or backwards."""
    count = len(source)
    if not count:
        raise NotApplicable("it has no sample")
    asked = sorted({*range(min(count, LOOKED_AT)), *range(max(0, count - LOOKED_AT), count)}, reverse=backwards)
    return {index: (source.describe(index), source.label(index), _loaded(source, index)) for index in asked}


def _loaded(source: Source, index: int) -> tuple[str, str]:
    """A sample, as far as it can be compared; one that cannot be had is bad every time."""
    try:
        return "loaded", expect.fingerprint(source.load(index))
    except BadSample as error:
        return "bad", str(error)
