"""Averages of weights, frozen encoders, rates by depth and drop path, over a whole run: killed, split, looked at."""

import re
import signal

import pytest
import torch

import mmmask
from mmmask.data.streams import sample_loader
from mmmask.evaluation.held_out import HeldOut
from mmmask.experiment import load_experiment
from mmmask.model.precision import autocast

AVERAGED = "training.average={decay: 0.7}"
OPTIMIZER = "training.optimizer={layer_decay: 0.75, scale_head: true}"
FINE_TUNING = ("model.trainable=1", "model.encoder.drop_path=0.5", AVERAGED, OPTIMIZER)
PROBING = ("model.trainable=none", "model.encoder.drop_path=0.5", "training.optimizer.name=lars", AVERAGED)


@pytest.mark.parametrize(
    ("classify", "how", "moment"),
    [
        (False, FINE_TUNING, "metrics:5"),
        (True, FINE_TUNING, "metrics:5"),
        (False, FINE_TUNING, "saved:6"),
        (True, FINE_TUNING, "evaluation:3"),
        (True, PROBING, "metrics:5"),
    ],
    ids=["masked-metrics", "classification-metrics", "masked-saved", "classification-evaluation", "probing"],
)
def test_a_killed_run_ends_as_if_nothing_had_happened(
    train, left, reference, experiment_file, tmp_path, how, moment, classify
):
    file = experiment_file(classify=classify)
    assert train(file, tmp_path / "run", *how, moment=moment).code == -signal.SIGKILL
    ended = train(file, tmp_path / "run", "data.workers=2", *how)
    assert ended.code == 0, ended.err
    found, whole = left(tmp_path / "run"), reference(file, *how)
    found.same_as(whole)
    assert found.state["average"]["updates"] == whole.state["average"]["updates"] == 8
    for name, weight in whole.state["average"]["weights"].items():
        assert torch.equal(found.state["average"]["weights"][name], weight), name


@pytest.mark.parametrize(
    ("how", "file"),
    [(FINE_TUNING, {"mixing": "alternate"}), (PROBING, {}), (FINE_TUNING, {"classify": True})],
    ids=["fine_tuning", "probing", "classification"],
)
def test_two_processes_train_as_one(reference, experiment_file, how, file):
    file = experiment_file(**file)
    one, two = reference(file, *how), reference(file, *how, processes=2)
    for part in (lambda state: state["model"], lambda state: state["average"]["weights"]):
        for key, value in part(one.state).items():
            torch.testing.assert_close(value, part(two.state)[key], rtol=1e-3, atol=2e-4, msg=key)
    for line, other in zip(one.evaluations, two.evaluations, strict=True):
        assert line.keys() == other.keys()
        for key in (key for key in line if key.endswith("loss")):
            assert line[key] == pytest.approx(other[key], rel=2e-4), key


def test_what_is_frozen_stays_and_is_not_averaged(reference, experiment_file):
    file = experiment_file()
    fresh = mmmask.build_model(load_experiment(str(file), FINE_TUNING))
    state = reference(file, *FINE_TUNING).state
    moves = {name: not torch.equal(weight, state["model"][name]) for name, weight in fresh.named_parameters()}
    assert moves == {name: weight.requires_grad for name, weight in fresh.named_parameters()}
    assert state["average"]["weights"].keys() == {name for name, moved in moves.items() if moved}


def test_what_trains_may_not_change_on_the_way(train, experiment_file, tmp_path):
    file = experiment_file()
    train(file, tmp_path / "run", *FINE_TUNING, moment="metrics:4")
    changes = ("model.trainable=2", "training.average.decay=0.9", "training.optimizer.layer_decay=0.5")
    ended = train(file, tmp_path / "run", *FINE_TUNING, *changes)
    assert ended.code == 2
    for said in ("model.trainable: 1 in the run, now 2", "training.average.decay", "training.optimizer.layer_decay"):
        assert said in ended.err


class Weights:
    """Remembers all weights after every step."""

    def __init__(self):
        self.steps = []

    @mmmask.hookimpl
    def optimizer_stepped(self, run):
        self.steps.append({name: weight.detach().clone() for name, weight in run.model.named_parameters()})


