"""Aligned parts of one sample: one attention over all of them, exact masks, targets, shared geometry, missing parts."""

import subprocess
import sys

import pytest
import torch

import mmmask
from mmmask.builtins.maskers.parts import log_gamma_draws
from mmmask.data.streams import sample_loader
from mmmask.evaluation.pictures import pictures_of, reconstruct
from mmmask.experiment import ExperimentError, experiment_from_data
from mmmask.interfaces import BadSample, Batch
from mmmask.randomness import sample_noise
from mmmask_registry import MmmaskError

LOSS = {"name": "pixels", "normalize": "none"}


def scene(decoder="transformer", **changes):
    """Two readings of one signal, at 16 and at 8 tokens."""
    return {
        "modalities": {
            "fine": {"name": "signal", "patch": 4},
            "coarse": {"name": "signal", "patch": 8},
        },
        "source": {"name": "waves"},
        "held_out": {"name": "waves", "count": 5},
        "masker": {"name": "budget", "mask_ratio": 0.75},
        "targets": {"fine": {"loss": LOSS}, "coarse": {"loss": LOSS}},
        "batch_size": 8,
        **changes,
    }


@pytest.fixture(params=["transformer", "cross_attention"])
def data(signals, request):
    found = signals.signal_data()
    found["model"]["decoder"]["name"] = request.param
    found["streams"] = {"scene": scene()}
    return found


def build(data, **changes):
    stream = {key: value for key, value in (data["streams"]["scene"] | changes).items() if value is not None}
    return mmmask.build_model(experiment_from_data(data | {"streams": {"scene": stream}}))


