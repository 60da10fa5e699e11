"""The documentation says what is so: links lead somewhere, examples run, commands, names and settings exist."""

import argparse
import contextlib
import inspect
import io
import pickle
import re
import shlex
import sys
import tomllib
import types
from importlib import import_module
from pathlib import Path

import pytest
import torch
from PIL import Image

import mmmask
from mmmask import hooks, testing
from mmmask.builtins.pixels import PixelLoss
from mmmask.cli import COMMANDS, main
from mmmask.components import INTERFACES, components
from mmmask.data.streams import Streams
from mmmask.experiment import experiment_from_data
from mmmask.experiment.compose import published_experiments
from mmmask.interfaces import PLAIN, build
from mmmask.model.masks import mask_from_bool
from mmmask.model.tokenizing import tokenize

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGE_IDS = [page.relative_to(ROOT).as_posix() for page in PAGES]
TEXTS = dict(zip(PAGE_IDS, [page.read_text(encoding="utf-8") for page in PAGES], strict=True))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PLACEHOLDERS = {"EXPERIMENT", "RUN", "DIR", "FILE.py", "NAME", "KIND", "INPUT"}


def fenced(text, *languages):
    return [(language, code) for language, code in FENCE.findall(text) if language in languages]


def inline(text):
    """The pieces of code within running text, a line break in one taken as a space."""
    prose = re.sub(r"^(    .*|\s*)$", "", FENCE.sub("", text), flags=re.MULTILINE)
    return [" ".join(piece.split()) for piece in re.findall(r"`([^`]+)`", prose)]


def shell_lines(text):
    """Shell blocks and indented ones line by line (continued lines joined, comments off), and inline code."""
    blocks = "".join(code for _, code in fenced(text, "sh", "console", ""))
    indented = "\n".join(re.findall(r"^    .*", FENCE.sub("", text), re.MULTILINE))
    joined = f"{blocks}\n{indented}".replace("\\\n", " ")
    lines = [line.partition("  #")[0].strip().removeprefix("$ ") for line in joined.splitlines()]
    return [line for line in [*lines, *inline(text)] if line]


def command_lines(text):
    """The arguments of every `mmmask ...` command line, without the brackets of a usage line."""
    for line in shell_lines(text):
        for part in line.split("&&"):
            found = re.match(r"(?:\w+=\S+ )*(?:(?:torchrun|python) .*-m )?mmmask (\S.*)", part.strip())
            if found and found[1] != "--version":
                arguments = [word.strip("[]").removesuffix("...") for word in shlex.split(found[1])]
                yield [argument for argument in arguments if argument]


COMMAND_LINES = [(page, line) for page, text in TEXTS.items() for line in command_lines(text)]


@contextlib.contextmanager
def forgotten_afterwards():
    """Takes away again what is registered within."""
    found = components()
    before = {kind: {entry.name for entry in registry} for kind, registry in found.registries.items()}
    plugins = set(found.manager.get_plugins())
    try:
        yield
    finally:
        for kind, registry in found.registries.items():
            for name in {entry.name for entry in registry} - before[kind]:
                registry.unregister(name)
        for plugin in found.manager.get_plugins() - plugins:
            found.manager.unregister(plugin)


def run_examples(page, folder):
    """Runs the blocks of a page in order and in one namespace, as a notebook's cells; YAML files are written.

    A Python block whose first line is a comment with a file name is a plugin file: it is written and taken as one.
    """
    module = types.ModuleType("examples_of_" + re.sub(r"\W", "_", page))
    sys.modules[module.__name__] = module  # its classes can be pickled
    try:
        for language, code in fenced(TEXTS[page], "python", "yaml"):
            named = re.match(r"# (\w+\.(py|yaml))\n", code)
            if named:
                (folder / named[1]).write_text(code, encoding="utf-8")
            if language == "python" and named:
                vars(module).update(public(components().add_plugin_file(str(folder / named[1]))))
            elif language == "python":
                exec(compile(code, f"{page}: example", "exec"), vars(module))
    finally:
        del sys.modules[module.__name__]
    return module


def public(module):
    return {name: value for name, value in vars(module).items() if not name.startswith("_")}


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with forgotten_afterwards():
        yield tmp_path


