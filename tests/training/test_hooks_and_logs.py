"""Arguments and times of hook calls, and the files of the project's own writers."""

import json
import re

import pytest
import torch

import mmmask
from mmmask import hooks
from mmmask.cli import main
from mmmask.components import components
from mmmask.experiment import experiment_from_data
from mmmask.experiment.compose import published_experiments
from mmmask.interop.published import published

# every hook of mmmask/hooks.py, and the test that calls it; a new hook needs a line here
TESTED = {
    "register_components": "test_a_plugin_file_brings_components_and_hooks",
    "publish_checkpoints": "test_published_checkpoints_are_named_by_plugins",
    "publish_experiments": "test_published_experiments_are_found_by_name",
    "write_sample_data": "test_sample_data_is_written_by_plugins",
    "run_started": "test_hooks_are_called_in_order",
    "optimizer_stepped": "test_hooks_are_told_of_every_step_and_of_figures_and_pictures",
    "step_ended": "test_hooks_are_called_in_order",
    "evaluated": "test_hooks_are_told_of_every_step_and_of_figures_and_pictures",
    "picture_drawn": "test_hooks_are_told_of_every_step_and_of_figures_and_pictures",
    "checkpoint_saved": "test_hooks_are_called_in_order",
    "run_ended": "test_hooks_are_called_in_order",
}


def test_every_hook_has_a_test():
    specified = {name for name, value in vars(hooks).items() if hasattr(value, "mmmask_spec")}
    assert specified == set(TESTED)
    assert set(TESTED.values()) <= globals().keys()


class Recorder:
    def __init__(self):
        self.calls = []

    @mmmask.hookimpl
    def run_started(self, run):
        assert run.output.is_dir()
        assert run.is_main
        self.calls.append(("run_started", run.step, run.total_steps))

    @mmmask.hookimpl
    def step_ended(self, run, metrics):
        assert run.step == metrics["step"]
        assert isinstance(run.model, torch.nn.Module)
        self.calls.append(("step_ended", metrics["step"]))

    @mmmask.hookimpl
    def checkpoint_saved(self, run, path):
        assert torch.load(path, weights_only=True)["step"] == run.step, "whole when the hook is called"
        self.calls.append(("checkpoint_saved", run.step))

    @mmmask.hookimpl
    def run_ended(self, run, outcome):
        self.calls.append(("run_ended", outcome, run.step))
        self.evaluations, self.pictures = run.evaluations, run.pictures


@pytest.fixture
def experiment(signals):
    def make(**log):
        settings = {"every": 1, "reconstruct_every": 0, "tensorboard": False} | log
        return experiment_from_data(signals.signal_data(steps=4, log=settings))

    return make


def test_hooks_are_called_in_order(experiment, tmp_path):
    recorder = Recorder()
    run = mmmask.train(experiment(), tmp_path / "run", device="cpu", plugins=(recorder,))
    assert recorder.calls == [
        ("run_started", 0, 4),
        ("step_ended", 1), ("step_ended", 2), ("checkpoint_saved", 2),
        ("step_ended", 3), ("step_ended", 4), ("checkpoint_saved", 4),
        ("run_ended", "finished", 4),
    ]  # fmt: skip
    assert run.outcome == "finished"
    assert [line["step"] for line in recorder.evaluations["long"]] == [0, 4]
    assert sorted(recorder.pictures) == ["long", "short"]
    again = Recorder()
    assert mmmask.train(experiment(), tmp_path / "run", plugins=(again,)).outcome == "finished"
    assert again.calls == [], "a finished run neither starts nor ends"
    assert not [plugin for plugin in components().manager.get_plugins() if isinstance(plugin, Recorder)]


