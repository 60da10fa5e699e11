"""Order of samples, their processes, and the content of a batch."""

import json
import threading
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmmask.data.order import EndlessOrder, micro_batches
from mmmask.data.pipeline import read_ahead
from mmmask.data.process import guarded
from mmmask.data.samples import SampleLoader
from mmmask.data.streams import Streams, sample_loader, streams_of_step, total_steps
from mmmask.experiment import experiment_from_data
from mmmask.experiment.errors import ExperimentError
from mmmask.experiment.settings import DataSettings
from mmmask.interfaces import BadSample, Source, SourceError, SourceFile, TokenSpec


@given(length=st.integers(1, 50), seed=st.integers(0, 2**40))
def test_every_epoch_is_a_permutation(length, seed):
    order = EndlessOrder(length, seed, "images")
    epochs = [order.draws(range(epoch * length, (epoch + 1) * length)) for epoch in range(3)]
    assert order.draws(range(3 * length)) == sum(epochs, [])
    for number, epoch in enumerate(epochs):
        assert [draw[0] for draw in epoch] == [number] * length
        assert sorted(draw[1] for draw in epoch) == list(range(length))


def test_an_order_is_a_function_of_seed_stream_and_epoch():
    def indices(seed, stream, epoch):
        return [index for _, index in EndlessOrder(40, seed, stream).draws(range(40 * epoch, 40 * epoch + 40))]

    orders = [indices(*key) for key in ((0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1))]
    assert len({tuple(order) for order in orders}) == 4
    assert indices(0, "a", 1) == orders[3]


def test_any_position_can_be_looked_up_at_once():
    order = EndlessOrder(7, 3, "s")
    expected = order.draws(range(70))
    assert [order.draws(range(position, position + 1))[0] for position in reversed(range(70))] == expected[::-1]
    huge = EndlessOrder(2**40 + 15, 3, "s")
    draws = huge.draws(range(2**45, 2**45 + 4096))
    assert len(set(draws)) == 4096
    assert all(epoch in (31, 32) and 0 <= index < 2**40 + 15 for epoch, index in draws)


@given(
    world=st.sampled_from([1, 2, 3, 4]), accumulate=st.sampled_from([1, 2, 4]), size=st.integers(1, 3),
    first=st.integers(0, 5),
)  # fmt: skip
def test_micro_batches_partition_every_global_batch(world, accumulate, size, first):
    batch = world * accumulate * size
    order = EndlessOrder(11, 0, "s")
    chunks = [micro_batches(order, batch, accumulate, rank, world, first) for rank in range(world)]
    for number in range(first, first + 3):
        drawn = [draw for _ in range(accumulate) for chunk in chunks for draw in next(chunk)]
        assert drawn == order.draws(range(number * batch, (number + 1) * batch))


SPEC = TokenSpec((4,), 2)


class Counting(Source):
    """A source that counts what is decoded."""

    def __init__(self, signals, **settings):
        super().__init__(signals.WaveSource.Config(name="waves", **settings))
        self.source = signals.WaveSource(self.config)
        self.loaded = []

    def __len__(self):
        return len(self.source)

    def load(self, index):
        self.loaded.append(index)
        return self.source.load(index)


def loader_of(signals, length=16, replicate=1, source=None, spec=SPEC):
    return SampleLoader(source or Counting(signals), signals.SignalPreparation(length), spec, replicate, 0, "s")


def test_a_replicated_sample_is_decoded_once_and_cropped_anew(signals):
    source = Counting(signals)
    loaded = loader_of(signals, replicate=3, source=source).batch([(0, 4), (0, 9)])
    assert source.loaded == [4, 9]
    assert loaded.batch.parts["s"].shape == (6, 2, 16)
    assert loaded.batch.index.tolist() == [4, 4, 4, 9, 9, 9]
    assert loaded.batch.labels == {}
    assert len({tuple(sample.flatten().tolist()) for sample in loaded.batch.content}) == 6
    single = loader_of(signals, source=source).batch([(0, 4)])
    assert torch.equal(single.batch.content[0], loaded.batch.content[0]), "as without replication"


