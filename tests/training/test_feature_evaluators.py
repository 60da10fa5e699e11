"""Evaluators of features while training: figures, streams without labels, one forward for all of them."""

import pytest
import torch

import mmmask
from mmmask.builtins.probes import KnnEvaluator
from mmmask.cli.progress import held_out_figures
from mmmask.evaluation import held_out
from mmmask.experiment import experiment_from_data
from mmmask.interfaces.component import build

KNN = {"name": "knn", "k": 3, "samples": 20}
LABELLED = {"name": "waves", "labelled": True, "count": 40}
TEST = LABELLED | {"count": 15}


def data(signals, **evaluate):
    evaluate = {"every": 1, "evaluators": [KNN, {"name": "linear", "samples": 30}, "effective_rank"]} | evaluate
    found = signals.signal_data(steps=1, log={"tensorboard": False, "reconstruct_every": 0}, evaluate=evaluate)
    found["streams"]["long"] |= {"source": LABELLED, "held_out": TEST}
    return found


@pytest.mark.parametrize("samples", [None, 64])
def test_figures_of_a_run(signals, tmp_path, samples):
    """Figures are those of a probe of the same samples, where all are taken; without labels there is the rank alone."""
    state = {}

    class Listener:
        @mmmask.hookimpl
        def run_started(self, run):
            state["notes"] = list(run.notes)

    every = [{**KNN, "samples": 40}, {"name": "linear", "samples": 40}, "effective_rank"]
    experiment = experiment_from_data(data(signals, evaluators=every, samples=samples))
    run = mmmask.train(experiment, tmp_path / "run", device="cpu", plugins=(Listener(),))
    first, last = ({line["stream"]: line for line in run.evaluations if line["step"] == step} for step in (0, 1))
    found = mmmask.probe(
        tmp_path / "run", kinds=("knn", "linear", "effective_rank"), stream="long", k=3, device="cpu", cache=False
    )
    assert last["long"]["knn_top1"] == found["long", "knn"].figures["top1"]
    assert last["long"]["effective_rank"] == pytest.approx(found["long", "effective_rank"].figures["effective_rank"])
    assert 0 <= last["long"]["linear_top1"] <= 1
    assert "loss" in last["long"]
    assert "effective_rank" in last["short"]
    assert "knn_top1" not in last["short"]
    assert state["notes"] == ["streams.short: not measured, as it has no labels: knn, linear"]
    words = held_out_figures(first["long"], last["long"])
    assert f"nearest neighbours name {last['long']['knn_top1']:.1%}" in words
    assert "effective rank" in words


def test_a_stream_that_names_one_itself_needs_labels(signals, tmp_path):
    named = data(signals)
    named["streams"]["short"]["evaluators"] = ["reconstruction", KNN]
    with pytest.raises(mmmask.MmmaskError) as caught:
        mmmask.train(experiment_from_data(named), tmp_path / "run", device="cpu")
    assert str(caught.value) == (
        "streams.short.evaluators: knn needs labels of two classes or more; the source has none"
    )


def test_evaluators_share_a_forward_and_see_what_they_ask_for(signals, monkeypatch):
    experiment = experiment_from_data(data(signals))
    from mmmask.data.streams import Streams

    streams = Streams(experiment)
    model = mmmask.build_model(experiment)
    evaluated = held_out.HeldOut(model, experiment, streams.loaders)
    assert len(evaluated.fitted["long"]) == 40  # of effective_rank's 2000
    seen, calls = [], []
    original, encode = KnnEvaluator.fit, model.encode
    monkeypatch.setattr(KnnEvaluator, "fit", lambda self, batch: seen.append(batch.index) or original(self, batch))
    monkeypatch.setattr(model, "encode", lambda batch: calls.append(batch) or encode(batch))
    first = evaluated.evaluate()
    assert sum(map(len, seen)) == 20
    assert {int(number) % 3 for part in seen for number in part} == {0, 1, 2}
    # long: 40 samples in two batches, and parts for knn (20) and linear (30); 15 held-out ones; short: 24
    assert len(calls) == 2 + 2 + 1 + 1
    assert evaluated.evaluate() == first


def test_held_out_samples_of_several_processes_are_put_together(signals):
    model = mmmask.build_model(experiment_from_data(data(signals))).eval()
    source = signals.WaveSource(signals.WaveSource.Config(**TEST))
    content = torch.stack([source.load(index)[:, :64] for index in range(15)])
    batch = mmmask.Batch({"long": content}, {"label": torch.arange(15) % 3})

    def part(rows):
        return mmmask.Batch({"long": content[rows]}, {"label": torch.arange(15)[rows] % 3})

    config = KnnEvaluator.Config(name="knn", k=3)
    whole, one, other = (build("evaluator", config, model=model, stream="long") for _ in range(3))
    for evaluator in (whole, one, other):
        evaluator.fit(batch)
    whole.add(batch, 0, 15)
    one.add(part(slice(0, 8)), 0, 15)
    other.add(part(slice(8, 15)), 8, 15)
    one.merge([one.state(), other.state()])
    assert one.figures() == whole.figures()
    assert one.merges


def test_too_few_samples_for_k(signals, tmp_path):
    few = data(signals, evaluators=[{"name": "knn", "k": 50}])
    with pytest.raises(mmmask.MmmaskError, match="knn: k = 50, and there are 40 labelled training samples"):
        mmmask.train(experiment_from_data(few), tmp_path / "run", device="cpu")


def test_a_label_set_that_is_none(signals, tmp_path):
    few = data(signals, evaluators=[KNN | {"label_set": "verb"}])
    with pytest.raises(mmmask.MmmaskError, match="streams.long: evaluator knn: no label set 'verb'.* label"):
        mmmask.train(experiment_from_data(few), tmp_path / "run", device="cpu")