def test_hooks_are_told_of_every_step_and_of_figures_and_pictures(experiment, tmp_path):
    calls = []

    class Listener:
        @mmmask.hookimpl
        def optimizer_stepped(self, run):
            calls.append(run.step)

        @mmmask.hookimpl
        def evaluated(self, run, stream, figures):
            calls.append((run.step, stream, sorted(figures)))

        @mmmask.hookimpl
        def picture_drawn(self, run, stream, path):
            assert path.is_file()
            calls.append((run.step, stream))

    mmmask.train(experiment(every=100), tmp_path / "run", device="cpu", plugins=(Listener(),))
    figures = ["loss", "loss_baseline", "loss_shuffled", "psnr", "psnr_baseline"]
    at_start, at_end = ([(step, stream, figures) for stream in ("long", "short")] for step in (0, 4))
    assert calls == [*at_start, 1, 2, 3, 4, *at_end, (4, "long"), (4, "short")]


def test_an_installed_plugin_that_fails_is_named_and_does_not_end_the_run(experiment, tmp_path):
    class Unreachable:
        @mmmask.hookimpl
        def step_ended(self, run, metrics):
            raise ConnectionError("no route to host")

    plugin, manager = Unreachable(), components().manager
    manager.register(plugin, "unreachable")
    try:
        with pytest.warns(
            UserWarning, match="plugin unreachable: step_ended failed at step 1: ConnectionError"
        ) as told:
            run = mmmask.train(experiment(), tmp_path / "run", device="cpu")
    finally:
        manager.unregister(plugin)
    assert run.outcome == "finished"
    assert len(told) == 1, "named once"
    assert len(run.metrics) == 4


def test_a_listener_that_fails_at_the_end_leaves_nobody_registered(experiment, tmp_path):
    class Failing:
        @mmmask.hookimpl
        def run_ended(self, run, outcome):
            raise RuntimeError("the disk is full")

    before = components().manager.get_plugins()
    with pytest.raises(RuntimeError, match="the disk is full"):
        mmmask.train(experiment(), tmp_path / "run", plugins=(Failing(),))
    assert components().manager.get_plugins() == before
    run = mmmask.train(experiment(), tmp_path / "other")
    assert len(run.metrics) == 4
    assert len(mmmask.load_run(tmp_path / "run").metrics) == 4


def test_a_run_that_goes_on_tells_hooks_where_it_stands(experiment, tmp_path):
    class Failing(Recorder):
        @mmmask.hookimpl
        def step_ended(self, run, metrics):
            if metrics["step"] == 3:
                raise RuntimeError("the disk is full")

    failing = Failing()
    with pytest.raises(RuntimeError, match="the disk is full"):
        mmmask.train(experiment(), tmp_path / "run", plugins=(failing,))
    assert failing.calls[-1] == ("run_ended", "failed", 3)
    recorder = Recorder()
    mmmask.train(experiment(), tmp_path / "run", plugins=(recorder,))
    assert recorder.calls[:2] == [("run_started", 2, 4), ("step_ended", 3)]
    assert [line["step"] for line in recorder.evaluations["short"]] == [0, 4], "earlier figures are known again"


def test_a_plugin_file_brings_components_and_hooks(train, experiment_file, tmp_path):
    plugin = tmp_path / "everything.py"
    plugin.write_text(
        "import json, mmmask\n"
        "from mmmask.builtins.maskers import RandomMasker\n"
        "class Mine(RandomMasker):\n"
        "    'Mine.'\n"
        "@mmmask.hookimpl\n"
        "def register_components(register):\n"
        "    register('masker', 'mine', Mine, 'my masker')\n"
        "@mmmask.hookimpl\n"
        "def run_started(run):\n"
        "    print('plugin: started at', run.step)\n"
        "@mmmask.hookimpl\n"
        "def run_ended(run, outcome):\n"
        "    print('plugin:', outcome)\n"
    )
    ended = train(experiment_file(), tmp_path / "run", "streams.long.masker.name=mine", "--plugin", plugin)
    assert ended.code == 0, ended.err
    assert "plugin: started at 0\nplugin: finished\n" in ended.out
    assert "name: mine" in (tmp_path / "run/experiment.yaml").read_text()


