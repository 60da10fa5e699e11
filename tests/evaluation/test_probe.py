"""`mmmask.probe`: figures of frozen features, of a run's own samples and of others; what is kept; what is refused."""

import json
import os

import pytest
import torch

import mmmask
from mmmask.components import components
from mmmask.evaluation import frozen
from mmmask.evaluation.probing import features
from mmmask.experiment import experiment_from_data
from mmmask.interfaces import BadSample, Source

LABELLED = {"name": "waves", "labelled": True, "count": 40}
TEST = LABELLED | {"count": 15}


def experiment(signals, **more):
    data = signals.signal_data(steps=1, log={"tensorboard": False, "reconstruct_every": 0}, **more)
    data["streams"]["long"] |= {"source": LABELLED, "held_out": TEST}
    return experiment_from_data(data)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(frozen, "FEWEST_STEPS", 1)


@pytest.fixture(scope="module")
def model(signals):
    return mmmask.build_model(experiment(signals)).eval()


@pytest.fixture(scope="module")
def run(signals, tmp_path_factory):
    """A run of one step, whose stream `short` has no labels."""
    folder = tmp_path_factory.mktemp("runs") / "probed"
    mmmask.train(experiment(signals), folder, device="cpu")
    return folder


def probed(model, tmp_path, **more):
    options = {"train": LABELLED, "test": TEST, "stream": "long", "k": 3, "device": "cpu", "cache": tmp_path / "kept"}
    return mmmask.probe(model, **options | more)


def test_figures_are_those_of_extracted_features(model, tmp_path):
    found = probed(model, tmp_path, kinds=("knn", "linear", "effective_rank"))
    train, test = (
        mmmask.extract(model, source=source, stream="long", device="cpu").tensors["long"] for source in (LABELLED, TEST)
    )
    learned, told = torch.arange(40) % 3, torch.arange(15) % 3
    votes = frozen.nearest_neighbours(train, learned, test, 3, 3)
    logits = frozen.fit_linear(train, learned, 3)(test)
    knn, linear, rank = found["long", "knn"], found["long", "linear"], found["long", "effective_rank"]
    assert knn.figures == frozen.accuracy(votes, told)
    assert linear.figures == frozen.accuracy(logits, told)
    assert linear.predictions == tuple("abc"[number] for number in logits.argmax(1))
    assert rank.figures == {"effective_rank": frozen.effective_rank(train), "most": 24.0}
    assert (knn.chance, knn.classes, knn.train, knn.test) == (pytest.approx(1 / 3), 3, 40, 15)
    assert found.labels == {"long": {"label": ["abc"[number % 3] for number in range(15)]}}


def test_a_run_is_probed_on_its_own_samples(run, tmp_path):
    found = mmmask.probe(run, device="cpu", k=3, epochs=1, cache=False, output=tmp_path / "found.json")
    assert [(row.stream, row.kind) for row in found.rows] == [
        ("long", "knn"), ("long", "linear"), ("long", "attentive"), ("long", "effective_rank"),
        ("short", "effective_rank"),
    ]  # fmt: skip
    assert found.notes == ("short: knn, linear, attentive: labels are needed: its training samples have no labels",)
    assert str(found).splitlines()[0].split() == ["stream", "probe", "top-1", "chance"]
    assert str(found).splitlines()[1].split()[:2] == ["long", "knn"]
    written = json.loads((tmp_path / "found.json").read_text())
    assert [row["kind"] for row in written["probes"]] == [row.kind for row in found.rows]
    assert len(written["probes"][0]["predictions"]) == len(written["samples"]["long"]) == 15


def test_the_control_has_random_weights(run, signals, tmp_path):
    """Weights that the run began with: they depend on the seed alone."""
    found = mmmask.probe(run, kinds=("knn",), stream="long", k=3, control=True, device="cpu", cache=False)
    fresh = mmmask.build_model(experiment(signals)).eval()
    again = probed(fresh, tmp_path, kinds=("knn",))
    assert found["long", "knn"].control == again["long", "knn"].figures
    assert "random weights" in str(found)


