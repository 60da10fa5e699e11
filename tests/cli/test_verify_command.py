"""`mmmask verify`: the conformance kit without a test runner."""

import subprocess
import sys

import pytest
import torch

import mmmask
from mmmask import testing
from mmmask.components import components
from mmmask.interfaces import Masker


class Restless(Masker):
    """Draws from the global generator, which no masker may."""

    class Config(Masker.Config):
        """Nothing to set."""

    def scores(self, context):
        return torch.rand(context.batch, context.tokens.content.shape[1])

    def num_masked(self, grid, step):
        return grid[0] // 2


@pytest.fixture
def restless():
    mmmask.register("masker", "restless", Restless)
    yield "restless"
    components().registry("masker").unregister("restless")


def test_every_promise_is_a_line(cli):
    done = cli("verify", "masker", "random", "mask_ratio=0.5")
    assert (done.code, done.err) == (0, "")
    *lines, last = done.out.splitlines()
    promises = [check.promise for check in testing.checks("masker")]
    assert lines == [f"kept    {promise}" for promise in promises]
    assert last == f"masker random: {len(promises)} promises kept, 0 broken"


def test_a_broken_promise_says_what_was_expected_and_came(cli, restless):
    done = cli("verify", "masker", restless)
    assert done.code == 1
    (place,) = [number for number, line in enumerate(done.out.splitlines()) if "neither reads nor changes" in line]
    said, outcome = done.out.splitlines()[place : place + 2]
    assert said.startswith("BROKEN  ")
    assert "expected " in outcome
    assert ", came " in outcome
    assert not done.out.endswith(" 0 broken\n")


def test_what_cannot_be_verified(mistake):
    assert mistake("verify", "masker", "rndom").startswith("no masker is named 'rndom'. Did you mean 'random'?")
    assert mistake("verify", "maskr", "random").startswith("no kind of component is named 'maskr'.")
    assert mistake("verify", "masker", "random", "mask_rtio=0.5") == (
        "masker random: mask_rtio: unknown key. Did you mean 'mask_ratio'? Known: name, mask_ratio, round_down"
    )
    assert mistake("verify", "masker", "random", "mask_ratio=7").startswith("masker random: mask_ratio: ")


def test_a_plugin_file_is_verified_without_pytest(tmp_path):
    """In a process that cannot import pytest."""
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "import mmmask\n\n@mmmask.hookimpl\ndef register_components(register):\n"
        "    register('masker', 'mine', 'mmmask.builtins.maskers.random:RandomMasker')\n"
    )
    code = "import sys; sys.modules['pytest'] = None; from mmmask.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "verify", "masker", "mine", "--plugin", str(plugin)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(" 0 broken\n")


def test_the_kit_is_an_attribute():
    code = "import mmmask; assert mmmask.testing.checks('masker'); assert 'testing' in dir(mmmask)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_constructor_with_other_names_is_named(signals):
    class Loose(mmmask.Encoder):
        """Forgets that embeddings come by keyword."""

        def __init__(self, config, parts):
            super().__init__(config, parts)

        width = 8

        def forward(self, inputs):
            return []

    for name in Loose.__abstractmethods__:  # what the interface asks for besides
        setattr(Loose, name, None)
    Loose.__abstractmethods__ = frozenset()
    mmmask.register("encoder", "loose", Loose)
    try:
        data = signals.signal_data()
        data["model"]["encoder"] = {"name": "loose"}
        with pytest.raises(
            mmmask.MmmaskError, match=r"encoder 'loose': .*Loose is called as Loose\(config, embeddings="
        ):
            mmmask.build_model(mmmask.experiment.experiment_from_data(data))
    finally:
        components().registry("encoder").unregister("loose")
