"""Compiling stage by stage: one graph per shape, none of them symbolic, and an error where there are too many."""

import pytest
import torch
from torch import nn

from mmmask.model import compiling
from mmmask.model.blocks import Blocks, BlockSettings
from mmmask.model.compiling import TooManyGraphs, compile_stages
from mmmask.randomness import sample_noise

CPU = torch.device("cpu")
# dynamo looks at `.grad` of the inputs it traces; they are no leaves here
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning")


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def blocks(width=32, depth=3, **settings):
    torch.manual_seed(0)
    return Blocks(BlockSettings(width=width, depth=depth, num_heads=4, **settings))


def samples(batch, tokens, width=32):
    """With gradients, as an embedding's output has them: dynamo makes another graph of a block whose input has none."""
    return torch.randn(batch, tokens, width, generator=torch.Generator().manual_seed(tokens)).requires_grad_() * 1


class Seen:
    """A backend that runs graphs as they are, and keeps what shapes they are for."""

    def __init__(self):
        self.shapes = []

    def __call__(self, graph, inputs):
        self.shapes.append([part.shape for part in inputs if isinstance(part, torch.Tensor)])
        assert all(type(part) is not torch.SymInt for part in inputs)
        assert all(type(size) is int for shape in self.shapes[-1] for size in shape), "symbolic"
        return graph.forward


def test_one_graph_per_shape_whatever_the_depth():
    encoder, decoder, seen = blocks(), blocks(width=16, depth=5), Seen()
    wanted = [encoder([samples(2, tokens)])[0][0] for tokens in (9, 12, 15)]
    compile_stages([*encoder, *decoder], backend=seen)
    for _ in range(2):
        for tokens, output in zip((9, 12, 15), wanted, strict=True):
            torch.testing.assert_close(encoder([samples(2, tokens)])[0][0], output)
            decoder([samples(2, tokens, 16)])
    assert len(seen.shapes) == 6, "three shapes of two widths"
    assert not torch._dynamo.utils.counters["graph_break"]


def test_dropping_is_compiled_once_and_drops_what_it_drops_uncompiled():
    stack, seen = blocks(drop_path=0.5, dropout=0.1), Seen()
    plain = [stack([samples(4, 9)], noises=[sample_noise(seed, 0, 4, CPU)])[0][0] for seed in range(3)]
    compile_stages(stack, backend=seen)
    for seed, wanted in enumerate(plain):
        torch.testing.assert_close(stack([samples(4, 9)], noises=[sample_noise(seed, 0, 4, CPU)])[0][0], wanted)
    assert len(seen.shapes) == 1, "a step's seed is no constant of the graph"


def test_too_many_shapes_are_an_error_that_names_the_shape(monkeypatch):
    monkeypatch.setattr(compiling, "MOST_GRAPHS", 3)
    stack = blocks(depth=2)
    compile_stages(stack, backend="eager")
    for tokens in (4, 5, 6):
        stack([samples(2, tokens)])
    message = r"training.compile: Block has been compiled for 3 shapes, and now comes \(14, 32\), \[\(2, 7\)\]"
    with pytest.raises(TooManyGraphs, match=message):
        stack([samples(2, 7)])
    stack([samples(2, 5)])  # what is compiled still runs


def test_more_shapes_than_dynamos_own_limit_are_compiled():
    stack, seen = blocks(depth=1), Seen()
    compile_stages(stack, backend=seen)
    for tokens in range(2, 14):
        stack([samples(1, tokens)])
    assert len(seen.shapes) == 12


def test_a_copy_is_not_compiled():
    """A teacher is a copy of its student; it must not call the student's compiled stages."""
    import copy

    stack = blocks(depth=1)
    compile_stages(stack, backend="eager")
    stack([samples(1, 4)])
    twin = copy.deepcopy(stack)
    with torch.no_grad():
        twin[0].mlp.fc2.bias.add_(1)
    assert not torch.allclose(twin([samples(1, 4)])[0][0], stack([samples(1, 4)])[0][0])


def test_whatever_an_encoder_calls_a_stage_can_be_compiled():
    stage = nn.TransformerEncoderLayer(32, 4, dropout=0.0, batch_first=True, norm_first=True)
    wanted = stage(samples(2, 5))
    compile_stages([stage], backend="eager")
    torch.testing.assert_close(stage(samples(2, 5)), wanted)
