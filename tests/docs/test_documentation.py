"""The documentation says what is so: links lead somewhere, examples run, commands, names and settings exist."""

import argparse
import contextlib
import inspect
import io
import json
import pickle
import re
import shlex
import sys
import tomllib
import types
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mmmask
from mmmask import hooks, testing
from mmmask.builtins.losses.pixels import PixelLoss
from mmmask.cli import COMMANDS, main
from mmmask.components import INTERFACES, components
from mmmask.data.streams import Streams, sample_loader
from mmmask.experiment import Experiment, experiment_from_data
from mmmask.experiment.compose import published_experiments
from mmmask.interfaces import PLAIN, SourceFile, build, patchify
from mmmask.model.masks import mask_from_bool
from mmmask.model.tokenizing import tokenize
from mmmask.testing import document

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


class Stop:
    """Ends a run after so many steps, with no checkpoint of them."""

    def __init__(self, step):
        self.step = step

    @mmmask.hookimpl
    def optimizer_stepped(self, run):
        if run.step == self.step:
            raise mmmask.MmmaskError("stopped here")


def trained_twice(experiment, stop):
    """The last checkpoints of a run, and of one that was stopped on its way and went on."""
    mmmask.train(experiment, "whole", device="cpu")
    with pytest.raises(mmmask.MmmaskError, match="stopped here"):
        mmmask.train(experiment, "resumed", device="cpu", plugins=(Stop(stop),))
    mmmask.train(experiment, "resumed", device="cpu")
    return [mmmask.load_run(folder).checkpoint for folder in ("whole", "resumed")]


