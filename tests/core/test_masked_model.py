"""The masked model on the signal modality: one forward for all streams, exact and independent of what surrounds it."""

import random

import numpy as np
import pytest
import torch

import mmmask
from mmmask.builtins.losses.pixels import PixelLoss
from mmmask.components import components
from mmmask.experiment import ExperimentError, experiment_from_data
from mmmask.interfaces import Mask
from mmmask.model.masks import MaskError
from mmmask_registry import MmmaskError, UnknownName


@pytest.fixture
def data(signals):
    return signals.signal_data()


def build(data, *overrides):
    return mmmask.build_model(experiment_from_data(data, overrides=overrides))


def samples(long=3, short=2, dtype=torch.uint8, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def batch(size, length):
        raw = torch.randint(0, 256, (size, 2, length), generator=generator, dtype=torch.uint8)
        return raw if dtype == torch.uint8 else (raw.to(dtype) / 255 - 0.5) / 0.25

    return {"long": batch(long, 64), "short": batch(short, 32)}


def close(first, second, **tolerances):
    torch.testing.assert_close(first, second, **({"atol": 2e-6, "rtol": 1e-5} | tolerances))


# shapes and sums


def test_what_a_step_returns(data):
    output = build(data)(samples())
    assert output.loss.shape == ()
    assert list(output.streams) == ["long", "short"]
    long = output.streams["long"]
    assert long.latents.shape == (3, 4, 24)
    assert long.predictions.shape == (3, 12, 8)
    assert long.mask.masked.shape == (3, 16)
    assert long.prefix is None
    assert long.tokens.grid == (16,)


def test_the_loss_is_the_weighted_sum_of_the_streams(data):
    output = build(data, "streams.long.loss_weight=2.0", "streams.short.loss_weight=0.25")(samples())
    parts = {name: part.loss for name, part in output.streams.items()}
    close(output.loss, 2 * parts["long"] + 0.25 * parts["short"])


def test_a_streams_loss_is_the_mean_error_of_masked_tokens(data):
    output = build(data)(samples())
    part = output.streams["long"]
    truth = part.tokens.raw(part.mask.predicted)
    close(part.loss, (part.predictions - truth).square().mean())


def test_dual_masking_counts_masked_predictions_only(data):
    output = build(data, "streams.long.decoder_masker={name: random, mask_ratio: 0.5}")(samples())
    part = output.streams["long"]
    assert part.predictions.shape == (3, 8, 8)
    masked = part.mask.masked.gather(1, part.mask.predicted)
    assert torch.equal(part.mask.counted.bool(), masked)
    assert 0 < masked.sum() < masked.numel()
    errors = (part.predictions - part.tokens.raw(part.mask.predicted)).square().mean(-1)
    close(part.loss, errors[masked].mean())


def test_a_loss_without_a_counted_prediction_is_zero(data):
    model = build(data)
    tokens = samples()["long"]
    index = torch.arange(4).expand(3, -1)
    mask = Mask(index, index, torch.zeros(3, 4), torch.arange(16).expand(3, -1) >= 4)
    loss = model({"long": tokens}, masks={"long": mask}).loss
    assert loss.item() == 0
    loss.backward()


def test_the_reduction_by_hand(data):
    model = build(data)
    content = torch.full((1, 2, 64), 255, dtype=torch.uint8)  # every value is 1
    masked = torch.arange(16).expand(1, -1) > 0
    mask = Mask(torch.tensor([[0]]), torch.tensor([[1, 2, 3]]), torch.tensor([[1.0, 0.0, 1.0]]), masked)
    plan = model.plan({"long": content}, {"long": mask})["masked"]
    prediction = torch.tensor([[3.0, 100.0, 0.0]]).unsqueeze(-1).expand(-1, -1, 8)
    term = model.objective("long").term(plan, "long", prediction)
    assert term.sum.item() == pytest.approx((3 - 1) ** 2 + (0 - 1) ** 2)
    assert term.count == 2


def test_a_share_of_a_count_may_be_below_one(data):
    """Each of two processes divides by half of the step's count."""
    model = build(data)
    plans = model.plan({"long": samples()["long"]})
    term = model(plans=plans).streams["long"].sum
    torch.testing.assert_close(model(plans=plans, counts={"long": 0.5}).streams["long"].loss, term / 0.5)


# streams together and apart


@pytest.mark.parametrize("prefix", [0, 2])
def test_streams_in_one_step_equal_the_streams_alone(data, prefix):
    model = build(data, f"model.encoder.prefix_tokens={prefix}")
    batch = samples()
    together = model(batch, step=3)
    for name in batch:
        alone = model({name: batch[name]}, step=3).streams[name]
        assert torch.equal(alone.mask.masked, together.streams[name].mask.masked)
        close(alone.latents, together.streams[name].latents)
        close(alone.predictions, together.streams[name].predictions)
        close(alone.loss, together.streams[name].loss)


def test_gradients_of_streams_in_one_step_add_up(data):
    model = build(data).double()
    batch = samples(dtype=torch.float64)
    model(batch).loss.backward()
    together = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    for name in batch:
        model({name: batch[name]}).loss.backward()
    for name, parameter in model.named_parameters():
        close(parameter.grad, together[name], atol=1e-12, rtol=1e-9)


def test_the_order_of_streams_does_not_matter(data):
    model = build(data)
    batch = samples()
    first, second = model(batch), model(dict(reversed(batch.items())))
    assert list(second.streams) == ["short", "long"]
    for name in batch:
        close(first.streams[name].predictions, second.streams[name].predictions)
    close(first.loss, second.loss)


def test_a_sample_does_not_see_the_rest_of_its_batch(data):
    model = build(data)
    batch = samples(long=4)["long"]
    masks = torch.zeros(4, 16, dtype=torch.bool)
    masks[:, ::2] = True
    whole = model({"long": batch}, masks={"long": masks}).streams["long"]
    for row in range(4):
        part = model({"long": batch[row : row + 1]}, masks={"long": masks[row : row + 1]}).streams["long"]
        close(part.predictions, whole.predictions[row : row + 1])


def test_predictions_do_not_depend_on_what_is_masked(data):
    model = build(data)
    batch = samples()["long"]
    first = model({"long": batch}).streams["long"]
    masked = first.mask.masked.repeat_interleave(4, dim=1).unsqueeze(1)
    other = torch.where(masked, 255 - batch, batch)
    second = model({"long": other}).streams["long"]
    assert torch.equal(first.predictions, second.predictions)
    assert first.loss != second.loss


def test_encode_hides_nothing(data):
    model = build(data)
    batch = samples()
    found = model.encode(batch)
    assert found["long"].values.shape == (3, 16, 24)
    assert found["short"].values.shape == (2, 8, 24)
    assert found["long"].index is None
    everything = torch.zeros(3, 16, dtype=torch.bool)
    masked = model({"long": batch["long"]}, masks={"long": everything}).streams["long"]
    close(found["long"].values, masked.latents)
    close(model.encode({"short": batch["short"]})["short"].values, found["short"].values)


# decoders and heads


def test_streams_share_a_decoder_and_the_head_of_their_embedding(data):
    model = build(data)
    assert list(model.objectives["masked"].decoders) == ["shared"]
    assert list(model.objectives["masked"].heads) == ["signal_4"]
    assert list(model.encoder.embeddings) == ["signal_4"]


def test_a_stream_may_have_a_decoder_and_a_head_of_its_own(data):
    model = build(data, "streams.short.decoder=short", "streams.short.head=short")
    assert list(model.objectives["masked"].decoders) == ["shared", "short"]
    assert list(model.objectives["masked"].heads) == ["signal_4", "short"]
    model({"short": samples()["short"]}).loss.backward()
    idle = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert idle == {
        name
        for name, _ in model.named_parameters()
        if name.startswith(("objectives.masked.decoders.shared.", "objectives.masked.heads.signal_4."))
    }


def test_a_head_of_another_size_needs_a_name_of_its_own(data):
    data["streams"]["short"]["modality"]["patch"] = 8
    assert list(build(data).objectives["masked"].heads) == ["signal_4", "signal_8"]
    data["streams"]["short"]["head"] = "signal_4"
    with pytest.raises(
        ExperimentError, match="streams.short.head: 'signal_4' predicts 8 numbers for an earlier stream"
    ):
        build(data)


def test_names_that_modules_cannot_have_are_refused_all_at_once(data):
    data["streams"]["long"] |= {"head": "keys", "decoder": "items"}
    data["streams"]["short"] |= {"head": "training"}
    with pytest.raises(ExperimentError) as raised:
        build(data)
    assert raised.value.problems == [
        "streams.long.decoder: a module cannot be called 'items': choose another name",
        "streams.long.head: a module cannot be called 'keys': choose another name",
        "streams.short.head: a module cannot be called 'training': choose another name",
    ]


@pytest.mark.parametrize("name", ["pop", "a.b", ""])
def test_an_embedding_that_no_module_can_be_called(data, signals, monkeypatch, name):
    monkeypatch.setattr(signals.SignalModality, "embedding", name)
    with pytest.raises(ExperimentError, match=f"streams.long.modality.embedding: a module cannot be called '{name}'"):
        build(data)


def test_a_loss_with_weights_is_named_by_its_stream(data):
    class Tokenizer(PixelLoss, torch.nn.Module):
        def __init__(self, config):
            torch.nn.Module.__init__(self)
            self.config = config

    mmmask.register("loss", "tokenizer_of_a_test", Tokenizer)
    data["streams"]["values"] = data["streams"].pop("long")
    data["streams"]["values"]["loss"] = "tokenizer_of_a_test"
    try:
        with pytest.raises(ExperimentError, match="^streams.values: a module cannot be called 'values'"):
            build(data)
    finally:
        components().registry("loss").unregister("tokenizer_of_a_test")


def test_streams_of_other_patch_sizes_have_embeddings_of_their_own(data):
    data["streams"]["short"]["modality"]["patch"] = 8
    model = build(data)
    output = model(samples())
    assert output.streams["short"].predictions.shape == (2, 3, 16)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_modules_stand_in_the_order_of_the_experiment(data):
    data["streams"]["short"]["modality"]["patch"] = 8
    data["streams"] = dict(reversed(data["streams"].items()))
    assert list(build(data).objectives["masked"].heads) == ["signal_8", "signal_4"]


@pytest.mark.parametrize("positions_at", ["latent", "decoder"])
@pytest.mark.parametrize("prefix", ["keep", "drop"])
def test_prefix_tokens(data, positions_at, prefix):
    model = build(
        data,
        "model.encoder.prefix_tokens=3",
        f"model.decoder.prefix={prefix}",
        f"model.decoder.positions_at={positions_at}",
    )
    output = model(samples())
    part = output.streams["long"]
    assert part.prefix.shape == (3, 3, 24)
    assert part.latents.shape == (3, 4, 24)
    assert part.predictions.shape == (3, 12, 8)
    assert model.encode(samples())["short"].prefix.shape == (2, 3, 24)
    before = part.predictions
    model.encoder.prefix_tokens.data.add_(1.0)
    assert not torch.equal(model(samples()).streams["long"].predictions, before)


def test_a_decoder_that_drops_the_prefix_does_not_read_it(data):
    model = build(data, "model.encoder.prefix_tokens=2", "model.decoder.prefix=drop")
    batch = {"long": samples()["long"]}
    plans = model.plan(batch)
    latents, predict = model.latents(plans)["masked"], model.objective("long").predict
    expected = predict(plans["masked"], latents)["long"]
    other = {"long": type(latents["long"])(latents["long"].values, latents["long"].index, torch.ones(3, 2, 24))}
    assert torch.equal(predict(plans["masked"], other)["long"], expected)


def test_the_decoder_never_unshuffles(data):
    """Latents given in another order, with their rows, give the same answers."""
    model = build(data)
    plans = model.plan({"long": samples()["long"]})
    latents, predict = model.latents(plans)["masked"]["long"], model.objective("long").predict
    order = torch.tensor([2, 0, 3, 1])
    shuffled = type(latents)(latents.values[:, order], latents.index[:, order])
    expected = predict(plans["masked"], {"long": latents})["long"]
    close(predict(plans["masked"], {"long": shuffled})["long"], expected)


# numbers


@pytest.mark.parametrize(
    "recomputed",
    [
        ("model.encoder.activation_checkpointing=true",),
        ("streams.long.activation_checkpointing=true", "streams.short.activation_checkpointing=true"),
        ("streams.long.activation_checkpointing=true",),
        ("model.encoder.activation_checkpointing=true", "streams.short.activation_checkpointing=false"),
    ],
    ids=str,
)
def test_activation_checkpointing_changes_nothing_but_memory(data, recomputed):
    dropping = ("model.encoder.drop_path=0.4", "model.encoder.dropout=0.1", "model.decoder.drop_path=0.4")
    plain, recomputed = build(data, *dropping), build(data, *dropping, *recomputed)
    expected, found = (model(samples(), step=3) for model in (plain, recomputed))
    for output in (expected, found):
        output.loss.backward()
    close(found.loss, expected.loss)
    for (name, first), (_, second) in zip(plain.named_parameters(), recomputed.named_parameters(), strict=True):
        close(second.grad, first.grad, msg=name)
    assert recomputed.plain_settings()["streams"] == plain.plain_settings()["streams"]


def test_float64(data):
    model = build(data)
    expected = model(samples(dtype=torch.float32))
    output = model.double()(samples(dtype=torch.float64))
    assert output.loss.dtype == torch.float64
    assert output.streams["long"].predictions.dtype == torch.float64
    close(output.loss.float(), expected.loss)


def test_float64_with_uint8_samples(data):
    model = build(data).double()
    output = model(samples())
    assert output.loss.dtype == torch.float64
    close(output.loss, model(samples(dtype=torch.float64)).loss)
    output.loss.backward()


def test_uint8_and_normalised_values_give_the_same(data):
    model = build(data)
    first, second = model(samples()), model(samples(dtype=torch.float32))
    close(first.loss, second.loss)
    close(first.streams["long"].predictions, second.streams["long"].predictions)


def test_under_autocast_losses_stay_float32(data):
    model = build(data)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(samples())
    assert output.loss.dtype == torch.float32
    assert output.streams["long"].predictions.dtype == torch.bfloat16
    close(output.loss, model(samples()).loss, atol=0.02, rtol=0.02)
    output.loss.backward()
    assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_batch_of_one(data):
    output = build(data)(samples(long=1, short=1))
    output.loss.backward()
    assert output.streams["long"].predictions.shape == (1, 12, 8)


def test_other_lengths_than_the_experiments(data):
    model = build(data)
    for length in (4 * 3, 4 * 40):
        batch = torch.randint(0, 256, (2, 2, length), dtype=torch.uint8)
        output = model({"long": batch})
        assert output.streams["long"].mask.masked.shape == (2, length // 4)
        assert model.encode({"long": batch})["long"].values.shape == (2, length // 4, 24)


def test_training_lowers_the_loss(data):
    model = build(data)
    time = torch.linspace(0, 12, 64)
    batch = {"long": torch.stack([torch.stack([torch.sin(time + k), torch.cos(time + k)]) for k in range(8)])}
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for step in range(60):
        loss = model(batch, step=step).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


# randomness


def test_building_depends_on_the_seed_alone_and_leaves_random_state_as_it_was(data):
    torch.manual_seed(1)
    first = build(data).state_dict()
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = build(data).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    third = build(data, "training.seed=1").state_dict()
    assert not torch.equal(first["encoder.blocks.0.attn.qkv.weight"], third["encoder.blocks.0.attn.qkv.weight"])


def test_building_for_the_meta_device_leaves_random_state_as_it_was(data):
    before = torch.get_rng_state()
    with torch.device("meta"):
        model = build(data)
    assert torch.equal(torch.get_rng_state(), before)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_masks_depend_on_seed_stream_and_step_and_on_nothing_else(data):
    def masked(step=0, state=0, batch=None, *overrides):
        model = build(data, *overrides)
        random.seed(state)
        np.random.seed(state)
        torch.manual_seed(state)
        output = model(batch or samples(), step=step)
        return {name: part.mask.masked for name, part in output.streams.items()}

    first = masked()
    assert torch.equal(masked(state=5)["long"], first["long"])
    assert torch.equal(masked(batch={"long": samples(seed=9)["long"]})["long"], first["long"])
    assert not torch.equal(masked(step=1)["long"], first["long"])
    assert not torch.equal(masked(0, 0, None, "training.seed=3")["long"], first["long"])
    assert not torch.equal(first["long"][:2, :8], first["short"])


def test_a_forward_leaves_random_state_as_it_was(data):
    model = build(data)
    before = torch.get_rng_state()
    model(samples()).loss.backward()
    assert torch.equal(torch.get_rng_state(), before)


def test_masks_do_not_depend_on_processes_and_micro_batches(data):
    model = build(data, "streams.long.decoder_masker={name: random, mask_ratio: 0.5}")
    batch = samples(long=6)["long"]
    whole = model({"long": batch}, step=2).streams["long"]
    for first, last in ((0, 2), (2, 3), (3, 6)):
        part = model({"long": batch[first:last]}, step=2, shard={"long": (first, 6)}).streams["long"]
        assert torch.equal(part.mask.masked, whole.mask.masked[first:last])
        assert torch.equal(part.mask.predicted, whole.mask.predicted[first:last])
        close(part.predictions, whole.predictions[first:last])


def test_gradients_of_micro_batches_add_up_to_those_of_the_batch(data):
    model = build(data).double()
    batch = samples(long=6, dtype=torch.float64)["long"]
    model({"long": batch}).loss.backward()
    whole = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    for first in (0, 2, 4):
        (model({"long": batch[first : first + 2]}, shard={"long": (first, 6)}).loss / 3).backward()
    for name, parameter in model.named_parameters():
        close(parameter.grad, whole[name], atol=1e-12, rtol=1e-9)


# masks and samples that a caller gives


def test_a_mask_given_by_the_caller_overrides_the_masker(data):
    model = build(data)
    masked = torch.zeros(3, 16, dtype=torch.bool)
    masked[:, 5:] = True
    output = model(samples(), masks={"long": masked})
    assert torch.equal(output.streams["long"].mask.masked, masked)
    assert output.streams["long"].mask.visible.tolist() == [list(range(5))] * 3
    assert torch.equal(output.streams["short"].mask.masked, model(samples()).streams["short"].mask.masked)


def test_a_whole_mask_given_by_the_caller(data):
    model = build(data)
    drawn = model(samples()).streams["long"]
    again = model({"long": samples()["long"]}, masks={"long": drawn.mask}).streams["long"]
    close(again.loss, drawn.loss)


@pytest.mark.parametrize(
    ("masks", "error", "message"),
    [
        ({"long": torch.zeros(3, 15, dtype=torch.bool)}, MmmaskError, r"masks.long: \(3, 15\) does not fit \(3, 16\)"),
        ({"long": torch.zeros(2, 16, dtype=torch.bool)}, MmmaskError, r"masks.long: \(2, 16\) does not fit"),
        ({"lng": torch.zeros(3, 16, dtype=torch.bool)}, MmmaskError, r"masks: \['lng'\] are not in the batch"),
        ({"long": torch.ones(3, 16, dtype=torch.bool)}, MaskError, "covers every token"),
        ({"long": torch.eye(3, 16).bool() | (torch.arange(48).view(3, 16) == 15)}, MaskError, "same number"),
        ({"long": torch.zeros(3, 16)}, MaskError, "must be bool"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(data, masks, error, message):
    with pytest.raises(error, match=message):
        build(data)(samples(), masks=masks)


def whole_mask(**changes):
    """A Mask for `samples()["long"]`: the first four tokens visible, the next two predicted."""
    parts = {
        "visible": torch.arange(4).expand(3, -1),
        "predicted": torch.arange(4, 6).expand(3, -1),
        "counted": torch.ones(3, 2),
        "masked": torch.arange(16).expand(3, -1) >= 4,
    }
    return Mask(**(parts | changes))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (whole_mask(visible=torch.tensor([[0, 1, 2, 16]] * 3)), "visible: holds 16, tokens are 0 to 15"),
        (whole_mask(predicted=torch.tensor([[-1, 4]] * 3)), "predicted: holds -1, tokens are 0 to 15"),
        (whole_mask(visible=torch.tensor([[0, 1, 3, 2]] * 3)), "visible: every row must ascend"),
        (whole_mask(predicted=torch.tensor([[4, 4]] * 3)), "predicted: every row must ascend"),
        (whole_mask(visible=torch.arange(4)), r"visible: expected integers \(3, n\), not torch.int64 \(4,\)"),
        (
            whole_mask(predicted=torch.zeros(2, 2).long()),
            r"predicted: expected integers \(3, n\), not torch.int64 \(2, 2\)",
        ),
        (whole_mask(visible=torch.zeros(3, 4)), "visible: expected integers .* not torch.float32"),
        (whole_mask(counted=torch.ones(3, 3)), r"counted: \(3, 3\) does not fit predicted \(3, 2\)"),
        (whole_mask(masked=torch.zeros(3, 15).bool()), r"\(3, 15\) does not fit \(3, 16\) \(batch, tokens\)"),
        (np.zeros((3, 16), dtype=bool), "expected a bool tensor or a Mask, not ndarray"),
    ],
)
def test_a_whole_mask_that_does_not_fit_is_refused(data, mask, message):
    with pytest.raises(MmmaskError, match=f"^masks.long[.:] ?{message}"):
        build(data)({"long": samples()["long"]}, masks={"long": mask})


def test_a_given_mask_moves_to_the_samples(data):
    from mmmask.model.masks import given_mask

    tokens = build(data).tokenize("long", torch.zeros(3, 2, 64, device="meta"))
    for given in (whole_mask(), torch.zeros(3, 16, dtype=torch.bool)):
        mask = given_mask("long", given, (3, 16), tokens.content.device)
        assert {part.device.type for part in vars(mask).values() if part is not None} == {"meta"}


def test_a_mask_that_hides_nothing_costs_nothing(data):
    data["streams"]["long"]["loss"]["normalize"] = "channel"
    output = build(data)({"long": samples()["long"]}, masks={"long": torch.zeros(3, 16, dtype=torch.bool)})
    assert output.loss.item() == 0
    assert output.streams["long"].predictions.shape == (3, 0, 8)
    output.loss.backward()


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({}, "the batch holds no stream; the model has long, short"),
        ({"long": torch.zeros(0, 2, 64)}, r"streams.long: an empty batch \(0, 2, 64\)"),
        ({"long": torch.tensor(1.0)}, r"streams.long: an empty batch \(\)"),
        ({"long": torch.zeros(3, 2, 64, dtype=torch.complex64)}, "streams.long: values must be .* not torch.complex64"),
        ({"long": np.zeros((3, 2, 64))}, "streams.long: expected a tensor, not ndarray"),
    ],
)
def test_a_batch_that_cannot_be_is_refused(data, batch, message):
    model = build(data)
    for call in (model, model.encode):
        with pytest.raises(MmmaskError, match=message):
            call(batch)


def test_an_unknown_stream_is_refused(data):
    with pytest.raises(UnknownName, match="no stream is named 'lonk'. Did you mean 'long'"):
        build(data)({"lonk": samples()["long"]})


def test_a_sample_that_does_not_fit_is_refused_with_its_stream(data):
    with pytest.raises(MmmaskError, match="streams.long: .* cannot be cut into patches"):
        build(data)({"long": torch.zeros(1, 2, 63)})


# images and videos on one embedding


def pixel_data():
    return {
        "model": {
            "encoder": {"name": "vit", "width": 24, "depth": 2, "num_heads": 2},
            "decoder": {"name": "transformer", "width": 16, "depth": 1, "num_heads": 2},
        },
        "streams": {
            "images": {
                "modality": {"name": "image", "size": 32, "patch_size": [2, 8, 8]},
                "masker": {"name": "random", "mask_ratio": 0.75},
                "loss": {"name": "pixels"},
            },
            "videos": {
                "modality": {"name": "video", "size": 32, "num_frames": 8, "patch_size": [2, 8, 8]},
                "masker": {"name": "tube", "mask_ratio": 0.75},
                "loss": {"name": "pixels"},
            },
        },
    }


@pytest.fixture(scope="module")
def pixel_model():
    return mmmask.build_model(experiment_from_data(pixel_data()))


def pixels(*shape):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_images_and_videos_share_an_embedding(pixel_model):
    assert list(pixel_model.encoder.embeddings) == ["pixels_2x8x8x3"]
    output = pixel_model({"images": pixels(2, 3, 32, 32), "videos": pixels(2, 3, 8, 32, 32)})
    assert output.streams["images"].predictions.shape == (2, 12, 384)
    assert output.streams["videos"].predictions.shape == (2, 48, 384)


def test_an_image_is_encoded_as_a_clip_of_two_equal_frames(pixel_model):
    image = pixels(2, 3, 32, 32)
    clip = image.unsqueeze(2).expand(-1, -1, 2, -1, -1)
    found = pixel_model.encode({"images": image, "videos": clip})
    close(found["images"].values, found["videos"].values)


@pytest.mark.parametrize("shape", [(3, 8, 32, 48), (3, 4, 32, 32), (3, 12, 16, 40)])
def test_clips_of_another_shape_than_the_experiments(pixel_model, shape):
    output = pixel_model({"videos": pixels(2, *shape)})
    tokens = shape[1] // 2 * (shape[2] // 8) * (shape[3] // 8)
    assert output.streams["videos"].mask.masked.shape == (2, tokens)
    assert output.loss.isfinite()
    assert pixel_model.encode({"videos": pixels(2, *shape)})["videos"].values.shape == (2, tokens, 24)


def test_images_of_another_shape_than_the_experiments(pixel_model):
    output = pixel_model({"images": pixels(1, 3, 24, 56)})
    assert output.streams["images"].mask.masked.shape == (1, 21)
    output.loss.backward()
    pixel_model.zero_grad()


def test_a_decoder_of_its_own_knows_only_the_embeddings_of_its_streams(signals):
    data = signals.signal_data()
    data["streams"]["short"] |= {"decoder": "own"}
    data["streams"]["short"]["modality"]["patch"] = 8
    model = mmmask.build_model(experiment_from_data(data))
    assert list(model.objectives["masked"].decoders["shared"].positions) == ["signal_4"]
    assert list(model.objectives["masked"].decoders["own"].positions) == ["signal_8"]
