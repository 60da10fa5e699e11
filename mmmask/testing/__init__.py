"""Promises of every component, as checks: run by the project over all that is registered, by plugins over theirs.

    from mmmask import testing

    @pytest.mark.parametrize("check", testing.checks("masker"), ids=str)
    def test_it_keeps_its_promises(check):
        check("centre", mask_ratio=0.5)  # a registered name, or the class itself

or all of them at once, in any test runner or none: `testing.check_masker("centre", mask_ratio=0.5)`.

A broken promise raises `PromiseBroken`, one that finds nothing to look at `NotApplicable`. Nothing here needs pytest.

Besides settings the checks take

- of a modality `loaded`: what a source hands to its preparation, such as `SourceFile(path)`;
- of a source `extensions`: file name endings that the stream's modality would decode;
- of an encoder, decoder, loss or objective `modality`: an experiment's block in place of synthetic samples of several
  grids and units, of which the component must take one; of a decoder also `encoder`, in place of small ViTs;
- of an evaluator `model` and `stream`, of a format `state`: a small example of a state dict.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from mmmask.testing.cases.augmentation import AugmentationCase
from mmmask.testing.cases.callback import CallbackCase
from mmmask.testing.cases.decoder import DecoderCase
from mmmask.testing.cases.encoder import EncoderCase
from mmmask.testing.cases.evaluator import EvaluatorCase
from mmmask.testing.cases.format import FormatCase
from mmmask.testing.cases.loss import LossCase
from mmmask.testing.cases.masker import MaskerCase
from mmmask.testing.cases.modality import ModalityCase
from mmmask.testing.cases.objective import ObjectiveCase
from mmmask.testing.cases.optimizer import OptimizerCase
from mmmask.testing.cases.pool import PoolCase
from mmmask.testing.cases.positions import PositionsCase
from mmmask.testing.cases.source import SourceCase
from mmmask.testing.check import Check, NotApplicable, PromiseBroken, checks_of
from mmmask_registry import UnknownName

__all__ = [
    "Check", "NotApplicable", "PromiseBroken", "check", "check_augmentation", "check_callback", "check_decoder",
    "check_encoder", "check_evaluator", "check_format", "check_loss", "check_masker", "check_modality",
    "check_objective", "check_optimizer", "check_pool", "check_positions", "check_source", "checks", "promises",
]  # fmt: skip

_CHECKS = {
    case.kind: checks_of(case)
    for case in (
        ModalityCase, SourceCase, MaskerCase, PositionsCase, EncoderCase, DecoderCase, LossCase, ObjectiveCase,
        PoolCase, OptimizerCase, AugmentationCase, EvaluatorCase, CallbackCase, FormatCase,
    )
}  # fmt: skip


def checks(kind: str) -> list[Check]:
    """The checks of a kind of component, such as `masker`.

    Raises:
        UnknownName: there is no such kind.
    """
    if kind not in _CHECKS:
        raise UnknownName("kind of component", kind, _CHECKS)
    return list(_CHECKS[kind])


def promises(
    kind: str, name: str | type[Any], settings: Mapping[str, Any] | None = None
) -> Iterator[tuple[str, str | NotApplicable | None]]:
    """Examines a component promise by promise: (the promise's sentence, outcome).

    An outcome is None where the promise is kept, a text "expected ..., came ..." where it is broken, and a
    `NotApplicable` that says why where there was nothing to look at.

    Raises:
        UnknownName: there is no such kind or component.
        MmmaskError: the class is of another kind.
        pydantic.ValidationError: the settings are none of it.
    """
    for one in checks(kind):
        try:
            one(name, **(settings or {}))
        except NotApplicable as reason:
            yield one.promise, reason
        except PromiseBroken as broken:
            yield one.promise, " ".join(f"expected {broken.expected}, came {broken.came}".split())
        else:
            yield one.promise, None


def check(kind: str, component: str | type[Any], **settings: Any) -> None:  # noqa: ANN401 - plain data
    """Runs all checks of a component, of a registered name or the class itself; small sizes make this quick.

    Raises:
        PromiseBroken: the first promise that it does not keep.
    """
    for one in checks(kind):
        try:
            one(component, **settings)
        except NotApplicable:
            continue


check_modality = partial(check, "modality")
check_source = partial(check, "source")
check_masker = partial(check, "masker")
check_positions = partial(check, "positions")
check_encoder = partial(check, "encoder")
check_decoder = partial(check, "decoder")
check_loss = partial(check, "loss")
check_objective = partial(check, "objective")
check_pool = partial(check, "pool")
check_optimizer = partial(check, "optimizer")
check_augmentation = partial(check, "augmentation")
check_evaluator = partial(check, "evaluator")
check_callback = partial(check, "callback")
check_format = partial(check, "format")
