"""`model.trainable`: which parameters train, and what a frozen encoder costs."""

import pytest
import torch

import mmmask
from mmmask.components import components
from mmmask.experiment import experiment_from_data
from mmmask.model.build import settings_of


def data_of(signals, trainable, **encoder):
    data = signals.signal_data()
    data["model"]["trainable"] = trainable
    data["model"]["encoder"] |= encoder
    return data


def model_of(signals, trainable, **encoder):
    return mmmask.build_model(experiment_from_data(data_of(signals, trainable, **encoder)))


def trained(model):
    return {name for name, parameter in model.encoder.named_parameters() if parameter.requires_grad}


def beginning_with(model, *starts):
    return {name for name, _ in model.encoder.named_parameters() if name.startswith(starts)}


FIRST, SECOND, HALF = ("blocks.0.",), ("blocks.1.",), ("blocks.1.norm2.", "blocks.1.mlp.", "blocks.1.scale2.")


@pytest.mark.parametrize(
    ("trainable", "starts"),
    [
        ("none", ()),
        (0.5, ("norm.", *HALF)),
        (1, ("norm.", *SECOND)),
        (1.5, ("norm.", *SECOND, "blocks.0.norm2.", "blocks.0.mlp.", "blocks.0.scale2.")),
        (2, ("norm.", *FIRST, *SECOND)),
        (["blocks.1.mlp.*", "embeddings.*"], ("blocks.1.mlp.", "embeddings.")),
        ("all", ("",)),
    ],
    ids=str,
)
def test_what_trains(signals, trainable, starts):
    model = model_of(signals, trainable, layer_scale=0.1, prefix_tokens=1)
    assert trained(model) == (beginning_with(model, *starts) if starts else set())
    assert all(parameter.requires_grad for parameter in model.objectives.parameters())


@pytest.mark.parametrize(
    ("trainable", "message"),
    [
        (3, r"model\.trainable: 3, and the encoder has 2 stages"),
        (2.5, r"model\.trainable: 2\.5, and the encoder has 2 stages"),
        (["blocks.1.*", "block.*"], r"model\.trainable: no parameter of the encoder fits 'block\.\*'"),
        ("last", r"model\.trainable: .*not 'last'"),
        (0.3, r"model\.trainable: .*above 0 and in steps of 0\.5.*not 0\.3"),
        (0, r"model\.trainable: .*not 0"),
        ([], r"model\.trainable: .*not \[\]"),
    ],
)
def test_what_cannot_be(signals, trainable, message):
    with pytest.raises(mmmask.MmmaskError, match=message):
        model_of(signals, trainable)


def test_a_stage_without_halves(signals):
    data = mmmask.load_experiment("convmae/conv_vit_base", ["model.encoder.depth=0"]).to_data()
    data["model"]["trainable"] = 0.5
    with pytest.raises(mmmask.MmmaskError, match=r"model\.trainable: 0\.5, and a ConvStage names no half"):
        mmmask.build_model(experiment_from_data(data))


def test_nothing_to_train(signals):
    class Given(mmmask.Objective):
        """Learns nothing."""

        def plan(self, tokens, batches, context):
            raise NotImplementedError

        def losses(self, plan, latents):
            raise NotImplementedError

    mmmask.register("objective", "given", Given)
    try:
        data = data_of(signals, "none")
        data["streams"] = {"long": {"objective": "given", "modality": data["streams"]["long"]["modality"]}}
        with pytest.raises(mmmask.MmmaskError, match=r"model\.trainable: none, and the objectives have no parameters"):
            mmmask.build_model(experiment_from_data(data))
    finally:
        components().registry("objective").unregister("given")


def batch_of(model, rows=4):
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randint(256, (rows, *part.sample_shape), generator=generator, dtype=torch.uint8)
        for name, part in model.modalities.items()
    }


def test_a_step_moves_what_trains_and_nothing_else(signals):
    model = model_of(signals, 0.5)
    model(batch_of(model)).loss.backward()
    found = {name for name, parameter in model.encoder.named_parameters() if parameter.grad is not None}
    assert found == trained(model)
    assert all(parameter.grad is not None for parameter in model.objectives.parameters())


def bytes_kept(model):
    """Memory that the encoder keeps for the backward, without its parameters."""
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    plans = model.plan(batch_of(model))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        latents = model.latents(plans)
    del latents
    return sum(kept.values())


@pytest.mark.parametrize("recompute", [False, True])
def test_what_is_frozen_keeps_nothing_for_the_backward(signals, recompute):
    kept = {
        trainable: bytes_kept(model_of(signals, trainable, depth=8, activation_checkpointing=recompute))
        for trainable in ("none", 1, 2, "all")
    }
    assert kept["none"] == 0
    assert 0 < kept[1] < kept[2] < kept["all"]
    assert kept[1] < 0.3 * kept["all"]


def test_a_frozen_encoder_drops_nothing_in_training(signals):
    frozen, whole = (model_of(signals, trainable, drop_path=0.9, dropout=0.5) for trainable in ("none", "all"))
    plans = whole.plan(batch_of(whole))
    assert all(own.noise is not None for own in plans["masked"].inputs.values())
    plans = frozen.train().plan(batch_of(frozen))
    assert all(own.noise is None for own in plans["masked"].inputs.values())
    assert not frozen.encoder.training
    assert frozen.training
    assert all(part.training for part in frozen.objectives.values())
    assert not frozen.eval().objectives["masked"].training


def test_files_of_weights_do_not_say_what_trained(signals):
    assert settings_of(model_of(signals, "none")) == settings_of(model_of(signals, "all"))
