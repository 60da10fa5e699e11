"""Counting parameters and operations, against a tiny model counted by hand."""

import pytest

import mmmask
from mmmask.experiment import experiment_from_data
from mmmask.model.cost import meta_model, parameters, stream_cost


@pytest.fixture
def model(signals):
    return meta_model(experiment_from_data(signals.signal_data()))


def block_parameters(width):
    norms, attention = 4 * width, 3 * width * width + 3 * width + width * width + width
    return norms + attention + 2 * 4 * width * width + 4 * width + width


def test_parameters_by_hand(model):
    # encoder: embedding of 8 numbers, two blocks and a norm of width 24
    encoder = (8 * 24 + 24) + 2 * block_parameters(24) + 2 * 24
    # decoder: projection and mask token, one block and a norm of width 16
    decoder = (24 * 16 + 16) + 24 + block_parameters(16) + 2 * 16
    head = 16 * 8 + 8
    assert parameters(model) == {
        "total": encoder + decoder + head, "encoder": encoder, "decoders": decoder, "heads": head,
    }  # fmt: skip
    assert parameters(model)["total"] == 18584


def block_flops(tokens, width):
    linear = 2 * tokens * width * (3 * width + width + 4 * width + 4 * width)
    return linear + 2 * (2 * tokens * tokens * width)  # scores, and the weighted sum of values


def test_operations_by_hand(model):
    cost = stream_cost(model, "long", batch=2)
    assert (*cost.grids.values(), cost.tokens, cost.visible, cost.predicted) == ((16,), 16, 4, 12)
    embedding = 2 * 4 * 8 * 24
    projection = 2 * 4 * 24 * 16
    positions = 2 * 16 * 24 * 16 // 2  # once per batch of two
    mask_token = 2 * 24 * 16 // 2
    head = 2 * 12 * 16 * 8
    forward = embedding + 2 * block_flops(4, 24) + projection + positions + mask_token + block_flops(16, 16) + head
    assert cost.forward_flops == forward
    # backward takes a product for the weight and one for the input; samples and positions need none for themselves
    assert cost.training_flops == 3 * forward - embedding - positions
    assert cost.activation_bytes > 4 * (4 * 24 * 2 + 16 * 16)


def test_a_stream_that_recomputes_keeps_less_and_its_model_has_the_same_operations(signals):
    def costs(*overrides):
        model = meta_model(experiment_from_data(signals.signal_data(), overrides=overrides))
        return [stream_cost(model, name) for name in ("long", "short")]

    plain, recomputed = costs(), costs("streams.long.activation_checkpointing=true")
    assert recomputed[0].activation_bytes < 0.6 * plain[0].activation_bytes
    assert recomputed[1] == plain[1]
    assert recomputed[0].forward_flops == plain[0].forward_flops
    assert recomputed[0].training_flops == plain[0].training_flops
    everywhere = ("model.encoder.activation_checkpointing=true", "model.decoder.activation_checkpointing=true")
    assert costs(*everywhere)[0] == recomputed[0]
    assert costs(*everywhere, "streams.long.activation_checkpointing=false")[0] == plain[0]


def test_hiding_less_costs_more(signals):
    data = signals.signal_data()
    data["streams"]["short"] = data["streams"]["long"] | {"masker": {"name": "random", "mask_ratio": 0.25}}
    model = meta_model(experiment_from_data(data))
    dense, sparse = stream_cost(model, "short"), stream_cost(model, "long")
    assert dense.forward_flops > sparse.forward_flops
    assert dense.activation_bytes > sparse.activation_bytes


def test_counting_takes_no_memory_for_the_largest_model():
    model = meta_model(mmmask.load_experiment("omnimae/vit_huge"))
    cost = stream_cost(model, "videos")
    assert (*cost.grids.values(), cost.tokens, cost.visible, cost.predicted) == ((8, 16, 16), 2048, 2048 - 1945, 1945)


def test_a_grouped_convolution_goes_backward_as_it_goes_forward():
    experiment = mmmask.load_experiment("convmae/conv_vit_base", ["model.encoder.depth=1", "model.decoder.depth=1"])
    cost = stream_cost(meta_model(experiment), "images")
    # twice the forward, less what the samples need not know
    assert 2.9 * cost.forward_flops < cost.training_flops < 3 * cost.forward_flops