def encodings(monkeypatch):
    """Counts forwards."""
    calls = []
    original = features.features_of
    monkeypatch.setattr(features, "features_of", lambda *given, **more: calls.append(1) or original(*given, **more))
    return calls


def test_features_are_kept_by_content(model, signals, tmp_path, monkeypatch):
    calls = encodings(monkeypatch)
    first = probed(model, tmp_path, kinds=("knn",))
    assert len(calls) == 2
    assert probed(model, tmp_path, kinds=("linear", "knn"))["long", "knn"] == first["long", "knn"]
    assert len(calls) == 2
    assert len(list((tmp_path / "kept").iterdir())) == 2
    other = mmmask.build_model(experiment(signals)).eval()
    with torch.no_grad():
        other.encoder.stages[0].norm1.bias[0] += 1e-6
    probed(other, tmp_path, kinds=("knn",))
    assert len(calls) == 4
    probed(model, tmp_path, kinds=("knn",), test=TEST | {"length": 90})  # other samples of the same names
    assert len(calls) == 5
    probed(model, tmp_path, kinds=("knn",), cache=False)
    assert len(calls) == 7


def test_a_damaged_file_of_the_cache_is_made_again(model, tmp_path):
    first = probed(model, tmp_path, kinds=("knn",))
    for path in (tmp_path / "kept").iterdir():
        path.write_bytes(b"damaged")
    assert probed(model, tmp_path, kinds=("knn",))["long", "knn"] == first["long", "knn"]


def test_a_changed_file_is_encoded_again(tmp_path, monkeypatch):
    """By its size or its time; the label of a moved file is read anew."""
    from PIL import Image

    small = {"modality": {"name": "image", "size": 16, "patch_size": [8, 8]}, "masker": {"name": "random"}}
    data = {
        "model": {
            "encoder": {"name": "vit", "width": 8, "depth": 1, "num_heads": 2},
            "decoder": {"name": "transformer", "width": 8, "depth": 1, "num_heads": 2},
        },
        "streams": {"images": small | {"masker": {"name": "random", "mask_ratio": 0.5}, "loss": {"name": "pixels"}}},
    }
    built = mmmask.build_model(experiment_from_data(data)).eval()
    for number in range(6):
        path = tmp_path / "files" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (number * 40, 0, 0)).save(path)
    folder = str(tmp_path / "files")
    calls = encodings(monkeypatch)
    given = {"train": folder, "test": folder, "stream": None, "kinds": ("knn",), "k": 1}
    assert probed(built, tmp_path, **given)["images", "knn"].figures == {"top1": 1.0}
    assert len(calls) == 1  # training and test samples are the same
    os.utime(tmp_path / "files" / "a" / "0.png", ns=(1, 1))
    probed(built, tmp_path, **given)
    assert len(calls) == 2


class Broken(Source):
    """Signals without every third label; some cannot be loaded."""

    def __init__(self, signals, bad=(), names="ab", several=()):
        super().__init__(mmmask.Component.Config(name="broken"))
        self.waves = signals.WaveSource(signals.WaveSource.Config(name="waves", count=30))
        self.bad, self.names, self.several = bad, names, several

    def __len__(self):
        return len(self.waves)

    def load(self, index):
        if index in self.bad:
            raise BadSample("cannot be read")
        return self.waves.load(index)

    def labels(self, index):
        verb = {} if index % 3 == 0 else {"verb": self.names[index % len(self.names)]}
        return verb | {"noun": "xyz"[index % 3]}


def test_label_sets_unlabelled_and_bad_samples(model, signals, tmp_path):
    train, test = Broken(signals, bad=(1, 5)), Broken(signals, bad=(4,))
    found = probed(model, tmp_path, train=train, test=test, kinds=("knn", "attentive"), epochs=1)
    counts = {(row.label_set, row.kind): (row.train, row.test) for row in found.rows}
    assert counts == {
        (name, kind): n for name, n in (("noun", (28, 29)), ("verb", (18, 19))) for kind in ("knn", "attentive")
    }
    assert len(found.skipped) == 3
    verbs = next(row for row in found.rows if row.label_set == "verb")
    assert [name is None for name in verbs.predictions] == [label is None for label in found.labels["long"]["verb"]]
    assert "long (verb)" in str(found)
    assert "long (noun)" in str(found)
    only = probed(model, tmp_path, train=train, test=test, kinds=("knn",), label_set="verb")
    assert [row.label_set for row in only.rows] == ["verb"]


