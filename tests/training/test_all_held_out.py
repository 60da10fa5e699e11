"""`training.evaluate.samples: null`: all held-out samples, read at each evaluation, shared over processes."""

import math

import pytest

import mmmask
from mmmask.evaluation import held_out

FIGURES = {"loss", "top1", "mean_per_class"}


@pytest.fixture(scope="module")
def file(signals, experiment_file):
    """A masked stream and a classified one, whose held-out samples are more than a batch; some are bad."""
    data = signals.signal_data(
        steps=2, evaluate={"every": 1}, log={"every": 1, "reconstruct_every": 0, "tensorboard": False}
    )
    data["streams"]["long"]["held_out"] |= {"count": 75, "bad": [2, 40, 41]}
    waves = {"name": "waves", "labelled": True}
    data["streams"]["short"] = {
        "modality": data["streams"]["short"]["modality"], "batch_size": 8, "objective": "classification",
        "source": waves, "held_out": waves | {"count": 70, "bad": [3]},
    }  # fmt: skip
    return experiment_file.save(data)


ALL = ("training.evaluate.samples=null",)


def test_they_are_as_many_as_are_there_and_workers_do_not_matter(reference, file):
    kept = reference(file, "training.evaluate.samples=100")
    read = reference(file, *ALL)
    with_workers = reference(file, *ALL, "data.workers=2")
    assert read.evaluations == with_workers.evaluations
    assert {line["stream"]: line.keys() - {"step", "stream"} for line in read.evaluations}["short"] == FIGURES
    for line, other in zip(read.evaluations, kept.evaluations, strict=True):
        assert line.keys() == other.keys()
        if line["stream"] == "short":  # masks depend on the number of samples
            assert line == pytest.approx(other)
    bad = {(line["stream"], line["sample"]) for line in read.bad_samples}
    assert bad == {("long.held_out", f"sample {n}") for n in (2, 40, 41)} | {("short.held_out", "sample 3")}


def test_two_processes_share_them(reference, file):
    one, two = (reference(file, *ALL, processes=processes) for processes in (1, 2))
    for line, other in zip(one.evaluations, two.evaluations, strict=True):
        assert line.keys() == other.keys()
        for key, value in line.items():
            same = value == other[key] or math.isclose(value, other[key], rel_tol=2e-4)
            assert same, (line["stream"], line["step"], key, value, other[key])
    assert sorted(map(str, one.bad_samples)) == sorted(map(str, two.bad_samples))


def test_they_are_not_all_in_memory(signals, monkeypatch):
    from mmmask.data.streams import Streams
    from mmmask.experiment import experiment_from_data

    data = signals.signal_data(evaluate={"samples": None})
    for stream in data["streams"].values():
        stream["held_out"]["count"] = 100
    experiment = experiment_from_data(data)
    model = mmmask.build_model(experiment)
    there = held_out.HeldOut(model, experiment, Streams(experiment).loaders)
    added = []
    monkeypatch.setattr(held_out.HeldOut, "_batch", lambda self, samples: samples)
    for batch, first, total in there._batches("long", held_out.ALONE):
        assert total == 100
        added += [first + place for place in range(len(batch))]
    assert added == list(range(100))
    assert {name: len(samples) for name, samples in there.samples.items()} == {"long": 4, "short": 4}


class Everything(mmmask.Evaluator):
    """Cannot be shared."""

    def add(self, batch, first, total):
        self.seen = getattr(self, "seen", 0) + len(batch)

    def figures(self):
        return {"seen": float(self.seen)}


def test_an_evaluator_that_cannot_merge_sees_all_samples_on_every_process(signals):
    from mmmask.data.streams import Streams
    from mmmask.experiment import experiment_from_data
    from mmmask.model.processes import Processes

    experiment = experiment_from_data(signals.signal_data(evaluate={"samples": None}))
    model = mmmask.build_model(experiment)
    there = held_out.HeldOut(model, experiment, Streams(experiment).loaders, Processes(1, 2))
    there._evaluators = lambda stream: [Everything(None, model, stream)]
    assert there.evaluate() == {"long": {"seen": 5.0}, "short": {"seen": 5.0}}
