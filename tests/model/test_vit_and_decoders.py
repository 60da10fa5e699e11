"""Options of the plain ViT and its decoders beyond MAE's: mask tokens in place, biases, layer scale, prefixes."""

import math

import pytest
import torch
from torch.nn import functional as F

import mmmask
from mmmask.experiment import experiment_from_data
from mmmask.experiment.settings import TrainingSettings
from mmmask.model.blocks import LARGEST_LOG_SCALE, Attention, BlockSettings
from mmmask.model.build import build_model
from mmmask.training.optimizer import parameter_groups
from mmmask_registry import MmmaskError

ENCODER = {"name": "vit", "width": 32, "depth": 2, "num_heads": 4}
DECODER = {"name": "transformer", "width": 32, "depth": 1, "num_heads": 4}


def build(encoder=None, decoder=None, **stream):
    return build_model(
        experiment_from_data(
            {
                "model": {"encoder": ENCODER | (encoder or {}), "decoder": decoder or DECODER},
                "streams": {
                    "a": {
                        "modality": {"name": "image", "size": 64, "patch_size": [16, 16]},
                        "masker": {"name": "random", "mask_ratio": 0.75},
                        "loss": {"name": "pixels"},
                        "batch_size": 2,
                        **stream,
                    }
                },
            }
        )
    )


def samples(count=2, seed=0):
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def masked():
    chosen = torch.zeros(2, 16, dtype=torch.bool)
    chosen[0, ::2] = chosen[1, 8:] = True
    return chosen


class TestMaskTokensInPlace:
    IN_PLACE = {"masked_tokens": "replace"}

    @pytest.mark.parametrize("depth", [0, 2])
    def test_what_is_masked_is_not_seen(self, depth):
        model = build(self.IN_PLACE, {"name": "in_place", "width": 32, "depth": depth, "num_heads": 4})
        batch, mask = samples(), masked()
        pixels = mask.unflatten(1, (4, 4)).repeat_interleave(16, 1).repeat_interleave(16, 2).unsqueeze(1)
        other = torch.where(pixels, samples(seed=1), batch)
        first, second = (model({"a": part}, masks={"a": mask}).streams["a"] for part in (batch, other))
        assert torch.equal(first.latents, second.latents)
        assert torch.equal(first.predictions, second.predictions)
        assert first.latents.shape == (2, 16, 32)
        assert first.predictions.shape == (2, 8, 768)
        assert first.loss != second.loss

    def test_the_linear_decoder_answers_from_the_latents_themselves(self):
        model = build(self.IN_PLACE, {"name": "in_place"})
        part = model({"a": samples()}, masks={"a": masked()}).streams["a"]
        expected = model.objectives["masked"].heads["pixels_16x16x3"](part.latents)[masked()].unflatten(0, (2, 8))
        torch.testing.assert_close(part.predictions, expected)

    def test_an_encoder_that_drops_tokens_is_told(self):
        model = build(decoder={"name": "in_place"})
        with pytest.raises(MmmaskError, match="set model.encoder.masked_tokens=replace"):
            model({"a": samples()})

    def test_a_transformer_decoder_takes_latents_of_all_tokens_too(self):
        output = build(self.IN_PLACE)({"a": samples()}, masks={"a": masked()})
        assert output.streams["a"].predictions.shape == (2, 8, 768)

    def test_features_of_whole_samples_know_no_mask_token(self):
        model = build(self.IN_PLACE, {"name": "in_place"})
        before = model.encode({"a": samples()})["a"].values
        with torch.no_grad():
            model.encoder.mask_token.add_(1)
        assert torch.equal(model.encode({"a": samples()})["a"].values, before)


