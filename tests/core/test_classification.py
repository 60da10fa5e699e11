"""The objective `classification`: targets, mixing, heads, beside masked streams, and over resumes and splits."""

import copy

import pytest
import torch
from torch.nn import functional as F

import mmmask
from mmmask.builtins.objectives.classification.mixing import Mixing, beta_quantile
from mmmask.experiment import experiment_from_data
from mmmask.interfaces import Batch, Tokens, TokenSpec
from mmmask.randomness import sample_noise

CLASSES = {"long": {"label": ("a", "b", "c")}}


def data_of(signals, **settings):
    data = signals.signal_data()
    long = data["streams"]["long"]
    source = {"name": "waves", "labelled": True}
    data["streams"] = {
        "long": {"modality": long["modality"], "batch_size": 8, "objective": "classification", "head_std": 0.5}
        | {"source": source, "held_out": source | {"count": 5}}
        | settings
    }
    return data


def model_of(signals, classes=CLASSES, **settings):
    return mmmask.build_model(experiment_from_data(data_of(signals, **settings)), classes)


def batch_of(labels, rows=None):
    generator = torch.Generator().manual_seed(0)
    rows = len(labels["label"]) if rows is None else rows
    content = torch.randint(256, (rows, 2, 64), generator=generator, dtype=torch.uint8)
    return {"long": Batch({"long": content}, {key: torch.as_tensor(value) for key, value in labels.items()})}


def test_the_loss_is_cross_entropy_with_smoothing_and_class_weights(signals):
    model = model_of(signals, label_smoothing=0.1, class_weights={"b": 3.0}).eval()
    batch = batch_of({"label": [0, 1, 2, 1]})
    output = model(batch).streams["long"]
    expected = F.cross_entropy(
        output.predictions,
        batch["long"].labels["label"],
        weight=torch.tensor([1.0, 3.0, 1.0]),
        label_smoothing=0.1,
        reduction="sum",
    )
    torch.testing.assert_close(output.sum, expected)
    assert output.count == 4
    probabilities = model.objective("long").probabilities("long", output.predictions)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(4))


def test_soft_targets_of_smoothing(signals):
    model = model_of(signals, label_smoothing=0.3).eval()
    plan = model.plan(batch_of({"label": [2, 0]}))["classification"]
    expected = torch.tensor([[0.1, 0.1, 0.8], [0.8, 0.1, 0.1]])
    torch.testing.assert_close(plan.targets["long"]["label"].classes, expected)


def test_unlabelled_samples_do_not_count(signals):
    model = model_of(signals, unlabelled=True).eval()
    some = model(batch_of({"label": [0, -1, 2, -1]})).streams["long"]
    assert some.count == 2
    expected = F.cross_entropy(some.predictions[[0, 2]], torch.tensor([0, 2]))
    torch.testing.assert_close(some.loss, expected)
    none = model({"long": batch_of({"label": [0, 1]})["long"].content})
    assert none.loss == 0
    assert none.streams["long"].predictions.shape == (2, 3)


def test_sigmoids_with_several_classes_a_sample(signals):
    model = model_of(signals, activation="sigmoid").eval()
    target = torch.tensor([[1.0, 0, 1], [0, 0, 0]])
    output = model(batch_of({"label": target})).streams["long"]
    expected = F.binary_cross_entropy_with_logits(output.predictions, target, reduction="none").mean(1).sum()
    torch.testing.assert_close(output.sum, expected)


def test_two_label_sets_have_a_layer_each(signals):
    classes = {"long": {"noun": ("cup", "pan"), "verb": ("cut", "open", "put")}}
    model = model_of(signals, classes).eval()
    output = model(batch_of({"noun": [0, 1], "verb": [2, -1]}, rows=2)).streams["long"]
    noun, verb = output.predictions.split([2, 3], dim=1)
    expected = F.cross_entropy(noun, torch.tensor([0, 1]), reduction="sum") + F.cross_entropy(
        verb[:1], torch.tensor([2])
    )
    torch.testing.assert_close(output.sum, expected)
    (only,) = model_of(signals, classes, label_sets=["verb"]).objective("long").classes.values()
    assert only == {"verb": ("cut", "open", "put")}


