"""Several objectives of one stream, and the objective `contrastive` between aligned parts."""

import json
import math

import pytest
import torch

import mmmask
from mmmask.experiment import ExperimentError, experiment_from_data
from mmmask.interfaces import Batch

LOSS = {"name": "pixels", "normalize": "none"}
SMALL = {"hidden_dim": 24, "output_dim": 8}


def parts_of(signals, objectives, **changes):
    """Two readings of one signal, at 16 and at 8 tokens."""
    data = signals.signal_data()
    stream = {
        "modalities": {"fine": {"name": "signal", "patch": 4}, "coarse": {"name": "signal", "patch": 8}},
        "source": {"name": "waves"},
        "held_out": {"name": "waves", "count": 5},
        "objectives": objectives,
        "batch_size": 8,
    }
    return data | {"streams": {"scene": stream | changes}}


MASKED = {
    "masker": {"name": "budget", "mask_ratio": 0.75},
    "targets": {"fine": {"loss": LOSS}, "coarse": {"loss": LOSS}},
}


def samples(count=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(0, 256, (count, 2, 64), generator=generator, dtype=torch.uint8)
    return {"scene": Batch({"fine": rows, "coarse": rows.flip(2)}, {}, torch.arange(count))}


def build(data):
    return mmmask.build_model(experiment_from_data(data))


def test_the_loss_is_the_weighted_sum_and_each_is_as_alone(signals):
    both = build(parts_of(signals, {"masked": MASKED, "contrastive": SMALL | {"weight": 0.1}}))
    output = both(samples())
    assert list(output.streams) == ["scene/fine", "scene/coarse", "scene/contrastive"]
    expected = sum(output.streams[name].loss * weight for name, weight in both.weights.items())
    assert list(both.weights.values()) == [1, 1, 0.1]
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    assert [name for name, value in both.named_parameters() if value.grad is None] == []

    for objective, settings in {"masked": MASKED, "contrastive": SMALL}.items():
        data = parts_of(signals, None, objective=objective, **settings)
        alone = build(data)
        alone.load_state_dict({key: both.state_dict()[key] for key in alone.state_dict()})
        for name, own in alone(samples()).streams.items():
            name = "scene/contrastive" if objective == "contrastive" else name
            torch.testing.assert_close(own.loss, output.streams[name].loss)


def test_the_loss_between_parts_against_a_loop(signals):
    model = build(parts_of(signals, None, objective="contrastive", temperature=0.3, **SMALL))
    batch = samples(4)["scene"]
    batch = Batch(batch.parts, {}, torch.tensor([5, 5, 8, 9]))  # two views of a sample have two right answers
    output = model({"scene": batch}).streams["scene"]
    assert output.predictions.shape == (4, 2, 8)
    total, number = 0.0, batch.index.tolist()
    for one, other in ((0, 1), (1, 0)):
        cosines = output.predictions[:, one] @ output.predictions[:, other].mT
        for row, values in enumerate((cosines / 0.3).tolist()):
            whole = math.log(sum(math.exp(value) for value in values))
            right = [value for value, index in zip(values, number, strict=True) if index == number[row]]
            total -= sum(value - whole for value in right) / len(right)
    assert output.sum.item() == pytest.approx(total, rel=1e-4)
    assert output.count == 8
    assert model.features({"scene": batch})["scene"].shape == (4, 24)
    assert model.features({"scene/fine": batch.parts["fine"]})["scene/fine"].shape == (4, 24)


def test_a_view_masker_shows_the_encoder_less(signals):
    whole = {"name": "random", "mask_ratio": 0.75}
    model = build(parts_of(signals, None, objective="contrastive", view_masker=whole, **SMALL))
    inputs = model.plan(samples())["contrastive"].inputs
    assert {name: shown.mask.visible.shape[1] for name, shown in inputs.items()} == {"scene/fine": 4, "scene/coarse": 2}
    assert model(samples()).loss.isfinite()
    learned = whole | {"name": "learned"}
    with pytest.raises(ExperimentError, match="streams.scene.view_masker: 'learned' has weights"):
        build(parts_of(signals, None, objective="contrastive", view_masker=learned, **SMALL))


def test_a_sample_that_lacks_a_part_is_compared_with_none(signals):
    masker = {"name": "random", "mask_ratio": 0.5}
    for settings in ({}, {"view_masker": masker}):
        model = build(parts_of(signals, None, objective="contrastive", missing="mask", **settings, **SMALL))
        parts = samples()["scene"].parts
        there = {"coarse": torch.tensor([True, True, True, False])}
        output = model({"scene": Batch(parts, {}, torch.arange(4), present=there)}).streams["scene"]
        assert float(output.count) == 6
        three = model({"scene": Batch({name: part[:3] for name, part in parts.items()}, {}, torch.arange(3))})
        # the part that is there is still one of those that the others are told from
        assert output.sum > three.streams["scene"].sum
        shown = parts["coarse"].clone()
        shown[3] = 0
        changed = model({"scene": Batch(parts | {"coarse": shown}, {}, torch.arange(4), present=there)})
        torch.testing.assert_close(changed.streams["scene"].sum, output.sum)
        output.loss.backward()
        assert all(value.grad.isfinite().all() for value in model.parameters() if value.grad is not None)


@pytest.mark.parametrize(
    ("objectives", "changes", "problem"),
    [
        ({"masked": MASKED}, {}, "streams.scene.objectives: expected two or more"),
        (
            {"masked": MASKED, "contrastive": {}},
            {"objective": "masked"},
            "streams.scene.objectives: objective and objectives: one of the two",
        ),
        ({"masked": MASKED, "contrastives": {}}, {}, "streams.scene.objectives: .*Did you mean 'contrastive'"),
        (
            {"masked": MASKED, "contrastive": {"temprature": 0.1}},
            {},
            "streams.scene.objectives.contrastive.temprature: unknown key. Did you mean 'temperature'",
        ),
        ({"masked": {}, "contrastive": {}}, {}, "streams.scene.objectives.masked.masker: required"),
        ({"masked": MASKED, "contrastive": {}}, {"masker": {"name": "random"}}, "streams.scene.masker: unknown key"),
    ],
)
def test_problems_are_told_where_they_are(signals, objectives, changes, problem):
    with pytest.raises(ExperimentError, match=problem):
        build(parts_of(signals, objectives, **changes))


def test_null_takes_back_what_another_objective_was_given(signals):
    data = signals.signal_data()
    data["streams"]["long"] |= {"objective": "contrastive", "replicate": 2, "masker": None, "loss": None} | SMALL
    assert list(build(data).weights) == ["long", "short"]
    data["streams"]["long"]["masker"] = {"name": "random"}
    with pytest.raises(ExperimentError, match="streams.long.masker: unknown key"):
        build(data)


def test_two_losses_of_one_name_are_refused(signals):
    named = MASKED | {"targets": {"contrastive": {"part": "fine", "loss": LOSS}}}
    with pytest.raises(mmmask.MmmaskError, match="streams.scene.objectives: two losses are called 'scene/contrastive'"):
        build(parts_of(signals, {"masked": named, "contrastive": SMALL}))


def test_a_run_of_both_is_evaluated_drawn_and_opened_again(signals, tmp_path):
    data = parts_of(signals, {"contrastive": SMALL | {"weight": 0.1}, "masked": MASKED})
    data["training"] |= {"steps": 3}
    run = mmmask.train(experiment_from_data(data), tmp_path / "run")
    (first, *_, last) = map(json.loads, (tmp_path / "run" / "evaluations.jsonl").read_text().splitlines())
    assert (
        first.keys()
        == last.keys()
        >= {
            "fine/loss",
            "coarse/psnr",
            "effective_rank",
            "fine_to_coarse/recall1",
            "coarse_to_fine/recall5",
        }
    )
    assert last["fine_to_coarse/recall5"] == 1  # of five
    assert run.pictures
    (line, *_) = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert {"loss/scene/fine", "loss/scene/contrastive"} <= line.keys()
    again = mmmask.load_run(tmp_path / "run").model
    torch.testing.assert_close(again(samples()).loss, run.model(samples()).loss)


def test_one_modality_has_several_too(signals):
    data = signals.signal_data()
    stream = {key: data["streams"]["long"][key] for key in ("modality", "source", "held_out", "batch_size")}
    masked = {key: data["streams"]["long"][key] for key in ("masker", "loss")}
    objectives = {"masked": masked, "contrastive": SMALL | {"view_masker": masked["masker"]}}
    data["streams"] = {"long": stream | {"replicate": 2, "objectives": objectives}}
    model = build(data)
    assert list(model.weights) == ["long/masked", "long/contrastive"]
    content = torch.randn(4, 2, 64)
    plans = model.plan({"long": content})
    shown = [plans[name].inputs["long"].mask.masked for name in plans]
    assert not torch.equal(*shown)  # each draws its own
    assert list(model(plans=plans).streams) == ["long/masked", "long/contrastive"]
