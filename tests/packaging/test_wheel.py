"""The wheel: what is in it, and that it works where nothing else of this checkout is."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

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


def test_the_source_archive_builds_the_same_wheel(wheel, build_wheels, tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert (unpacked / "tests/packaging/test_wheel.py").is_file()
    (again,) = build_wheels(tmp_path / "again", unpacked)
    assert zipfile.ZipFile(again).namelist() == zipfile.ZipFile(wheel).namelist()


def test_an_installed_wheel_works_from_another_folder(environment):
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
