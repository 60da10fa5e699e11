"""Teachers: whose latents are targets, how they follow the model's encoder, what they are told apart by."""

import json

import pytest
import torch
from torch.nn import functional as F

import mmmask
from mmmask.experiment import experiment_from_data
from mmmask.experiment.settings import TrainingSettings
from mmmask.hooks import RunState
from mmmask.interfaces import EncoderInput, Part, nothing_masked
from mmmask.interop import InteropError, load, save, with_teacher
from mmmask.interop.runs import RunFolder
from mmmask.interop.teaching import teach
from mmmask.training.logs import TargetWatch, append_jsonl
from mmmask.training.optimizer import parameter_groups


def data_of(signals, teacher="ema", **loss):
    data = signals.signal_data()
    data["model"]["teacher"] = teacher
    for stream in data["streams"].values():
        stream["loss"] = {"name": "latents", "stages": 2, **loss}
    return data


@pytest.fixture
def build(signals):
    def build(teacher="ema", change=lambda data: None, **loss):
        data = data_of(signals, teacher, **loss)
        change(data)
        return mmmask.build_model(with_teacher(experiment_from_data(data)))

    return build


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    sizes = {"long": 64, "short": 32}
    return {
        name: torch.randint(256, (4, 2, size), generator=generator, dtype=torch.uint8) for name, size in sizes.items()
    }


def same(module, other):
    mine, others = module.state_dict(), other.state_dict()
    return mine.keys() == others.keys() and all(torch.equal(mine[key], others[key]) for key in mine)


def test_a_moving_average_begins_as_the_encoder_and_never_trains(build, batch):
    model = build()
    assert same(model.teacher.encoder, model.encoder)
    assert model.training
    assert not any(part.training for part in model.teacher.modules())
    model(batch).loss.backward()
    assert all(part.grad is None and not part.requires_grad for part in model.teacher.parameters())
    assert all(part.grad is not None for part in model.encoder.parameters())
    groups = parameter_groups(model, TrainingSettings(steps=1).optimizer)
    trained = {id(part) for group in groups for part in group["params"]}
    assert not trained & {id(part) for part in model.teacher.parameters()}


def test_it_follows_by_its_decay(build):
    model = build({"from": "ema", "decay": 0.5, "end_decay": 0.9, "over": 4})
    assert [round(model.teacher.decay(step), 6) for step in (0, 2, 4, 9)] == [0.5, 0.7, 0.9, 0.9]
    before = [part.clone() for part in model.teacher.encoder.parameters()]
    with torch.no_grad():
        for part in model.encoder.parameters():
            part.add_(1.0)
    model.after_step(2)
    for part, old, new in zip(model.teacher.encoder.parameters(), before, model.encoder.parameters(), strict=True):
        torch.testing.assert_close(part, 0.7 * old + 0.3 * new)


def test_targets_are_its_latents_of_whole_samples(build, batch):
    model = build(normalize_target=True, error="squared")
    with torch.no_grad():  # so that teacher and encoder differ
        for part in model.teacher.encoder.parameters():
            part.mul_(1.3)
    seen = []
    model.teacher.encoder.register_forward_hook(
        lambda _, given, __: seen.append([len(part.mask.visible[0]) for part in given[0]])
    )
    plans = model.plan(batch)
    output = model(plans=plans)
    assert seen == [[16], [8]], "once for each stream, all tokens"
    tokens, mask = plans["masked"].tokens["long"], plans["masked"].masks["long"]
    shown = EncoderInput((Part("signal_4", tokens),), nothing_masked(4, tokens.grid, tokens.content.device))
    with torch.no_grad():
        (latents,) = model.teacher.encoder([shown], (0, 1))
    normed = [F.layer_norm(part, (24,)) for part in latents.stages]
    target = F.layer_norm(torch.stack(normed).mean(0), (24,)).gather(1, mask.predicted.unsqueeze(-1).expand(-1, -1, 24))
    predictions = output.streams["long"].predictions
    assert predictions.shape == target.shape == (4, 12, 24)
    torch.testing.assert_close(output.streams["long"].sum, (predictions - target).square().mean(-1).sum())
    (std,) = (value for key, value in model.objectives["masked"].metrics().items() if key == "target_std/long")
    assert std == pytest.approx(float(target.flatten(0, 1).std(0, correction=0).mean()), rel=1e-5)