def samples(count=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(0, 256, (count, 2, 64), generator=generator, dtype=torch.uint8)
    return {"scene": {"fine": rows, "coarse": rows.flip(0)}}


def test_a_step_has_an_output_for_every_target(data):
    output = build(data)(samples())
    assert list(output.streams) == ["scene/fine", "scene/coarse"]
    fine, coarse = output.streams.values()
    assert fine.latents.shape == coarse.latents.shape == (3, 6, 24)
    assert (fine.predictions.shape, coarse.predictions.shape) == ((3, 16, 8), (3, 8, 16))
    assert ((~fine.mask.masked).sum(1) + (~coarse.mask.masked).sum(1)).tolist() == [6, 6, 6]
    torch.testing.assert_close(output.loss, fine.loss + coarse.loss)


def test_every_parameter_trains(data):
    model = build(data)
    model(samples()).loss.backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


def test_a_prediction_depends_on_the_visible_tokens_of_all_parts_and_on_no_masked_one(data):
    model, batch = build(data).eval(), samples()
    fine = torch.ones(3, 16, dtype=torch.bool)
    masks = {"scene": {"fine": fine, "coarse": torch.arange(8).expand(3, -1) > 2}}
    before = model(batch, masks).streams["scene/fine"].predictions

    def changed(part, place):
        other = samples()
        other["scene"][part] = other["scene"][part].clone()
        other["scene"][part][..., place] += 100
        return model(other, masks).streams["scene/fine"].predictions

    assert torch.equal(changed("fine", 0), before)
    assert torch.equal(changed("coarse", 63), before)
    assert not torch.equal(changed("coarse", 0), before)


def test_maskers_of_parts_mask_exact_numbers_in_each(data):
    maskers = {"fine": {"name": "random", "mask_ratio": 1.0}, "coarse": {"name": "random", "mask_ratio": 0.0}}
    model = build(data, masker=None, maskers=maskers, targets={"fine": {"loss": LOSS}})
    output = model(samples())
    assert list(output.streams) == ["scene/fine"]
    assert output.streams["scene/fine"].mask.masked.all()
    assert output.streams["scene/fine"].latents.shape[1] == 8
    maskers["coarse"]["mask_ratio"] = 0.5
    assert build(data, masker=None, maskers=maskers)(samples()).streams["scene/coarse"].predictions.shape[1] == 4


def test_nothing_visible_is_refused(data):
    whole = {"name": "random", "mask_ratio": 1.0}
    model = build(data, masker=None, maskers={"fine": whole, "coarse": whole})
    with pytest.raises(MmmaskError, match=r"streams\.scene\.maskers: the maskers of all parts mask everything"):
        model(samples())


def test_two_targets_of_one_part_and_their_weights(data):
    targets = {
        "fine": {"loss": LOSS, "weight": 2.0},
        "other": {"part": "fine", "loss": LOSS | {"normalize": "token"}, "head": "other", "weight": 0.5},
    }
    output = build(data, targets=targets)(samples())
    fine, other = output.streams["scene/fine"], output.streams["scene/other"]
    torch.testing.assert_close(output.loss, 2 * fine.loss + 0.5 * other.loss)
    assert torch.equal(fine.mask.masked, other.mask.masked)


def test_the_mean_over_samples_of_the_mean_of_each(data):
    model = build(data, targets={"fine": {"loss": LOSS, "average": "samples"}}).eval()
    masked = torch.zeros(2, 24, dtype=torch.bool)
    masked[0, :3], masked[0, 16:18], masked[1, :1], masked[1, 16:20] = True, True, True, True
    fine = model({"scene": {name: part[:2] for name, part in samples()["scene"].items()}}, {"scene": masked}).streams
    (term,) = fine.values()
    target = term.tokens.raw()
    error = (term.predictions - target).square().mean(-1)
    torch.testing.assert_close(term.loss, (error[0, :3].mean() + error[1, :1].mean()) / 2)


def test_a_stream_with_one_part_is_the_stream_as_before(signals):
    data = signals.signal_data()
    plain = mmmask.build_model(experiment_from_data(data))
    assert list(plain.parts) == list(plain.modalities) == ["long", "short"]


def test_parts_share_their_window_and_not_their_noise(data):
    loader = sample_loader(experiment_from_data(data), "scene")
    batch = loader.batch([(0, 1), (1, 1)]).batch
    assert batch.parts.keys() == {"fine", "coarse"}
    assert torch.equal(batch.parts["fine"], batch.parts["coarse"])  # one wave, one window
    assert not torch.equal(batch.parts["fine"][0], batch.parts["fine"][1])  # another epoch, another window


def test_a_missing_part_is_skipped_or_masked_whole(data, monkeypatch):
    from mmmask.components import components

    waves = components().get("source", "waves")
    load = waves.load

    def holed(self, index):
        wave = load(self, index)
        return {"fine": wave, "coarse": None if index == 2 else wave}

    monkeypatch.setattr(waves, "load", holed)
    loader = sample_loader(experiment_from_data(data), "scene")
    with pytest.raises(BadSample, match="has no coarse"):
        loader.plain(2)
    data["streams"]["scene"] |= {"missing": "mask", "masker": {"name": "budget", "mask_ratio": 0.75}}
    experiment = experiment_from_data(data)
    loader = sample_loader(experiment, "scene")
    batch = Batch.of([loader.plain(1), loader.plain(2)])
    assert batch.present["coarse"].tolist() == [True, False]
    output = mmmask.build_model(experiment)({"scene": batch}).streams["scene/coarse"]
    assert output.mask.masked[1].all()
    assert output.mask.counted[1].sum() == 0 < output.mask.counted[0].sum()


def test_shares_are_those_of_a_dirichlet_distribution():
    noise = sample_noise(0, 0, 20_000, torch.device("cpu"))
    for alpha in (0.3, 1.0, 5.0):
        shares = log_gamma_draws(noise, alpha, (20_000, 3)).softmax(1)
        # mean 1/3, variance (1/3)(2/3) / (3 alpha + 1)
        torch.testing.assert_close(shares.mean(0), torch.full((3,), 1 / 3).double(), atol=0.01, rtol=0)
        torch.testing.assert_close(
            shares.var(0), torch.full((3,), 2 / 9 / (3 * alpha + 1)).double(), atol=0.006, rtol=0
        )


def test_fixed_shares(data):
    model = build(data, masker={"name": "budget", "mask_ratio": 0.75, "shares": {"fine": 2, "coarse": 1}})
    output = model(samples())
    assert (~output.streams["scene/fine"].mask.masked).sum(1).tolist() == [4, 4, 4]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"modality": {"name": "signal"}}, "streams.scene.modality: modality and modalities: one of the two"),
        ({"targets": None, "loss": LOSS}, "streams.scene.loss: of several parts; set targets"),
        ({"targets": {"depth": {"loss": LOSS}}}, "streams.scene.targets.depth.part: 'depth' is none of fine, coarse"),
        ({"masker": None, "maskers": {"fine": {"name": "random"}}}, "streams.scene.maskers: one for each"),
        ({"maskers": {"fine": {"name": "random"}}}, "streams.scene.masker: masker and maskers: one of the two"),
        (
            {"modalities": {"a": {"name": "signal"}, "b": {"name": "signal", "length": 32}}},
            "streams.scene.modalities.b.embedding: 'signal_4' is that of another part",
        ),
        ({"objective": "classification", "masker": None, "targets": None}, "streams.scene.source: the objective class"),
    ],
)
def test_mistakes_are_named(data, changes, problem):
    with pytest.raises((ExperimentError, MmmaskError)) as caught:
        build(data, **changes)
    assert str(caught.value).splitlines()[-1].strip().startswith(problem) or problem in str(caught.value)