def targets(text):
    found = re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text))
    return [target.partition("#")[0] for target in found if "://" not in target and not target.startswith("#")]


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_somewhere(page):
    missing = [target for target in targets(TEXTS[page]) if not (ROOT / page).parent.joinpath(target).exists()]
    assert missing == []


def test_pictures_are_pictures():
    shown = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", TEXTS["README.md"])
    assert len(shown) >= 2
    for path in shown:
        with Image.open(ROOT / path) as picture:
            assert picture.width > 100


def test_every_page_is_reached_from_the_readme():
    assert {page for page in TEXTS if page != "README.md"} <= set(targets(TEXTS["README.md"]))


@pytest.mark.parametrize("page", [page for page, text in TEXTS.items() if fenced(text, "python", "yaml")])
def test_python_and_yaml_blocks_run(page, in_folder):
    run_examples(page, in_folder)
    for _, code in fenced(TEXTS[page], "yaml"):
        (in_folder / "block.yaml").write_text(code, encoding="utf-8")
        experiment = mmmask.load_experiment("block.yaml")
        with torch.device("meta"):
            assert mmmask.build_model(experiment).streams.keys() == experiment.streams.keys()


def test_every_block_of_python_is_marked_as_such():
    """Only what is marked is run."""
    for page, text in TEXTS.items():
        for language, code in FENCE.findall(text):
            assert language in ("python", "yaml", "sh", "console", "text", ""), page
            assert language == "python" or not re.search(r"^(import|from) \w+", code, re.MULTILINE), page


def test_every_python_block_imports_what_it_uses():
    for page, text in TEXTS.items():
        for _, code in fenced(text, "python"):
            assert re.search(r"^import mmmask$", code, re.MULTILINE), f"{page}: {code[:200]}"