def test_so_many_training_samples_from_all_over(model, tmp_path):
    found = probed(model, tmp_path, kinds=("knn", "effective_rank"), samples=10)
    assert [row.train for row in found.rows] == [10, 10]


def test_a_rank_needs_no_labels_and_no_test_samples(model, tmp_path):
    found = probed(model, tmp_path, train={"name": "waves"}, test=None, kinds=("effective_rank",))
    assert len(found.rows) == 1


def test_a_classifier_is_probed_before_its_head(signals, tmp_path):
    data = signals.signal_data()
    long = {"modality": {"name": "signal", "length": 64}, "objective": "classification"}
    settings = experiment_from_data({"model": {"encoder": data["model"]["encoder"]}, "streams": {"long": long}})
    classifier = mmmask.build_model(settings, {"long": {"label": tuple("vwxyz")}}).eval()
    found = probed(classifier, tmp_path, kinds=("knn", "attentive"), control=True, epochs=1)
    train, test = (
        mmmask.extract(classifier, source=source, device="cpu").tensors["long"] for source in (LABELLED, TEST)
    )
    votes = frozen.nearest_neighbours(train, torch.arange(40) % 3, test, 3, 3)
    assert found["long", "knn"].figures == frozen.accuracy(votes, torch.arange(15) % 3)


def test_what_cannot_be(model, run, signals, tmp_path):
    def refused(given=model, **more):
        with pytest.raises(mmmask.MmmaskError) as caught:
            probed(given, tmp_path, **more)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    unlabelled = {"name": "waves", "count": 30}
    assert "no kind is named 'svm'" in refused(kinds=("svm",))
    assert refused(train=unlabelled) == (
        "long: knn, linear, attentive, effective_rank: labels are needed: its training samples have no labels"
    ).replace(", effective_rank", "")
    assert refused(test=unlabelled) == "long: the test samples have no labels"
    assert refused(train=LABELLED | {"count": 1}) == "long: all training samples are of one class, 'a'"
    assert refused(train=LABELLED | {"count": 2}, k=2) == (
        "long: class 'c' of test samples is none of the 2 of training samples (a, b)"
    )
    assert refused(k=50) == "long: knn: k = 50, and there are 40 labelled training samples: take less"
    assert refused(label_set="verb").endswith("no label set 'verb' of one class a sample; known: label")
    assert refused(train=None) == "give train= and test=, or neither of them for a run's own samples"
    assert refused(train=None, test=None).startswith("only a run has samples of its own")
    assert refused(stream=None) == "several streams could be meant (long, short): name one with stream="
    assert "no stream is named 'other'" in refused(stream="other")
    assert refused(pool="none").startswith("pool none: a probe takes one vector")
    assert refused(given=run, train=None, test=None, stream="short").startswith(
        "short: knn, linear, attentive: labels are"
    )
    verbs = Broken(signals, several=("verb",))
    assert "no label set 'verb'" in refused(train=verbs, test=verbs, label_set="verb")


def test_tokens_that_do_not_fit_onto_the_disk(model, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "MOST_TOKENS", 10_000)
    with pytest.raises(
        mmmask.MmmaskError, match="attentive: 40 samples of 16 x 24 tokens .* take samples=13, or other"
    ):
        probed(model, tmp_path, kinds=("attentive",))
    assert list((tmp_path / "kept").iterdir()) == []


def test_every_pool_of_features(model, tmp_path):
    assert "attentive" in [entry.name for entry in components().registry("pool")]
    assert probed(model, tmp_path, kinds=("knn",), pool="first")["long", "knn"].figures
    with pytest.raises(mmmask.MmmaskError, match="pool attentive: it has weights of its own"):
        probed(model, tmp_path, kinds=("knn",), pool="attentive")
