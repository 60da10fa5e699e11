"""Promises of components that compute: pure functions, functions of batches, modules."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from mmmask.randomness import sample_noise, seeded, seeded_generator
from mmmask.testing import expect
from mmmask.testing.check import Case, NotApplicable
from mmmask_registry import MmmaskError

BATCH = 3
CPU = torch.device("cpu")


def randomize(part: nn.Module) -> None:
    """Every weight is drawn anew, so that what starts at zero tells something too."""
    generator = torch.Generator().manual_seed(0)
    for parameter in part.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)


def expect_gradients(parts: Iterable[Tensor], module: nn.Module) -> None:
    """Finite gradients for every parameter, of a sum that depends on each number of the parts in another way."""
    generator = seeded_generator("weights")
    weighted = [(part.double() * torch.rand(part.shape, generator=generator)).sum() for part in parts]
    if any(part.requires_grad for part in weighted):
        torch.stack(weighted).sum().backward()
    trained = {name: part for name, part in module.named_parameters() if part.requires_grad}
    found = {name: torch.zeros(1) if part.grad is None else part.grad for name, part in trained.items()}
    expect.none((name for name, part in found.items() if not part.any()), "a gradient for every parameter")
    expect.none((name for name, part in found.items() if not part.isfinite().all()), "finite gradients")


def expect_rows_apart(results: Callable[[slice], list[Tensor]], what: str) -> None:
    """Every sample alone gives what it gives in a batch."""
    whole = results(slice(0, BATCH))
    for one in (slice(row, row + 1) for row in range(BATCH)):
        expect.same(results(one), [part[one] for part in whole], f"sample {one.start} alone{what}", expect.CLOSE)


class PureCase(Case):
    """A component that makes tensors of what it is given."""

    def _given(self, seed: int = 0) -> Any:  # noqa: ANN401 - each kind's own
        """Input of the component, made anew; other content of another seed."""
        raise NotImplementedError

    def _results(self, given: Any) -> list[Tensor]:  # noqa: ANN401
        """Output of the component."""
        raise NotImplementedError

    def _try_out(self) -> None:
        self._results(self._given())

    def is_a_function_of_what_it_is_given(self) -> None:
        """Its output is a function of its settings and its input, whatever it was given before."""
        first = self._results(self._given())
        self._results(self._given(1))
        for what, other in (("asked again", self), ("of another object", replace(self))):
            expect.same(other._results(other._given()), first, f"what it gives, {what}")

    def leaves_global_random_state_alone(self) -> None:
        """It neither reads nor changes global random state, in training neither."""
        expect.no_global_randomness(lambda: self._results(self._given()), "what it gives")

    def leaves_its_input_alone(self) -> None:
        """It does not change what it is given."""
        given = self._given()
        before = expect.fingerprint(given)
        self._results(given)
        expect.that(expect.fingerprint(given) == before, "what it was given as it was before", "it was written to")


class PickledCase(PureCase):
    """A component that is sent to other processes."""

    def can_be_pickled(self) -> None:
        """A copy out of a pickle gives the same."""
        wanted = self._results(self._given())
        self.component = pickle.loads(pickle.dumps(self.component))
        expect.same(self._results(self._given()), wanted, "what the copy gives")


class BatchCase(PureCase):
    """A component that makes tensors (batch, ...) of a batch."""

    def _part(self, given: Any, rows: slice) -> Any:  # noqa: ANN401 - each kind's own
        """Some samples of what is given."""
        return expect.changed(given, lambda tensor: tensor[rows])

    def keeps_samples_apart(self) -> None:
        """Samples do not see each other: one alone gives what it gives in a batch, on however many processes."""
        given = self._given()
        expect_rows_apart(lambda rows: self._results(self._part(given, rows)), "")


class ModuleCase(PureCase):
    """A `torch.nn.Module`."""

    dtypes: Sequence[tuple[torch.dtype, float]] = ((torch.float64, 1e-3),)
    """(dtype, tolerance) that the module is converted to."""

    @cached_property
    def component(self) -> Any:  # noqa: ANN401 - the kind's interface
        """The module with the weights of a seed, in training mode."""
        with seeded("weights", 0):
            try:
                return self._make().train()
            except ValueError as error:  # as the core does, which names the model
                raise MmmaskError(str(error)) from error

    def _outputs(self, given: Any) -> list[Tensor]:  # noqa: ANN401 - each kind's own
        """Output of the module, with gradients."""
        return [self.component(given)]

    def _results(self, given: Any) -> list[Tensor]:  # noqa: ANN401
        with torch.no_grad():
            return self._outputs(given)

    def _given_in(self, dtype: torch.dtype) -> Any:  # noqa: ANN401
        """Input in a model of another dtype."""
        return expect.changed(self._given(), lambda part: part.to(dtype) if part.is_floating_point() else part)

    def trains_every_parameter(self) -> None:
        """A finite gradient reaches every parameter that requires one, in every step; frozen ones are allowed."""
        if not any(part.requires_grad for part in self.component.parameters()):
            raise NotApplicable("it has no parameters to train")
        for step in (0, 1):
            self.component.zero_grad()
            expect_gradients(self._outputs(self._given(step)), self.component)

    def has_the_weights_of_its_seed(self) -> None:
        """Its weights are a function of torch's seed alone."""
        first, second = self.component.state_dict(), replace(self).component.state_dict()
        expect.equal(list(second), list(first), "keys of another object")
        different = [key for key in first if not torch.equal(first[key], second[key])]
        expect.none(different, "the same weights from the same seed")

    def follows_the_models_dtype(self) -> None:
        """It follows the dtype of its model, such as float64, and gives what it gives in float32 then."""
        single = self._results(self._given_in(torch.float32))
        for dtype, tolerance in self.dtypes:
            self.component.to(dtype)
            found = self._results(self._given_in(dtype))
            others = {part.dtype for part in found if part.is_floating_point()} - {dtype}
            expect.that(not others, f"{dtype} in a model of {dtype}", others)
            expect.same(found, single, f"what it gives in {dtype}", tolerance)

    def can_be_evaluated_first(self) -> None:
        """It can be evaluated, in inference mode too, before it is trained."""
        given, again = self._given(), self._given()
        self.component.eval()
        with torch.inference_mode():
            self._outputs(given)
        self.component.train()
        # a product keeps both factors for the backward, which an inference tensor does not allow
        products = [part * torch.ones_like(part, requires_grad=True) for part in self._outputs(again)]
        torch.stack([part.sum() for part in products]).sum().backward()


