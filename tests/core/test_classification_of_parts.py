"""Classes of samples of several parts: one attention, mixing with one partner, evaluation, starting from weights."""

import copy

import pytest
import torch

import mmmask
from mmmask.builtins.objectives.classification.mixing import Mixing
from mmmask.experiment import ExperimentError, experiment_from_data
from mmmask.interfaces import Batch, Tokens, TokenSpec
from mmmask.interop import save, start_from
from mmmask.randomness import sample_noise

CLASSES = {"scene": {"label": ("a", "b", "c")}}
PARTS = {"fine": {"name": "signal", "patch": 4}, "coarse": {"name": "signal", "patch": 8}}
WAVES = {"name": "waves", "labelled": True}


def data_of(signals, **settings):
    data = signals.signal_data(evaluate={"evaluators": [{"name": "knn", "k": 3}]})
    data["streams"] = {
        "scene": {
            "modalities": PARTS,
            "objective": "classification",
            "source": WAVES,
            "held_out": WAVES | {"count": 5},
            "batch_size": 8,
            "head_std": 0.5,
        }
        | settings
    }
    return data


def model_of(signals, **settings):
    return mmmask.build_model(experiment_from_data(data_of(signals, **settings)), CLASSES)


def batch_of(labels=(0, 1, 2, 1)):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(256, (len(labels), 2, 64), generator=generator, dtype=torch.uint8)
    return {"scene": Batch({"fine": rows, "coarse": rows.flip(2)}, {"label": torch.tensor(labels)})}


def masked_data(signals):
    data = data_of(signals)
    loss = {"name": "pixels", "normalize": "none"}
    data["streams"]["scene"] = {
        "modalities": PARTS,
        "source": {"name": "waves"},
        "masker": {"name": "budget", "mask_ratio": 0.75},
        "targets": {"fine": {"loss": loss}, "coarse": {"loss": loss}},
    }
    return data


def test_the_class_depends_on_all_tokens_of_all_parts(signals):
    model = model_of(signals).eval()
    before = model(batch_of()).streams["scene"]
    assert before.latents.shape == (4, 16 + 8, 24)
    torch.testing.assert_close(before.predictions, model.logits({"scene": batch_of()["scene"]})["scene"])
    for part in PARTS:
        other = batch_of()
        other["scene"].parts[part][0, :, -1] += 100
        after = model(other).streams["scene"].predictions
        assert not torch.equal(after[0], before.predictions[0])
        assert torch.equal(after[1:], before.predictions[1:])


def test_every_parameter_of_encoder_and_head_trains(signals):
    model = model_of(signals, mixup=0.8, dropout=0.1)
    model(batch_of()).loss.backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


def test_parts_are_mixed_with_one_partner_by_one_share_and_one_box():
    specs = [TokenSpec((patch, patch), 1) for patch in (4, 2)]
    content = torch.arange(64.0).view(-1, 1, 1)
    parts = [Tokens(content.expand(-1, 16, spec.content_dim), (4, 4), spec, normalized=True) for spec in specs]
    noise, labelled = sample_noise(0, 0, 64, torch.device("cpu")), torch.ones(64).bool()
    (fine, coarse), own = Mixing(0.8, 0, 1.0, 0.5)(parts, noise, labelled)
    assert torch.equal(fine.content[..., :4], coarse.content)
    partner = torch.arange(64).view(-1, 2).flip(1).flatten()
    torch.testing.assert_close(fine.content[:, 0, 0], own * torch.arange(64) + (1 - own) * partner)
    (fine, coarse), own = Mixing(0, 1.0, 1.0, 0.5)(parts, noise, labelled)
    foreign = [part.dense()[:, 0] != content for part in (fine, coarse)]
    assert all(rows.any((1, 2)).float().mean() > 0.5 for rows in foreign)
    for axis in (1, 2):
        sides = [rows.any(axis).sum(1) * scale for rows, scale in zip(foreign, (1, 2), strict=True)]
        assert (sides[0] - sides[1]).abs().max() <= 4  # each end within a pixel of it
    torch.testing.assert_close(1 - sum(rows.float().mean((1, 2)) for rows in foreign) / 2, own)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"cutmix": 1.0}, "streams.scene.cutmix: parts of 16 and 8 tokens have no box in common: set it to 0"),
        ({"missing": "mask"}, "streams.scene.missing: nothing is masked in classification: set skip"),
    ],
)
def test_mistakes(signals, settings, problem):
    with pytest.raises(ExperimentError, match=problem):
        model_of(signals, **settings)


