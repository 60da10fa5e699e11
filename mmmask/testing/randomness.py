"""Global random state: that of torch, NumPy and Python, which no component may read or change."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from mmmask.testing.check import expect
from mmmask.testing.comparison import fingerprint

Snapshot = dict[str, bytes]


def global_state() -> Snapshot:
    """{whose: its state} of the generators that belong to nobody."""
    return {
        "torch": fingerprint(torch.get_rng_state()),
        "numpy.random": fingerprint(np.random.get_state()),
        "random": fingerprint(random.getstate()),
    }


@contextmanager
def globally_seeded(seed: int) -> Iterator[None]:
    """Seeds all of them within, and puts them back after."""
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
            before = global_state()
            made.append(fingerprint(make()))
            after = global_state()
        changed = [name for name in before if before[name] != after[name]]
        expect(not changed, "global random state left as it was", f"{what} drew from that of {', '.join(changed)}")
    expect(made[0] == made[1], f"{what}: the same whatever the global seeds", "other results under another seed")
