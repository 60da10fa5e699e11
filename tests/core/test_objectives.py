"""Objectives other than masked modelling: several looks at a sample, beside other objectives, in one encoder call."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

import mmmask
from mmmask.components import components
from mmmask.experiment import experiment_from_data
from mmmask.interfaces import EncoderInput, LossTerm, Mask, Part, Plan


class TwoViews(mmmask.Objective):
    """Matching of the second halves of samples' tokens to their first halves."""

    class Config(mmmask.Objective.Config):
        temperature: float = 0.2

    def __init__(self, streams, context):
        super().__init__(streams, context)
        self.modalities = context.modalities
        self.projection = nn.Linear(context.encoder.width, 8)

    def plan(self, tokens, batches, context):
        inputs, counts = {}, {}
        for name, part in tokens.items():
            rows, size = part.content.shape[:2]
            order = context.noise(name, "halves")((rows, size)).argsort(1)
            for key, half in ((name, order[:, : size // 2]), (f"{name}/other", order[:, size // 2 :])):
                visible, none = half.sort(1).values, half[:, :0]
                masked = torch.ones(rows, size, dtype=torch.bool).scatter(1, visible, False)
                mask = Mask(visible, none, none.float(), masked)
                inputs[key] = EncoderInput((Part(self.modalities[name].embedding, part),), mask)
            counts[name] = float(rows)
        return Plan(tokens, batches, inputs, counts)

    def losses(self, plan, latents):
        terms = {}
        for name in plan.tokens:
            one, other = (
                normalize(self.projection(latents[key].values.mean(1)).float(), dim=1)
                for key in (name, f"{name}/other")
            )
            likeness = one @ other.T / self.streams[name].temperature
            error = cross_entropy(likeness, torch.arange(len(one)), reduction="sum")
            terms[name] = LossTerm(error, plan.counts[name], likeness)
        return terms


@pytest.fixture
def experiment(signals):
    mmmask.register("objective", "two_views", TwoViews)
    data = signals.signal_data()
    long = data["streams"]["long"]
    data["streams"]["long"] = {key: long[key] for key in ("modality", "source", "batch_size")} | {
        "objective": "two_views",
        "temperature": 0.5,
    }
    data["model"]["encoder"]["drop_path"] = 0.5
    yield experiment_from_data(data)
    components().registry("objective").unregister("two_views")


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randint(256, (6, 2, length), generator=generator, dtype=torch.uint8)
        for name, length in (("long", 64), ("short", 32))
    }


def test_looks_at_one_sample_have_noise_of_their_own(experiment, batch):
    model = mmmask.build_model(experiment)
    plans = model.plan(batch)
    assert set(plans) == {"two_views", "masked"}
    first, other = (plans["two_views"].inputs[key].noise.keys for key in ("long", "long/other"))
    assert first.shape == other.shape == (6,)
    assert not torch.equal(first, other)
    assert torch.equal(model.plan(batch)["two_views"].inputs["long/other"].noise.keys, other)
    assert all(part.noise is None for part in model.eval().plan(batch)["two_views"].inputs.values())


def test_two_objectives_share_a_step(experiment, batch):
    model = mmmask.build_model(experiment)
    output = model(batch)
    assert output.streams["long"].predictions.shape == (6, 6)
    torch.testing.assert_close(output.loss, output.streams["long"].loss + output.streams["short"].loss)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_micro_batches_add_up_to_the_step(experiment, batch):
    model = mmmask.build_model(experiment).eval()
    whole = model.plan(batch)["two_views"]
    parts = [
        model.plan({name: part[rows] for name, part in batch.items()}, shard=dict.fromkeys(batch, (rows.start, 6)))
        for rows in (slice(0, 2), slice(2, 6))
    ]
    for key in ("long", "long/other"):
        visible = torch.cat([part["two_views"].inputs[key].mask.visible for part in parts])
        assert torch.equal(visible, whole.inputs[key].mask.visible)


def test_it_trains(experiment, tmp_path):
    run = mmmask.train(experiment, tmp_path / "run", device="cpu")
    assert run.outcome == "finished"
    assert [line["stream"] for line in run.evaluations] == ["short", "short"]
    assert all("loss/long" in line for line in run.metrics)
    assert not any(key.startswith("objectives.two_views.modalities") for key in run.checkpoint["model"])