class TestAttentionSettings:
    def attention(self, **settings):
        torch.manual_seed(0)
        return Attention(BlockSettings(width=32, num_heads=4, **settings)).double()

    def run(self, attention, rows):
        return attention(rows.flatten(0, 1), [rows.shape[:2]], [None]).unflatten(0, rows.shape[:2])

    def reference(self, rows, query, key, value, scale):
        """Softmax attention written out; scale of (heads, 1, 1)."""
        parts = [part.unflatten(-1, (4, 8)).transpose(1, 2) for part in (query, key, value)]
        scores = (parts[0] @ parts[1].transpose(-1, -2)) * scale
        return (scores.softmax(-1) @ parts[2]).transpose(1, 2).flatten(2)

    def test_query_value_biases(self):
        attention, rows = self.attention(qkv_bias="query_value"), torch.randn(2, 5, 32).double()
        assert {name for name, _ in attention.named_parameters()} == {
            "q_bias", "v_bias", "qkv.weight", "proj.weight", "proj.bias"
        }  # fmt: skip
        with torch.no_grad():
            attention.q_bias.normal_()
            attention.v_bias.normal_()
        query, key, value = (rows @ attention.qkv.weight.T).chunk(3, -1)
        expected = self.reference(rows, query + attention.q_bias, key, value + attention.v_bias, 8**-0.5)
        torch.testing.assert_close(self.run(attention, rows), attention.proj(expected))

    def test_cosine_attention(self):
        attention, rows = self.attention(cosine_attention=True), torch.randn(2, 5, 32).double()
        assert torch.allclose(attention.log_scale, torch.tensor(math.log(10)).double())
        with torch.no_grad():
            attention.log_scale.copy_(torch.tensor([0.0, 1.0, 4.0, 9.0]))
        query, key, value = attention.qkv(rows).chunk(3, -1)
        query, key = (F.normalize(part.unflatten(-1, (4, 8)), dim=-1).flatten(-2) for part in (query, key))
        scale = torch.tensor([0.0, 1.0, 4.0, LARGEST_LOG_SCALE]).double().exp().view(4, 1, 1)
        expected = self.reference(rows, query, key, value, scale)
        torch.testing.assert_close(self.run(attention, rows), attention.proj(expected))

    def test_layer_scale_of_zero_adds_nothing(self):
        model = build({"layer_scale": 0.0, "positions": {"name": "flat_sinusoid"}})
        encoder = model.encoder
        tokens = model.tokenize("a", samples()).values()
        embedded = encoder.embeddings["pixels_16x16x3"](tokens) + encoder.positions["pixels_16x16x3"]((4, 4))
        torch.testing.assert_close(model.encode({"a": samples()})["a"].values, encoder.norm(embedded))

    @pytest.mark.parametrize(
        "settings", [{"cosine_attention": True}, {"qkv_bias": "query_value"}, {"layer_scale": 0.1}]
    )
    def test_bf16_stays_near(self, settings):
        model = build(settings)
        with torch.no_grad():
            exact = model.encode({"a": samples()})["a"].values
            with torch.autocast("cpu", torch.bfloat16):
                rough = model.encode({"a": samples()})["a"].values
        assert (rough.float() - exact).abs().max() < 0.1