def test_samples_do_not_depend_on_global_random_state(signals):
    loader = loader_of(signals, replicate=2)
    torch.manual_seed(1)
    first = loader.batch([(0, 4)]).batch.content
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert torch.equal(loader.batch([(0, 4)]).batch.content, first)
    assert torch.equal(torch.get_rng_state(), before), "and leave it alone"
    assert not torch.equal(loader.batch([(1, 4)]).batch.content, first), "another epoch, another crop"


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_workers_deliver_in_order_and_can_be_stopped(signals, workers):
    before = set(threading.enumerate())
    loader, order = loader_of(signals, replicate=2), EndlessOrder(24, 0, "s")
    pipeline = read_ahead(micro_batches(order, 4, 1, 0, 1, 2), loader.batch, workers, ready=2, pin=False)
    for number in range(2, 9):
        expected = loader.batch(order.draws(range(number * 4, number * 4 + 4))).batch.content
        assert torch.equal(next(pipeline).batch.content, expected)
    started = set(threading.enumerate()) - before
    assert bool(started) == bool(workers)
    del pipeline
    for thread in started:
        thread.join(10)
    assert not any(thread.is_alive() for thread in started)


class Gated(Counting):
    """A source that counts what it begins to load, and loads nothing while it is shut."""

    def __init__(self, signals):
        super().__init__(signals)
        self.changed, self.begun, self.open = threading.Condition(), 0, True

    def load(self, index):
        with self.changed:
            self.begun += 1
            self.changed.notify_all()
            assert self.changed.wait_for(lambda: self.open, 60)
        return super().load(index)

    def has_begun(self, count):
        with self.changed:
            return self.changed.wait_for(lambda: self.begun >= count, 60)


@pytest.mark.parametrize(("workers", "ready"), [(1, 1), (2, 1), (2, 4), (1, 8)])
def test_batches_are_read_ahead_as_far_as_told_and_no_further(signals, workers, ready):
    source = Gated(signals)
    draws = micro_batches(EndlessOrder(24, 0, "s"), 1, 1, 0, 1, 0)
    pipeline = read_ahead(draws, loader_of(signals, source=source).batch, workers, ready, pin=False)
    for taken in range(1, 6):
        next(pipeline)
        # while this one trains, with nothing asked for, all others that may be ahead are loaded
        assert source.has_begun(taken + workers + ready)
        time.sleep(0.05)
        assert source.begun == taken + workers + ready


def test_labels_are_the_places_of_the_classes_of_the_source(signals):
    source = signals.WaveSource(signals.WaveSource.Config(name="waves", labelled=True))
    assert source.classes == {"label": ("a", "b", "c")}
    loaded = loader_of(signals, replicate=2, source=source).batch([(0, 4), (0, 9), (0, 5)])
    assert loaded.batch.labels["label"].tolist() == [1, 1, 0, 0, 2, 2]
    assert loaded.batch.labels["label"].dtype == torch.int64
    assert loader_of(signals, source=source).plain(8).labels == {"label": 2}


def test_a_sample_without_a_label_among_labelled_ones_has_class_minus_one(signals):
    class Some(Counting):
        def labels(self, index):
            return {"shape": "sine", "size": "big"} if index else {"shape": "sine"}

    loader = loader_of(signals, source=Some(signals))
    assert loader.classes == {"shape": ("sine",), "size": ("big",)}
    assert loader.plain(0).labels == {"shape": 0, "size": -1}


class Tagged(Counting):
    """Samples with one shape and any number of tags, which the last ones lack."""

    several = ("tags",)

    @property
    def classes(self):
        return {"shape": ("sine", "saw"), "tags": ("loud", "long", "low")}

    def labels(self, index):
        tags = {0: ("low", "loud"), 1: ()}
        return {"shape": "saw"} | ({"tags": tags[index]} if index in tags else {})


def test_a_sample_may_have_several_classes_of_a_set(signals):
    loader = loader_of(signals, source=Tagged(signals), replicate=2)
    loaded = loader.batch([(0, 0), (0, 1), (0, 2)]).batch.labels
    assert loaded["shape"].tolist() == [1] * 6
    assert loaded["tags"].dtype == torch.float32
    assert loaded["tags"][::2].tolist() == [[1, 0, 1], [0, 0, 0], [-1, -1, -1]]
    assert loader.plain(0).labels["tags"].tolist() == [1, 0, 1]


def test_several_classes_come_back_from_worker_processes(signals):
    loader = loader_of(signals, source=Tagged(signals))
    expected = loader.batch([(0, 0), (0, 1)]).batch.labels
    with guarded({"s": loader}, DataSettings(workers=1)) as guards:
        found = guards["s"].batch([(0, 0), (0, 1)]).batch.labels
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)
        assert guards["s"].plain(0).labels["tags"].tolist() == [1, 0, 1]


