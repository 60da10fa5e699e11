"""Promises of components that compute: pure functions, functions of batches, modules."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mmmask.components import components
from mmmask.interfaces import Component, build
from mmmask.interfaces.component import validate_strictly
from mmmask.randomness import Noise, derive_seed, sample_noise, seeded_generator
from mmmask.testing.check import Case, NotApplicable, Unmet, expect, promise, promise_of_one_case
from mmmask.testing.compare import (
    changed,
    expect_all_close,
    expect_finite,
    expect_no_global_randomness,
    fingerprint,
)
from mmmask_registry import MmmaskError

BATCH = 3


@contextmanager
def weights_of(seed: int) -> Iterator[None]:
    """Modules built within have the weights of a seed; global random state is put back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("weights", seed))
        yield


def configured(kind: str, block: dict[str, Any]) -> Component.Config:
    """The settings of an experiment's block `{name: ..., ...}`."""
    return validate_strictly(components().get(kind, block["name"]).Config, block)


def built(kind: str, block: dict[str, Any], **context: object) -> Any:  # noqa: ANN401 - the kind's interface
    """The component of an experiment's block."""
    return build(kind, configured(kind, block), **context)


def randomize(part: nn.Module) -> None:
    """Every weight is drawn anew, so that what starts at zero tells something too."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.normal_(std=0.2, generator=generator)


class PureCase(Case):
    """A component that makes tensors of what it is given."""

    def given(self, seed: int = 0) -> Any:  # noqa: ANN401 - each kind's own
        """What the component is given, made anew; other content of another seed."""
        raise NotImplementedError

    def results(self, given: Any) -> list[Tensor]:  # noqa: ANN401
        """What the component makes of it."""
        raise NotImplementedError

    def try_out(self) -> None:
        """Makes something."""
        self.results(self.given())

    @promise
    def is_a_function_of_what_it_is_given(self) -> None:
        """What it gives is a function of its settings and of what it is given, whatever it was given before."""
        first = self.results(self.given())
        self.results(self.given(1))
        for what, other in (("asked again", self), ("of another object", self.again())):
            expect_all_close(other.results(other.given()), first, f"what it gives, {what}", 0.0)

    @promise
    def leaves_global_random_state_alone(self) -> None:
        """It neither reads nor changes global random state, in training neither."""
        expect_no_global_randomness(lambda: self.results(self.given()), "what it gives")

    @promise
    def leaves_its_input_alone(self) -> None:
        """It does not change what it is given."""
        given = self.given()
        before = fingerprint(given)
        self.results(given)
        expect(fingerprint(given) == before, "what it was given as it was before", "it was written to")


class BatchCase(PureCase):
    """A component that makes tensors (batch, ...) of a batch."""

    def part(self, given: Any, rows: slice) -> Any:  # noqa: ANN401 - each kind's own
        """Some samples of what is given."""
        return changed(given, lambda tensor: tensor[rows])

    @promise
    def keeps_samples_apart(self) -> None:
        """Samples do not see each other: one alone gives what it gives in a batch, on however many processes."""
        given = self.given()
        whole = self.results(given)
        for row in range(BATCH):
            one = slice(row, row + 1)
            alone = self.results(self.part(given, one))
            expect_all_close(alone, [part[one] for part in whole], f"what sample {row} gives alone")


class ModuleCase(PureCase):
    """A `torch.nn.Module`."""

    seed = 0
    dtypes: Sequence[tuple[torch.dtype, float]] = ((torch.float64, 1e-3),)
    """(dtype, tolerance) that the module is converted to."""

    def make(self) -> nn.Module:
        """A new module."""
        raise NotImplementedError

    def outputs(self, given: Any) -> list[Tensor]:  # noqa: ANN401 - each kind's own
        """What the module makes of it, with gradients."""
        raise NotImplementedError

    def build(self) -> nn.Module:
        """A new module with the weights of a seed, in training mode."""
        with weights_of(self.seed):
            try:
                return self.make().train()
            except ValueError as error:  # as the core does, which names the model
                raise MmmaskError(str(error)) from error

    def results(self, given: Any) -> list[Tensor]:  # noqa: ANN401
        """What the module makes of it, without gradients."""
        with torch.no_grad():
            return self.outputs(given)

    def given_in(self, dtype: torch.dtype) -> Any:  # noqa: ANN401
        """What is given in a model of another dtype."""
        return changed(self.given(), lambda part: part.to(dtype) if part.is_floating_point() else part)

    @promise
    def trains_every_parameter(self) -> None:
        """A finite gradient reaches every parameter that requires one, in every step; frozen ones are allowed."""
        trained = {name: part for name, part in self.component.named_parameters() if part.requires_grad}
        if not trained:
            raise NotApplicable("it has no parameters to train")
        for step in (0, 1):
            self.component.zero_grad()
            parts = [part for part in self.outputs(self.given(step)) if part.requires_grad]
            expect(bool(parts), "what it gives depends on its parameters", "it depends on none")
            weighted_sum(parts).backward()
            for name, parameter in trained.items():
                found = parameter.grad
                expect(
                    found is not None and bool(found.any()), f"a gradient for {name}", "none" if found is None else 0
                )
                assert found is not None
                expect_finite(found, f"the gradient for {name}")

    @promise
    def has_the_weights_of_its_seed(self) -> None:
        """Its weights are a function of torch's seed alone."""
        first, second = self.component.state_dict(), self.again().component.state_dict()
        expect(list(first) == list(second), "the same keys of two objects", "others")
        different = [key for key in first if not torch.equal(first[key], second[key])]
        expect(not different, "the same weights from the same seed", f"others in {', '.join(different)}")

    @promise
    def follows_the_models_dtype(self) -> None:
        """It follows the dtype of its model, such as float64, and gives what it gives in float32 then."""
        single = self.results(self.given_in(torch.float32))
        for dtype, tolerance in self.dtypes:
            self.component.to(dtype)
            found = self.results(self.given_in(dtype))
            others = {part.dtype for part in found if part.is_floating_point()} - {dtype}
            expect(not others, f"{dtype} in a model of {dtype}", others)
            expect_all_close(found, single, f"what it gives in {dtype}", tolerance)

    @promise
    def can_be_evaluated_first(self) -> None:
        """It can be evaluated, in inference mode too, before it is trained."""
        given, again = self.given(), self.given()
        self.component.eval()
        with torch.inference_mode():
            self.outputs(given)
        self.component.train()
        parts = self.outputs(again)
        # a product keeps both factors for the backward, which an inference tensor does not allow
        weighted_sum([part * torch.ones_like(part, requires_grad=True) for part in parts]).backward()


