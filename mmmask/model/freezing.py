"""Partial fine-tuning: which parameters of an encoder train."""

from __future__ import annotations

from fnmatch import fnmatchcase

from mmmask.experiment.settings import Trainable
from mmmask.interfaces import Encoder


def freeze(encoder: Encoder, trainable: Trainable) -> None:
    """Freezes all parameters of an encoder but those that `model.trainable` names.

    What lies before the first trained stage keeps nothing for the backward. Counting by half stages is MAE's partial
    fine-tuning (section 4.3, figure 9).

    Raises:
        ValueError: there are not so many stages, the last one has no halves, or a pattern fits no parameter.
    """
    if trainable == "all":
        return
    if trainable == "none":
        trained: set[str] = set()
    elif isinstance(trainable, tuple):
        trained = _fitting(encoder, trainable)
    else:
        trained = _last(encoder, trainable)
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(name in trained)


def _fitting(encoder: Encoder, patterns: tuple[str, ...]) -> set[str]:
    """Names of the parameters that fit one of the patterns."""
    names = [name for name, _ in encoder.named_parameters()]
    fitting = {pattern: {name for name in names if fnmatchcase(name, pattern)} for pattern in patterns}
    for pattern, found in fitting.items():
        if not found:
            raise ValueError(
                f"no parameter of the encoder fits {pattern!r}; they are called as {names[0]}, {names[-1]}"
            )
    return set().union(*fitting.values())


def _last(encoder: Encoder, count: float) -> set[str]:
    """Names of the parameters of the last stages, which may be a half more, and of what follows them."""
    depths, stages = encoder.by_depth(), encoder.stages
    if count > len(stages):
        raise ValueError(f"{count:g}, and the encoder has {len(stages)} stages: take all, or fewer")
    whole = int(count)
    first = len(stages) - whole
    modules = [module for depth in depths[first:] for module in depth]
    if count > whole:
        halved = stages[first - 1]
        names = getattr(halved, "second_half", ())
        if not names:
            raise ValueError(f"{count:g}, and a {type(halved).__name__} names no half that could train alone")
        modules += [getattr(halved, name) for name in names]
    chosen = {id(parameter) for module in modules for parameter in module.parameters()}
    return {name for name, parameter in encoder.named_parameters() if id(parameter) in chosen}
