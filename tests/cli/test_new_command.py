"""`mmmask new`: what it writes, what it refuses, and that what it writes works as it is."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import mmmask
from mmmask import testing
from mmmask.components import INTERFACE_VERSION, INTERFACES, components
from mmmask.experiment.compose import parse_yaml
from mmmask.scaffold import new_plugin
from mmmask.scaffold.new_plugin import LONGEST, kinds, render, write_plugin

KINDS = kinds()
LONG = "abcdefgh_" * 3 + "abcd1"


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """`plugin(kind, name)` writes one and takes it in as if it were installed; forgotten afterwards."""
    found = components()
    before = {kind: {entry.name for entry in registry} for kind, registry in found.registries.items()}
    plugins = set(found.manager.get_plugins())
    modules = set(sys.modules)

    def write(kind, name):
        written = write_plugin(kind, name, tmp_path)
        monkeypatch.syspath_prepend(str(written))
        found.add_plugin_file(str(written / f"mmmask_{name}" / "__init__.py"))
        return written

    yield write
    for kind, registry in found.registries.items():
        for name in {entry.name for entry in registry} - before[kind]:
            registry.unregister(name)
    for added in found.manager.get_plugins() - plugins:
        found.manager.unregister(added)
    for name in set(sys.modules) - modules:
        if name.startswith("mmmask_"):
            del sys.modules[name]


def everything(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def of_images(corpus):
    """Overrides that let an experiment on the sample corpus run on a few of its files."""
    return [
        f"streams.images.source.path={corpus}/images/train",
        f"streams.images.held_out.path={corpus}/images/held_out",
        "data.sample_data=null",
    ]


def test_there_are_templates_of_the_kinds_that_people_write():
    assert set(INTERFACES) - set(KINDS) == {"format"}


@pytest.mark.parametrize("kind", KINDS)
def test_it_writes_a_distribution_and_says_what_to_do_with_it(cli, tmp_path, kind):
    done = cli("new", kind, "red_glow", "--output", tmp_path)
    assert (done.code, done.err) == (0, "")
    folder = tmp_path / "mmmask-red_glow"
    assert f"pip install -e '{folder}[test]'" in done.out
    assert f"pytest {folder}\n" in done.out
    assert f"mmmask train {folder}/red_glow.yaml\n" in done.out
    assert everything(tmp_path)[0] == "mmmask-red_glow"
    assert {
        "README.md", "pyproject.toml", "red_glow.yaml", "tests/test_red_glow.py", "mmmask_red_glow/__init__.py",
        "mmmask_red_glow/py.typed", f"mmmask_red_glow/{kind}.py",
    } <= set(everything(folder))  # fmt: skip
    for path in folder.rglob("*.*"):
        assert not path.is_file() or not re.search(r"\$|\bNAME\b", path.read_text()), f"{path}: a placeholder is left"
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    assert project["project"]["name"] == "mmmask-red_glow"
    assert project["project"]["dependencies"] == ["mmmask"]
    assert project["project"]["entry-points"]["mmmask"] == {"red_glow": "mmmask_red_glow"}
    assert f"MMMASK_INTERFACE = {INTERFACE_VERSION} " in (folder / "mmmask_red_glow/__init__.py").read_text()


def test_here_is_the_default_place(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = cli("new", "masker", "glow")
    assert (
        "pip install -e './mmmask-glow[test]'\n    pytest mmmask-glow\n    mmmask train mmmask-glow/glow.yaml"
        in done.out
    )
    assert (tmp_path / "mmmask-glow" / "glow.yaml").is_file()


def test_folders_of_the_output_are_made(cli, tmp_path):
    assert cli("new", "masker", "glow", "--output", tmp_path / "a" / "b c").code == 0
    assert everything(tmp_path / "a" / "b c")[0] == "mmmask-glow"


def test_authors(cli, mistake, tmp_path):
    both = ("--author", 'Ada "the first" Ålander <ada@example.org>', "--author", "Grace")
    assert cli("new", "loss", "glow", "--output", tmp_path, *both).code == 0
    project = tomllib.loads((tmp_path / "mmmask-glow" / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["authors"] == [
        {"name": 'Ada "the first" Ålander', "email": "ada@example.org"},
        {"name": "Grace"},
    ]
    for wrong in ("", "<ada@example.org>", "Ada <ada>", "Ada\nGrace", "A <a@b> <c@d>"):
        assert "expected a name, or 'Name <name@example.org>'" in mistake("new", "loss", "b", "--author", wrong)
    assert not Path("mmmask-b").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Glow", "the name 'Glow' is not made of lower-case letters.* Did you mean 'glow'\\?$"),
        ("red-glow", "Did you mean 'red_glow'\\?$"),
        ("red glow", "Did you mean 'red_glow'\\?$"),
        ("_glow", "Did you mean 'glow'\\?$"),
        ("glow__2", "Did you mean 'glow_2'\\?$"),
        ("2glow", "32 at most.$"),
        ("glów", "Did you mean 'gl_w'\\?$"),
        ("", "32 at most.$"),
        ("../glow", "Did you mean 'glow'\\?$"),
        ("g" * (LONGEST + 1), "32 at most."),
        ("lambda", "'lambda' has a meaning of its own in Python: choose another.$"),
        ("null", "'null' has a meaning of its own in YAML: choose another.$"),
        ("random", "the masker 'random' is supplied by mmmask: choose another name.$"),
        ("registry", "there is a package mmmask_registry already \\(.*\\): choose another name.$"),
        ("pixels", "there is a package mmmask_pixels already"),
    ],
)
def test_names_that_cannot_be(mistake, tmp_path, name, message):
    said = mistake("new", "masker", name, "--output", tmp_path)
    assert re.search(message, said), said
    assert everything(tmp_path) == []


def test_a_name_may_stand_for_another_kind(cli, tmp_path):
    assert cli("new", "loss", "random", "--output", tmp_path).code == 0


def test_names_of_other_plugins_are_taken(mistake, plugin, tmp_path):
    plugin("modality", "glow")
    elsewhere = ("--output", tmp_path / "elsewhere")
    assert "the modality 'glow' is supplied by " in mistake("new", "modality", "glow", *elsewhere)
    assert "the source 'glow_waves' is supplied by " in mistake("new", "source", "glow_waves", *elsewhere)
    assert "there is a package mmmask_glow already" in mistake("new", "masker", "glow", *elsewhere)
    assert not (tmp_path / "elsewhere").exists()


def test_the_source_beside_a_modality_needs_a_free_name_too(mistake, plugin, tmp_path):
    plugin("source", "glow_waves")
    said = mistake("new", "modality", "glow", "--output", tmp_path / "elsewhere")
    assert "the source 'glow_waves' is supplied by " in said


@pytest.mark.parametrize(("kind", "hint"), [("maskr", "Did you mean 'masker'?"), ("format", ""), ("common", "")])
def test_other_kinds(mistake, tmp_path, kind, hint):
    said = mistake("new", kind, "glow", "--output", tmp_path)
    assert f"no kind of new component is named {kind!r}.{hint and ' '}{hint} Known: augmentation, callback," in said
    assert everything(tmp_path) == []


@pytest.mark.parametrize("there", ["folder", "empty folder", "file", "dangling link"])
def test_nothing_is_overwritten(mistake, tmp_path, there):
    target = tmp_path / "mmmask-glow"
    match there:
        case "folder":
            target.mkdir()
            (target / "pyproject.toml").write_text("mine")
        case "empty folder":
            target.mkdir()
        case "file":
            target.write_text("mine")
        case "dangling link":
            target.symlink_to(tmp_path / "nowhere")
    before = everything(tmp_path)
    said = mistake("new", "masker", "glow", "--output", tmp_path)
    assert said == f"{target} exists already, and nothing in it was changed: choose another name or --output."
    assert everything(tmp_path) == before
    if there == "folder":
        assert (target / "pyproject.toml").read_text() == "mine"


@pytest.mark.parametrize("fails", ["write_text", "rename"])
def test_it_is_written_whole_or_not_at_all(mistake, tmp_path, monkeypatch, fails):
    done = []
    real = getattr(Path, fails)

    def failing(self, *arguments, **options):
        done.append(self)
        if fails == "rename" or len(done) > 3:
            raise OSError(28, "No space left on device")
        return real(self, *arguments, **options)

    monkeypatch.setattr(new_plugin.Path, fails, failing)
    said = mistake("new", "masker", "glow", "--output", tmp_path)
    monkeypatch.undo()
    assert said == f"{tmp_path}/mmmask-glow cannot be written: [Errno 28] No space left on device"
    assert done
    assert everything(tmp_path) == []


def test_an_output_that_is_a_file(mistake, tmp_path):
    (tmp_path / "file").write_text("mine")
    said = mistake("new", "masker", "glow", "--output", tmp_path / "file")
    assert f"{tmp_path}/file/mmmask-glow cannot be written" in said


def test_it_does_not_import_torch(tmp_path):
    code = "import sys; from mmmask.cli import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    command = [sys.executable, "-c", code, "new", "modality", "glow", "--output", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "mmmask-glow").is_dir()


# what is written


@pytest.mark.parametrize("kind", KINDS)
def test_its_components_register_and_describe_themselves(plugin, cli, kind):
    plugin(kind, "glow")
    assert "glow" in components().registry(kind)
    described = cli("describe", kind, "glow")
    assert described.code == 0
    assert "no description" not in described.out
    settings = components().get(kind, "glow").Config.model_fields
    assert all(field.description for name, field in settings.items() if name != "name")


@pytest.mark.parametrize("kind", KINDS)
def test_it_keeps_its_promises(plugin, kind):
    if kind in ("encoder", "decoder", "modality"):
        pytest.skip("seen to by the tests that are written with it")
    if kind == "evaluator":
        pytest.skip("needs a model")
    plugin(kind, "glow")
    broken = [(said, came) for said, came in testing.promises(kind, "glow") if isinstance(came, str)]
    assert broken == []


@pytest.mark.parametrize("kind", KINDS)
def test_its_experiment_trains(plugin, kind, corpus, tmp_path):
    written = plugin(kind, "glow")
    data = parse_yaml((written / "glow.yaml").read_text())
    quick = ["training.steps=2", "training.log.tensorboard=false", "training.log.every=1", "data.workers=0"]
    if "sample_data" in data["data"]:
        quick += of_images(corpus)
    experiment = mmmask.load_experiment(written / "glow.yaml", overrides=quick)
    assert experiment.name == "glow"
    used = str(experiment.to_data())
    assert "'name': 'glow'" in used or "'objective': 'glow'" in used, "it uses the component"
    run = mmmask.train(experiment, output=tmp_path / "run", device="cpu")
    assert run.step == 2
    if kind in ("objective", "pool"):  # nothing is reconstructed
        return
    assert run.evaluations[-1]["psnr"] is not None
    assert all(path.is_file() for path in run.pictures.values())
    assert run.pictures


def test_the_new_modality_trains_on_files(plugin, tmp_path):
    written = plugin("modality", "glow")
    for number in range(6):
        folder = tmp_path / "files" / ("train" if number < 4 else "held_out")
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{number}.npy", np.random.default_rng(number).random((32, 50 + number)))
    overrides = [
        f"streams.glow.source={{name: folder, path: {tmp_path}/files/train}}",
        f"streams.glow.held_out={{name: folder, path: {tmp_path}/files/held_out}}",
        "streams.glow.batch_size=4",
        "training.steps=2",
        "training.log.tensorboard=false",
    ]
    experiment = mmmask.load_experiment(written / "glow.yaml", overrides=overrides)
    run = mmmask.train(experiment, output=tmp_path / "run", device="cpu")
    assert run.step == 2
    assert not (tmp_path / "run" / "bad_samples.jsonl").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_longer_name_changes_nothing_but_names(kind):
    short, long = render(kind, "a"), render(kind, LONG)
    assert len(LONG) == LONGEST
    assert len(short) == len(long)
    assert [len(text.splitlines()) for text in short.values()] == [len(text.splitlines()) for text in long.values()]


@pytest.mark.parametrize("name", ["a", LONG])
def test_ruff_has_nothing_to_say(tmp_path, name):
    pytest.importorskip("ruff")
    for kind in KINDS:
        write_plugin(kind, name, tmp_path / kind)
    for command in (["check"], ["check", "--select", "E,F,I,UP,B,C4,SIM,RET"], ["format", "--check", "--diff"]):
        ended = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--no-cache", "."], cwd=tmp_path, capture_output=True, text=True
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.slow
def test_pyright_has_nothing_to_say(tmp_path):
    pytest.importorskip("pyright")
    for kind in KINDS:
        write_plugin(kind, f"a_{kind}", tmp_path)
    paths = ", ".join(f'"{path}"' for path in sorted(tmp_path.glob("mmmask-*")))
    (tmp_path / "pyrightconfig.json").write_text(f'{{"typeCheckingMode": "basic", "extraPaths": [{paths}]}}')
    ended = subprocess.run(
        [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--project", str(tmp_path)],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