def weighted_sum(parts: Sequence[Tensor]) -> Tensor:
    """A scalar that depends on every number of the parts, on each in another way."""
    generator = seeded_generator("weights")
    return torch.stack([(part.double() * torch.rand(part.shape, generator=generator)).sum() for part in parts]).sum()


class SequenceCase(ModuleCase, BatchCase):
    """A module that takes the inputs of all streams of a step, and answers each: an encoder, a decoder."""

    def input(self, seed: int = 0, count: int = BATCH, ratio: float = 0.5) -> Any:  # noqa: ANN401 - each kind's own
        """One input of so many samples, of which so many tokens are masked."""
        raise NotImplementedError

    def given(self, seed: int = 0) -> list[Any]:
        """One input alone."""
        return [self.input(seed)]

    @promise
    def keeps_inputs_apart(self) -> None:
        """Samples of different inputs do not see each other; the parts of one sample may."""
        given = [self.input(1, 2, 0.75), self.input(2, BATCH, 0.25)]
        whole = self.results(given)
        alone = [part for one in given for part in self.results([one])]
        expect_all_close(whole, alone, "what inputs give together")

    @promise
    def draws_from_its_noise_alone(self) -> None:
        """In training all its randomness is drawn from the input's `noise`, each sample's from its own numbers."""
        keys = sample_noise(0, 0, BATCH, torch.device("cpu")).keys

        def noisy(rows: slice = slice(None)) -> list[Tensor]:
            return self.results([replace(self.part(one, rows), noise=Noise(keys[rows])) for one in self.given()])

        expect_no_global_randomness(noisy, "what it gives with noise")
        whole = noisy()
        for row in range(BATCH):
            one = slice(row, row + 1)
            expect_all_close(
                noisy(one), [part[one] for part in whole], f"what sample {row} gives alone, with its noise"
            )

    @promise_of_one_case
    def compiles_once(self) -> None:
        """Its `stages`, compiled, give the same, and nothing is compiled again from step to step."""
        from mmmask.model.compiling import compile_stages  # dynamo takes seconds to import

        given = [self.given(step) for step in range(3)]
        plain = [self.results(one) for one in given]
        # what was compiled of other modules with the same code would count as compiled again
        torch._dynamo.reset()
        try:
            compile_stages(self.component.stages, backend="eager")
            compiled = _compiled([lambda one=one: self.outputs(one) for one in given])
        finally:
            torch._dynamo.reset()
        for step, (found, wanted) in enumerate(zip(compiled, plain, strict=True)):
            expect_all_close(found, wanted, f"step {step}, compiled")


def _compiled(steps: list[Callable[[], list[Tensor]]]) -> list[list[Tensor]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own, of which a component knows nothing
        compiled = [steps[0]()]
        torch.compiler.set_stance("fail_on_recompile")
        try:
            compiled += [step() for step in steps[1:]]
        except RuntimeError as error:
            if "recompile" not in str(error):
                raise
            raise Unmet("later steps run what the first one compiled", str(error)) from error
        finally:
            torch.compiler.set_stance("default")
    return compiled
