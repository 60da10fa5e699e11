"""When two results are the same."""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmmask.interfaces import SourceFile
from mmmask.testing.check import expect


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
        case Mapping():
            for key, part in value.items():
                _feed(digest, key)
                _feed(digest, part)
        case tuple() | list():
            digest.update(str(len(value)).encode())
            for part in value:
                _feed(digest, part)
        case str() | bytes() | bool() | int() | float() | None:
            digest.update(repr(value).encode())
        case _ if dataclasses.is_dataclass(value):
            for field in dataclasses.fields(value):
                _feed(digest, getattr(value, field.name))
        case _:
            digest.update(pickle.dumps(value))


def expect_equal(found: Tensor, wanted: Tensor, what: str) -> None:
    """Every number, the shape and the dtype are the same.

    Raises:
        Unmet: they are not; with how many differ, and by how much.
    """
    expect_shape(found, wanted.shape, what)
    expect(found.dtype == wanted.dtype, f"{what}: {wanted.dtype}", found.dtype)
    same = torch.equal(found, wanted)
    expect(same, f"{what}: the same", "" if same else _difference(found, wanted))


def expect_close(found: Tensor, wanted: Tensor, what: str, tolerance: float = 1e-4) -> None:
    """Every number is the same but for `tolerance` times the largest number; dtypes may differ.

    Raises:
        Unmet: they are not; with how many differ, and by how much.
    """
    expect_shape(found, wanted.shape, what)
    found, wanted = found.detach().double(), wanted.detach().double()
    allowed = tolerance * max(1.0, float(wanted.abs().max())) if wanted.numel() else 0.0
    close = torch.allclose(found, wanted, rtol=0, atol=allowed)
    expect(close, f"{what}: the same to {allowed:.1e}", "" if close else _difference(found, wanted))


def expect_shape(found: object, shape: tuple[int, ...], what: str) -> None:
    """A tensor of this shape.

    Raises:
        Unmet: it is none.
    """
    expect(isinstance(found, Tensor), f"{what}: a tensor {tuple(shape)}", type(found).__name__)
    assert isinstance(found, Tensor)
    expect(tuple(found.shape) == tuple(shape), f"{what}: {tuple(shape)}", tuple(found.shape))


def expect_finite(found: Tensor, what: str) -> None:
    """No infinity, and nothing that is no number.

    Raises:
        Unmet: there is one.
    """
    count = int((~found.isfinite()).sum())
    expect(count == 0, f"{what}: finite", f"{count} of {found.numel()} are not")


def _difference(found: Tensor, wanted: Tensor) -> str:
    apart = (found.detach().double() - wanted.detach().double()).abs()
    count = int((apart > 0).sum() + apart.isnan().sum())
    return f"{count} of {found.numel()} numbers differ, by up to {float(apart.max()):.2g}"
