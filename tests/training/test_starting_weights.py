"""`model.weights`: a run starts from another, and never needs it again."""

import shutil
import signal

import pytest
import torch

from mmmask.experiment import experiment_from_data
from mmmask.experiment.compose import dump_yaml
from mmmask.interop import InteropError, load, start_from
from mmmask.interop.runs import load_run
from mmmask.model.build import build_model, settings_of


@pytest.fixture(scope="module")
def before(train, experiment_file, tmp_path_factory):
    """The folder of a finished run of signals."""
    output = tmp_path_factory.mktemp("before") / "run"
    ended = train(experiment_file(), output, "training.steps=3")
    assert ended.code == 0, ended.err
    return output


def same_weights(run, other):
    mine, others = (load_run(each).model.state_dict() for each in (run, other))
    return mine.keys() == others.keys() and all(torch.equal(mine[key], others[key]) for key in mine)


def test_a_run_starts_where_another_ended(train, experiment_file, before, tmp_path):
    file, run = experiment_file(), tmp_path / "run"
    ended = train(file, run, f"model.weights={before}", "training.seed=0", "training.steps=2")
    assert ended.code == 0, ended.err
    first, last = (
        [line["loss"] for line in load_run(each).evaluations if line["step"] == step]
        for each, step in ((run, 0), (before, 3))
    )
    assert first == last
    model = load_run(run).model
    account = (run / "weights.txt").read_text()
    assert all(f"taken  {key}: {key}" in account for key in model.state_dict())
    assert f"weights (run (step 3)): {len(model.state_dict())} tensors taken, 0 of them made to fit" in ended.err
    assert load_run(run).experiment.to_data()["model"]["weights"]["from"] == str(before)


def test_a_run_that_goes_on_needs_no_other(train, experiment_file, before, tmp_path):
    file, whole, run, source = experiment_file(), tmp_path / "whole", tmp_path / "run", tmp_path / "source"
    shutil.copytree(before, source)
    weights = f"model.weights={{from: {source}, without: ['norm.*']}}"
    assert train(file, whole, weights, "training.steps=4").code == 0
    assert train(file, run, weights, "training.steps=4", moment="metrics:4").code == -signal.SIGKILL
    shutil.rmtree(source)
    ended = train(file, run, weights, "training.steps=4")
    assert ended.code == 0, ended.err
    assert "going on from step 3" in ended.err
    assert "tensors taken" not in ended.err
    assert same_weights(run, whole)
    assert (run / "weights.txt").read_text() == (whole / "weights.txt").read_text()
    ended = train(file, run, "training.steps=6")
    assert ended.code == 2
    assert "model.weights.from" in ended.err


def test_two_processes_start_alike(train, experiment_file, before, tmp_path):
    file = experiment_file()
    settings = (f"model.weights={before}", "training.steps=1", "training.optimizer.learning_rate=1e-30")
    ended = train(file, tmp_path / "two", *settings, processes=2)
    assert [process.code for process in ended] == [0, 0], ended[0].err
    mine, theirs = (load_run(each).model.state_dict() for each in (tmp_path / "two", before))
    for key, tensor in mine.items():
        torch.testing.assert_close(tensor, theirs[key], rtol=1e-4, atol=1e-6, msg=key)


def test_two_processes_fail_alike(train, experiment_file, before, tmp_path):
    ended = train(experiment_file(), tmp_path / "run", f"model.weights={before}", "model.encoder.width=32", processes=2)
    for process in ended:
        assert process.code == 2
        assert "model.weights: model.encoder.width: 32 here, and 24 in the weights" in process.err


@pytest.mark.parametrize(
    ("command", "settings", "message"),
    [
        ("train", ["model.weights=runs/nowhere"], "model.weights: runs/nowhere: there is no such file"),
        (
            "train",
            ["model.weights=BEFORE", "model.encoder.depth=3"],
            "model.weights: model.encoder.depth: 3 here, and 2 in",
        ),
        ("check", ["model.weights={from: BEFORE, without: [nrom.*]}"], "model.weights: without nrom.*: matches no key"),
        ("check", ["model.weights={from: BEFORE, options: {size: 3}}"], "model.weights: size=3: "),
        ("check", ["model.weights={from: BEFORE, options: {strict: 3}}"], "model.weights.options: strict is no option"),
        ("check", ["model.weights={form: BEFORE}"], "model.weights.from: required, and not given"),
        ("check", ["model.weights=3"], "model.weights: should be an object, not 3"),
    ],
)
def test_what_cannot_be_taken_is_one_line_and_leaves_nothing(
    forker, signals, experiment_file, before, tmp_path, settings, message, command
):
    run = tmp_path / "run"
    output = ["--output", run] if command == "train" else []
    settings = [setting.replace("BEFORE", str(before)) for setting in settings]
    ended = forker.start(command, experiment_file(), *settings, *output, "--plugin", signals.PLUGIN_FILE).wait()
    assert ended.code == 2
    assert message in ended.err
    assert "Traceback" not in ended.err
    assert not (run / "experiment.yaml").exists()
    assert not (run / "weights.txt").exists()