class TestRelativeBias:
    RELATIVE = {"positions": {"name": "relative_bias"}}

    def test_heads_are_the_transformers(self):
        model = build(self.RELATIVE)
        assert model.encoder.positions["pixels_16x16x3"].table.shape == (49, 4)

    def test_other_heads_are_refused(self):
        with pytest.raises(MmmaskError, match=r"positions.num_heads \(3\) must be num_heads \(4\), or null"):
            build({"positions": {"name": "relative_bias", "num_heads": 3}})

    def test_every_block_may_have_a_table(self):
        model = build(self.RELATIVE | {"bias_per_block": True, "prefix_tokens": 1})
        tables = model.encoder.positions["pixels_16x16x3"]
        assert [table.table.shape for table in tables] == [(52, 4), (52, 4)]
        model({"a": samples()}).loss.backward()
        assert all(table.table.grad.abs().sum() > 0 for table in tables)
        with torch.no_grad():
            before = model.encode({"a": samples()})["a"].values
            tables[1].table.normal_()
            assert not torch.allclose(model.encode({"a": samples()})["a"].values, before)

    @pytest.mark.parametrize("settings", [{"depth": 0}, {"positions": {"name": "learned"}}])
    def test_a_table_for_each_block_is_for_attention(self, settings):
        with pytest.raises(MmmaskError, match="bias_per_block is for blocks with positions that bias attention alone"):
            build(self.RELATIVE | {"bias_per_block": True} | settings)

    def test_a_larger_sample_than_the_table_is_for_is_a_users_mistake(self):
        with pytest.raises(MmmaskError, match=r"the grid \(5, 5\) does not fit into \(4, 4\)"):
            build(self.RELATIVE).encode({"a": torch.zeros(1, 3, 80, 80)})

    def test_a_decoder_attends_by_place_too(self):
        """Rows of the decoder's sequence are not in token order; the bias must follow them."""
        model = build(decoder=DECODER | self.RELATIVE).double()
        positions = model.objectives["masked"].decoders["shared"].positions["pixels_16x16x3"]
        with torch.no_grad():
            positions.table.normal_()
        batch, mask = samples().double(), masked()
        found = model({"a": batch}, masks={"a": mask}).streams["a"]
        decoder = model.objectives["masked"].decoders["shared"]
        order = torch.cat([(~mask).nonzero()[:, 1].view(2, 8), mask.nonzero()[:, 1].view(2, 8)], 1)
        asked = F.linear(decoder.mask_token, decoder.embed.weight, decoder.embed.bias)
        rows = torch.cat([decoder.embed(found.latents), asked.expand(2, 8, -1)], 1)
        whole = torch.empty_like(rows).scatter_(1, order.unsqueeze(-1).expand_as(rows), rows)
        features = decoder.norm(decoder.blocks([whole], [positions.bias((4, 4), None)])[0][0])
        expected = model.objectives["masked"].heads["pixels_16x16x3"](features)[mask].unflatten(0, (2, 8))
        torch.testing.assert_close(found.predictions, expected)

    def test_a_decoder_that_keeps_prefix_tokens_cannot(self):
        model = build({"prefix_tokens": 1}, DECODER | self.RELATIVE)
        with pytest.raises(MmmaskError, match=r"set model.decoder.prefix=drop"):
            model({"a": samples()})


@pytest.mark.parametrize("at", ["latent", "decoder"])
def test_a_decoder_has_prefix_tokens_of_its_own(at):
    settings = {"prefix": "drop", "prefix_tokens": 2, "positions_at": at, "positions": {"name": "learned_separable"}}
    model = build({"prefix_tokens": 1}, DECODER | settings)
    model({"a": samples()}).loss.backward()
    decoder = model.objectives["masked"].decoders["shared"]
    assert decoder.prefix_tokens.shape == (2, 32)
    assert decoder.prefix_tokens.grad.abs().sum() > 0
    assert decoder.positions["pixels_16x16x3"].prefix_table.grad.abs().sum() > 0
    before = model({"a": samples()}).loss
    with torch.no_grad():
        decoder.prefix_tokens[0, 0] += 1  # not all numbers alike: a LayerNorm would not see it
    assert model({"a": samples()}).loss != before


def test_dual_masking_is_general():
    """Any experiment may choose which tokens are predicted; visible ones among them do not count."""
    model = build(decoder_masker={"name": "causal", "mask_ratio": 0.5}, masker={"name": "grid"})
    part = model({"a": samples()}).streams["a"]
    assert part.mask.predicted.tolist() == [list(range(8))] * 2
    assert part.predictions.shape == (2, 8, 768)
    assert part.mask.counted.tolist() == [[0, 1, 0, 1, 1, 1, 1, 1]] * 2
    loss = model.objective("a").loss_of["a"]
    error = loss.error(part.predictions, loss.target(part.tokens, part.mask.predicted))
    assert part.loss.item() == pytest.approx((error * part.mask.counted).sum().item() / 12)


def test_the_last_norm_can_be_left_out():
    model = build({"final_norm": False})
    assert isinstance(model.encoder.norm, torch.nn.Identity)
    assert model.encode({"a": samples()})["a"].values.shape == (2, 16, 32)