@pytest.mark.parametrize(
    ("settings", "classes", "problem"),
    [
        ({}, {}, "streams.long.source: the objective classification needs labels"),
        ({"label_sets": ["verb"]}, CLASSES, "streams.long.label_sets: 'verb' is none of the source's: label"),
        ({"class_weights": {"d": 1.0}}, CLASSES, "streams.long.class_weights: 'd' is no class"),
        ({"pool": "prefix"}, CLASSES, "pool: there is no prefix token"),
    ],
)
def test_mistakes(signals, settings, classes, problem):
    with pytest.raises(mmmask.MmmaskError, match=problem):
        model_of(signals, classes, **settings)(batch_of({"label": [0, 1]}))


def test_streams_share_a_head_or_have_their_own(signals):
    data = data_of(signals)
    streams = data["streams"]
    streams["other"] = copy.deepcopy(streams["long"])
    classes = CLASSES | {"other": CLASSES["long"]}
    model = mmmask.build_model(experiment_from_data(data), classes)
    assert set(model.objective("long").heads) == {"long", "other"}
    streams["long"]["head"] = streams["other"]["head"] = "both"
    model = mmmask.build_model(experiment_from_data(data), classes)
    assert set(model.objective("long").heads) == {"both"}
    with pytest.raises(mmmask.MmmaskError, match="streams.other.head: 'both' belongs to 'long'"):
        mmmask.build_model(experiment_from_data(data), classes | {"other": {"label": ("x", "y")}})


@pytest.mark.parametrize("pool", ["mean", "first", "attentive"])
@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
def test_every_parameter_learns(signals, pool, norm):
    model = model_of(signals, pool=pool, norm=norm, dropout=0.2)
    model(batch_of({"label": [0, 1, 2, 1]})).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def tokens_of(rows=64, grid=(2, 8, 8)):
    spec = TokenSpec((2, 4, 4), 3)
    content = torch.arange(rows).view(-1, 1, 1).float().expand(rows, 128, spec.content_dim)
    return Tokens(content, grid, spec, normalized=True)


def test_mixup_follows_its_weight():
    tokens = tokens_of()
    (mixed,), own = Mixing(0.8, 0, 1.0, 0.5)(
        [tokens], sample_noise(0, 0, 64, torch.device("cpu")), torch.ones(64).bool()
    )
    partner = torch.arange(64).view(-1, 2).flip(1).flatten()
    torch.testing.assert_close(mixed.content[:, 0, 0], own * torch.arange(64) + (1 - own) * partner)
    assert torch.equal(own[::2], own[1::2])
    assert len(own.unique()) == 32


def test_a_sample_is_not_mixed_with_another_crop_of_itself():
    tokens, labelled = tokens_of(), torch.ones(64).bool()
    labelled[5] = False
    (mixed,), own = Mixing(0.8, 0, 1.0, 0.5, replicate=2)(
        [tokens], sample_noise(0, 0, 64, torch.device("cpu")), labelled
    )
    partner = torch.arange(64).view(-1, 2, 2).flip(1).flatten()
    torch.testing.assert_close(mixed.content[:, 0, 0], own * torch.arange(64) + (1 - own) * partner)
    assert torch.equal(own, own[partner])
    assert own.unique().numel() == 32  # 31 pairs, and the one that lacks a label
    assert own[5] == own[7] == 1 != own[4]


def test_cutmix_is_a_box_over_all_frames_and_its_area_is_the_weight():
    tokens = tokens_of()
    (mixed,), own = Mixing(0, 1.0, 1.0, 0.5)(
        [tokens], sample_noise(0, 0, 64, torch.device("cpu")), torch.ones(64).bool()
    )
    dense = mixed.dense()  # (rows, channels, frames, height, width)
    foreign = dense != torch.arange(64).view(-1, 1, 1, 1, 1)
    assert torch.equal(foreign[:, :1, :1].expand_as(foreign), foreign)
    for row in foreign[:, 0, 0]:
        rows, columns = row.any(1), row.any(0)
        assert torch.equal(row, rows[:, None] & columns)  # a box
    torch.testing.assert_close(1 - foreign[:, 0, 0].float().mean((1, 2)), own)
    assert 0.2 < own.mean() < 0.9


