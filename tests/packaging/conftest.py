"""Environments in which mmmask is installed from its wheel, and nothing else of this checkout; no network is used."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pydantic
import pytest
import torch

ROOT = Path(__file__).parents[2]
OFFLINE = "--no-deps", "--no-index"  # what distributions build with and depend on is there


def pip(*arguments, python=sys.executable):
    command = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", *arguments]
    ended = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.fixture(scope="session")
def build_wheels():
    """`build_wheels(folder, *sources)`: the wheels in the folder, those of these sources among them."""

    def build(folder, *sources):
        pip("wheel", *OFFLINE, "--no-build-isolation", "--wheel-dir", folder, *sources)
        return sorted(Path(folder).glob("*.whl"))

    return build


@pytest.fixture(scope="session")
def wheel(build_wheels, tmp_path_factory):
    """mmmask's own."""
    (wheel,) = build_wheels(tmp_path_factory.mktemp("wheel"), ROOT)
    return wheel


class Environment:
    """A new environment that borrows torch, pytest and the like from this one, but not this one's mmmask.

    Attributes:
        here: folder in which its commands run.
        packages: its own site-packages.
    """

    def __init__(self, folder):
        self.here, self.bin = folder / "here", folder / "environment" / "bin"
        self.here.mkdir()
        venv.create(folder / "environment", with_pip=False)
        (self.packages,) = (folder / "environment").glob("lib/python*/site-packages")
        borrowed = sorted({str(Path(module.__file__).parents[1]) for module in (torch, pydantic, pytest)})
        # comes after its own packages; the .pth of an editable install in there is not followed
        (self.packages / "borrowed.pth").write_text("\n".join(borrowed) + "\n")

    def install(self, *distributions, editable=False):
        """`pip install`, or `pip install -e`."""
        chosen = [part for path in distributions for part in ("-e", path)] if editable else distributions
        pip("install", *OFFLINE, "--no-build-isolation", *chosen, python=self.bin / "python")

    def run(self, *command):
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PYTEST"))}
        return subprocess.run(
            [str(self.bin / command[0]), *map(str, command[1:])],
            cwd=self.here, env=clean | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    def told(self, *command):
        """Output of a command that succeeds."""
        ended = self.run(*command)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout


@pytest.fixture(scope="session")
def new_environment(tmp_path_factory):
    """`new_environment(*wheels)`: an `Environment` with these wheels."""

    def make(*wheels):
        environment = Environment(tmp_path_factory.mktemp("environment"))
        environment.install(*wheels)
        return environment

    return make


@pytest.fixture(scope="module")
def environment(new_environment, wheel):
    """One with mmmask alone."""
    return new_environment(wheel)
