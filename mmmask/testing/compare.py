"""What should be the same: tensors, results under two global seeds, results in several threads."""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from mmmask.interfaces import SourceFile, TokenSpec
from mmmask.testing.check import expect

Result = TypeVar("Result")
HASTE = 1e-5
"""Seconds after which Python hands over to another thread, so that threads come into each other's way if they can."""


def fingerprint(value: object) -> bytes:
    """Equal for equal values: tensors and arrays by their bytes, files by their content, containers by their parts."""
    digest = hashlib.blake2b(digest_size=16)
    _feed(digest, value)
    return digest.digest()


def _feed(digest: Any, value: Any) -> None:  # noqa: ANN401 - hashlib names no type
    digest.update(type(value).__qualname__.encode())
    match value:
        case Tensor():
            plain = value.detach().cpu().contiguous()
            digest.update(f"{plain.dtype}{tuple(plain.shape)}".encode())
            digest.update(plain.flatten().view(torch.uint8).numpy().tobytes())
        case np.ndarray():
            digest.update(f"{value.dtype}{value.shape}".encode())
            digest.update(np.ascontiguousarray(value).tobytes())
        case SourceFile():
            digest.update(value.path.encode())
            digest.update(value.read())
        case Mapping() | tuple() | list():
            parts = list(value.items()) if isinstance(value, Mapping) else value
            digest.update(str(len(parts)).encode())
            for part in parts:
                _feed(digest, part)
        case _ if callable(value):
            pass  # noise
        case _ if dataclasses.is_dataclass(value):
            for field in dataclasses.fields(value):
                _feed(digest, getattr(value, field.name))
        case torch.Generator():
            pass  # drawn from
        case _:
            digest.update(pickle.dumps(value))


def changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:  # noqa: ANN401 - dataclasses and containers
    """The same value with every tensor within changed; a dataclass stays of its class."""
    match value:
        case Tensor():
            return change(value)
        case Mapping():
            return {key: changed(part, change) for key, part in value.items()}
        case tuple() | list():
            return type(value)(changed(part, change) for part in value)
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type | TokenSpec):
            fields = [field.name for field in dataclasses.fields(value) if field.init]
            return dataclasses.replace(value, **{name: changed(getattr(value, name), change) for name in fields})
    return value


def expect_equal(found: Tensor, wanted: Tensor, what: str) -> None:
    """Every number, the shape and the dtype are the same; NaN, which is missing content, equals NaN.

    Raises:
        Unmet: they are not; with how many differ, and by how much.
    """
    expect_shape(found, wanted.shape, what)
    expect(found.dtype == wanted.dtype, f"{what}: {wanted.dtype}", found.dtype)
    expect_close(found, wanted, what, 0.0)


def expect_close(found: Tensor, wanted: Tensor, what: str, tolerance: float = 1e-4) -> None:
    """Every number is the same but for `tolerance` times the largest number; dtypes may differ.

    Raises:
        Unmet: they are not; with how many differ, and by how much.
    """
    expect_shape(found, wanted.shape, what)
    found, wanted = found.detach().double(), wanted.detach().double()
    allowed = tolerance * max(1.0, float(wanted.nan_to_num().abs().max())) if wanted.numel() else 0.0
    if torch.allclose(found, wanted, rtol=0, atol=allowed, equal_nan=True):
        return
    apart = (found - wanted).abs()
    count = int((~torch.isclose(found, wanted, rtol=0, atol=0, equal_nan=True)).sum())
    expected = f"{what}: the same" + (f" to {allowed:.1e}" if tolerance else "")
    expect(
        False, expected, f"{count} of {found.numel()} numbers differ, by up to {float(apart.nan_to_num().max()):.2g}"
    )


def expect_all_close(found: Sequence[Tensor], wanted: Sequence[Tensor], what: str, tolerance: float = 1e-4) -> None:
    """As many tensors, each of them the same but for the tolerance; a tolerance of 0 compares dtypes as well.

    Raises:
        Unmet: they are not.
    """
    expect(len(found) == len(wanted), f"{what}: {len(wanted)} tensors", len(found))
    for one, other in zip(found, wanted, strict=True):
        (expect_close(one, other, what, tolerance) if tolerance else expect_equal(one, other, what))


def expect_shape(found: object, shape: Sequence[int], what: str) -> None:
    """A tensor of this shape.

    Raises:
        Unmet: it is none.
    """
    came = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
    expect(came == tuple(shape), f"{what}: a tensor {tuple(shape)}", came)


def expect_finite(found: Tensor, what: str) -> None:
    """No infinity and no NaN.

    Raises:
        Unmet: there is one.
    """
    count = int((~found.isfinite()).sum())
    expect(count == 0, f"{what}: finite", f"{count} of {found.numel()} are not")


@contextmanager
def globally_seeded(seed: int) -> Iterator[None]:
    """Seeds the generators of torch, NumPy and Python within, and puts them back after."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def expect_no_global_randomness(make: Callable[[], object], what: str) -> None:
    """Makes something under two global seeds: it must come out the same, and leave the state as it was.

    Raises:
        Unmet: it does not.
    """
    made = []
    for seed in (1, 2):
        with globally_seeded(seed):
            before = _global_state()
            made.append(fingerprint(make()))
            after = _global_state()
        changed = [name for name in before if before[name] != after[name]]
        expect(not changed, "global random state left as it was", f"{what} drew from that of {', '.join(changed)}")
    expect(made[0] == made[1], f"{what}: the same whatever the global seeds", "other results under another seed")


def _global_state() -> dict[str, bytes]:
    states = {
        "torch": torch.get_rng_state().numpy(),
        "numpy.random": np.random.get_state(),
        "random": random.getstate(),
    }
    return {name: pickle.dumps(state) for name, state in states.items()}


def in_threads(tasks: list[Callable[[], Result]]) -> list[Result]:
    """Results of the tasks, each in a thread of its own, all started together."""
    barrier, before = Barrier(len(tasks)), sys.getswitchinterval()

    def work(task: Callable[[], Result]) -> Result:
        barrier.wait()
        return task()

    sys.setswitchinterval(HASTE)
    try:
        with ThreadPoolExecutor(len(tasks)) as pool:
            return list(pool.map(work, tasks))
    finally:
        sys.setswitchinterval(before)
