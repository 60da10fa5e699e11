"""Fuzz: a few hundred damaged inputs; `python -m tests.abuse.fuzz` reads many more."""

import os
import signal
import time
from pathlib import Path

import pytest

from mmmask_registry import MmmaskError
from tests.abuse import fuzz

INPUTS = 80


def read_badly(path):
    """A reader with every defect: what it does to a damaged file is told by its length."""
    content = Path(path).read_bytes()
    if len(content) == 1000:
        return
    kind = len(content) % 5
    if kind == 0:
        raise MmmaskError("is damaged")
    if kind == 1:
        raise KeyError("a key")
    if kind == 2:
        os.kill(os.getpid(), signal.SIGSEGV)
    if kind == 3:
        time.sleep(60)
    raise MemoryError


def one_file(folder):
    yield fuzz.Seed({"x.bin": bytes(1000)})


def test_every_verdict_is_noticed(monkeypatch):
    monkeypatch.setattr(fuzz, "SECONDS", 0.2)
    monkeypatch.setitem(fuzz.KINDS, "bad", (one_file, read_badly))
    tallies = fuzz.fuzz(["bad"], seed=0, rounds=[range(25)], workers=8, report=lambda tallies: None)
    assert all(tallies["bad"].verdicts[verdict] for verdict in fuzz.VERDICTS), fuzz.table(tallies)
    assert "KeyError: 'a key'" in fuzz.table(tallies)


def test_a_seed_that_is_refused_ends_the_fuzz(monkeypatch):
    monkeypatch.setitem(fuzz.KINDS, "bad", (lambda folder: iter([fuzz.Seed({"x.bin": b""})]), read_badly))
    with pytest.raises(AssertionError, match=r"bad 0 \(x\.bin\): refused: MmmaskError: is damaged"):
        fuzz.fuzz(["bad"], seed=0, rounds=[range(1)], workers=1, report=lambda tallies: None)


def test_damaged_inputs_are_decoded_or_refused():
    tallies = fuzz.fuzz(fuzz.KINDS, seed=0, rounds=[range(INPUTS)], workers=2, report=lambda tallies: None)
    assert all(not tally.found for tally in tallies.values()), fuzz.table(tallies)
    assert all(tally.verdicts["refused"] for tally in tallies.values()), fuzz.table(tallies)


def test_an_input_can_be_made_again(tmp_path):
    folders = tmp_path / "first", tmp_path / "second"
    for kind in ("images", "experiments"):
        first, second = (fuzz.loaders([kind], 7, folder)[kind][0].load(100)[0].read() for folder in folders)
        assert first == second