def test_pictures_of_all_parts_and_of_one_from_the_other(data):
    model = build(data)
    found = reconstruct(model, "scene", Batch(samples()["scene"]))
    assert list(found) == ["scene/fine", "scene/coarse"]
    both = pictures_of(model, "scene", found)
    crossed = reconstruct(model, "scene", Batch(samples()["scene"]), given=["coarse"])
    assert crossed["scene/fine"][1][0].label == "100% masked"
    normalized = build(data, targets={"fine": {"loss": LOSS | {"normalize": "token"}}})
    unseen = reconstruct(normalized, "scene", Batch(samples()["scene"]), given=["coarse"])["scene/fine"][1][0]
    assert unseen.restored.isfinite().all()
    assert unseen.restored.mean() == pytest.approx(0.5, abs=0.3)  # the modality's mean, where nothing of it is seen
    assert pictures_of(model, "scene", crossed).size == both.size


def test_features_of_a_part_alone_and_of_all(data):
    model, batch = build(data).eval(), samples()
    assert model.encode(batch)["scene"].values.shape == (3, 24, 24)
    assert model.encode({"scene/fine": batch["scene"]["fine"]})["scene/fine"].values.shape == (3, 16, 24)
    assert model.features({"scene/coarse": batch["scene"]["coarse"]})["scene/coarse"].shape == (3, 24)


def test_it_trains_evaluates_draws_and_goes_on(data, signals, tmp_path):
    data["training"] |= {"accumulate": 2, "log": {"every": 1, "reconstruct_every": 0, "tensorboard": False}}

    class Stop:
        @mmmask.hookimpl
        def step_ended(self, run, metrics):
            if metrics["step"] == 3:
                raise KeyboardInterrupt

    whole = mmmask.train(experiment_from_data(data), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        mmmask.train(experiment_from_data(data), tmp_path / "cut", plugins=(Stop(),))
    cut = mmmask.train(experiment_from_data(data), tmp_path / "cut")
    states = [mmmask.load_run(tmp_path / name).model.state_dict() for name in ("whole", "cut")]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert len(whole.metrics) == len(cut.metrics) == 6
    drawn = list((tmp_path / "whole" / "reconstructions").glob("scene_step_*.png"))
    assert len(drawn) == 1
    figures = (tmp_path / "whole" / "evaluations.jsonl").read_text()
    assert "fine/loss" in figures


def test_the_command_line_draws_one_part_from_another(data, signals, tmp_path):
    data["training"]["steps"] = 2
    mmmask.train(experiment_from_data(data), tmp_path / "run")
    command = [sys.executable, "-m", "mmmask", "reconstruct", str(tmp_path / "run"), "--split", "held_out"]
    command += [
        "--given",
        "coarse",
        "--predict",
        "fine",
        "-o",
        str(tmp_path / "a.png"),
        "--plugin",
        signals.PLUGIN_FILE,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.png").stat().st_size


def test_missing_parts_are_a_matter_of_several(signals):
    data = signals.signal_data()
    data["streams"]["long"]["missing"] = "mask"
    with pytest.raises(ExperimentError, match="streams.long: missing: mask is for a stream with `modalities`"):
        experiment_from_data(data)
