"""Which sample comes when, on which process, and what a batch of them holds."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmmask.data.order import EndlessOrder, MicroBatches
from mmmask.data.pipeline import BatchPipeline
from mmmask.data.samples import SampleLoader
from mmmask.data.streams import Streams, streams_of_step, total_steps
from mmmask.experiment import experiment_from_data
from mmmask.experiment.errors import ExperimentError


@given(length=st.integers(1, 50), seed=st.integers(0, 2**40))
def test_every_epoch_is_a_permutation(length, seed):
    order = EndlessOrder(length, seed, "images")
    epochs = [[order.at(epoch * length + i) for i in range(length)] for epoch in range(3)]
    for number, epoch in enumerate(epochs):
        assert [draw[0] for draw in epoch] == [number] * length
        assert sorted(draw[1] for draw in epoch) == list(range(length))


def test_an_order_is_a_function_of_seed_stream_and_epoch():
    def indices(seed, stream, epoch):
        return [EndlessOrder(40, seed, stream).at(40 * epoch + i)[1] for i in range(40)]

    orders = [indices(*key) for key in ((0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1))]
    assert len({tuple(order) for order in orders}) == 4
    assert indices(0, "a", 1) == orders[3]


def test_any_position_can_be_looked_up_at_once():
    forward = EndlessOrder(7, 3, "s")
    expected = [forward.at(position) for position in range(70)]
    backward = EndlessOrder(7, 3, "s")
    assert [backward.at(position) for position in reversed(range(70))] == expected[::-1]


@given(
    world=st.sampled_from([1, 2, 3, 4]), accumulate=st.sampled_from([1, 2, 4]), size=st.integers(1, 3),
    first=st.integers(0, 5),
)  # fmt: skip
def test_micro_batches_partition_every_global_batch(world, accumulate, size, first):
    batch = world * accumulate * size
    order = EndlessOrder(11, 0, "s")
    nodes = [MicroBatches(order, batch, accumulate, rank, world, first) for rank in range(world)]
    for node in nodes:
        node.reset()
    for number in range(first, first + 3):
        drawn = [draw for _ in range(accumulate) for node in nodes for draw in next(node)]
        assert drawn == [order.at(number * batch + i) for i in range(batch)]


def test_micro_batches_go_on_from_their_state():
    def node():
        return MicroBatches(EndlessOrder(11, 0, "s"), 4, 2, 0, 1, 0)

    one = node()
    one.reset()
    for _ in range(3):
        next(one)
    other = node()
    other.reset(one.state_dict())
    assert [next(other) for _ in range(4)] == [next(one) for _ in range(4)]


class Counting:
    """A source that counts what is decoded."""

    def __init__(self, signals):
        self.source = signals.WaveSource(signals.WaveSource.Config(name="waves"))
        self.loaded = []

    def __len__(self):
        return len(self.source)

    def describe(self, index):
        return self.source.describe(index)

    def load(self, index):
        self.loaded.append(index)
        return self.source.load(index)


def test_a_replicated_sample_is_decoded_once_and_cropped_anew(signals):
    source = Counting(signals)
    batch = SampleLoader(source, signals.SignalPreparation(16), 3, 0, "s").batch([(0, 4), (0, 9)])
    assert source.loaded == [4, 9]
    assert batch.samples.shape == (6, 2, 16)
    assert batch.distinct == 2
    assert len({tuple(sample.flatten().tolist()) for sample in batch.samples}) == 6
    single = SampleLoader(source, signals.SignalPreparation(16), 1, 0, "s").batch([(0, 4)])
    assert torch.equal(single.samples[0], batch.samples[0]), "the first replica is what is seen without replication"


def test_samples_do_not_depend_on_global_random_state(signals):
    loader = SampleLoader(Counting(signals), signals.SignalPreparation(16), 2, 0, "s")
    torch.manual_seed(1)
    first = loader.batch([(0, 4)]).samples
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert torch.equal(loader.batch([(0, 4)]).samples, first)
    assert torch.equal(torch.get_rng_state(), before), "and leave it alone"
    assert not torch.equal(loader.batch([(1, 4)]).samples, first), "another epoch, another crop"


def test_an_order_can_be_asked_by_several_threads():
    order, expected = EndlessOrder(5, 0, "s"), EndlessOrder(5, 0, "s")
    positions = [position for start in range(400) for position in (start, start + 5)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(order.at, positions))
    assert found == [expected.at(position) for position in positions]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_workers_deliver_in_order_and_can_be_stopped(signals, workers):
    import threading

    before = threading.active_count()
    loader = SampleLoader(Counting(signals), signals.SignalPreparation(16), 2, 0, "s")
    order = EndlessOrder(24, 0, "s")
    pipeline = BatchPipeline(MicroBatches(order, 4, 1, 0, 1, 2), loader.batch, workers, pin=False)
    for number in range(2, 9):
        expected = loader.batch([order.at(number * 4 + i) for i in range(4)]).samples
        assert torch.equal(pipeline.next().samples, expected)
    pipeline.close()
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(5)
    assert threading.active_count() <= before + workers + 2  # daemons of other tests aside
    pipeline.close()  # twice does no harm


@pytest.fixture
def experiment(signals):
    def make(**training):
        data = signals.signal_data(**training)
        data["streams"]["long"] |= {"replicate": 2, "sampling_weight": 3.0}
        return experiment_from_data(data)

    return make


@pytest.mark.parametrize("mixing", ["joint", "alternate"])
def test_streams_go_on_from_what_was_consumed(experiment, mixing):
    settings = experiment(mixing=mixing, accumulate=2)
    whole = Streams(settings)
    steps = [whole.step(number) for number in range(6)]
    again = Streams(settings)
    for number in range(3):
        again.step(number)
    resumed = Streams(settings, consumed=again.consumed)
    for number in range(3, 6):
        for expected, micro in zip(steps[number], resumed.step(number), strict=True):
            assert expected.rows == micro.rows
            assert expected.samples.keys() == micro.samples.keys()
            assert all(torch.equal(micro.samples[name], part) for name, part in expected.samples.items())
    assert resumed.consumed == whole.consumed
    assert resumed.epochs() == whole.epochs()
    if mixing == "joint":
        assert whole.consumed == {"long": 6, "short": 6}
        assert (whole.distinct("long"), whole.distinct("short")) == (24, 48), "a replicated sample counts once"
        assert whole.epochs() == {"long": 1.0, "short": 2.0}


@pytest.mark.parametrize(("world", "accumulate"), [(2, 1), (1, 2), (2, 2), (4, 1)])
def test_rows_of_all_processes_make_up_the_global_batch(experiment, world, accumulate):
    (whole,) = Streams(experiment()).step(0)
    parts = [Streams(experiment(accumulate=accumulate), rank=rank, world_size=world).step(0) for rank in range(world)]
    for name in ("long", "short"):
        found = torch.full_like(whole.samples[name], 255)
        for micro in (micro for part in parts for micro in part):
            first, total = micro.rows[name]
            assert total == 8
            found[first : first + len(micro.samples[name])] = micro.samples[name]
        assert torch.equal(found, whole.samples[name])


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


def test_sources_that_are_missing_are_named(signals):
    data = signals.signal_data()
    data["streams"]["short"]["source"] = None
    with pytest.raises(ExperimentError, match=r"streams\.short\.source: required here"):
        Streams(experiment_from_data(data))
