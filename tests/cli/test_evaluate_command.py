"""`mmmask evaluate` and `mmmask.evaluate`: of runs, on one process and on several."""

import csv
import json
import socket

import numpy as np
import pytest
import torch
from PIL import Image

import mmmask
from mmmask.evaluation import metrics
from mmmask.experiment import experiment_from_data
from mmmask.interfaces import BadSample, Component, Source

HELD_OUT = {"name": "waves", "labelled": True, "count": 41, "bad": [1, 33]}


def signals_data(signals, **stream):
    data = signals.signal_data(
        steps=2, log={"tensorboard": False, "reconstruct_every": 0}, evaluate={"samples": None, "every": 1}
    )
    masked, labelled = data["streams"]["long"], {"name": "waves", "labelled": True}
    data["streams"] = {
        "masked": masked,
        "waves": {
            "modality": masked["modality"], "objective": "classification", "head_std": 1.0, "batch_size": 8,
            "source": labelled, "held_out": HELD_OUT, **stream,
        },
    }  # fmt: skip
    return data


@pytest.fixture(scope="module")
def run(signals, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "waves"
    mmmask.train(experiment_from_data(signals_data(signals)), folder, device="cpu")
    return folder


def by_hand(run, numbers, source):
    """Logits of samples, one after another."""
    loaded = mmmask.load_run(run)
    modality = loaded.model.modalities["waves"]
    rows = []
    for number in numbers:
        sample = modality.preparation.prepare(source.load(number), mmmask.View())
        with torch.inference_mode():
            rows.append(loaded.model({"waves": sample.unsqueeze(0)}).streams["waves"].predictions[0])
    return torch.stack(rows)


def test_a_run_on_its_own_held_out_samples(cli, signals, run, tmp_path):
    told = []
    found = mmmask.evaluate(run, device="cpu", batch_size=7, progress=lambda *said: told.append(said))
    numbers = [number for number in range(41) if number not in HELD_OUT["bad"]]
    source = signals.WaveSource(signals.WaveSource.Config(**HELD_OUT))
    logits, labels = by_hand(run, numbers, source), torch.tensor([number % 3 for number in numbers])
    assert found.stream == "waves"
    assert found.names == [f"sample {number}" for number in numbers]
    assert found.skipped == ("sample 1: made to be bad", "sample 33: made to be bad")
    only = found.label_sets["label"]
    assert only.classes == ("a", "b", "c")
    assert only.labels.tolist() == labels.tolist()
    torch.testing.assert_close(only.probabilities, logits.softmax(1))
    assert found.figures == metrics.figures(logits, labels)
    assert [line.name for line in only.per_class] == ["a", "b", "c"]
    assert told[0] == (0, 41, ())
    assert told[-1][:2] == (41, 41)
    assert [reason for _, _, reasons in told for reason in reasons] == [*found.skipped]
    # what was logged while it trained
    last = [line for line in mmmask.load_run(run).evaluations if line["stream"] == "waves"][-1]
    assert {key: last[key] for key in found.figures} == pytest.approx(found.figures)


def test_what_the_command_says(cli, run, tmp_path):
    done = cli("evaluate", run, "--device", "cpu", "--confusion", tmp_path / "c.png")
    figures = mmmask.evaluate(run, device="cpu").figures
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[1] == "waves: 39 samples"
    top1, mean = 100 * figures["top1"], 100 * figures["mean_per_class"]
    assert lines[2] == f"label: top-1 {top1:.2f} %, mean per class {mean:.2f} %"
    assert lines[3].split() == ["class", "samples", "recall", "most", "confused", "with"]
    assert [line.split()[:2] for line in lines[4:7]] == [["a", "13"], ["b", "13"], ["c", "13"]]
    assert lines[7] == "skipped, as they could not be decoded: 2 samples, which are in no figure"
    assert lines[8:10] == ["  sample 1: made to be bad", "  sample 33: made to be bad"]
    assert lines[10] == f"written: {tmp_path / 'c.png'}"
    with Image.open(tmp_path / "c.png") as picture:
        assert picture.format == "PNG"


def test_files_of_predictions_say_the_same(run, tmp_path):
    found = mmmask.evaluate(run, device="cpu")
    for ending in ("csv", "jsonl", "npz"):
        found.save_predictions(tmp_path / f"p.{ending}")
    probabilities = found.label_sets["label"].probabilities.numpy()
    with open(tmp_path / "p.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    columns = ["sample", "label", "predicted", "probability.a", "probability.b", "probability.c"]
    assert [*lines[0]] == columns
    read = np.array([[line[column] for column in columns[3:]] for line in lines], dtype=np.float32)
    assert np.array_equal(read, probabilities)
    objects = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [{key: one[key] for key in columns[:3]} for one in objects] == [
        {key: line[key] for key in columns[:3]} for line in lines
    ]
    read = np.array([list(one["probability"].values()) for one in objects], dtype=np.float32)
    assert np.array_equal(read, probabilities)
    with np.load(tmp_path / "p.npz") as arrays:
        assert set(arrays) == {"samples", "label.classes", "label.labels", "label.probabilities"}
        assert np.array_equal(arrays["label.probabilities"], probabilities)
        assert arrays["samples"].tolist() == found.names
        assert [arrays["label.classes"][number] for number in arrays["label.labels"]] == [
            line["label"] for line in lines
        ]


@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_give_the_file_of_one_bit_for_bit(forker, signals, run, tmp_path, processes):
    common = ["evaluate", run, "--plugin", signals.PLUGIN_FILE, "--device", "cpu", "--batch-size", 4]
    mmmask.evaluate(run, device="cpu", batch_size=4, predictions=tmp_path / "one.csv")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [
        forker.start(*common, "--predictions", tmp_path / "several.csv", RANK=rank, LOCAL_RANK=rank, **shared)
        for rank in range(processes)
    ]
    ended = [process.wait() for process in started]
    assert [process.code for process in ended] == [0] * processes, ended
    assert "skipped, as they could not be decoded: 2 samples" in ended[0].out
    assert "mmmask: skipped: sample 33: made to be bad" in ended[0].err
    assert [process.out for process in ended[1:]] == [""] * (processes - 1)
    assert (tmp_path / "several.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()


class Kitchen(Source):
    """Samples with a verb and a noun; some lack one."""

    several = ()

    def __init__(self, nouns=("pan", "cup")):
        super().__init__(Component.Config(name="kitchen"))
        self.nouns = nouns

    def __len__(self):
        return 12

    def load(self, index):
        if index == 5:
            raise BadSample("burnt")
        return torch.full((2, 80), index * 20, dtype=torch.uint8)

    def labels(self, index):
        noun = {"noun": self.nouns[index % 2]} if index % 4 else {}
        return {"verb": ("cut", "mix", "wash")[index % 3], **noun}


def model_of(signals, classes, **stream):
    data = signals_data(signals, **stream)
    return mmmask.build_model(experiment_from_data(data), {"waves": classes})


def test_verbs_nouns_and_actions(signals, monkeypatch, tmp_path):
    classes = {"verb": ("cut", "mix", "wash"), "noun": ("cup", "jar", "pan")}
    model = model_of(signals, classes)
    found = mmmask.evaluate(model, source=Kitchen(), device="cpu")
    assert found.label_sets["noun"].unlabelled == 3
    verbs, nouns = (found.label_sets[name] for name in ("verb", "noun"))
    numbers = [number for number in range(12) if number != 5]
    assert verbs.labels.tolist() == [number % 3 for number in numbers]
    assert nouns.labels.tolist() == [-1 if number % 4 == 0 else (2, 0)[number % 2] for number in numbers]
    right = [
        verb == [name] and noun == [other]
        for verb, noun, name, other in zip(
            map(list, verbs.label_names), map(list, nouns.label_names), verbs.predicted, nouns.predicted, strict=True
        )
        if noun
    ]
    assert found.figures["action/top1"] == pytest.approx(sum(right) / 8)
    assert found.figures["verb/top1"] == metrics.top_k(verbs.probabilities, verbs.labels)
    alone = mmmask.evaluate(model, source=Kitchen(), label_set="noun", device="cpu")
    assert alone.figures == {key: found.figures[f"noun/{key}"] for key in ("top1", "mean_per_class")}
    found.save_predictions(tmp_path / "p.csv")
    heading = (tmp_path / "p.csv").read_text().splitlines()[0]
    assert heading.startswith("sample,verb.label,verb.predicted,verb.probability.cut,")
    found.save_confusion(tmp_path / "c.png")
    with pytest.raises(mmmask.MmmaskError, match="class 'ladle' of 'noun' is none of the model's"):
        mmmask.evaluate(model, source=Kitchen(("ladle", "cup")), device="cpu")


def test_sigmoids_have_a_mean_average_precision(signals):
    model = model_of(signals, {"label": ("a", "b", "c", "d")}, activation="sigmoid")
    source = signals.WaveSource(signals.WaveSource.Config(name="waves", labelled=True))
    found = mmmask.evaluate(model, source=source, device="cpu")
    only = found.label_sets["label"]
    assert found.figures == metrics.figures(only.probabilities, only.labels, sigmoid=True)
    assert float(only.probabilities.sum(1).sub(1).abs().max()) > 0.01
    assert only.per_class[3].samples == 0


def test_numbered_classes_take_the_sorted_names_or_those_given(signals, tmp_path):
    model = model_of(signals, {"label": ("0", "1", "2")})
    source = signals.WaveSource(signals.WaveSource.Config(name="waves", labelled=True))
    found = mmmask.evaluate(model, source=source, device="cpu")
    assert found.label_sets["label"].classes == ("a", "b", "c")
    (tmp_path / "order.txt").write_text("c\na\n\nb\n")
    other = mmmask.evaluate(model, source=source, classes=tmp_path / "order.txt", device="cpu")
    assert other.label_sets["label"].classes == ("c", "a", "b")
    assert other.label_sets["label"].labels.tolist() == [(1, 2, 0)[number % 3] for number in range(24)]
    with pytest.raises(mmmask.MmmaskError, match=r"classes: the model has 3, without names, the source 2: give all"):
        mmmask.evaluate(model, source=type(source)(source.config.model_copy(update={"count": 2})), device="cpu")
    for given, said in ((["a", "b"], "2 names, and the model has 3"), (["a", "b", "a"], "'a' is there twice")):
        with pytest.raises(mmmask.MmmaskError, match=said):
            mmmask.evaluate(model, source=source, classes=given, device="cpu")


def test_other_settings_of_the_modality(signals):
    model = model_of(signals, {"label": ("a", "b", "c")})
    source = signals.WaveSource(signals.WaveSource.Config(name="waves", labelled=True))
    before = model.modalities["waves"]
    shorter = mmmask.evaluate(model, source=source, modality={"length": 32}, device="cpu")
    assert model.modalities["waves"] is before
    assert not torch.equal(
        shorter.label_sets["label"].probabilities,
        mmmask.evaluate(model, source=source, device="cpu").label_sets["label"].probabilities,
    )
    with pytest.raises(mmmask.MmmaskError, match="modality: patch: tokens would be others than those the model"):
        mmmask.evaluate(model, source=source, modality={"patch": 8}, device="cpu")
    with pytest.raises(mmmask.MmmaskError, match="modality.lenght: unknown key"):
        mmmask.evaluate(model, source=source, modality={"lenght": 8}, device="cpu")


def test_mistakes(mistake, run, tmp_path):
    def refused(*options):
        return mistake("evaluate", *options)

    assert refused("nowhere") == "nowhere: no run, and only a run has samples of its own: give a source"
    assert refused(run, "--split", "test").startswith("no split is named 'test'.")
    assert refused(run, "--views", "5 by 3") == "views: '5 by 3': expected clips x crops, such as 5x3"
    assert refused(run, "--stream", "masked").startswith("no stream is named 'masked'. Known: waves")
    assert refused(run, "--label-set", "verb").startswith("no label set is named 'verb'. Known: label")
    assert "let the name end in .csv or .jsonl or .npz" in refused(run, "--predictions", tmp_path / "p.txt")
    assert refused(run, "--source", "{name: waves}") == (
        "source: it has no labels to compare with: take one that has, such as a folder for each class"
    )
    assert refused(run, "--classes", tmp_path / "none") == (
        f"classes: {tmp_path / 'none'} cannot be read (FileNotFoundError)"
    )
    assert refused(run, "--source", "{name: waves, labelled: true, bad: [0, 1], count: 2}") == (
        "not one of 2 samples could be decoded; the last: sample 1: made to be bad"
    )
    assert refused(run, "--precision", "fp8").startswith("no precision is named 'fp8'.")


def test_a_model_that_classifies_nothing(mistake, pixel_run):
    assert mistake("evaluate", pixel_run, "--split", "source").endswith(
        "it classifies nothing: give a fine-tuned model, or `mmmask probe` its features"
    )


class Pantry(Kitchen):
    """Samples with several things at once, or none."""

    several = ("label",)

    def labels(self, index):
        return {"label": ("egg", "milk", "rye")[: index % 4]}

    @property
    def classes(self):
        return {"label": ("egg", "milk", "rye")}


def test_several_classes_of_a_sample(signals, tmp_path):
    model = model_of(signals, {"label": ("egg", "milk", "rye")}, activation="sigmoid")
    found = mmmask.evaluate(model, source=Pantry(), device="cpu", predictions=tmp_path / "p.jsonl")
    only = found.label_sets["label"]
    assert only.label_names == [("egg", "milk", "rye")[: number % 4] for number in range(12) if number != 5]
    assert found.figures == {"mean_average_precision": metrics.mean_average_precision(only.probabilities, only.labels)}
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [line["label"] for line in lines[:4]] == [None, "egg", ["egg", "milk"], ["egg", "milk", "rye"]]
    with pytest.raises(mmmask.MmmaskError, match="confusion: samples have several classes of 'label'"):
        mmmask.evaluate(model, source=Pantry(), device="cpu", confusion=tmp_path / "c.png")
