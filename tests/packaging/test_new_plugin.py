"""A package written by `mmmask new` works as its page says, where mmmask is installed from its wheel and alone."""

import json
import re
from pathlib import Path

import pytest

from mmmask.scaffold.new_plugin import kinds

pytest.importorskip("hatchling")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
WALK = [
    "mmmask new modality thermal",
    "pip install -e './mmmask-thermal[test]'",
    "pytest mmmask-thermal",
    "mmmask train mmmask-thermal/thermal.yaml",
]


def test_the_page_walks_this_way():
    lines = re.findall(r"^    (\S.*)$", (ROOT / "docs" / "new_plugin.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert lines[: len(WALK)] == WALK


def test_a_new_modality_is_installed_tested_and_learns(environment):
    told = environment.told("mmmask", "new", "modality", "thermal")
    assert [line.strip() for line in told.splitlines()[1:]] == WALK[1:]
    environment.install(environment.here / "mmmask-thermal", editable=True)
    listed = environment.told("mmmask", "list")
    assert re.search(r"modality +thermal +mmmask-thermal +recordings of a row of sensors", listed)
    assert re.search(r"source +thermal_waves +mmmask-thermal +", listed)
    passed = environment.told("python", "-m", "pytest", "mmmask-thermal", "-W", "error")
    assert re.search(r"\d+ passed", passed)
    told = environment.told("mmmask", "train", "mmmask-thermal/thermal.yaml", "--device", "cpu")
    assert "thermal: reconstructions in runs/thermal/reconstructions/" in told
    gained = float(re.findall(r"PSNR on masked tokens [\d.]+ dB, ([+-][\d.]+) dB against the simplest guess", told)[0])
    assert gained > 4


OTHERS = [kind for kind in kinds() if kind != "modality"]
STEPS = {
    "objective": ["training.steps=120", "streams.images.modality.size=16"],  # the order of few tokens is learned sooner
    "pool": ["training.steps=20"],
}
"""Settings for kinds in whose experiment no loss of held-out samples is measured; the others take 10 steps."""
COMMANDS = """
import contextlib, io, json, sys
from mmmask.cli import main
ended = []
for command in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(command)
    ended.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(ended))
"""


def in_one_process(environment, commands):
    """[exit code, stdout, stderr] of several `mmmask` commands."""
    return json.loads(environment.told("python", "-c", COMMANDS, json.dumps(list(commands))))


@pytest.fixture(scope="module")
def trained(environment):
    """{kind: (exit code, stdout, stderr) of training}; the packages are made, installed and tested at once."""
    for code, _, err in in_one_process(environment, (["new", kind, f"my_{kind}"] for kind in OTHERS)):
        assert code == 0, err
    folders = [f"mmmask-my_{kind}" for kind in OTHERS]
    environment.install(*(environment.here / folder for folder in folders), editable=True)
    environment.told("python", "-m", "pytest", "--import-mode=importlib", *folders)
    quick = ["training.log.tensorboard=false", "--device", "cpu"]
    commands = [
        ["train", f"mmmask-my_{kind}/my_{kind}.yaml", *STEPS.get(kind, ["training.steps=10"]), *quick]
        for kind in OTHERS
    ]  # fmt: skip
    return dict(zip(OTHERS, in_one_process(environment, commands), strict=True))


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_new_trains(trained, kind):
    code, out, err = trained[kind]
    assert code == 0, err
    if kind in STEPS:
        first, *_, last = re.findall(r"step \d+/\d+  loss \w+ ([\d.]+)", err)
    else:
        first, last = re.findall(r"held-out loss ([\d.]+) at the start, ([\d.]+) at the end", out)[0]
    assert float(last) < float(first)


def test_a_name_that_is_taken_is_refused(trained, environment):
    commands = (["new", kind, f"my_{kind}", "--output", "elsewhere"] for kind in OTHERS)
    for (code, _, err), kind in zip(in_one_process(environment, commands), OTHERS, strict=True):
        assert code == 2
        assert f"is supplied by mmmask-my_{kind}: choose another name." in err