def test_a_run_is_trained_evaluated_probed_and_extracted(signals, tmp_path):
    run = mmmask.train(experiment_from_data(data_of(signals, mixup=0.5)), tmp_path / "run", device="cpu")
    assert {"loss", "top1", "knn_top1"} <= run.evaluations[-1].keys()
    folder = tmp_path / "run"
    found = mmmask.evaluate(folder, views=(1, 2), modality={"fine": {"length": 64}}, batch_size=4)
    assert found.label_sets["label"].probabilities.shape == (5, 3)
    assert found.figures["top1"] == mmmask.evaluate(folder).figures["top1"] == run.evaluations[-1]["top1"]
    with pytest.raises(mmmask.MmmaskError, match="no part is named 'fin'"):
        mmmask.evaluate(folder, modality={"fin": {"length": 64}})
    features = mmmask.extract(folder, split="held_out")
    assert {key: tuple(value.shape) for key, value in features.tensors.items()} == {
        "scene": (5, 24),
        "scene.logits": (5, 3),
    }
    one = mmmask.extract(folder, source=WAVES | {"count": 2}, stream="scene/fine", maps=True).tensors
    assert {key: tuple(value.shape) for key, value in one.items()} == {
        "scene/fine": (2, 24),
        "scene/fine.map0": (2, 24, 16),
    }
    with pytest.raises(mmmask.MmmaskError, match="maps of samples of several parts: name one, stream=scene/fine or"):
        mmmask.extract(folder, split="held_out", maps=True)
    probed = mmmask.probe(folder, kinds=["knn", "attentive"], k=3, epochs=1, cache=tmp_path / "cache", device="cpu")
    assert [row.kind for row in probed.rows] == ["knn", "attentive"]


def test_fine_tuning_starts_from_pretraining_on_the_same_parts_or_on_more(signals, tmp_path):
    before = mmmask.build_model(experiment_from_data(masked_data(signals)))
    save(before, tmp_path / "before.safetensors")
    both = model_of(signals)
    report = start_from(both, tmp_path / "before.safetensors")
    assert {key.split(".")[0] for key in report.missing} == {"objectives"}
    assert all(torch.equal(part, before.encoder.state_dict()[key]) for key, part in both.encoder.state_dict().items())
    data = copy.deepcopy(data_of(signals))
    del data["streams"]["scene"]["modalities"]
    data["streams"] = {"coarse": data["streams"]["scene"] | {"modality": PARTS["coarse"]}}
    alone = mmmask.build_model(experiment_from_data(data), {"coarse": CLASSES["scene"]})
    report = start_from(alone, tmp_path / "before.safetensors")
    assert report.origin["encoder.embeddings.signal_8.weight"] == ("encoder.embeddings.signal_8.weight",)
    rows = batch_of()["scene"].parts["coarse"]
    torch.testing.assert_close(
        alone.encode({"coarse": rows})["coarse"].values, before.encode({"scene/coarse": rows})["scene/coarse"].values
    )


def test_what_a_partner_lacks_stays_where_nothing_is_mixed():
    spec = TokenSpec((4,), 1, gaps=True)
    content = torch.ones(64, 4, 4)
    content[::2, 1] = float("nan")
    tokens = Tokens(content, (4,), spec, normalized=True)
    noise = sample_noise(0, 0, 64, torch.device("cpu"))
    (mixed,), own = Mixing(0.8, 0, 0.5, 0.5)([tokens], noise, torch.ones(64).bool())
    lacks = mixed.content[:, 1].isnan().all(1)
    assert 0 < (own[1::2] < 1).sum() < 32
    assert torch.equal(lacks[1::2], own[1::2] < 1)
    assert lacks[::2].all()
    assert not mixed.content[:, [0, 2, 3]].isnan().any()


def test_beside_masked_of_the_same_samples(signals):
    data = masked_data(signals)
    data["model"]["decoder"] = {"name": "cross_attention", "width": 16, "depth": 1, "num_heads": 2, "latent_stages": 2}
    stream = data["streams"]["scene"]
    masked = {key: stream.pop(key) for key in ("masker", "targets")}
    classify = {"weight": 0.5, "mixup": 0.8, "head_std": 0.5}
    stream |= {"source": WAVES, "objectives": {"masked": masked, "classification": classify}}
    model = mmmask.build_model(experiment_from_data(data), CLASSES)
    output = model(batch_of())
    assert list(output.streams) == ["scene/fine", "scene/coarse", "scene/classification"]
    output.loss.backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []
    assert model.logits({"scene": batch_of()["scene"]})["scene"].shape == (4, 3)