def test_normalisations_and_errors(build, batch):
    losses = {
        (normalize, error): build(normalize=normalize, error=error, stages=1, normalize_target=False)(batch).loss.item()
        for normalize in ("layer", "instance", "none")
        for error in ("smooth_l1", "squared", "cosine")
    }
    assert len(set(losses.values())) == len(losses)
    assert all(value > 0 for value in losses.values())


@pytest.mark.parametrize(
    ("teacher", "loss", "said"),
    [
        (None, {}, "streams.long.loss: 'latents' is of a teacher's latents, and there is no teacher: set"),
        ("ema", {"stages": 3}, "the last 3 stages of a teacher of 2: set stages to 2"),
        ({"from": "ema", "format": "mmmask"}, {}, "ema is the model's own encoder"),
        ("nowhere/at_all.safetensors", {}, "model.teacher: nowhere/at_all.safetensors"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(build, teacher, loss, said):
    with pytest.raises(mmmask.MmmaskError, match=said):
        build(teacher, **loss)


# dynamo looks at `.grad` of the inputs it traces; they are no leaves here
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning")
def test_it_compiles(build, batch):
    model, plain = build(), build()
    model.compile(backend="eager")
    torch.testing.assert_close(model(batch).loss, plain(batch).loss)


@pytest.fixture
def weights(signals, tmp_path):
    """File of another encoder: wider, deeper, normalised in another way, under another embedding's name."""
    data = signals.signal_data()
    data["model"]["encoder"] = {"name": "vit", "width": 32, "depth": 3, "num_heads": 4, "prefix_tokens": 1}
    model = mmmask.build_model(experiment_from_data(data))
    save(model, tmp_path / "other.safetensors")
    return tmp_path / "other.safetensors", model


def test_frozen_weights_of_another_encoder(build, batch, weights):
    path, other = weights
    model = build(str(path))
    experiment = with_teacher(experiment_from_data(model_data(model, path)))
    teach(model, experiment)
    assert same(model.teacher.encoder, other.encoder)
    assert model.encoder.width == 24
    assert model(batch).streams["short"].predictions.shape[-1] == 32
    model.after_step(0)
    assert same(model.teacher.encoder, other.encoder)


def model_data(model, path):
    settings = model.plain_settings()
    return {"model": {**settings["model"], "teacher": str(path)}, "streams": settings["streams"]}


def test_student_weights_do_not_depend_on_the_teacher(build, weights):
    one, other = build(), build(str(weights[0]))
    assert same(one.encoder, other.encoder)


def test_tokens_it_does_not_know(build, weights):
    def patch(data):
        data["streams"]["long"]["modality"]["patch"] = 8

    with pytest.raises(mmmask.MmmaskError, match=r"streams.long: model.teacher: its tokens \(8 x 2\) are none of the"):
        build(str(weights[0]), patch)

    def length(data):
        data["streams"]["long"]["modality"]["length"] = 48

    with pytest.raises(mmmask.MmmaskError, match="a grid of 12 tokens, and the teacher was built for 16 or 8"):
        build(str(weights[0]), length)


def test_a_model_with_a_teacher_is_written_and_read_whole(build, batch, weights, tmp_path):
    model = build(str(weights[0])).eval()
    save(model, tmp_path / "model.safetensors")
    weights[0].unlink()
    again = load(tmp_path / "model.safetensors").eval()
    assert same(model, again)
    assert torch.equal(model(batch).loss, again(batch).loss)


@pytest.fixture
def aligned(signals):
    """Experiment of one stream of two aligned parts, both predicted."""

    def aligned(teacher):
        data = signals.signal_data()
        del data["model"]["decoder"]
        data["model"] |= {"decoder": {"name": "cross_attention", "width": 16, "depth": 1, "num_heads": 2}}
        data["model"]["teacher"] = teacher
        loss = {"name": "latents", "stages": 2}
        parts = {"a": {"name": "signal", "length": 64}, "b": {"name": "signal", "length": 64, "patch": 8}}
        masker = {"name": "random", "mask_ratio": 0.5}
        data["streams"] = {
            "pair": {
                "modalities": parts, "maskers": {"a": masker, "b": masker},
                "targets": {name: {"loss": loss, "head": name} for name in parts},
            }
        }  # fmt: skip
        return with_teacher(experiment_from_data(data))

    return aligned


@pytest.fixture
def pairs():
    generator = torch.Generator().manual_seed(0)
    parts = {name: torch.randint(256, (4, 2, 64), generator=generator, dtype=torch.uint8) for name in "ab"}
    return {"pair": mmmask.Batch(parts)}


def test_a_moving_average_sees_all_parts_of_a_sample_once(aligned, pairs):
    model, seen = mmmask.build_model(aligned("ema")), []
    model.teacher.encoder.register_forward_hook(
        lambda _, given, out: seen.append(([part.key for part in given[0][0].parts], out[0]))
    )
    plans = model.plan(pairs)
    output = model(plans=plans)
    ((keys, latents),) = seen
    assert keys == ["signal_4", "signal_8"]
    assert latents.values.shape[1] == 16 + 8
    second = output.streams["pair/b"]
    told = torch.stack([F.layer_norm(part[:, 16:], (24,)) for part in latents.stages]).mean(0)
    expected = F.layer_norm(told, (24,)).gather(1, second.mask.predicted.unsqueeze(-1).expand(-1, -1, 24))
    error = F.smooth_l1_loss(second.predictions, expected, reduction="none", beta=2.0).mean(-1)
    torch.testing.assert_close(second.sum, error.sum())


def test_another_encoder_sees_the_predicted_part_alone(aligned, pairs, weights, signals, tmp_path):
    data = signals.signal_data()
    for stream, patch in (("long", 4), ("short", 8)):
        data["streams"][stream]["modality"] = {"name": "signal", "length": 64, "patch": patch}
    save(mmmask.build_model(experiment_from_data(data)), tmp_path / "known.safetensors")
    model, seen = mmmask.build_model(aligned(str(tmp_path / "known.safetensors"))), []
    model.teacher.encoder.register_forward_hook(
        lambda _, given, __: seen.append([part.key for part in given[0][0].parts])
    )
    assert model(pairs).loss.isfinite()
    assert seen == [["signal_4"], ["signal_8"]]
    with pytest.raises(mmmask.MmmaskError, match=r"streams.pair: model.teacher: its tokens \(8 x 2\) are none"):
        mmmask.build_model(aligned(str(weights[0])))


def test_unread_weights_are_named(signals):
    with pytest.raises(mmmask.MmmaskError, match="model.teacher: some/file has not been read: build the model of"):
        mmmask.build_model(experiment_from_data(data_of(signals, "some/file")))


def test_options_that_no_format_has(signals):
    teacher = {"from": "some/file", "options": {"strict": False}}
    with pytest.raises(InteropError, match="model.teacher: strict is no option of a format"):
        with_teacher(experiment_from_data(data_of(signals, teacher)))


def test_collapse_is_named_once(tmp_path):
    folder, run = RunFolder(tmp_path), RunState(None, tmp_path, None, 9)  # pyright: ignore[reportArgumentType]
    watch = TargetWatch(folder)
    for step, std in enumerate((0.5, 0.3, 0.004)):
        metrics = {"step": step, "target_std/long": std}
        append_jsonl(folder.metrics, metrics)
        if std < 0.005:
            with pytest.warns(UserWarning, match="streams.long: the teacher's targets collapse: at step .* 0.004, and"):
                watch.step_ended(run, metrics)
        watch.step_ended(run, metrics)
    assert json.loads(folder.metrics.read_text().splitlines()[0])["target_std/long"] == 0.5