@pytest.mark.parametrize(
    ("settings", "taken"), [({}, range(6)), ({"start": 2}, range(2, 6)), ({"every": 2}, (1, 3, 5))], ids=str
)
def test_the_average_is_that_of_a_loop_by_hand(signals, tmp_path, settings, taken):
    seen = Weights()
    data = signals.signal_data(average={"decay": 0.6} | settings, evaluate={"every": 2})
    run = mmmask.train(mmmask.experiment.experiment_from_data(data), tmp_path / "run", device="cpu", plugins=(seen,))
    averaged = dict(run.averaged_model.named_parameters())
    for name in averaged:
        first, *others = (seen.steps[step][name].double() for step in taken)
        wanted = first
        for weight in others:
            wanted = 0.6 * wanted + 0.4 * weight
        torch.testing.assert_close(averaged[name].double(), wanted, rtol=1e-5, atol=1e-7)
    assert any(not torch.equal(averaged[name], weight) for name, weight in run.model.named_parameters())
    assert all(torch.equal(weight, seen.steps[-1][name]) for name, weight in run.model.named_parameters())
    # evaluated beside the weights: before there is an average, it is they
    for line in run.evaluations:
        same = line["average/loss"] == line["loss"]
        assert same == (line["step"] <= min(taken) + 1), line
    # and what can be loaded is what was evaluated
    loaded = mmmask.interop.read(tmp_path / "run", average=True)
    assert str(loaded.report).startswith("format run (step 6, average of its weights): ")
    assert all(torch.equal(weight, averaged[name]) for name, weight in loaded.model.named_parameters())


def test_one_more_copy_of_what_trains_and_no_more(reference, experiment_file):
    file = experiment_file()
    plain, averaged = reference(file), reference(file, AVERAGED)
    for key, weight in plain.state["model"].items():
        assert torch.equal(averaged.state["model"][key], weight), "the average changes nothing of the training"
    assert "average" not in plain.state
    assert averaged.state["average"]["weights"].keys() == plain.state["model"].keys()


def test_a_run_without_an_average_says_so(signals, tmp_path):
    run = mmmask.train(mmmask.experiment.experiment_from_data(signals.signal_data(steps=1)), tmp_path / "run")
    with pytest.raises(
        mmmask.MmmaskError, match="the run keeps no average of its weights: train with training.average"
    ):
        mmmask.interop.load(run.output, average=True)
    with pytest.raises(mmmask.MmmaskError, match="average=mean: true or false"):
        mmmask.interop.load(run.output, average="mean")


def test_the_average_of_a_run_on_the_command_line(train, forker, signals, experiment_file, tmp_path):
    """The end of a run names its figures; an option of reading takes it, so in every command that reads a run."""
    trained = train(experiment_file(), tmp_path / "run", AVERAGED)
    said = [line for line in trained.out.splitlines() if line.startswith("long")]
    assert re.match(r"long: held-out loss [\d.]+ at the start, [\d.]+ at the end", said[0])
    assert re.match(r"long, averaged weights: held-out loss [\d.]+ at the start, [\d.]+ at the end", said[1])
    assert "average/" not in trained.out
    written = {}
    for name, option in (("weights", ()), ("average", ("average=true",))):
        file = tmp_path / f"{name}.safetensors"
        ended = forker.start("convert", tmp_path / "run", *option, "-o", file, "--plugin", signals.PLUGIN_FILE).wait()
        assert ended.code == 0, ended.err
        written[name] = mmmask.interop.load(file).state_dict()
    state = mmmask.load_run(tmp_path / "run").checkpoint
    for name, weights in (("weights", state["model"]), ("average", state["average"]["weights"])):
        assert all(torch.equal(written[name][key], weight) for key, weight in weights.items())


def test_the_average_is_evaluated_in_bf16_with_its_own_weights(signals, tmp_path):
    data = signals.signal_data(precision="bf16", average={"decay": 0.9}, optimizer={"learning_rate": 1e-2})
    run = mmmask.train(mmmask.experiment.experiment_from_data(data), tmp_path / "run", device="cpu")
    loaders = {name: sample_loader(run.experiment, name) for name in run.experiment.streams}
    with autocast(torch.device("cpu"), "bf16"):
        afresh = HeldOut(run.averaged_model, run.experiment, loaders).evaluate()
    line = next(line for line in reversed(run.evaluations) if line["stream"] == "long")
    assert line["average/loss"] == pytest.approx(afresh["long"]["loss"], rel=1e-5)
    assert line["average/loss"] != pytest.approx(line["loss"], rel=1e-3)


def test_two_processes_share_running_statistics(reference, experiment_file):
    """Each gathers its own; the ones that are saved are their mean, near those of one process."""
    file, how = experiment_file(classify=True), ("streams.long.norm=batch",)
    one, two = reference(file, *how), reference(file, *how, processes=2)
    key = "objectives.classification.heads.long.norm.running_mean"
    torch.testing.assert_close(one.state["model"][key], two.state["model"][key], rtol=0.1, atol=0.2)