def test_a_sample_without_a_label_is_an_error_where_the_objective_takes_none(signals, monkeypatch):
    def made(unlabelled):
        data = signals.signal_data()
        wave = {"name": "waves", "labelled": True}
        data["streams"] = {
            "s": {"objective": "classification", "modality": "signal", "source": wave, "unlabelled": unlabelled}
        }
        return sample_loader(experiment_from_data(data), "s")

    assert made(False).plain(5).labels == {"label": 2}
    monkeypatch.setattr(signals.WaveSource, "labels", lambda _, index: {} if index in (5, 7) else {"label": "a"})
    assert made(True).plain(5).labels == {"label": -1}
    problem = r"streams\.s\.source: sample 5 has no label of the set 'label', as 2 of 24 samples\. .*`unlabelled: true`"
    with pytest.raises(SourceError, match=problem):
        made(False)


def test_a_part_of_a_recording_is_refused_where_the_modality_would_take_the_whole(signals):
    class Parts(Counting):
        def load(self, index):
            return SourceFile("a.mp4", window=(1.0, 2.0))

    with pytest.raises(
        SourceError, match=r"streams\.s: sample 3: a window of time, which the modality does not keep to"
    ):
        loader_of(signals, source=Parts(signals)).batch([(0, 3)])


def test_held_out_samples_have_the_numbers_of_the_training_classes(signals):
    data = signals.signal_data()
    data["streams"]["long"]["source"]["labelled"] = True
    data["streams"]["long"]["held_out"]["labelled"] = True
    settings = experiment_from_data(data)
    training = sample_loader(settings, "long")
    assert sample_loader(settings, "long", held_out=True).plain(2).labels == {}, "labels are never needed"
    held_out = sample_loader(settings, "long", held_out=True, classes={"label": ("0", "a", "b", "c")})
    assert held_out.plain(2).labels == {"label": 3}
    assert sample_loader(settings, "long", held_out=True, classes=training.classes).plain(2).labels == {"label": 2}
    with pytest.raises(
        SourceError, match=r"streams\.long\.held_out: class 'b' of 'label' is none of the training source's \(a, d\)"
    ):
        sample_loader(settings, "long", held_out=True, classes={"label": ("a", "d")})


def test_the_plain_view_and_others(signals):
    loader = loader_of(signals)
    plain = loader.plain(3)
    assert (plain.index, list(plain.parts)) == (3, ["s"])
    assert torch.equal(plain.parts["s"], loader.plain(3).parts["s"])
    views = loader.views(3, clips=2, crops=3)
    assert [(view.index, view.labels) for view in views] == [(3, plain.labels)] * 6
    middle = loader.views(3, clips=1, crops=3)[1]
    assert torch.equal(middle.parts["s"], plain.parts["s"])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_no_numbers_make_a_bad_sample(signals, value):
    class Holed(Counting):
        def load(self, index):
            wave = super().load(index).float()
            wave[0, 5:8] = value if index == 4 else 0.0
            return wave

    loader = loader_of(signals, 80, source=Holed(signals))
    loaded = loader.batch([(0, 4), (0, 5)])
    assert [(bad.sample, bad.reason) for bad in loaded.bad] == [("sample 4", "holds NaN or infinite values: 3 of 160")]
    assert loaded.batch.content.isfinite().all()
    with pytest.raises(BadSample, match="NaN"):
        loader.plain(4)
    gaps = loader_of(signals, 80, source=Holed(signals), spec=TokenSpec((4,), 2, gaps=True))
    if value != value:
        assert gaps.plain(4).parts["s"].isnan().sum() == 3, "there NaN stands for what is missing"
    else:
        with pytest.raises(BadSample, match="holds infinite values: 3 of 160"):
            gaps.plain(4)


@pytest.mark.parametrize("mixing", ["joint", "alternate"])
def test_streams_go_on_from_their_state(experiment, streams_of, same, mixing):
    settings = experiment(mixing=mixing, accumulate=2)
    whole = streams_of(settings)
    steps = [list(whole.micro_steps(number)) for number in range(6)]
    again = streams_of(settings)
    for number in range(3):
        list(again.micro_steps(number))
    resumed = streams_of(settings)
    resumed.load_state_dict(json.loads(json.dumps(again.state_dict())))
    for number in range(3, 6):
        for expected, micro in zip(steps[number], resumed.micro_steps(number), strict=True):
            same(micro, expected)
    assert resumed.consumed == whole.consumed
    assert resumed.epochs() == whole.epochs()
    if mixing == "joint":
        assert whole.consumed == {"long": 6, "short": 6}
        assert (whole.distinct("long"), whole.distinct("short")) == (24, 48), "a replicated sample counts once"
        assert whole.epochs() == {"long": 1.0, "short": 2.0}


