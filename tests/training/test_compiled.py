"""`training.compile`: the same losses, compiled once."""

import shutil

import pytest
import torch

import mmmask
from mmmask.experiment import experiment_from_data


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
# dynamo looks at `.grad` of the inputs it traces; they are no leaves here
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning")
# torch's own inductor still builds a TorchScript helper
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    ("mixing", "dropping", "graphs"),
    [
        ("joint", {}, 2),  # one of the encoder's blocks, one of the decoder's; none for the held-out samples
        ("alternate", {"drop_path": 0.5, "dropout": 0.1}, 4),  # the streams' shapes differ
    ],
)
def test_compiled_blocks_train_as_plain_ones_and_are_compiled_once(signals, tmp_path, mixing, dropping, graphs):
    data = signals.signal_data(steps=4)
    data["model"]["encoder"] |= {"depth": 2, **dropping}
    data["training"]["mixing"] = mixing
    plain = mmmask.train(experiment_from_data(data), tmp_path / "plain")
    data["training"]["compile"] = True
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = mmmask.train(experiment_from_data(data), tmp_path / "compiled")
    losses = [torch.tensor([line["loss"] for line in run.metrics]) for run in (plain, compiled)]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs, "whatever the depth"
    assert not torch._dynamo.utils.counters["graph_break"]