def test_pairs_without_a_label_stay_and_probabilities_are_kept():
    labelled = torch.ones(4000).bool()
    labelled[::5] = False
    tokens = tokens_of(4000, (1, 1, 1))
    tokens = Tokens(tokens.content[:, :1], (1, 1, 1), tokens.spec, normalized=True)
    (mixed,), own = Mixing(0.8, 1.0, 0.6, 0.25)([tokens], sample_noise(1, 0, 4000, torch.device("cpu")), labelled)
    both = labelled.view(-1, 2).all(1).repeat_interleave(2)
    assert torch.equal(own[~both], torch.ones_like(own[~both]))
    values = mixed.content[both][:, 0]
    cut = (values.unique(dim=1).shape[1] > 1) and (values != values[:, :1]).any(1)
    changed = (values[:, 0] != torch.arange(4000)[both]) | cut
    assert abs(changed.float().mean() - 0.6) < 0.06


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 3.0])
def test_quantiles_of_beta(alpha):
    uniform = (torch.arange(20_000) + 0.5) / 20_000
    found = beta_quantile(uniform, alpha)
    assert (found.diff() >= 0).all()
    torch.testing.assert_close(found.mean(), torch.tensor(0.5), atol=1e-3, rtol=0)
    torch.testing.assert_close(found.var(), torch.tensor(1 / (4 * (2 * alpha + 1))), atol=2e-3, rtol=0)


def test_mixing_does_not_depend_on_how_a_batch_is_cut(signals):
    model = model_of(signals, mixup=0.8, cutmix=1.0)
    batch = batch_of({"label": [0, 1, 2, 1, 0, 2]})["long"]
    whole = model.plan({"long": batch}, step=3)["classification"]
    parts = []
    for rows in (slice(0, 2), slice(2, 6)):
        part = batch.map(lambda tensor, rows=rows: tensor[rows])
        parts.append(model.plan({"long": part}, step=3, shard={"long": (rows.start, 6)})["classification"])
    content = [part.inputs["long"].part.tokens.content for part in parts]
    assert torch.equal(torch.cat(content), whole.inputs["long"].part.tokens.content)
    targets = [part.targets["long"]["label"].classes for part in parts]
    assert torch.equal(torch.cat(targets), whole.targets["long"]["label"].classes)
    with pytest.raises(mmmask.MmmaskError, match=r"streams.long: mixing needs pairs"):
        model({"long": batch.map(lambda tensor: tensor[:3])})


def test_masked_and_classification_streams_train_together(signals, tmp_path):
    data = data_of(signals, mixup=0.8)
    data["streams"]["short"] = signals.signal_data()["streams"]["short"]
    run = mmmask.train(experiment_from_data(data), tmp_path / "run", device="cpu")
    assert run.outcome == "finished"
    assert {"loss/long", "loss/short"} <= run.metrics[-1].keys()
    assert run.model.objective("long").classes == CLASSES
    logits = run.model({"long": batch_of({"label": [0, 1]})["long"].content}).streams["long"].predictions
    assert logits.shape == (2, 3)


def test_it_learns(signals, tmp_path):
    data = data_of(signals, mixup=0.0, head_std=0.01)
    data["training"] |= {"steps": 150, "optimizer": {"learning_rate": 3e-3, "weight_decay": 0.0}}
    run = mmmask.train(experiment_from_data(data), tmp_path / "run", device="cpu")
    assert run.metrics[0]["loss"] > 0.9
    last = [line["loss"] for line in run.metrics[-20:]]  # of few samples each, so that one says little
    assert sum(last) / len(last) < 0.7