def test_a_step_counts_when_its_last_micro_batch_was_trained_on(experiment, streams_of):
    streams = streams_of(experiment(accumulate=4))
    micro_steps = streams.micro_steps(0)
    for _ in range(4):
        next(micro_steps)
        assert streams.consumed == {"long": 0, "short": 0}
    assert next(micro_steps, None) is None
    assert streams.consumed == {"long": 1, "short": 1}
    next(streams.micro_steps(1))
    assert streams.state_dict()["consumed"] == {"long": 1, "short": 1}, "given up half way"
    with pytest.raises(RuntimeError, match="not all taken"):
        next(streams.micro_steps(1))


def test_a_source_that_holds_other_samples_is_noticed(signals, streams_of, tmp_path):
    def streams(folder):
        data = signals.signal_data()
        data["streams"]["short"] |= {"source": {"name": "folder", "path": str(folder)}}
        return streams_of(experiment_from_data(data))

    for name in ("here", "moved", "renamed", "longer"):
        for number in range(12):
            (tmp_path / name / "a").mkdir(parents=True, exist_ok=True)
            (tmp_path / name / f"a/{number:02}.wave").touch()
    (tmp_path / "renamed/a/05.wave").rename(tmp_path / "renamed/a/05b.wave")
    (tmp_path / "longer/a/12.wave").touch()
    state = streams(tmp_path / "here").state_dict()
    older = {key: part for key, part in state.items() if key != "orders"}
    with pytest.raises(ExperimentError, match=r"streams\.short\.source: another mmmask began the run, and shuffled"):
        streams(tmp_path / "here").load_state_dict(older)
    streams(tmp_path / "here").load_state_dict(state)
    streams(tmp_path / "moved").load_state_dict(state)
    with pytest.raises(ExperimentError, match=r"streams\.short\.source: 12 samples when .* now 13"):
        streams(tmp_path / "longer").load_state_dict(state)
    with pytest.raises(ExperimentError, match=r"streams\.short\.source: as many samples .* not the same ones"):
        streams(tmp_path / "renamed").load_state_dict(state)


@pytest.mark.parametrize(("world", "accumulate"), [(2, 1), (1, 2), (2, 2), (4, 1)])
def test_shards_of_all_processes_make_up_the_global_batch(experiment, streams_of, world, accumulate):
    (whole,) = streams_of(experiment()).micro_steps(0)
    parts = [
        list(streams_of(experiment(accumulate=accumulate), rank=rank, world_size=world).micro_steps(0))
        for rank in range(world)
    ]
    for name in ("long", "short"):
        wanted = whole.batches[name].content
        found = torch.full_like(wanted, 255)
        for micro in (micro for part in parts for micro in part):
            first, total = micro.shard[name]
            assert total == 8
            found[first : first + len(micro.batches[name])] = micro.batches[name].content
        assert torch.equal(found, wanted)


def test_streams_are_drawn_by_weight_the_same_everywhere(experiment):
    settings = experiment(mixing="alternate")
    drawn = [streams_of_step(settings, step) for step in range(2000)]
    assert drawn == [streams_of_step(settings, step) for step in range(2000)]
    assert all(len(names) == 1 for names in drawn)
    assert 0.71 < drawn.count(["long"]) / 2000 < 0.79
    other = experiment(mixing="alternate", seed=1)
    assert drawn != [streams_of_step(other, step) for step in range(2000)]
    assert streams_of_step(experiment(), 5) == ["long", "short"]


def test_steps_from_epochs(experiment):
    assert total_steps(experiment(steps=7)) == 7
    # 24 samples, 8 a step
    assert total_steps(experiment(steps=None, epochs={"short": 2})) == 6
    assert total_steps(experiment(steps=None, epochs={"short": 0.1})) == 1
    # each decoded sample is seen twice, so a pass over the source takes twice the steps
    assert total_steps(experiment(steps=None, epochs={"long": 2})) == 12
    # three quarters of the steps are `long`
    assert total_steps(experiment(steps=None, epochs={"long": 2}, mixing="alternate")) == 16
    with pytest.raises(ExperimentError, match=r"training\.steps: required here"):
        total_steps(experiment(steps=None))


def test_a_source_is_looked_through_once(experiment, streams_of, signals, monkeypatch):
    built = []

    def count(self, *args, **kwargs):
        built.append(self)
        Source.__init__(self, *args, **kwargs)

    monkeypatch.setattr(signals.WaveSource, "__init__", count, raising=False)
    settings = experiment(steps=None, epochs={"long": 2})
    assert total_steps(settings, streams_of(settings).sizes) == 12
    assert len(built) == 2, "one of each stream"


def test_sources_that_are_missing_are_named(signals):
    data = signals.signal_data()
    data["streams"]["short"]["source"] = None
    with pytest.raises(ExperimentError, match=r"streams\.short\.source: required here"):
        Streams(experiment_from_data(data))
