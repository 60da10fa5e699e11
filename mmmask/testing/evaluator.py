"""What every evaluator promises."""

from __future__ import annotations

import math

from mmmask.interfaces import Batch, Evaluator
from mmmask.testing.check import Case, NotApplicable, expect, promise
from mmmask.testing.compare import expect_no_global_randomness
from mmmask.testing.synthetic import Scene

SAMPLES = 4


class EvaluatorCase(Case):
    """An evaluator of one stream of a `model`, by default its first, with samples at random."""

    kind, interface, extras = "evaluator", Evaluator, {"model": None, "stream": None}

    def figures(self, sizes: tuple[int, ...] = (SAMPLES,)) -> dict[str, float | None]:
        """Figures of the samples, in batches of these sizes.

        Raises:
            NotApplicable: there is no model.
        """
        model = self.subject.extras["model"]
        if model is None:
            raise NotApplicable("give model=, such as mmmask.build_model(experiment)")
        stream = self.subject.extras["stream"] or next(iter(model.modalities))
        evaluator = self.subject.component(self.subject.config, model=model.eval(), stream=stream)
        samples, first = Scene(model.modalities[stream]).samples(SAMPLES), 0
        for size in sizes:
            evaluator.add(Batch({stream: samples[first : first + size]}), first, SAMPLES)
            first += size
        return evaluator.figures()

    @promise
    def gives_figures(self) -> None:
        """Its figures are finite numbers, or None where one does not apply; none is NaN."""
        figures = self.figures()
        expect(bool(figures), "one figure or more", "none")
        wrong = {name: value for name, value in figures.items() if value is not None and not math.isfinite(value)}
        expect(not wrong, "finite numbers or None", wrong)

    @promise
    def evaluates_the_same_again(self) -> None:
        """The same samples have the same figures, and global random state is neither read nor changed."""
        first, again = self.figures(), self.figures()
        expect(first == again, f"{first}, evaluated again", again)
        expect_no_global_randomness(self.figures, "an evaluation")
        parts = self.figures((SAMPLES // 2, SAMPLES // 2))
        expect(list(parts) == list(first), f"the figures {', '.join(first)}, of two batches", ", ".join(parts))