class SequenceCase(ModuleCase, BatchCase):
    """A module that takes the inputs of all streams of a step, and answers each: an encoder, a decoder."""

    once = ("compiles_once",)

    def _input(self, seed: int = 0, count: int = BATCH, ratio: float = 0.5) -> Any:  # noqa: ANN401 - each kind's own
        """One input of so many samples, of which so many tokens are masked."""
        raise NotImplementedError

    def _given(self, seed: int = 0) -> list[Any]:
        return [self._input(seed)]

    def keeps_inputs_apart(self) -> None:
        """Samples of different inputs do not see each other; the parts of one sample may."""
        given = [self._input(1, 2, 0.75), self._input(2, BATCH, 0.25)]
        alone = [part for one in given for part in self._results([one])]
        expect.same(self._results(given), alone, "what inputs give together", expect.CLOSE)

    def draws_from_its_noise_alone(self) -> None:
        """In training all its randomness is drawn from the input's `noise`, each sample's from its own numbers."""
        given = [replace(one, noise=sample_noise(0, 0, BATCH, CPU)) for one in self._given()]

        def noisy(rows: slice) -> list[Tensor]:
            return self._results(self._part(given, rows))

        expect.no_global_randomness(lambda: noisy(slice(0, BATCH)), "what it gives with noise")
        expect_rows_apart(noisy, ", with its noise")

    def compiles_once(self) -> None:
        """Its `stages`, compiled, give the same, and nothing is compiled again from step to step."""
        from mmmask.model.compiling import compile_stages  # dynamo takes seconds to import

        given = [self._given(step) for step in range(3)]
        wanted = [part for one in given for part in self._results(one)]
        # what was compiled of other modules with the same code would count as compiled again
        torch._dynamo.reset()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the compiler's own, of which a component knows nothing
                compile_stages(self.component.stages, backend="eager")
                found = self._outputs(given[0])
                with torch.compiler.set_stance("fail_on_recompile"):
                    found = [*found, *self._outputs(given[1]), *self._outputs(given[2])]
        except RuntimeError as error:
            expect.that("recompile" not in str(error), "later steps run what the first one compiled", error)
            raise
        finally:
            torch._dynamo.reset()
        expect.same(found, wanted, "what three steps give, compiled", expect.CLOSE)
