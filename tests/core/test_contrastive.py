"""The objective `contrastive`: InfoNCE between the views of a sample, against loops over views."""

import math

import pytest
import torch

import mmmask
from mmmask.experiment import experiment_from_data
from mmmask.interfaces import Batch


def model_of(signals, **settings):
    data = signals.signal_data()
    stream = {key: data["streams"]["long"][key] for key in ("modality", "source", "batch_size")}
    small = {"objective": "contrastive", "replicate": 2, "hidden_dim": 24, "output_dim": 8}
    data["streams"] = {"long": stream | small | settings}
    del data["model"]["decoder"]
    return mmmask.build_model(experiment_from_data(data))


def batch_of(samples):
    content = torch.randn(len(samples), 2, 64, generator=torch.Generator().manual_seed(0))
    return {"long": Batch({"long": content}, {}, torch.tensor(samples))}


def slowly(views, samples, temperature):
    total = 0.0
    for i, view in enumerate(views):
        others = sum(math.exp(float(view @ other) / temperature) for k, other in enumerate(views) if k != i)
        same = [float(view @ other) for k, other in enumerate(views) if k != i and samples[k] == samples[i]]
        total -= sum(math.log(math.exp(cosine / temperature) / others) for cosine in same) / max(1, len(same))
    return total


@pytest.mark.parametrize(
    ("samples", "temperature"), [([7, 7, 3, 3, 5, 5], 0.5), ([1, 1, 1, 4, 4, 4], 0.1), ([2, 2, 9], 0.2)]
)
def test_the_loss_against_a_loop(signals, samples, temperature):
    model = model_of(signals, temperature=temperature)
    output = model(batch_of(samples)).streams["long"]
    assert output.predictions.shape == (len(samples), 8)
    torch.testing.assert_close(output.predictions.norm(dim=1), torch.ones(len(samples)))
    assert output.sum.item() == pytest.approx(slowly(output.predictions.detach(), samples, temperature), rel=1e-4)
    assert output.count == len(samples)


def test_replicas_stand_side_by_side_where_the_batch_tells_no_samples(signals):
    model = model_of(signals, replicate=3, batch_size=6)
    told = batch_of([0, 0, 0, 1, 1, 1])
    torch.testing.assert_close(model({"long": told["long"].content}).loss, model(told).loss)


def test_a_view_alone_has_no_error_and_a_finite_gradient(signals):
    model = model_of(signals)
    loss = model(batch_of([4])).loss
    assert loss == 0
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


def test_one_view_of_each_sample_is_refused_in_training_alone(signals):
    model = model_of(signals, replicate=1)
    with pytest.raises(mmmask.MmmaskError, match="^streams.long.replicate: 1, and the objective contrastive"):
        model(batch_of([0, 1]))
    model.eval()
    assert model(batch_of([0, 1])).loss == 0
    assert model.features(batch_of([0, 1]))["long"].shape == (2, 24)


def test_the_projection(signals):
    layers = model_of(signals, layers=3).objective("long").projections["long"]
    assert [tuple(layer.weight.shape) for layer in layers if hasattr(layer, "weight")] == [(24, 24), (24, 24), (8, 24)]
    assert len(model_of(signals, layers=1).objective("long").projections["long"]) == 1
