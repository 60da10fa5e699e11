"""A package written by `mmmask new` works as its page says, where mmmask is installed from its wheel and alone."""

import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import pydantic
import pytest
import torch

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


def pip(*arguments, python=sys.executable):
    command = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", *arguments]
    ended = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr


class Environment:
    """A new environment that borrows torch, pytest and the like from this one, but not this one's mmmask."""

    def __init__(self, folder):
        self.here, self.bin = folder / "here", folder / "environment" / "bin"
        self.here.mkdir()
        venv.create(folder / "environment", with_pip=False)
        (own,) = (folder / "environment").glob("lib/python*/site-packages")
        borrowed = sorted({str(Path(module.__file__).parents[1]) for module in (torch, pydantic, pytest)})
        # comes after its own packages; the .pth of an editable install in there is not followed
        (own / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
        pip("wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", folder, ROOT)
        pip("install", "--no-deps", "--no-index", *folder.glob("*.whl"), python=self.bin / "python")

    def install(self, *distributions):
        """`pip install -e` without a package index: what they build with and depend on is there."""
        options = "--no-deps", "--no-index", "--no-build-isolation"
        chosen = [part for name in distributions for part in ("-e", self.here / name)]
        pip("install", *options, *chosen, python=self.bin / "python")

    def commands(self, commands):
        """[exit code, stdout, stderr] of several `mmmask` commands in one process."""
        return json.loads(checked(self._python("-c", COMMANDS, json.dumps(list(commands)))))

    def run(self, command, *arguments):
        return self._python("-m", command, *arguments)

    def _python(self, *arguments):
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PYTEST"))}
        return subprocess.run(
            [str(self.bin / "python"), *arguments],
            cwd=self.here, env=clean | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
        )  # fmt: skip


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return Environment(tmp_path_factory.mktemp("new"))


def checked(ended):
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_the_page_walks_this_way():
    lines = re.findall(r"^    (\S.*)$", (ROOT / "docs" / "new_plugin.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert lines[: len(WALK)] == WALK


def test_a_new_modality_is_installed_tested_and_learns(environment):
    told = checked(environment.run("mmmask", "new", "modality", "thermal"))
    assert [line.strip() for line in told.splitlines()[1:]] == WALK[1:]
    environment.install("mmmask-thermal")
    listed = checked(environment.run("mmmask", "list"))
    assert re.search(r"modality +thermal +mmmask-thermal +recordings of a row of sensors", listed)
    assert re.search(r"source +thermal_waves +mmmask-thermal +", listed)
    passed = checked(environment.run("pytest", "mmmask-thermal", "-W", "error"))
    assert re.search(r"\d+ passed", passed)
    told = checked(environment.run("mmmask", "train", "mmmask-thermal/thermal.yaml", "--device", "cpu"))
    assert "thermal: reconstructions in runs/thermal/reconstructions/" in told
    gained = float(re.findall(r"PSNR on masked tokens [\d.]+ dB, ([+-][\d.]+) dB against the simplest guess", told)[0])
    assert gained > 4


UNSEEN = "objective", "pool"
"""Kinds in whose experiment no loss of held-out samples is measured."""
OTHERS = [kind for kind in kinds() if kind != "modality"]
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


@pytest.fixture(scope="module")
def trained(environment):
    """{kind: (exit code, stdout, stderr) of training}; the packages are made, installed and tested at once."""
    for code, _, err in environment.commands(["new", kind, f"my_{kind}"] for kind in OTHERS):
        assert code == 0, err
    folders = [f"mmmask-my_{kind}" for kind in OTHERS]
    environment.install(*folders)
    checked(environment.run("pytest", "--import-mode=importlib", *folders))
    quick = ["training.log.tensorboard=false", "--device", "cpu"]
    steps = {kind: 200 if kind in UNSEEN else 30 for kind in OTHERS}  # the order of tokens is learned late
    ended = environment.commands(
        ["train", f"mmmask-my_{kind}/my_{kind}.yaml", f"training.steps={steps[kind]}", *quick] for kind in OTHERS
    )
    return dict(zip(OTHERS, ended, strict=True))


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_new_trains(trained, kind):
    code, out, err = trained[kind]
    assert code == 0, err
    if kind in UNSEEN:
        first, *_, last = re.findall(r"step \d+/200  loss \w+ ([\d.]+)", err)
    else:
        first, last = re.findall(r"held-out loss ([\d.]+) at the start, ([\d.]+) at the end", out)[0]
    assert float(last) < float(first)


def test_a_name_that_is_taken_is_refused(trained, environment):
    for (code, _, err), kind in zip(
        environment.commands(["new", kind, f"my_{kind}", "--output", "elsewhere"] for kind in OTHERS),
        OTHERS,
        strict=True,
    ):
        assert code == 2
        assert f"is supplied by mmmask-my_{kind}: choose another name." in err
