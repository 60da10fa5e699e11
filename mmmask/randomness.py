"""Seeds for every random draw, as a function of what is drawn: nothing depends on global random state."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from (seed, stream, epoch, sample, replica) and the like; the same on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seeded_generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded by `derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(*parts))


@contextmanager
def seeded(*parts: int | str) -> Iterator[None]:
    """Global random state seeded by `derive_seed` meanwhile, and as it was afterwards; on the default device."""
    device = torch.get_default_device()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        # torch.manual_seed would seed every GPU, and fork_rng would not put those back
        torch.default_generator.manual_seed(derive_seed(*parts))
        if device.type == "cuda":
            torch.cuda.manual_seed(derive_seed(*parts))
        yield


def rows_noise(seed: int, first: int, total: int, device: torch.device) -> Callable[[tuple[int, ...]], Tensor]:
    """A noise function for the rows `first ..` of a global batch of `total`.

    Each row has a generator of its own: what a process draws does not grow with the number of processes. On the CPU,
    so that a row gets the same noise on every device.
    """
    calls = itertools.count()
    generator = torch.Generator()

    def noise(shape: tuple[int, ...]) -> Tensor:
        rows, *rest = shape
        if first + rows > total:
            raise ValueError(f"noise{tuple(shape)}: the first axis is the batch, and there are {total - first} rows")
        call = next(calls)
        drawn = torch.empty(rows, *rest, pin_memory=device.type == "cuda")
        for row in range(rows):
            generator.manual_seed(derive_seed(seed, call, first + row))
            torch.rand(*rest, generator=generator, out=drawn[row])
        return drawn.to(device, non_blocking=True)

    return noise
