"""Experiments of signals, and what is compared of their batches."""

from pathlib import Path

import pytest
import torch

from mmmask.components import components
from mmmask.data.streams import Streams
from mmmask.experiment import experiment_from_data


@pytest.fixture(autouse=True)
def plugin_files(monkeypatch):
    """Another process loads the plugin files of this one: not those that other tests wrote and left."""
    known, tests = components(), Path(__file__).parents[1]
    monkeypatch.setattr(known, "plugin_files", [file for file in known.plugin_files if tests in Path(file).parents])


@pytest.fixture
def experiment(signals):
    def make(data_settings=None, **training):
        data = signals.signal_data(**training)
        data["streams"]["long"] |= {"replicate": 2, "sampling_weight": 3.0}
        data["data"] |= data_settings or {}
        return experiment_from_data(data)

    return make


@pytest.fixture
def streams_of():
    """Builds Streams, and stops their workers."""
    built = []

    def build(settings, **options):
        built.append(Streams(settings, **options))
        return built[-1]

    yield build
    for streams in built:
        streams.close()


@pytest.fixture(scope="session")
def same():
    """Asserts that two micro-steps hold the same, timings aside."""

    def same(one, other):
        assert one.shard == other.shard
        assert one.batches.keys() == other.batches.keys()
        for name, batch in one.batches.items():
            wanted = other.batches[name]
            assert one.loaded[name].bad == other.loaded[name].bad
            assert batch.labels.keys() == wanted.labels.keys()
            assert all(torch.equal(numbers, wanted.labels[label_set]) for label_set, numbers in batch.labels.items())
            assert torch.equal(batch.index, wanted.index)
            assert batch.content.dtype == wanted.content.dtype
            assert torch.equal(batch.content, wanted.content)

    return same
