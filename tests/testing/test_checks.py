"""The kit itself: what it gives, takes and refuses, and that it costs nothing until it is asked for."""

import math
import pickle
import re
import subprocess
import sys

import pytest
from pydantic import ValidationError

from mmmask import testing
from mmmask.components import INTERFACES
from mmmask.interfaces import Masker
from mmmask_registry import MmmaskError, UnknownName


class HalfMasker(Masker):
    """Masks the first half."""

    def scores(self, context):
        return -context.noise((context.batch, 1)).expand(-1, math.prod(context.grid)).cumsum(1)

    def num_masked(self, grid, step):
        return grid[0] // 2 if len(grid) == 1 else 0


class BrokenMasker(HalfMasker):
    """Scores nothing."""

    def scores(self, context):
        raise RuntimeError("first line\nsecond line")


@pytest.mark.parametrize("kind", INTERFACES)
class TestOfEveryKind:
    def test_there_are_checks_with_a_promise_each(self, kind):
        checks = testing.checks(kind)
        names = [check.name for check in checks]
        assert len(set(names)) == len(names) >= 8
        for check in checks:
            assert str(check) == check.name
            assert check.kind == kind
            assert re.fullmatch(r"[A-Z`][^.\n]*(\.[a-z]+[^.\n]*)*\.", check.promise), check.promise

    def test_all_of_them_are_run_at_once(self, kind):
        run = getattr(testing, f"check_{kind}")
        with pytest.raises(UnknownName, match=f"no {kind} is named 'nobody'"):
            run("nobody")
        with pytest.raises(MmmaskError, match=f"checks of a {kind} take a registered name or a subclass of mmmask."):
            run(int)


def test_an_unknown_kind_is_named():
    with pytest.raises(UnknownName, match="Did you mean 'masker'"):
        testing.checks("maskr")


def test_a_list_of_checks_is_ones_own():
    testing.checks("masker").clear()
    assert testing.checks("masker")


def test_a_component_is_named_or_the_class_itself():
    testing.check_masker("random", mask_ratio=0.5)
    testing.check_masker(HalfMasker)
    with pytest.raises(MmmaskError, match="checks of a loss take"):
        testing.check_loss(HalfMasker)


def test_promises_say_what_came_of_each():
    found = dict(testing.promises("masker", BrokenMasker))
    assert list(found) == [check.promise for check in testing.checks("masker")]
    assert found["Its settings can be pickled."] is None
    assert found["It does not change what it is given."].startswith("expected no error, came RuntimeError: first line")
    found = dict(testing.promises("format", "mmmask", {}))
    assert isinstance(found["It recognises its example."], testing.NotApplicable)
    with pytest.raises(UnknownName, match="Did you mean 'random'"):
        list(testing.promises("masker", "randm"))


def test_settings_that_are_none_are_the_callers_mistake():
    with pytest.raises(ValidationError):
        testing.check_masker("random", mask_ratio=7)
    with pytest.raises(ValidationError):
        testing.check_encoder("vit", modality={"name": "nobody"})


def test_what_is_said_of_a_broken_promise():
    with pytest.raises(testing.PromiseBroken) as raised:
        testing.check_masker(BrokenMasker)
    broken = raised.value
    assert isinstance(broken, AssertionError)
    assert str(broken).split("\n") == [
        f"masker 'BrokenMasker': {broken.promise}",
        "expected: no error",
        "came: RuntimeError: first line second line",
    ]
    assert isinstance(broken.__cause__, RuntimeError)
    assert str(pickle.loads(pickle.dumps(broken))) == str(broken)  # as processes of a test runner hand it on


def test_nothing_passes_because_nothing_was_looked_at():
    with pytest.raises(testing.PromiseBroken, match="expected: at least one case that it takes\ncame: it refused all"):
        testing.check_encoder("swin", width=32, depth=1, num_heads=4, embed_patch=7)


def test_a_check_says_what_is_missing():
    (check,) = (check for check in testing.checks("format") if check.name == "accounts_for_every_key")
    with pytest.raises(testing.NotApplicable, match="give state="):
        check("mmmask")
    testing.check_format("mmmask")


def test_a_registered_modality_can_stand_in_for_the_synthetic_samples(signals):
    testing.check_encoder("vit", modality={"name": "signal", "length": 32}, width=16, depth=1, num_heads=2)
    encoder = {"name": "vit", "width": 16, "depth": 1, "num_heads": 2, "masked_tokens": "replace"}
    testing.check_decoder("in_place", modality="signal", encoder=encoder, depth=1, width=16, num_heads=2)
    testing.check_loss("pixels", modality="signal", normalize="none")


@pytest.mark.parametrize(
    ("code", "absent"),
    [("import mmmask, mmmask.interfaces", "mmmask.testing"), ("from mmmask import testing", "pytest")],
)
def test_it_is_imported_by_those_who_ask_and_needs_no_test_runner(code, absent):
    subprocess.run([sys.executable, "-c", f"{code}; import sys; assert {absent!r} not in sys.modules"], check=True)