def test_sample_data_is_written_by_plugins(tmp_path):
    class Writer:
        @mmmask.hookimpl
        def write_sample_data(self, folder, seed, progress):
            progress("mine")
            (folder / "mine.txt").write_text(str(seed))

    manager = components().manager
    others = [plugin for plugin in manager.get_plugins() if hasattr(plugin, "write_sample_data")]
    names = [manager.get_name(plugin) for plugin in others]
    writer = Writer()
    manager.register(writer)
    for plugin in others:  # which render for seconds, and have tests of their own
        manager.unregister(plugin)
    try:
        mmmask.write_sample_data(tmp_path / "corpus", seed=7)
    finally:
        manager.unregister(writer)
        for plugin, name in zip(others, names, strict=True):
            manager.register(plugin, name)
    assert (tmp_path / "corpus/mine.txt").read_text() == "7"


def test_the_metrics_of_a_step(signals, tmp_path):
    data = signals.signal_data(
        steps=4, log={"every": 1, "tensorboard": False}, optimizer={"learning_rate": 1e-3, "clip_gradient": 1.0}
    )
    data["streams"]["long"] |= {"replicate": 2, "loss_weight": 0.25}
    run = mmmask.train(experiment_from_data(data), tmp_path / "run")
    for number, line in enumerate(run.metrics, 1):
        assert list(line) == [
            "step", "loss", "loss/long", "loss/short", "learning_rate", "gradient_norm", "samples", "distinct_samples",
            "epochs/long", "epochs/short", "bad_samples", "samples_per_second", "data_wait_seconds", "step_seconds",
        ]  # fmt: skip
        assert line["step"] == number
        assert line["loss"] == pytest.approx(0.25 * line["loss/long"] + line["loss/short"])
        assert (line["samples"], line["distinct_samples"]) == (16 * number, 12 * number)
        assert (line["epochs/long"], line["epochs/short"]) == (number * 4 / 24, number * 8 / 24)
        assert line["samples_per_second"] > 0
    rates = [line["learning_rate"] for line in run.metrics]
    assert rates[0] == pytest.approx(1e-6), "where the warm-up starts"
    assert rates[1] > rates[2] > rates[3] > 0


def test_every_so_many_steps(signals, tmp_path):
    data = signals.signal_data(
        steps=7, log={"every": 3, "reconstruct_every": 5, "tensorboard": False}, evaluate={"every": 2, "samples": 3}
    )
    run = mmmask.train(experiment_from_data(data), tmp_path / "run")
    assert [line["step"] for line in run.metrics] == [1, 3, 6, 7]
    assert [line["step"] for line in run.evaluations if line["stream"] == "long"] == [0, 2, 4, 6, 7]
    names = sorted(path.name for path in (tmp_path / "run/reconstructions").iterdir())
    assert names == [f"{stream}_step_0000000{step}.png" for stream in ("long", "short") for step in (5, 7)]


def test_evaluations_compare_with_the_simplest_guesses(experiment, tmp_path):
    run = mmmask.train(experiment(), tmp_path / "run")
    assert [list(line) for line in run.evaluations] == [
        ["step", "stream", "loss", "loss_shuffled", "loss_baseline", "psnr", "psnr_baseline"]
    ] * 4


def test_pictures_are_drawn(experiment, tmp_path):
    from PIL import Image

    run = mmmask.train(experiment(), tmp_path / "run")
    for stream, path in run.pictures.items():
        assert path == tmp_path / f"run/reconstructions/{stream}_step_00000004.png"
        with Image.open(path) as picture:
            assert picture.width > 3 * 32
            assert picture.convert("L").getextrema() != (0, 0)


