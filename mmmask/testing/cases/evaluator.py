"""Promises of an evaluator."""

from __future__ import annotations

import math
import pickle

import torch
from torch import Tensor

from mmmask.interfaces import Batch, Evaluator
from mmmask.testing import expect
from mmmask.testing.check import Case, NotApplicable
from mmmask.testing.synthetic import Scene

SAMPLES = 4

FITTED = 24
"""Training samples, at most, that an evaluator sees first."""


class EvaluatorCase(Case):
    """An evaluator of one stream of a `model`, by default its first, with samples at random."""

    kind, interface, extras = "evaluator", Evaluator, ("model", "stream")

    def _figures(self, size: int = SAMPLES) -> dict[str, float | None]:
        """Figures of the samples, in batches of this size."""
        return self._added(size).figures()

    def _added(self, size: int, rank: int = 0, processes: int = 1) -> Evaluator:
        """An evaluator of the samples of one process."""
        model = self.options.get("model")
        if model is None:
            raise NotApplicable("give model=, such as mmmask.build_model(experiment)")
        stream = self.options.get("stream") or next(iter(model.parts))
        evaluator = self.subject(self.config, model=model.eval(), stream=stream)
        fitted = min(evaluator.training_samples, FITTED)
        parts = model.parts[stream].items()
        samples = {name: Scene(model.modalities[part]).samples(fitted + SAMPLES) for name, part in parts}

        def batch(some: Tensor) -> Batch:
            shown = {name: part[some] for name, part in samples.items()}
            return Batch(shown, {"label": some % 2} if evaluator.needs_labels else {})

        for some in torch.arange(fitted).split(size):
            evaluator.fit(batch(some))
        batches = list(enumerate(torch.arange(fitted, fitted + SAMPLES).split(size)))
        for number, some in batches[rank::processes]:
            evaluator.add(batch(some), number * size, SAMPLES)
        return evaluator

    def gives_figures(self) -> None:
        """Its figures are finite numbers, or None where one does not apply; none is NaN."""
        figures = self._figures()
        expect.that(figures, "one figure or more", "none")
        wrong = [name for name, value in figures.items() if value is not None and not math.isfinite(value)]
        expect.none(wrong, "finite numbers or None")

    def evaluates_the_same_again(self) -> None:
        """The same samples have the same figures, and global random state is neither read nor changed."""
        first = self._figures()
        expect.equal(self._figures(), first, "figures, evaluated again")
        expect.no_global_randomness(self._figures, "an evaluation")
        expect.equal(list(self._figures(SAMPLES // 2)), list(first), "figures of two batches")

    def merges_processes(self) -> None:
        """With `merge`, the states of two processes that shared the samples give the figures of one, to tolerance."""
        size = SAMPLES // 2
        whole, *parts = self._added(size), self._added(size, 0, 2), self._added(size, 1, 2)
        if not whole.merges:
            raise NotApplicable("it has no merge: every process adds all samples")
        states = pickle.loads(pickle.dumps([part.state() for part in parts]))
        parts[1].merge(states)
        expected, found = whole.figures(), parts[1].figures()
        expect.equal(list(found), list(expected), "figures of two processes")
        wrong = [
            name
            for name, value in expected.items()
            if (value is None) != (found[name] is None)
            or (value is not None and not math.isclose(value, found[name] or 0.0, rel_tol=1e-4, abs_tol=1e-6))
        ]
        expect.none(wrong, "the figures of one process")
