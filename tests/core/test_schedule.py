"""Learning rate and parameter groups, against numbers worked out by hand."""

import pytest
import torch

import mmmask
from mmmask.builtins.optimizers import AdamW
from mmmask.experiment import ScheduleSettings, experiment_from_data
from mmmask.training.optimizer import parameter_groups, peak_learning_rate
from mmmask.training.schedule import learning_rate_schedule


def rates(steps=1000, peak=1.6e-3, at=(0, 25, 50, 500, 1000), **settings):
    schedule = learning_rate_schedule(ScheduleSettings(**settings), peak, steps)
    return [schedule(step) for step in at]


def test_the_released_omnimae():
    experiment = mmmask.load_experiment("omnimae/vit_base_released")
    training = experiment.training
    steps = training.steps
    assert steps == 800 * (626 + 82)
    assert peak_learning_rate(experiment) == 1.6e-3
    schedule = learning_rate_schedule(training.schedule, 1.6e-3, steps)
    assert schedule(0) == pytest.approx(1e-6, rel=1e-9)
    # half of the warm-up: (1e-6 + 1.6e-3) / 2
    assert schedule(steps // 40) == pytest.approx(8.005e-4, rel=1e-9)
    # 0.5 (1 + cos(0.05 pi)) 1.6e-3 with cos(9 degrees) = 0.98768834
    assert schedule(steps // 20) == pytest.approx(1.590150672e-3, rel=1e-8)
    # half of the whole training: cos(90 degrees) = 0
    assert schedule(steps // 2) == pytest.approx(0.8e-3, rel=1e-9)
    assert schedule(steps) == pytest.approx(0, abs=1e-12)


def test_a_rescaled_cosine_starts_at_its_peak():
    found = rates(warmup=0.05, warmup_start=1e-6, progress="rescaled", at=(0, 25, 50, 525, 1000))
    assert found == pytest.approx([1e-6, 8.005e-4, 1.6e-3, 0.8e-3, 0], rel=1e-9, abs=1e-12)


def test_a_cosine_may_end_above_zero():
    assert rates(warmup=0.0, end=1e-4, at=(0, 500, 1000)) == pytest.approx([1.6e-3, 0.85e-3, 1e-4], rel=1e-6)


def test_a_linear_schedule():
    found = rates(shape="linear", warmup=0.5, warmup_start=0.0, at=(0, 250, 500, 750, 1000))
    assert found == pytest.approx([0, 0.8e-3, 1.6e-3, 0.8e-3, 0], rel=1e-9, abs=1e-12)


def test_a_constant_schedule():
    assert rates(shape="constant", warmup=0.1, warmup_start=0.0, at=(0, 50, 100, 1000)) == pytest.approx(
        [0, 0.8e-3, 1.6e-3, 1.6e-3], rel=1e-9
    )


@pytest.mark.parametrize("steps", [1, 3, 7, 20])
def test_a_short_training_has_a_schedule_too(steps):
    schedule = learning_rate_schedule(ScheduleSettings(), 1.0, steps)
    assert all(0 <= schedule(step) <= 1 for step in range(steps + 1))


def test_a_base_rate_is_per_256_samples_of_a_step(signals):
    def peak(**training):
        data = signals.signal_data(optimizer={"base_learning_rate": 1e-3}, **training)
        data["streams"]["long"]["batch_size"] = 96
        data["streams"]["short"]["batch_size"] = 32
        return peak_learning_rate(experiment_from_data(data))

    assert peak() == pytest.approx(1e-3 * 128 / 256)
    assert peak(mixing="alternate") == pytest.approx(1e-3 * 96 / 256)


def test_an_absolute_rate_overrides_the_base(signals):
    data = signals.signal_data(optimizer={"base_learning_rate": 1e-3, "learning_rate": 0.5})
    assert peak_learning_rate(experiment_from_data(data)) == 0.5


def test_biases_and_layer_norms_do_not_decay_and_the_mask_token_does(signals):
    data = signals.signal_data()
    data["model"]["encoder"]["prefix_tokens"] = 1
    model = mmmask.build_model(experiment_from_data(data))
    decayed, kept = parameter_groups(model, AdamW.Config(name="adamw"))
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.05, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, kept = ({names[id(parameter)] for parameter in group["params"]} for group in (decayed, kept))
    assert decayed | kept == set(names.values())
    assert not decayed & kept
    assert {
        "objectives.masked.decoders.shared.mask_token",
        "encoder.prefix_tokens",
        "encoder.blocks.0.attn.qkv.weight",
    } <= decayed
    assert all(
        name.endswith("weight")
        for name in decayed - {"objectives.masked.decoders.shared.mask_token", "encoder.prefix_tokens"}
    )
    assert kept == {name for name in names.values() if name.endswith(".bias") or ".norm" in name}


def test_decay_is_decoupled_and_leaves_biases_alone(signals):
    model = mmmask.build_model(experiment_from_data(signals.signal_data()))
    adamw = AdamW(AdamW.Config(name="adamw", weight_decay=0.1))
    optimizer = adamw.build(parameter_groups(model, adamw.config))
    for group in optimizer.param_groups:
        group["lr"] = 0.5
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert model.objectives["masked"].decoders["shared"].mask_token[0].item() == pytest.approx(1 - 0.5 * 0.1)
    assert model.encoder.blocks[0].mlp.fc1.weight[0, 0].item() == pytest.approx(1 - 0.5 * 0.1)
    assert model.encoder.blocks[0].mlp.fc1.bias[0].item() == 1.0
    assert model.encoder.norm.weight[0].item() == 1.0
    assert optimizer.defaults["betas"] == (0.9, 0.95)


def test_multistep_cuts_the_rate_at_its_milestones():
    found = rates(
        shape="multistep", milestones=(0.5, 0.75), factor=0.1, warmup=0.1, warmup_start=0.0, progress="fixed",
        peak=1.0, at=(50, 100, 499, 500, 749, 750, 1000),
    )  # fmt: skip
    assert found == pytest.approx([0.5, 1.0, 1.0, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shape": "multistep"}, "multistep has some, no other has"),
        ({"milestones": (0.5,)}, "multistep has some, no other has"),
        ({"shape": "multistep", "milestones": (0.5, 0.5)}, "milestones must ascend"),
    ],
)
def test_milestones_belong_to_multistep(settings, message):
    with pytest.raises(ValueError, match=message):
        ScheduleSettings(**settings)


def test_what_modules_exempt_from_weight_decay_does_not_decay():
    experiment = mmmask.load_experiment("simmim/vit_base", ["model.encoder.size=tiny", "model.encoder.depth=1"])
    model = mmmask.build_model(experiment)
    _, kept = parameter_groups(model, AdamW.Config(name="adamw"))
    exempt = {id(parameter) for parameter in kept["params"]}
    names = {name.rpartition(".")[2] for name, parameter in model.named_parameters() if id(parameter) in exempt}
    assert names == {"q_bias", "v_bias", "bias", "weight", "mask_token", "table"}
    assert id(model.encoder.blocks[0].scale1.weight) in exempt
    assert id(model.encoder.blocks[0].mlp.fc1.weight) not in exempt
    assert id(model.encoder.prefix_tokens) not in exempt