def same(one, other):
    """Whether two states are equal to the last bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def public(module):
    return {name: value for name, value in vars(module).items() if not name.startswith("_")}


@pytest.fixture
def in_folder(tmp_path):
    with contextlib.chdir(tmp_path), forgotten_afterwards():
        yield tmp_path


def draw_pictures(folder):
    """Makes a folder of labelled files: the left half is plain, bright or dark, the right half is noise."""
    generator = np.random.default_rng(0)
    for label, level in (("bright", 220), ("dark", 30)):
        (folder / "pictures" / label).mkdir(parents=True)
        for number in range(16):
            picture = np.full((32, 32, 3), level, np.uint8)
            picture[:, 16:] = generator.integers(256, size=(32, 16, 3))
            Image.fromarray(picture).save(folder / "pictures" / label / f"{number}.png")


@pytest.fixture(scope="class")
def one_folder(tmp_path_factory):
    """Folder in which all tests of a class run, with the pictures."""
    folder = tmp_path_factory.mktemp("page")
    draw_pictures(folder)
    with contextlib.chdir(folder), forgotten_afterwards():
        yield folder


QUICK = [
    "training.log={every: 1, tensorboard: false, reconstruct_every: 0}",
    "training.schedule.warmup=0",
    "data={workers: 0, sample_data: null}",
    "model.encoder={name: vit, width: 24, depth: 1, num_heads: 2}",
    "model.decoder={name: transformer, width: 16, depth: 1, num_heads: 2}",
]


def on_pictures(file, stream, *overrides):
    """An experiment of a page, small and on the files of `pictures`."""
    source = "{name: folder, path: pictures}"
    quick = [f"streams.{stream}.source={source}", f"streams.{stream}.held_out={source}"]
    quick += [f"streams.{stream}.modality={{size: 32, augment: []}}", f"streams.{stream}.batch_size=16"]
    return mmmask.load_experiment(file, [*QUICK, *quick, *overrides])


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
        classes = {name: {"label": ("cat", "dog")} for name in experiment.streams}
        with torch.device("meta"):
            assert mmmask.build_model(experiment, classes).parts.keys() == experiment.streams.keys()


def test_every_block_of_python_is_marked_as_such():
    """Only what is marked is run."""
    for page, text in TEXTS.items():
        for language, code in FENCE.findall(text):
            assert language in ("python", "yaml", "sh", "console", "text", ""), page
            assert language == "python" or not re.search(r"^(import|from) \w+", code, re.MULTILINE), page


def test_every_python_block_imports_what_it_uses():
    for page, text in TEXTS.items():
        for _, code in fenced(text, "python"):
            assert re.search(r"^(import mmmask$|from mmmask_\w+ import )", code, re.MULTILINE), f"{page}: {code[:200]}"


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
        first, last = run.evaluations[0], run.evaluations[-1]
        assert last["loss"] < 0.7 * first["loss"]
        assert last["psnr"] > last["psnr_baseline"]

    def test_tokens_without_values_are_masked_first_and_not_counted(self, examples):
        experiment = mmmask.load_experiment("volumes.yaml", ["streams.volumes.modality=scan"])
        source = examples.ScanSource(mmmask.Source.Config())
        output = mmmask.build_model(experiment)({"volumes": torch.stack([source.load(0), source.load(1)])})
        volumes = output.streams["volumes"]
        empty = patchify(torch.stack([source.load(0), source.load(1)]), examples.PATCH).isnan().all(-1)
        assert empty.any()
        assert (volumes.mask.masked | ~empty).all()
        assert torch.equal(volumes.mask.counted == 0, empty.gather(1, volumes.mask.predicted))
        assert output.loss.isfinite()
        assert volumes.latents.isfinite().all()


class TestThePageOnObjectives:
    """Its objective learns labels, and goes on with them."""

    @pytest.fixture(scope="class")
    @classmethod
    def examples(cls, one_folder):
        return run_examples("docs/objectives.md", one_folder)

    def experiment(self, *overrides):
        overrides = ["streams.pictures=null", "streams.shapes.smoothing=0", "training.checkpoint.every=8", *overrides]
        return on_pictures("labelled.yaml", "shapes", "training.steps=24", *overrides)

    def test_it_learns_and_goes_on(self, examples):
        whole, resumed = trained_twice(self.experiment(), stop=11)
        assert same(
            {key: whole[key] for key in ("model", "optimizer")}, {key: resumed[key] for key in ("model", "optimizer")}
        )
        run = mmmask.load_run("resumed")
        first, last = run.evaluations[0], run.evaluations[-1]
        assert last["loss"] < 0.3 * first["loss"]
        assert first["accuracy"] <= 0.5 < last["accuracy"] == 1
        assert run.model.objective("shapes").heads["shapes"].out_features == 2

    def test_other_classes_are_refused(self, examples, one_folder):
        def label(how):
            Path("list.csv").write_text(
                "\n".join(f"{path},{how(path)}" for path in sorted((one_folder / "pictures").rglob("*.png")))
            )

        experiment = self.experiment("streams.shapes.source={name: list, path: list.csv}")
        label(lambda path: path.parent.name)
        with pytest.raises(mmmask.MmmaskError, match="stopped here"):
            mmmask.train(experiment, "run", device="cpu", plugins=(Stop(9),))
        label(lambda path: "night" if path.parent.name == "dark" else "bright")
        with pytest.raises(mmmask.MmmaskError, match=r"streams\.shapes\.source: its labels name other classes"):
            mmmask.train(experiment, "run", device="cpu")

    def test_a_source_without_labels_is_refused(self, examples):
        source = "streams.shapes.source={name: glob, path: 'pictures/dark/*.png'}"
        with pytest.raises(mmmask.MmmaskError, match=r"streams\.shapes\.source: .* needs a source with labels"):
            mmmask.train(self.experiment(source), "unlabelled", device="cpu")

    def test_its_costs_are_told(self, examples, capsys):
        overrides = ["streams.pictures=null", "streams.shapes.held_out=null", "streams.shapes.source.path=pictures"]
        assert main(["check", "labelled.yaml", *QUICK, *overrides]) == 0
        assert "ready to train" in capsys.readouterr().out

    def test_it_has_sixty_lines_at_most(self):
        code = TEXTS["docs/objectives.md"].partition("class LabelsObjective")[2].partition("\n\n\nclass")[0]
        assert len(code.splitlines()) <= 60


def written(path, *lines):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")


EPIC = (
    "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,"
    "narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes"
)


class TestThePageOnData:
    """Its sources read the files of data sets as these are handed out."""

    @pytest.fixture
    def loaded(self, in_folder):
        run_examples("docs/data.md", in_folder)
        for split in ("train", "val"):
            for label in ("n01440764", "n01443537"):
                written(f"data/imagenet/{split}/{label}/{label}_1.JPEG", "")
        species = "train_val2018/Plantae/7477/3b60.jpg"
        images = {"images": [{"id": 3, "file_name": species, "license": 3}], "categories": [{"id": 7477, "name": "x"}]}
        for split in ("train", "val"):
            annotated = images | {"annotations": [{"id": 3, "image_id": 3, "category_id": 7477}]}
            written(f"data/inat18/{split}2018.json", json.dumps(annotated))
        written(
            "data/places365/places365_train_standard.txt",
            "/a/airfield/00000001.jpg 0",
            "/z/zen_garden/00005000.jpg 364",
        )
        written("data/places365/places365_val.txt", "Places365_val_00000001.jpg 165")
        clips = "testifying,---QUuC4vJs,84,94,{0}", "eating spaghetti,---gone,120,130,{0}"
        for split in ("train", "val"):
            written(f"data/kinetics400/{split}/---QUuC4vJs_000084_000094.mp4", "")
            written(f"data/kinetics400/{split}.csv", "label,youtube_id,time_start,time_end,split", *clips)
        templates = {"Holding something next to something": "0", "Dropping something onto something": "1"}
        written("data/ssv2/labels/labels.json", json.dumps(templates))
        record = {"id": "78687", "label": "dropping a", "template": "Dropping [something] onto [something]"}
        for split in ("train", "validation"):
            written(f"data/ssv2/labels/{split}.json", json.dumps([record | {"placeholders": ["a", "b"]}]))
        row = "P01_01_{0},P01,P01_01,00:00:01.089,{1},8,202,open door,open,3,door,3,\"['door']\",[3]"
        rows = row.format(0, "00:00:00.14,00:00:03.37"), row.format(1, "01:00:04.37,01:00:06.17")
        for split in ("train", "validation"):
            written(f"data/epic100/EPIC_100_{split}.csv", EPIC, *rows)
        experiment = mmmask.load_experiment("data_sets.yaml")
        training = {name: sample_loader(experiment, name) for name in experiment.streams}
        for name, loader in training.items():
            sample_loader(experiment, name, held_out=True, classes=loader.classes)
        return training

    def test_files_and_labels(self, loaded):
        found = {name: loader.source for name, loader in loaded.items()}

        def last(loader):
            number = len(loader.source) - 1
            labels = loader.source.labels(number).items()
            return loader.source.name(number), {key: loader.classes[key].index(name) for key, name in labels}

        assert {name: last(loader) for name, loader in loaded.items()} == {
            "imagenet": ("n01443537/n01443537_1.JPEG", {"label": 1}),
            "inat18": ("train_val2018/Plantae/7477/3b60.jpg", {"label": 7477}),
            "places365": ("z/zen_garden/00005000.jpg", {"label": 364}),
            "kinetics400": ("---QUuC4vJs_000084_000094.mp4", {"label": 0}),
            "something": ("78687.webm", {"label": 1}),
            "epic100": ("P01/videos/P01_01.MP4, 3604.37 to 3606.17 s", {"verb": 3, "noun": 3}),
        }
        assert found["kinetics400"].left_out == "1 of 2 files, which are not there"
        assert found["epic100"].load(0) == SourceFile(
            "data/epic100/EPIC-KITCHENS/P01/videos/P01_01.MP4", window=(0.14, 3.37)
        )
        assert [len(names) for names in loaded["epic100"].classes.values()] == [97, 300]


class TestThePageOnMaskers:
    """Its masker with weights learns, and goes on with them."""

    @pytest.fixture(scope="class")
    @classmethod
    def examples(cls, one_folder):
        return run_examples("docs/maskers.md", one_folder)

    def test_the_masker_learns_what_is_hard_and_goes_on(self, examples):
        masker = "streams.images.masker={mask_ratio: 0.5, chance: 0.1}"
        experiment = on_pictures("hard.yaml", "images", masker, "training={steps: 60, checkpoint: {every: 20}}")
        whole, resumed = trained_twice(experiment, stop=27)
        parts = ("model", "optimizer")
        assert same({key: whole[key] for key in parts}, {key: resumed[key] for key in parts})
        key = "objectives.masked.learned_maskers.images.weights"
        assert whole["model"][key].abs().max() > 0.01
        trained, fresh = mmmask.load_run("whole").model, mmmask.build_model(experiment)
        assert dict(fresh.named_parameters())[key].abs().max() == 0
        generator = torch.Generator().manual_seed(0)
        batch = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8, generator=generator)
        batch[..., :16] = 99
        noisy = [
            model({"images": batch}).streams["images"].mask.masked.view(8, 4, 4)[..., 2:] for model in (fresh, trained)
        ]
        assert noisy[0].float().mean() < 0.7
        assert noisy[1].float().mean() > 0.95

    def test_a_mask_that_is_given_teaches_it_nothing(self, examples):
        model = mmmask.build_model(mmmask.load_experiment("hard.yaml"))
        samples = {"images": torch.randint(256, (2, 3, 56, 56), dtype=torch.uint8)}
        model(samples, masks={"images": (torch.arange(49) < 30).expand(2, -1)}).loss.backward()
        assert model.objective("images").learned_maskers["images"].weights.grad is None

    def test_it_cannot_choose_what_is_decoded(self, examples):
        experiment = mmmask.load_experiment("hard.yaml", ["streams.images.decoder_masker=hardness"])
        with pytest.raises(mmmask.MmmaskError, match=r"streams\.images\.decoder_masker: 'hardness' has weights"):
            mmmask.build_model(experiment)


class TestThePageOnCallbacks:
    """Its callbacks go on as if nothing had happened."""

    @pytest.fixture
    def examples(self, in_folder):
        draw_pictures(in_folder)
        return run_examples("docs/callbacks.md", in_folder)

    def experiment(self, callbacks):
        overrides = ["streams.videos=null", "training={steps: 12, checkpoint: {every: 5}}", f"callbacks={callbacks}"]
        return on_pictures("averaged.yaml", "images", *overrides)

    def test_the_average_is_the_same_after_an_interruption(self, examples):
        whole, resumed = trained_twice(
            self.experiment("[{name: ema, decay: 0.9}, csv_log, {name: ema, decay: 0}]"), stop=8
        )
        assert same(whole["callbacks"], resumed["callbacks"])
        assert whole["callbacks"].keys() == {"ema", "csv_log", "ema#2"}
        average, newest = (whole["callbacks"][name]["average"] for name in ("ema", "ema#2"))
        weights = whole["model"]
        for key, parameter in newest.items():
            torch.testing.assert_close(parameter, weights[key])
        assert any(not torch.equal(parameter, weights[key]) for key, parameter in average.items())
        model = examples.averaged_model("resumed")
        assert all(torch.equal(parameter, average[name]) for name, parameter in model.named_parameters())
        tables = [Path(folder, "losses.csv").read_text() for folder in ("whole", "resumed")]
        assert tables[0] == tables[1]
        assert [line.split(",")[0] for line in tables[0].splitlines()] == ["step", *map(str, range(1, 13))]

    def test_they_are_called_in_their_order(self, examples):
        called = []

        class Listener(mmmask.Callback):
            class Config(mmmask.Callback.Config):
                number: int = 0

            @mmmask.hookimpl
            def run_started(self, run):
                called.append(self.config.number)

        mmmask.register("callback", "listener", Listener)
        mmmask.train(self.experiment("[{name: listener, number: 1}, {name: listener, number: 2}]"), "run", device="cpu")
        assert called == [1, 2]

    def test_one_may_end_the_run(self, examples):
        with pytest.raises(mmmask.MmmaskError, match="step 1: loss .* is above 0.001"):
            mmmask.train(self.experiment("[{name: loss_limit, limit: 0.001}]"), "run", device="cpu")

    def test_its_table_has_every_hook_of_a_run(self):
        stated = re.findall(r"^\| `(\w+)` \| [^|]+ \| [^|]+ \|", TEXTS["docs/callbacks.md"], re.MULTILINE)
        specs = [name for name, spec in inspect.getmembers(hooks, inspect.isfunction) if hasattr(spec, "mmmask_spec")]
        assert sorted(stated) == sorted(
            name for name in specs if "run" in inspect.signature(getattr(hooks, name)).parameters
        )


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


def test_the_page_on_interfaces_is_made_of_their_docstrings():
    page = document.page()
    assert TEXTS["docs/interfaces.md"] == page, "python -m mmmask.testing.document > docs/interfaces.md"
    assert all(f"- {check.promise}" in page for kind in INTERFACES for check in testing.checks(kind))


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
    fields |= set(Experiment.model_fields)
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