def test_check_says_what_would_be_taken(forker, signals, experiment_file, before):
    arguments = ["check", experiment_file(), f"model.weights={before}", "--plugin", signals.PLUGIN_FILE]
    ended = forker.start(*arguments).wait()
    assert ended.code == 0, ended.err
    assert "tensors taken, 0 of them made to fit" in ended.out
    assert "taken  encoder.norm.weight" not in ended.out
    assert "taken  encoder.norm.weight: encoder.norm.weight" in forker.start(*arguments, "--verbose").wait().out


def test_streams_of_other_names_patches_and_lengths(signals, before):
    """Patches of a line are repeated or averaged; positions are computed."""
    data = signals.signal_data()
    own = data["streams"].pop("short")
    del data["streams"]["long"]
    data["streams"]["mine"] = own | {"modality": {"name": "signal", "length": 96, "patch": 8}}
    model = build_model(experiment_from_data(data))
    report = start_from(model, before)
    assert report.adapted == {"encoder.embeddings.signal_8.weight": "kernel of 4 made one of 8"}
    theirs = load(before).state_dict()
    kernel = theirs["encoder.embeddings.signal_4.weight"].unflatten(1, (4, 2))
    mine = model.encoder.embeddings["signal_8"].weight.unflatten(1, (8, 2))
    torch.testing.assert_close(mine, kernel.repeat_interleave(2, dim=1) / 2)
    assert report.missing.keys() == {f"objectives.masked.heads.signal_8.{part}" for part in ("weight", "bias")}
    assert report.origin.keys() | report.missing.keys() == model.state_dict().keys()
    used = {key for keys in report.origin.values() for key in keys}
    assert used | report.unused.keys() == theirs.keys()


def test_a_head_of_other_classes_is_new(signals, train, experiment_file, tmp_path):
    data = signals.signal_data(steps=1, log={"every": 1, "reconstruct_every": 0, "tensorboard": False})
    for stream in data["streams"].values():
        del stream["masker"], stream["loss"], stream["held_out"]
        stream |= {"objective": "classification", "source": {"name": "waves", "labelled": True}, "head": "one"}
    ended = train(experiment_file.save(data), tmp_path / "run")
    assert ended.code == 0, ended.err
    classes = load_run(tmp_path / "run").checkpoint["data"]["classes"]
    (label_set,) = classes["long"]
    linear = {f"objectives.classification.heads.one.linear.{label_set}.{part}" for part in ("weight", "bias")}

    def started(names):
        model = build_model(experiment_from_data(data), dict.fromkeys(data["streams"], {label_set: names}))
        return start_from(model, tmp_path / "run").missing

    assert started(list("abc")) == {}
    assert started(list("abd")) == dict.fromkeys(linear, "of other classes in the weights")
    assert started(list("abcd")).keys() == linear


def test_building_reads_nothing_and_files_of_weights_hold_no_such_setting(signals):
    data = signals.signal_data()
    data["model"]["weights"] = "runs/nowhere"
    experiment = experiment_from_data(data)
    assert experiment.to_data()["model"]["weights"] == {
        "format": None, "options": {}, "without": [], "from": "runs/nowhere"
    }  # fmt: skip
    assert experiment_from_data(experiment.to_data()) == experiment
    assert "weights" not in settings_of(build_model(experiment))["model"]
    assert "from: runs/nowhere" in dump_yaml(experiment.to_data())


def test_a_file_that_is_no_checkpoint_is_named(signals, tmp_path):
    (tmp_path / "file.pt").write_text("nothing")
    with pytest.raises(InteropError, match=r"file.pt: not a file of plain weights"):
        start_from(build_model(experiment_from_data(signals.signal_data())), tmp_path / "file.pt")
