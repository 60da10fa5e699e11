"""The wheel: what is in it, and that it works where nothing else of this checkout is. No network is used."""

import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pydantic
import pytest
import torch

pytest.importorskip("hatchling")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PLUGINS = [
    "mmmask_audio",
    "mmmask_depth",
    "mmmask_image",
    "mmmask_labels",
    "mmmask_pixels",
    "mmmask_samples",
    "mmmask_shards",
    "mmmask_text",
    "mmmask_video",
    "mmmask_zoo",
]
PACKAGES = ["mmmask", "mmmask_registry", *PLUGINS]


def pip(*arguments, python=sys.executable):
    command = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", *arguments]
    ended = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def build_wheel(source, folder):
    pip("wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", folder, source)
    (wheel,) = Path(folder).glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build_wheel(ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture
def environment(tmp_path):
    """A new environment that borrows torch and the like from this one, but not this one's mmmask."""
    folder = tmp_path / "environment"
    venv.create(folder, with_pip=False)
    (own,) = folder.glob("lib/python*/site-packages")
    borrowed = sorted({str(Path(module.__file__).parents[1]) for module in (torch, pydantic)})
    # comes after its own packages; the .pth of an editable install in there is not followed
    (own / "borrowed.pth").write_text("\n".join(borrowed) + "\n")

    class Environment:
        python = folder / "bin/python"
        packages = own

        def install(self, *wheels):
            pip("install", "--no-deps", "--no-index", *wheels, python=self.python)

        def run(self, *command):
            elsewhere = tmp_path / "elsewhere"
            elsewhere.mkdir(exist_ok=True)
            clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
            return subprocess.run(
                [str(folder / "bin" / command[0]), *command[1:]],
                cwd=elsewhere, env=clean | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120,
            )  # fmt: skip

    return Environment()


def project(folder, name, module, code):
    """A third party's distribution, with the one line in its pyproject.toml that makes it a plugin."""
    folder = folder / name
    folder.mkdir()
    (folder / f"{module}.py").write_text(code)
    (folder / "pyproject.toml").write_text(
        f"""
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "{name}"
version = "1.0"
dependencies = ["mmmask"]

[project.entry-points.mmmask]
{module} = "{module}"

[tool.hatch.build.targets.wheel]
only-include = ["{module}.py"]
"""
    )
    return build_wheel(folder, folder / "dist")


STRIPES = '''
"""Stripes."""
from mmmask import hookimpl
from mmmask.builtins.maskers import RandomMasker


class Stripes(RandomMasker):
    """Masks stripes."""


@hookimpl
def register_components(register):
    register("masker", "stripes", "mmmask_stripes:Stripes", "stripes of a third party")
'''


def test_the_wheel_holds_the_packages_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    top = sorted({name.split("/")[0] for name in names})
    (info,) = [name for name in top if name.endswith(".dist-info")]
    assert top == sorted([*PACKAGES, info])
    expected = {
        path.relative_to(ROOT / folder).as_posix()
        for folder, package in [
            ("", "mmmask"), ("registry", "mmmask_registry"), *(("plugins", name) for name in PLUGINS)
        ]
        for path in (ROOT / folder / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }  # fmt: skip
    expected |= {f"mmmask/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "configs").rglob("*.yaml")}
    assert {name for name in names if not name.startswith(info)} == expected
    assert {name.removeprefix(f"{info}/") for name in names if name.startswith(info)} == {
        "METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE",
    }  # fmt: skip
    assert all(f"{package}/py.typed" in names for package in PACKAGES), "type checkers ignore a package without it"


def test_the_source_archive_builds_the_same_wheel(wheel, tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert (unpacked / "tests/packaging/test_wheel.py").is_file()
    again = build_wheel(unpacked, tmp_path / "again")
    assert zipfile.ZipFile(again).namelist() == zipfile.ZipFile(wheel).namelist()


def test_an_installed_wheel_works_from_another_folder(wheel, environment):
    environment.install(wheel)
    listed = environment.run("mmmask", "list")
    assert listed.returncode == 0, listed.stderr
    assert listed.stderr == ""
    names = {tuple(line.split()[:3]) for line in listed.stdout.splitlines()}
    assert {("modality", "image", "mmmask"), ("modality", "video", "mmmask"), ("format", "omnimae", "mmmask")} <= names
    assert ("experiment", "omnimae/vit_base", "mmmask") in names
    where = environment.run(
        "python", "-c", "import mmmask, mmmask_image; print(mmmask.__file__, mmmask_image.__file__)"
    )
    assert where.stdout.split() == [
        str(environment.packages / f"{name}/__init__.py") for name in ("mmmask", "mmmask_image")
    ]
    shown = environment.run("mmmask", "show", "omnimae/vit_base")
    assert shown.returncode == 0, shown.stderr
    assert "mask_ratio: 0.9" in shown.stdout
    module = environment.run("python", "-m", "mmmask", "describe", "masker", "random")
    assert module.returncode == 0, module.stderr
    generic = environment.run("python", "-c", "import registry")
    assert generic.returncode != 0, "no package with a generic name reaches site-packages"


def test_a_third_party_is_found_and_a_broken_one_named(wheel, environment, tmp_path):
    good = project(tmp_path, "mmmask-stripes", "mmmask_stripes", STRIPES)
    broken = project(tmp_path, "mmmask-broken", "mmmask_broken", "import a_module_that_nobody_has\n")
    environment.install(wheel, good, broken)
    listed = environment.run("mmmask", "list")
    assert listed.returncode == 0
    assert re.search(r"masker +stripes +mmmask-stripes +stripes of a third party", listed.stdout)
    assert re.search(r"modality +image +mmmask ", listed.stdout), "everything else works"
    assert "mmmask_broken (mmmask-broken)" in listed.stderr
    assert "a_module_that_nobody_has" in listed.stderr
    assert "Traceback" not in listed.stderr
    described = environment.run("mmmask", "describe", "masker", "stripes")
    assert "Masks stripes." in described.stdout, described.stderr
    shown = environment.run("mmmask", "show", "omnimae/vit_base", "streams.images.masker.name=stripes")
    assert "name: stripes" in shown.stdout, shown.stderr
    reported = environment.run("mmmask", "env")
    assert "mmmask_broken" in reported.stdout
    environment.install(project(tmp_path, "mmmask-twice", "mmmask_twice", STRIPES))
    twice = environment.run("mmmask", "list")
    assert "mmmask_twice (mmmask-twice)" in twice.stderr
    assert "'stripes' is supplied by mmmask-stripes already" in twice.stderr