def test_a_plain_encoders_feature_map_is_its_latents():
    model = mmmask.build_model(mmmask.load_experiment("quickstart", ["model.encoder.depth=1"]))
    batch = {"images": torch.randn(1, 3, 64, 64)}
    (found,) = model.feature_maps(batch)["images"]
    latents = model.encode(batch)["images"].values
    assert torch.equal(found.flatten(2).transpose(1, 2), latents)


class TestLatentStages:
    CROSS = {"name": "cross_attention", "width": 32, "depth": 0, "num_heads": 4, "cross_depth": 2}
    CROSSMAE = CROSS | {"queries": "predicted", "residual": True}

    @pytest.mark.parametrize("encoder", [{}, {"prefix_tokens": 1}, {"masked_tokens": "replace"}])
    @pytest.mark.parametrize("decoder", [CROSS, CROSSMAE])
    def test_it_begins_as_the_decoder_without_them(self, encoder, decoder):
        plain, summed = build(encoder, decoder), build(encoder, decoder | {"latent_stages": 2})
        more = {"objectives.masked.decoders.shared.stage_weights"}
        assert summed.state_dict().keys() - plain.state_dict().keys() == more
        first, second = (model({"a": samples()}, masks={"a": masked()}).streams["a"] for model in (plain, summed))
        assert torch.equal(first.predictions, second.predictions)
        assert first.loss == second.loss

    def test_each_block_sees_its_own_sum(self):
        model = build({"depth": 3}, self.CROSSMAE | {"latent_stages": 2, "positions": {"name": "learned"}})
        decoder, seen = model.objectives["masked"].decoders["shared"], []
        with torch.no_grad():
            decoder.stage_weights.copy_(torch.tensor([[2.0, 0.0], [0.5, -1.0]]))
        for block in decoder.cross:
            block.register_forward_pre_hook(lambda block, given: seen.append(given[1]))
        model({"a": samples()}, masks={"a": masked()})
        plans = model.plan({"a": samples()}, {"a": masked()})
        assert plans["masked"].stages == (1, 2)
        latents = model.latents(plans)["masked"]["a"]
        earlier = F.layer_norm(latents.stages[0], (32,), eps=1e-6)
        places = decoder.positions["pixels_16x16x3"]((4, 4))[latents.index]
        for context, mixed in zip(seen, (2 * earlier, 0.5 * earlier - latents.values), strict=True):
            torch.testing.assert_close(context, decoder.embed(mixed) + places)

    def test_weights_learn_and_do_not_decay(self):
        model = build({"depth": 3}, self.CROSS | {"latent_stages": 3})
        model({"a": samples()}).loss.backward()
        weights = model.objectives["masked"].decoders["shared"].stage_weights
        assert weights.shape == (2, 3)
        assert weights.grad.abs().min() > 0
        assert all(parameter.grad is not None for parameter in model.parameters())
        (group,) = (
            group
            for group in parameter_groups(model, TrainingSettings(steps=1).optimizer)
            if any(part is weights for part in group["params"])
        )
        assert group["weight_decay"] == 0

    def test_more_stages_than_there_are(self):
        with pytest.raises(MmmaskError, match="model.decoder: outputs of 3 stages, and the encoder has 2: take fewer"):
            build(decoder=self.CROSS | {"latent_stages": 3})

    def test_stages_of_other_widths(self):
        swin = {"name": "swin", "width": 32, "depths": [1, 1], "embed_patch": 8, "window": 2, "num_heads": 4}
        model = build_model(
            experiment_from_data(
                {
                    "model": {"encoder": swin, "decoder": self.CROSS | {"latent_stages": 2}},
                    "streams": {
                        "a": {
                            "modality": {"name": "image", "size": 64, "patch_size": [16, 16]},
                            "masker": {"name": "random", "mask_ratio": 0.75},
                            "loss": {"name": "pixels"},
                        }
                    },
                }
            )
        )
        with pytest.raises(
            MmmaskError, match=r"latent_stages: the encoder's last stages have the widths .*: take fewer"
        ):
            model({"a": samples()})