def test_what_a_page_registers_is_forgotten(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [(kind, entry.name) for kind, registry in components().registries.items() for entry in registry]
    plugins = components().manager.get_plugins()
    with forgotten_afterwards():
        run_examples("docs/plugins.md", tmp_path)
        assert "one_layer" in components().registry("encoder")
    assert names == [(kind, entry.name) for kind, registry in components().registries.items() for entry in registry]
    assert plugins == components().manager.get_plugins()


def test_the_readmes_masker_hides_the_middle(in_folder):
    run_examples("README.md", in_folder)
    overrides = [
        "streams.images.masker=centre",
        "streams.videos=null",
        "model.encoder={name: vit, width: 24, depth: 1}",
    ]
    overrides += ["model.decoder.depth=0", "streams.images.modality.patch_size=[16, 16]"]
    experiment = mmmask.load_experiment("omnimae/vit_base", overrides=[*overrides, "model.encoder.num_heads=2"])
    output = mmmask.build_model(experiment)({"images": torch.zeros(2, 3, 224, 224, dtype=torch.uint8)})
    masked = output.streams["images"].mask.masked.float()
    assert masked.sum(dim=1).tolist() == [98, 98]
    assert masked[:, 70:126].mean() > 0.95 > 0.05 > masked[:, :20].mean()


class TestTheUnitsPage:
    """The examples of docs/units.md learn, and their figures are right."""

    @pytest.fixture
    def examples(self, in_folder):
        return run_examples("docs/units.md", in_folder)

    @pytest.mark.parametrize("kind", ["volume", "scan"])
    @pytest.mark.parametrize("settings", [{"normalize": "none"}, {"normalize": "channel"}, {"unnormalize": False}])
    def test_a_perfect_prediction_beats_the_baseline(self, examples, kind, settings):
        modality = build("modality", components().get("modality", kind).Config(name=kind))
        source = {"volume": examples.PhantomSource, "scan": examples.ScanSource}[kind](mmmask.Source.Config())
        tokens = tokenize({kind: modality}, kind, torch.stack([source.load(index) for index in range(8)]))
        masked = torch.rand(8, 64, generator=torch.Generator().manual_seed(0)).argsort(1) < 38
        mask = mask_from_bool(masked)
        loss = PixelLoss(PixelLoss.Config(name="pixels", **settings))
        target = loss.target(tokens, mask.predicted)
        perfect = target[..., : loss.prediction_dim(modality.spec)]
        assert loss.error(perfect, target).max() == 0
        truth, guess = tokens.raw(mask.predicted), modality.baseline(tokens, mask)
        assert guess.isfinite().all()
        restored = loss.restore(perfect, tokens, mask.predicted, None)
        error, error_of_guess = ((raw - truth).square().nanmean().sqrt() for raw in (restored, guess))
        assert error < 1e-2  # Hounsfield units
        assert error_of_guess > 100

    @pytest.mark.parametrize("kind", ["volume", "scan"])
    def test_training_lowers_the_loss(self, examples, kind, in_folder):
        source = {"volume": "phantoms", "scan": "scans"}[kind]
        stream = [f"streams.volumes.{key}={source}" for key in ("source", "held_out")]
        quick = ["training.log.tensorboard=false", "training.log.reconstruct_every=0", "data.workers=0"]
        experiment = mmmask.load_experiment("volumes.yaml", [f"streams.volumes.modality={kind}", *stream, *quick])
        run = mmmask.train(experiment, "run", device="cpu")
        assert run.evaluations[-1]["loss"] < 0.7 * run.evaluations[0]["loss"]


class TestThePluginPage:
    """The examples of docs/plugins.md do more than load."""

    @pytest.fixture
    def examples(self, in_folder):
        return run_examples("docs/plugins.md", in_folder)

    def test_its_modality_is_checked_and_trained_by_its_command_lines(self, in_folder, capsys):
        for _, code in fenced(TEXTS["docs/plugins.md"], "python", "yaml"):
            if named := re.match(r"# (\w+\.\w+)\n", code):
                Path(named[1]).write_text(code, encoding="utf-8")
        lines = [line for page, line in COMMAND_LINES if page == "docs/plugins.md" and "stereo.py" in line]
        assert [line[0] for line in lines] == ["check", "train"]
        with forgotten_afterwards():
            assert main(lines[0]) == 0
        assert "ready to train" in capsys.readouterr().out
        quick = ["training.steps=30", "training.log.every=5", "training.log.tensorboard=false"]
        assert main([*lines[1], *quick, "--device", "cpu"]) == 0
        run = mmmask.load_run("runs/stereo")
        assert run.evaluations[-1]["loss"] < run.evaluations[0]["loss"]
        assert run.pictures["stereo"].is_file()

    def test_its_parts_train_together_and_go_on(self, examples, in_folder):
        quick = ["training.steps=4", "training.log.every=1", "training.log.tensorboard=false", "data.workers=2"]
        experiment = experiment_from_data(examples.experiment.to_data(), overrides=quick)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            run = mmmask.train(experiment, output="run", device="cpu", plugins=(examples.StepPrinter(),))
        assert [line.split()[0] for line in printed.getvalue().splitlines()] == ["1", "2", "3", "4"]
        assert run.outcome == "finished"
        assert mmmask.load_run("run").model.encoder.state_dict().keys() == examples.model.encoder.state_dict().keys()

    def test_its_modality_keeps_the_promises(self, examples):
        modality = examples.StereoModality(examples.StereoModality.Config())
        assert pickle.loads(pickle.dumps(modality.preparation)).length == 64
        batch = torch.randint(0, 256, (3, *modality.sample_shape), dtype=torch.uint8)
        tokens = modality.tokenize(batch)
        assert torch.equal(modality.detokenize(tokens.content, tokens.grid), batch)
        streams = Streams(examples.experiment)
        try:
            (micro,) = streams.micro_steps(0)
        finally:
            streams.close()
        assert micro.batches["stereo"].content.shape == (16, 2, 64)
        with pytest.raises(mmmask.BadSample, match="shorter"):
            modality.preparation.prepare(torch.zeros(2, 10), PLAIN)

    def test_the_checkerboard_leaves_one_in_so_many(self, examples):
        masker = examples.CheckerboardMasker(examples.CheckerboardMasker.Config(keep_one_in=4))
        assert masker.num_masked((14, 14), 0) == 147
        noise = torch.tensor([[0.0], [0.99]])
        content = torch.zeros(2, 196, 1)
        tokens = mmmask.Tokens(content, (14, 14), mmmask.TokenSpec((1, 1), 1))
        scores = masker.scores(mmmask.MaskContext((14, 14), 2, content.device, lambda shape: noise, 0, tokens))
        assert scores.sum(dim=1).tolist() == [147, 147]
        assert scores[:, :5].tolist() == [[0, 1, 1, 1, 0], [1, 0, 1, 1, 1]]

    @pytest.mark.parametrize("kind", INTERFACES)
    def test_every_kind_stands_in_the_table_with_what_it_asks_for(self, kind):
        (row,) = re.findall(rf"^\| {kind} \| (.*)$", TEXTS["docs/plugins.md"], re.MULTILINE)
        classes, asked = row.split(" | ", 1)
        interfaces = [getattr(mmmask, name) for name in re.findall(r"`mmmask\.(\w+)`", classes)]
        assert interfaces[0].__name__ == kind.capitalize()
        named = [name for name in re.findall(r"`([\w.]+)`", asked) if not name.startswith("mmmask.")]
        assert named
        assert [name for name in named if not any(hasattr(interface, name) for interface in interfaces)] == []
        required = set().union(*(interface.__abstractmethods__ for interface in interfaces))
        assert required <= set(named)

    def test_every_hook_stands_in_its_table(self):
        specs = [f for _, f in inspect.getmembers(hooks, inspect.isfunction) if hasattr(f, "mmmask_spec")]
        assert len(specs) >= 6
        stated = re.findall(r"^\| `(\w+\([^`]*\))` \|", TEXTS["docs/plugins.md"], re.MULTILINE)
        assert stated == [
            f"{spec.__name__}({', '.join(inspect.signature(spec).parameters)})"
            for spec in sorted(specs, key=lambda spec: inspect.getsourcelines(spec)[1])
        ]


@pytest.mark.parametrize("kind", INTERFACES)
def test_every_promise_stands_on_the_page_on_interfaces(kind):
    common, *sections = re.split(r"^## ", TEXTS["docs/interfaces.md"], flags=re.MULTILINE)
    (section,) = [section for section in sections if section.startswith(f"{kind.capitalize()}\n")]
    stated = re.findall(r"^- (.*)$", common + section.partition("Promises:")[2], re.MULTILINE)
    assert stated == [check.promise for check in testing.checks(kind)]


def test_there_are_command_lines():
    assert {line[0] for _, line in COMMAND_LINES} == set(COMMANDS)


@pytest.mark.parametrize(("page", "line"), COMMAND_LINES, ids=lambda part: part if isinstance(part, str) else part[0])
def test_command_lines_exist(page, line, capsys):
    command, *arguments = line
    assert command in COMMANDS
    if not arguments:
        return  # a command named in passing
    parser = argparse.ArgumentParser(prog=f"mmmask {command}")
    import_module(f"mmmask.cli.{command.replace('-', '_')}").add_arguments(parser)
    try:
        parsed = parser.parse_intermixed_args(arguments)
    except SystemExit:
        pytest.fail(f"{page}: mmmask {' '.join(line)}: {capsys.readouterr().err}")
    experiment = getattr(parsed, "experiment", "EXPERIMENT")
    if experiment not in PLACEHOLDERS and not experiment.endswith(".yaml"):
        overrides = [override for override in parsed.overrides if override != "key=value"]
        assert mmmask.load_experiment(experiment, overrides).streams
    if command == "describe" and parsed.kind not in PLACEHOLDERS:
        assert parsed.name in components().registry(parsed.kind)


@pytest.mark.parametrize("page", TEXTS)
def test_options_named_alone_exist(page):
    known = set()
    for command in COMMANDS:
        parser = argparse.ArgumentParser()
        import_module(f"mmmask.cli.{command.replace('-', '_')}").add_arguments(parser)
        known |= {option for action in parser._actions for option in action.option_strings}
    named = {piece.split()[0].partition("=")[0] for piece in inline(TEXTS[page]) if piece.startswith("--")}
    assert named <= known


def table(text, heading):
    """The first two cells of every row of a table that starts with this cell, as the names in backticks."""
    rows = re.search(rf"^\| {heading} \|.*\n\|[-| ]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert rows
    return [[re.findall(r"`([^`]+)`", cell) for cell in row.split("|")[1:3]] for row in rows[1].splitlines()]


def test_the_sources_of_the_page_on_data_exist():
    rows = table(TEXTS["docs/data.md"], "source")
    assert {name for (name,), _ in rows} == {e.name for e in components().registry("source") if e.supplier == "mmmask"}
    for (name,), settings in rows:
        assert set(settings) == set(components().get("source", name).Config.model_fields) - {"name"}


def test_names_and_settings_in_running_text_exist():
    """`crop_scale`, `patch_size: [2, 16, 16]`, `data.max_bad_share`, `source.name=list` and the like."""
    kinds = components().registries
    fields = {
        field
        for kind, registry in kinds.items()
        for entry in registry
        for field in components().get(kind, entry.name).Config.model_fields
    }
    experiment = mmmask.load_experiment("quickstart").to_data()
    fields |= {key for stream in experiment["streams"].values() for key in stream} | {"extends"}
    for page, text in TEXTS.items():
        for piece in inline(text):
            if dotted := re.fullmatch(r"((?:model|streams|training|data)(?:\.\w+)+)(=.*)?", piece):
                place = experiment
                for part in dotted[1].split("."):
                    assert isinstance(place, dict), f"{page}: {piece}"
                    assert part in place, f"{page}: {piece}"
                    place = place[part]
            elif named := re.fullmatch(r"(\w+)\.name=(\w+)", piece):
                assert named[2] in kinds[named[1]], f"{page}: {piece}"
            elif setting := re.fullmatch(r"(\w+): .*", piece):
                assert setting[1] in fields | set(experiment["training"]), f"{page}: {piece}"
    words = {piece for piece in inline(TEXTS["docs/data.md"]) if re.fullmatch("[a-z]+_[a-z_]+", piece)}
    assert words <= fields | {entry.name for registry in kinds.values() for entry in registry}


def test_files_named_in_running_text_and_trees_exist():
    tracked = [
        path.relative_to(ROOT).as_posix() + ("/" if path.is_dir() else "")
        for folder in ("mmmask", "registry", "plugins", "configs", "benchmarks", "docs", "tests")
        for path in [ROOT / folder, *(ROOT / folder).rglob("*")]
    ] + [path.name for path in ROOT.iterdir()]
    written = {"my_package/__init__.py"}  # by the pages themselves, or by their readers
    for text in TEXTS.values():
        written |= {named[1] for _, code in fenced(text, "python", "yaml") if (named := re.match(r"# (\S+)\n", code))}
    for page, text in TEXTS.items():
        named = {piece for piece in inline(text) if re.fullmatch(r"[\w./]+(\.py|\.yaml|\.toml|[a-z]/)", piece)}
        trees = [line.strip() for line in FENCE.sub("", text).splitlines() if line.startswith("    ")]
        columns = [word for line in trees for word in line.split("   ")[0].split()]
        named |= {word for word in columns if re.fullmatch(r"\w+(/|\.py|(/\w+)+/)", word)}
        for name in named - written:
            assert any(f"/{path}".endswith(f"/{name}") for path in tracked), f"{page}: {name}"


def test_published_experiments_named_in_the_pages_exist():
    for page, text in TEXTS.items():
        named = set(re.findall(r"\b(?:omnimae|mae|videomae|simmim|convmae)/\w+", text))
        assert named <= set(published_experiments()), page


def test_names_in_examples_exist():
    registered = {entry.name for registry in components().registries.values() for entry in registry}
    for text in TEXTS.values():
        own = set(re.findall(r'register\(\s*"\w+", "(\w+)"', text))
        used = set(re.findall(r"\bname: (\w+)", "".join(code for _, code in FENCE.findall(text))))
        used |= set(re.findall(r'\bname="(\w+)"', text))
        assert used <= registered | own


def test_extras_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {extra for text in TEXTS.values() for extra in re.findall(r"(?:\.|mmmask)\[(\w+)\]", text)}
    assert {"test", "dev"} <= named <= set(extras)


def test_the_interfaces_are_at_hand():
    names = re.findall(r"^from mmmask\.interfaces import (.+)$", TEXTS["docs/plugins.md"], re.MULTILINE)
    assert {name for line in names for name in line.split(", ")} <= set(mmmask.interfaces.__all__)
    assert mmmask.interfaces.build
    for name in re.findall(r"`mmmask\.(\w+)", "".join(TEXTS.values())):
        assert hasattr(mmmask, name), name
    assert all(hasattr(mmmask, name) for name in mmmask.__all__)
    assert all(hasattr(mmmask.interfaces, name) for name in mmmask.interfaces.__all__)