def test_tensorboard_events_can_be_read_back(signals, train, experiment_file, tmp_path):
    """Each step once, also where a killed run wrote more steps than it saved."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    file, run = experiment_file(log={"every": 1, "reconstruct_every": 0, "tensorboard": True}), tmp_path / "run"
    train(file, run, moment="metrics:2")  # no checkpoint: starts anew
    train(file, run, moment="metrics:5")  # goes on from step 3
    assert train(file, run).code == 0
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    held_out = {tag for tag in events.Tags()["scalars"] if tag.startswith("held_out/")}
    assert set(events.Tags()["scalars"]) - held_out == set(lines[0]) - {"step"}
    assert {"held_out/long/loss", "held_out/short/psnr"} <= held_out
    for key in ("loss", "loss/long", "learning_rate", "samples"):
        written = [(event.step, event.value) for event in events.Scalars(key)]
        assert written == [(line["step"], pytest.approx(line[key], rel=1e-6)) for line in lines], key


def test_without_tensorboard_nothing_of_it_is_written(experiment, tmp_path):
    mmmask.train(experiment(), tmp_path / "run")
    assert not (tmp_path / "run/tensorboard").exists()


def test_the_folder_of_a_run(experiment, tmp_path):
    mmmask.train(experiment(tensorboard=True), tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        ".lock", ".saved", "checkpoints", "evaluations.jsonl", "experiment.yaml", "metrics.jsonl", "reconstructions",
        "tensorboard", "versions.json",
    ]  # fmt: skip
    versions = json.loads((tmp_path / "run/versions.json").read_text())
    assert versions["torch"] == torch.__version__
    assert versions["mmmask"] == mmmask.__version__


def test_a_run_can_be_opened_again(experiment, tmp_path):
    trained = mmmask.train(experiment(), tmp_path / "run")
    run = mmmask.load_run(tmp_path / "run")
    assert run.outcome == "loaded"
    assert run.step == 4
    assert run.experiment.to_data() == trained.experiment.to_data() == experiment().to_data()
    assert run.metrics == trained.metrics
    assert run.evaluations == trained.evaluations
    assert not run.model.training
    saved = torch.load(tmp_path / "run/checkpoints/step_00000004.pt", weights_only=True)["model"]
    assert all(torch.equal(value, saved[key]) for key, value in run.model.state_dict().items())
    features = run.model.encode({"short": torch.zeros(3, 2, 32, dtype=torch.uint8)})
    assert features["short"].values.shape == (3, 8, 24)
    with pytest.raises(mmmask.MmmaskError, match="no run here"):
        mmmask.load_run(tmp_path / "nowhere")
    (tmp_path / "fresh").mkdir()
    (tmp_path / "fresh/experiment.yaml").write_text(experiment().to_yaml())
    with pytest.raises(mmmask.MmmaskError, match="there is no checkpoint yet"):
        _ = mmmask.load_run(tmp_path / "fresh").model


def test_a_component_of_a_notebook_can_be_trained(signals, tmp_path):
    from mmmask.builtins.maskers import RandomMasker

    class EveryOther(RandomMasker):
        """Masks every other token first."""

        def scores(self, context):
            tokens = context.grid[0]
            return torch.arange(tokens).remainder(2).float().expand(context.batch, tokens)

    mmmask.register("masker", "every_other", EveryOther)
    mmmask.register("masker", "every_other", EveryOther)  # a cell run twice
    try:
        data = signals.signal_data(steps=2, log={"every": 1, "tensorboard": False})
        data["streams"]["long"]["masker"] = {"name": "every_other", "mask_ratio": 0.5}
        run = mmmask.train(experiment_from_data(data), tmp_path / "run")
        output = run.model({"long": torch.zeros(2, 2, 64)})
        assert output.streams["long"].mask.masked.tolist() == [[False, True] * 8] * 2
    finally:
        components().registry("masker").unregister("every_other")


class Publisher:
    def __init__(self, name, error=None):
        self.name, self.error = name, error

    @mmmask.hookimpl
    def publish_checkpoints(self, publish):
        publish(self.name, "https://example.org/tiny.pt", "mae", "CC0-1.0", "tiny", options={"num_heads": 2})
        if self.error:
            raise self.error


def test_published_checkpoints_are_named_by_plugins():
    """And one plugin's mistake takes away nobody else's."""
    manager = components().manager
    plugins = [
        Publisher("mine/tiny/pretrain"),
        Publisher("mine/tiny/pretrain"),
        Publisher("x/y/z", OSError("no table")),
    ]
    before = published()
    try:
        for plugin in plugins:
            manager.register(plugin)
        reported = []
        found = published(reported.append)
    finally:
        for plugin in plugins:
            manager.unregister(plugin)
    ours = found["mine/tiny/pretrain"]
    assert (ours.address, ours.format, ours.licence) == ("https://example.org/tiny.pt", "mae", "CC0-1.0")
    assert ours.options == {"num_heads": 2}
    assert found.keys() == before.keys() | {"mine/tiny/pretrain", "x/y/z"}
    twice, failed = sorted(reported, key=lambda line: "failed" in line)
    assert twice == "two plugins publish a checkpoint under the name 'mine/tiny/pretrain': the first is taken"
    assert failed.endswith("publish_checkpoints failed: OSError: no table")


class ExperimentPublisher:
    def __init__(self, experiments, error=None):
        self.experiments, self.error = experiments, error

    @mmmask.hookimpl
    def publish_experiments(self, publish):
        for name, path in self.experiments.items():
            publish(name, path)
        if self.error:
            raise self.error


def test_published_experiments_are_found_by_name(tmp_path, capsys):
    """A taken name, a missing file and a plugin's mistake are reported, and take away nothing else."""
    for name, steps in (("tides", 7), ("storms", 8), ("other", 9)):
        (tmp_path / f"{name}.yaml").write_text(f"# About {name}\nextends: quickstart\ntraining: {{steps: {steps}}}\n")
    (tmp_path / "mine.yaml").write_text("extends: acme/storms\n")
    tides, storms, other = (tmp_path / f"{name}.yaml" for name in ("tides", "storms", "other"))
    before, manager = published_experiments(), components().manager
    plugins = {
        "acme:sea": ExperimentPublisher({"acme/tides": tides, "quickstart": other, "acme/none": tmp_path / "no.yaml"}),
        "rival:sea": ExperimentPublisher({"acme/tides": str(other), "acme/storms": str(storms)}, OSError("no table")),
    }
    try:
        for name, plugin in plugins.items():
            manager.register(plugin, name)
        reported = []
        found = published_experiments(reported.append)
        steps = [
            mmmask.load_experiment(name).training.steps
            for name in ("acme/tides", "acme/storms", tmp_path / "mine.yaml")
        ]
        assert main(["list", "experiment"]) == 0
        listed = capsys.readouterr()
        with pytest.raises(mmmask.MmmaskError) as unknown:
            mmmask.load_experiment("acme/nnoe")
    finally:
        for plugin in plugins.values():
            manager.unregister(plugin)
    assert steps == [7, 8, 8]
    assert {key: found[key] for key in before} == before, "mmmask's own names stay its own"
    assert {key: value.supplier for key, value in found.items() if key not in before} == {
        "acme/tides": "acme",
        "acme/storms": "rival",
    }
    assert reported == [
        "the experiment 'quickstart' of acme is left out: mmmask has one of this name",
        f"the experiment 'acme/none' of acme is left out: there is no file {tmp_path}/no.yaml",
        "the experiment 'acme/tides' of rival is left out: acme has one of this name",
        "plugin rival:sea: publish_experiments failed: OSError: no table",
    ]
    assert re.search(r"^experiment +acme/tides +acme +About tides$", listed.out, re.MULTILINE)
    assert [line.removeprefix("mmmask: ") for line in listed.err.splitlines()] == reported
    assert str(unknown.value).splitlines()[1:] == reported, "perhaps it is one of those"
