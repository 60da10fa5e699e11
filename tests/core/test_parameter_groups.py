"""Rates and weight decay of every parameter, against numbers worked out by hand."""

import pytest
import torch

import mmmask
from mmmask.experiment import experiment_from_data
from mmmask.interfaces import build
from mmmask.training.optimizer import parameter_groups, peak_learning_rate
from mmmask.training.schedule import learning_rate_schedule


def experiment(signals, optimizer, depth=12, schedule=None, encoder=None):
    data = signals.signal_data(optimizer=optimizer, schedule=schedule or {}, steps=100)
    data["model"]["encoder"] = {"name": "vit", "width": 24, "depth": depth, "num_heads": 2} | (encoder or {})
    return experiment_from_data(data)


def by_name(model, groups):
    """{parameter: (factor of the rate, weight decay)}; each is in one group."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [
        (names[id(parameter)], (group["lr_scale"], group["weight_decay"]))
        for group in groups
        for parameter in group["params"]
    ]
    assert len(found) == len(dict(found))
    return dict(found)


HEAD, NORM = "objectives.masked.heads.signal_4.weight", "encoder.norm.weight"
EMBEDDING, POSITIONS = "encoder.embeddings.signal_4.weight", "encoder.positions.signal_4.table"
BLOCK = "encoder.blocks.{}.mlp.fc1.weight"
LEARNED = {"positions": {"name": "learned"}, "prefix_tokens": 1, "masked_tokens": "replace"}

# recipe: settings, and the factors of head and final norm, last block, the sixth of twelve, the first, embeddings
RECIPES = {
    "OmniMAE IN1k": ({"layer_decay": 0.65, "scale_head": True, "weight_decay": 1e-4},
                     (0.65, 0.4225, 0.031864, 0.003697, 0.002403)),
    "OmniMAE SSv2": ({"layer_decay": 0.75, "scale_head": True}, (0.75, 0.5625, 0.100113, 0.023757, 0.017818)),
    "MAE ViT-B": ({"layer_decay": 0.65}, (1.0, 0.65, 0.049022, 0.005688, 0.003697)),
    "MAE ViT-L and H": ({"layer_decay": 0.75}, (1.0, 0.75, 0.133484, 0.031676, 0.023757)),
}  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES)
def test_rates_fall_from_the_head_to_the_embeddings(signals, recipe):
    settings, (head, last, sixth, first, embeddings) = RECIPES[recipe]
    made = experiment(signals, {"learning_rate": 4e-3} | settings, encoder=LEARNED)
    model = mmmask.build_model(made)
    groups = parameter_groups(model, made.training.optimizer)
    assert len(groups) == 2 * 14
    found, decay = by_name(model, groups), settings.get("weight_decay", 0.05)
    assert found.keys() == dict(model.named_parameters()).keys()
    wanted = {
        HEAD: head, NORM: head, "objectives.masked.decoders.shared.mask_token": head,
        BLOCK.format(11): last, BLOCK.format(5): sixth, BLOCK.format(0): first, "encoder.blocks.0.norm1.bias": first,
        EMBEDDING: embeddings, POSITIONS: embeddings, "encoder.prefix_tokens": embeddings,
        "encoder.mask_token": embeddings,
    }  # fmt: skip
    for name, factor in wanted.items():
        assert found[name][0] == pytest.approx(factor, rel=2e-4), name
    for name, (_, own) in found.items():
        kept = name.endswith(".bias") or ".norm" in name or name == "encoder.mask_token"
        assert own == (0.0 if kept else decay), name


def test_rates_of_the_released_recipe_at_some_steps(signals):
    """OmniMAE on IN1k: 1e-6 to 4e-3 in 5 % of the steps, then a cosine to 1e-6; each group follows at its factor."""
    schedule = {"warmup": 0.05, "warmup_start": 1e-6, "end": 1e-6}
    made = experiment(signals, {"learning_rate": 4e-3, "layer_decay": 0.65, "scale_head": True}, schedule=schedule)
    rate = learning_rate_schedule(made.training.schedule, peak_learning_rate(made), 100)
    # before the first step; after the warm-up; after a fifth of the cosine, (1 + cos 36°) / 2 = 0.9045; at the end
    at = {0: 1e-6, 5: 4e-3, 24: 3.618e-3, 100: 1e-6}
    for step, wanted in at.items():
        assert rate(step) == pytest.approx(wanted, rel=1e-3), step
    model = mmmask.build_model(made)
    found = by_name(model, parameter_groups(model, made.training.optimizer))
    assert rate(5) * found[HEAD][0] == pytest.approx(2.6e-3)
    assert rate(5) * found[BLOCK.format(11)][0] == pytest.approx(1.69e-3)
    assert rate(5) * found[EMBEDDING][0] == pytest.approx(9.612e-6, rel=1e-3)


def test_without_layer_decay_there_are_two_groups_in_the_order_of_the_model(signals):
    made = experiment(signals, {"learning_rate": 1e-3}, depth=2)
    model = mmmask.build_model(made)
    decayed, kept = parameter_groups(model, made.training.optimizer)
    assert (decayed["lr_scale"], kept["lr_scale"]) == (1.0, 1.0)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.05, 0.0)
    order = {id(parameter): number for number, parameter in enumerate(model.parameters())}
    for group in (decayed, kept):
        numbers = [order[id(parameter)] for parameter in group["params"]]
        assert numbers == sorted(numbers)


DEEP = {
    "swin": (
        {"depths": [2, 1], "width": 32, "num_heads": 4, "window": 4, "embed_patch": 8},
        {"embeddings.": 0, "patch_norm": 0, "mask_token": 0, "pyramid.0.blocks.0": 1, "pyramid.0.blocks.1": 2,
         "pyramid.0.merge": 2, "pyramid.1.blocks.0": 3, "norm.": 4},
    ),
    "conv_vit": (
        {"depth": 2, "width": 32, "num_heads": 4, "stage_widths": [8, 16], "stage_depths": [1, 1]},
        {"embeddings.": 0, "pyramid.0": 1, "pyramid.1": 2, "embed.": 2, "project.": 2, "blocks.0": 3, "blocks.1": 4,
         "norm.": 5},
    ),
    "vit": (
        {"depth": 2, "width": 32, "num_heads": 4, "positions": "relative_bias", "bias_per_block": True},
        {"embeddings.": 0, "positions.pixels_16x16x3.0": 1, "blocks.0": 1, "positions.pixels_16x16x3.1": 2,
         "blocks.1": 2, "norm.": 3},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DEEP)
def test_layers_of_every_encoder(name):
    settings, layers = DEEP[name]
    data = {
        "model": {"encoder": {"name": name} | settings, "decoder": {"name": "in_place", "depth": 0}},
        "streams": {
            "images": {
                "modality": {"name": "image", "size": 64, "patch_size": [16, 16]},
                "masker": {"name": "random"},
                "loss": {"name": "pixels", "normalize": "none"},
            }
        },
        "training": {"steps": 1, "optimizer": {"layer_decay": 0.5}},
    }
    if name == "conv_vit":
        data["model"]["decoder"] = {"name": "transformer", "width": 16, "depth": 1, "num_heads": 2}
    made = experiment_from_data(data)
    model = mmmask.build_model(made)
    found = by_name(model, parameter_groups(model, made.training.optimizer))
    last = max(layers.values())
    for key, (factor, _) in found.items():
        place = key.removeprefix("encoder.")
        layer = last if place == key else next(layer for start, layer in layers.items() if place.startswith(start))
        assert factor == 0.5 ** (last - layer), key


def test_scaling_the_head_needs_something_to_scale_by(signals):
    with pytest.raises(mmmask.MmmaskError, match=r"training\.optimizer.*scale_head is for training with layer_decay"):
        experiment(signals, {"scale_head": True})


def test_frozen_parameters_are_in_no_group(signals):
    data = signals.signal_data(optimizer={"layer_decay": 0.5})
    data["model"]["trainable"] = 1
    made = experiment_from_data(data)
    model = mmmask.build_model(made)
    found = by_name(model, parameter_groups(model, made.training.optimizer))
    assert {name.split(".")[2] for name in found if name.startswith("encoder.blocks")} == {"1"}
    assert EMBEDDING not in found
    assert found[BLOCK.format(1)][0] == 0.5
    assert found[HEAD][0] == 1.0


def updated(settings, weights, gradients, rates):
    """Weights after steps with these gradients and rates."""
    from mmmask.experiment.settings import TrainingSettings

    optimizer = build("optimizer", TrainingSettings.model_validate({"optimizer": settings}).optimizer)
    parameters = [torch.tensor(weight, requires_grad=True) for weight in weights]
    made = optimizer.build(
        [{"params": [part], "lr_scale": 1.0, "weight_decay": 0.5 if part.dim() > 1 else 0.0} for part in parameters]
    )
    for rate, step in zip(rates, gradients, strict=True):
        for group in made.param_groups:
            group["lr"] = rate
        for part, gradient in zip(parameters, step, strict=True):
            part.grad = torch.tensor(gradient)
        made.step()
    return [part.detach() for part in parameters]


def test_lars_by_hand():
    """|w| = 5, |g| = 10: the factor is 0.001 * 5 / (10 + 0.5 * 5) = 0.0004, of g + 0.5 w = (7.5, 10)."""
    matrix, bias = updated({"name": "lars"}, [[[3.0, 4.0]], [1.0]], [([[6.0, 8.0]], [2.0])], [10.0])
    torch.testing.assert_close(matrix, torch.tensor([[3.0 - 10 * 0.003, 4.0 - 10 * 0.004]]))
    torch.testing.assert_close(bias, torch.tensor([1.0 - 10 * 2.0]))
    # the second step, without decay of the bias: 0.9 * 2 + 2, at another rate
    gradients = [([[0.0, 0.0]], [2.0])] * 2
    matrix, bias = updated({"name": "lars"}, [[[3.0, 4.0]], [1.0]], gradients, [0.5, 0.25])
    torch.testing.assert_close(bias, torch.tensor([1.0 - 0.5 * 2.0 - 0.25 * 3.8]))
    # no gradient: no factor, so that decay alone is left, v = 0.5 w, then 0.9 v + 0.5 w
    first = 3.0 - 0.5 * 1.5
    torch.testing.assert_close(matrix[0, 0], torch.tensor(first - 0.25 * (0.9 * 1.5 + 0.5 * first)))


def test_lars_leaves_what_starts_at_zero_its_gradient():
    (matrix,) = updated({"name": "lars", "momentum": 0.0}, [[[0.0, 0.0]]], [([[1.0, 2.0]],)], [0.1])
    torch.testing.assert_close(matrix, torch.tensor([[-0.1, -0.2]]))


@pytest.mark.parametrize(("settings", "wanted"), [({}, 1.0 - 0.1 * 2 - 0.1 * 3.8), ({"nesterov": True}, 0.078)])
def test_sgd_by_hand(settings, wanted):
    """Nesterov: 1 - 0.1 (2 + 0.9 * 2) - 0.1 (2 + 0.9 * 3.8)."""
    (bias,) = updated({"name": "sgd"} | settings, [[1.0]], [([2.0],)] * 2, [0.1, 0.1])
    torch.testing.assert_close(bias, torch.tensor([wanted]))


def test_nesterov_needs_momentum(signals):
    with pytest.raises(mmmask.MmmaskError, match="nesterov is a kind of momentum"):
        experiment(signals, {"name": "sgd", "momentum": 0.0, "nesterov": True})


def test_linear_probing_can_be_said(signals):
    """MAE: LARS at 0.1 per 256 of a batch of 16384, no weight decay, ten epochs of 90 to warm up, cosine to 0."""
    data = signals.signal_data(
        optimizer={"name": "lars", "base_learning_rate": 0.1, "weight_decay": 0.0},
        schedule={"warmup": 10 / 90, "warmup_start": 0.0, "end": 0.0},
    )
    data["streams"] = {"long": data["streams"]["long"] | {"batch_size": 16384}}
    data["model"]["trainable"] = "none"
    made = experiment_from_data(data)
    assert peak_learning_rate(made) == pytest.approx(6.4)
    rate = learning_rate_schedule(made.training.schedule, 6.4, 90)
    assert [rate(epoch) for epoch in (0, 5, 10, 50)] == pytest.approx([0, 3.2, 6.4, 3.2])
