"""Expectations: of tensors, of results under two global seeds, of results in several threads."""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
import random
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmmask.interfaces import SourceFile, TokenSpec
from mmmask.randomness import Noise

CLOSE = 1e-4
"""Tolerance, relative to the largest number, where the same is computed in another order."""
THREADS = 4
HASTE = 1e-5
"""Seconds after which Python hands over to another thread, so that threads come into each other's way if they can."""
GLOBAL_RANDOMNESS: dict[str, tuple[Callable[[], Any], Callable[[Any], object], Callable[[int], object]]] = {
    "torch": (torch.get_rng_state, torch.set_rng_state, torch.default_generator.manual_seed),
    "numpy.random": (np.random.get_state, np.random.set_state, np.random.seed),
    "random": (random.getstate, random.setstate, random.seed),
}
"""{name: (get the state, set it, seed it)}."""


class Unmet(Exception):
    """An expectation that failed: (expected, came)."""


def that(fine: object, expected: str, came: object) -> None:
    """Goes on where `fine`, otherwise raises `Unmet`, as everything here does."""
    if not fine:
        raise Unmet(expected, str(came))


def equal(found: object, wanted: object, what: str) -> None:
    """Equal plain data."""
    that(found == wanted, f"{what}: {wanted}", found)


def none(found: Iterable[object], expected: str) -> None:
    """No exceptions to what is expected; they are named."""
    exceptions = list(map(str, found))
    that(not exceptions, expected, f"not so: {', '.join(exceptions)}")


def raises(error: type[Exception], make: Callable[[], object], expected: str) -> None:
    """An error of this type."""
    try:
        came = f"it was taken: {type(make()).__name__}"
    except error:
        return
    except Exception as other:
        raise Unmet(expected, f"{type(other).__name__}: {other}") from other
    raise Unmet(expected, came)


def shape(found: object, wanted: Sequence[int], what: str) -> None:
    """A tensor of this shape."""
    came = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
    that(came == tuple(wanted), f"{what}: a tensor {tuple(wanted)}", came)


def finite(found: Tensor, wanted: Sequence[int], what: str) -> None:
    """A tensor of this shape without infinity and NaN."""
    shape(found, wanted, what)
    count = int((~found.isfinite()).sum())
    that(count == 0, f"{what}: finite", f"{count} of {found.numel()} are not")


def same(found: Any, wanted: Any, what: str, tolerance: float = 0.0) -> None:  # noqa: ANN401 - or tensors
    """The same tensor, or as many of them: dtypes and every number, NaN as missing content too.

    With a tolerance numbers may differ by so much of the largest one, and dtypes may differ.
    """
    every = wanted if isinstance(wanted, Sequence) else [wanted]
    sizes = [float(part.detach().double().nan_to_num().abs().max()) for part in every if tolerance and part.numel()]
    try:
        torch.testing.assert_close(
            found, wanted, rtol=0, atol=tolerance * max([1.0, *sizes]), equal_nan=True, check_dtype=not tolerance
        )
    except AssertionError as error:
        raise Unmet(f"{what}: the same", str(error)) from None


def apart(vectors: Tensor, least: float, what: str) -> None:
    """Vectors (..., count, dim) at least so far from each other."""
    vectors = vectors.detach().double()
    found = float((torch.cdist(vectors, vectors) + torch.eye(vectors.shape[-2]) * 1e9).min())
    that(found > least, what, f"two are {found:.1g} apart")


def not_held(kinds: Any, *owners: object) -> None:  # noqa: ANN401 - types
    """None of the owners is, or has in an attribute, anything of these kinds."""
    for owner in owners:
        held = [name for name, value in vars(owner).items() if isinstance(value, kinds)]
        held += ["itself"] if isinstance(owner, kinds) else []
        that(not held, f"no weights in {type(owner).__name__}, unless it is a module of the model", ", ".join(held))


def fingerprint(value: object) -> str:
    """Equal for equal values, in any process: tensors and arrays by their bytes, files by their content."""
    return hashlib.blake2b(repr(_plain(value)).encode(), digest_size=16).hexdigest()


def _plain(value: Any) -> Any:  # noqa: ANN401 - anything
    kind = type(value).__qualname__
    match value:
        case Tensor():
            array = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
            return kind, str(value.dtype), tuple(value.shape), array.tobytes()
        case np.ndarray():
            return kind, str(value.dtype), value.shape, value.tobytes()
        case SourceFile():
            return kind, value.path, value.read()
        case Mapping():
            return kind, [_plain(part) for part in value.items()]
        case tuple() | list():
            return kind, [_plain(part) for part in value]
        case torch.Generator() | Callable():  # drawn from
            return kind
        case _ if dataclasses.is_dataclass(value):
            return kind, [_plain(getattr(value, field.name)) for field in dataclasses.fields(value)]
    return kind, pickle.dumps(value)


def changed(value: Any, change: Callable[[Any], Any], kinds: Any = Tensor) -> Any:  # noqa: ANN401
    """The same value with every tensor within changed, or every part of these types; a dataclass keeps its class."""
    match value:
        case _ if isinstance(value, kinds):
            return change(value)
        case Noise():
            return Noise(change(value.keys))
        case Mapping():
            return {key: changed(part, change, kinds) for key, part in value.items()}
        case tuple() | list():
            return type(value)(changed(part, change, kinds) for part in value)
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type | TokenSpec):
            fields = [field.name for field in dataclasses.fields(value) if field.init]
            return dataclasses.replace(value, **{name: changed(getattr(value, name), change, kinds) for name in fields})
    return value


def no_global_randomness(make: Callable[[], object], what: str) -> None:
    """The same under two global seeds, and the global state left as it was."""
    before, made = [get() for get, _, _ in GLOBAL_RANDOMNESS.values()], []
    try:
        for number in (1, 2):
            states = {}
            for name, (get, _, seed) in GLOBAL_RANDOMNESS.items():
                seed(number)
                states[name] = fingerprint(get())
            made.append(fingerprint(make()))
            drawn = [name for name, (get, _, _) in GLOBAL_RANDOMNESS.items() if fingerprint(get()) != states[name]]
            that(not drawn, "global random state left as it was", f"{what} drew from that of {', '.join(drawn)}")
    finally:
        for (_, put, _), state in zip(GLOBAL_RANDOMNESS.values(), before, strict=True):
            put(state)
    that(made[0] == made[1], f"{what}: the same whatever the global seeds", "other results under another seed")


def same_in_threads(make: Callable[[int], object], wanted: Mapping[int, object], what: str) -> None:
    """The wanted result of every number, made in several threads at once, each of which starts with another number."""
    barrier, before, numbers = Barrier(THREADS), sys.getswitchinterval(), list(wanted)

    def work(first: int) -> list[tuple[int, object]]:
        barrier.wait()
        return [(number, make(number)) for _ in range(3) for number in numbers[first:] + numbers[:first]]

    sys.setswitchinterval(HASTE)
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            found = [pair for pairs in pool.map(work, range(THREADS)) for pair in pairs]
    finally:
        sys.setswitchinterval(before)
    different = sorted({number for number, one in found if one != wanted[number]})
    that(not different, f"{what}: the same in {THREADS} threads at once", f"others at {different}")
