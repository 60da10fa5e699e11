"""Seeds and noise for every random draw, as a function of what is drawn: nothing depends on global random state."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
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


CACHED = 32_000
"""Numbers that are drawn at once on a CPU, so that what is between stays in its cache."""


class Noise:
    """Uniform numbers for the rows of a batch, a function of (row's key, call, place) alone.

    Counter-based: the numbers of a call are SplitMix64 (Steele, Lea, Flood 2014, figure 11) started at a hash of
    (key, call), in integer tensor arithmetic. They are the same on every device, however a batch is split over
    processes and micro-batches, and need no loop over rows.

    Draw outside of compiled code, and hand it tensors: inductor's shifts of int64 on a CPU were wrong at the end of
    some rows (torch 2.13). Within compiled code a draw breaks the graph.

    Args:
        keys: (batch,) int64, one for each row.
    """

    def __init__(self, keys: Tensor) -> None:
        self.keys = keys
        self._calls = 0

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        """Float32 uniform in [0, 1), multiples of 2^-24; a second call draws other numbers.

        Args:
            shape: (rows, ...), rows at most those of the batch.

        Raises:
            ValueError: more rows than there are.
        """
        if torch.compiler.is_compiling():
            raise RuntimeError("noise is drawn outside of compiled code")
        rows, *rest = shape
        if rows > len(self.keys):
            raise ValueError(f"noise{tuple(shape)}: the first axis is the batch, and there are {len(self.keys)} rows")
        start = _hash(self.keys[:rows], 2 * self._calls)
        self._calls += 1
        places = _steps(math.prod(rest), self.keys.device)
        some = max(1, CACHED // max(1, len(places))) if start.device.type == "cpu" else max(1, rows)
        return torch.cat([_uniform(part.unsqueeze(1) + places) for part in start.split(some)]).reshape(shape)

    def child(self, number: int) -> Noise:
        """Noise for one of several purposes: independent of this one's and of other children's."""
        return Noise(_hash(self.keys, 2 * number + 1))

    def split(self, count: int) -> Noise:
        """Noise for batch * count rows, `count` for each row of the batch, such as its tokens."""
        return Noise(_scramble(self.keys.unsqueeze(1) + _steps(count, self.keys.device)).flatten())


def sample_noise(seed: int, first: int, total: int, device: torch.device) -> Noise:
    """Noise for the rows `first` to `total - 1` of a global batch of `total`."""
    return Noise(_scramble((torch.arange(first, total, device=device) + 1) * _GAMMA + seed))


ROUNDS = 16
"""Rounds of `shuffled`, an even number. With 12 the permutations of 6 numbers are not yet equally frequent, with 16 no
test told any length from random ones; a draw costs about a microsecond in a run of 4096."""


def shuffled(places: Tensor, length: int, keys: Tensor) -> Tensor:
    """Entries of permutations of 0 to `length - 1` at some places; no permutation is ever laid out.

    Generalised Feistel network with cycle walking (Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains",
    methods 2 and 3): numbers below `rows * columns`, the next such product, are pairs; each round adds to one half a
    hash of the other. A number that lands beyond `length` goes on until it is below. Rounds hash by SplitMix64.

    Args:
        places: (n,) int64, 0 to `length - 1`.
        keys: (n,) int64, of the permutation that each place belongs to.
    """
    rows = math.isqrt(length - 1) + 1
    columns = -(-length // rows)
    left, right = places % rows, places // rows
    for key in _scramble(keys + _steps(ROUNDS, keys.device).unsqueeze(1)):
        left, right = right, (left + _scramble(key + right * _GAMMA) % rows) % rows
        rows, columns = columns, rows
    found = right * rows + left
    beyond = found >= length
    if beyond.any():
        found[beyond] = shuffled(found[beyond], length, keys[beyond])
    return found


_GAMMA = 0x9E3779B97F4A7C15 - 2**64
_FACTORS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)


def _steps(count: int, device: torch.device) -> Tensor:
    """(count,) int64, what SplitMix64 adds to its state until each output."""
    return (torch.arange(count, device=device) + 1) * _GAMMA


def _hash(keys: Tensor, number: int) -> Tensor:
    """Other keys, for each number; hashed before too, so that they are off the sequence that a call of `keys` runs."""
    return _scramble(_scramble(keys) + (number + 1) * _GAMMA % 2**63)


def _scramble(state: Tensor) -> Tensor:
    """SplitMix64's output function; products of int64 wrap around, as those of unsigned numbers do."""
    return _xor_shifted(_mixed(state.clone()), 31)


def _uniform(state: Tensor) -> Tensor:
    """The upper 24 bits of SplitMix64's outputs, as numbers in [0, 1); its last shift does not reach these bits."""
    state = _mixed(state)
    return state.bitwise_right_shift_(40).bitwise_and_(2**24 - 1).float().mul_(2.0**-24)


def _mixed(state: Tensor) -> Tensor:
    """All but the last line of SplitMix64's output function, in place."""
    state = _xor_shifted(state, 30).mul_(_FACTORS[0])
    return _xor_shifted(state, 27).mul_(_FACTORS[1])


def _xor_shifted(state: Tensor, bits: int) -> Tensor:
    """state ^= state >> bits, shifted as an unsigned number."""
    return state.bitwise_xor_((state >> bits).bitwise_and_((1 << (64 - bits)) - 1))
