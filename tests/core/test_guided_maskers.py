"""Maskers that the model guides: `learned` by its errors, `attention` by its features."""

import math

import pytest
import torch

import mmmask
from mmmask.builtins.maskers import AttentionMasker, LearnedMasker, RandomMasker
from mmmask.experiment import experiment_from_data
from mmmask.interfaces import Latents, Mask, MaskContext, Tokens, TokenSpec
from mmmask.interop import save, with_teacher
from mmmask.interop.teaching import teach
from mmmask.model.masks import draw_mask
from mmmask.randomness import sample_noise

CPU = torch.device("cpu")


def learned(**settings):
    torch.manual_seed(0)
    return LearnedMasker(LearnedMasker.Config(name="learned", **settings))


def attention(**settings):
    return AttentionMasker(AttentionMasker.Config(name="attention", **settings))


def context_of(content=None, batch=4, grid=(8,), features=None, seed=0):
    content = torch.zeros(batch, math.prod(grid), 4) if content is None else content
    tokens = Tokens(content, grid, TokenSpec((4,) + (1,) * (len(grid) - 1), 1))
    noise = sample_noise(seed, 0, len(content), CPU)
    return MaskContext(grid, len(content), CPU, noise, 0, tokens, features=features)


@pytest.mark.parametrize("masker", [learned(strength=0.0), attention(strength=0.0)])
def test_without_strength_they_are_the_random_masker(masker):
    features = Latents(torch.randn(4, 8, 6, generator=torch.Generator().manual_seed(0)))
    mine = draw_mask(masker, None, context_of(features=lambda: features)).masked
    wanted = draw_mask(RandomMasker(RandomMasker.Config(name="random")), None, context_of()).masked
    assert torch.equal(mine, wanted)


class TestTheLearnedMasker:
    def test_its_loss_has_no_value_and_the_gradient_of_the_advantages(self):
        scores = torch.zeros(2, 4, requires_grad=True)
        predicted = torch.tensor([[0, 1, 3], [1, 2, 3]])
        counted = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 1.0]])  # token 2 of the second sample is visible
        error = torch.tensor([[1.0, 2.0, 6.0], [3.0, 100.0, 5.0]])
        mask = Mask(torch.zeros(2, 1).long(), predicted, counted, torch.zeros(2, 4).bool(), scores)
        loss = learned(weight=0.5).loss(mask, error)
        assert loss.tolist() == [[0.0] * 3] * 2
        loss.sum().backward()
        deviation = torch.tensor([1.0, 2.0, 6.0]).std(correction=0).item()
        assert scores.grad[0].tolist() == pytest.approx([1 / deviation, 0.5 / deviation, 0, -1.5 / deviation])
        assert scores.grad[1].tolist() == pytest.approx([0, 0.5, 0, -0.5])

    def test_it_climbs_the_expected_error(self):
        """The mean gradient points where masks with more error are likelier; errors are those of places here."""
        batch, errors = 4000, torch.tensor([0.1, 0.2, 0.4, 0.8, 0.4, 0.2])
        preference = torch.tensor([0.5, -0.5, 0.2, 0.1, -0.3, 0.0])
        uniform = sample_noise(3, 0, batch, CPU)((batch, 6)).clamp(min=2.0**-25)
        scores = (preference - (-uniform.log()).log()).requires_grad_()
        masked = scores.argsort(dim=1, descending=True)[:, :3].sort(dim=1).values
        mask = Mask(masked, masked, torch.ones(batch, 3), torch.zeros(batch, 6).bool(), scores)
        learned().loss(mask, errors[masked]).sum().backward()
        step = -scores.grad.mean(0)

        def expected(preference):
            drawn = (preference - (-uniform.log()).log()).argsort(dim=1, descending=True)[:, :3]
            return errors[drawn].mean().item()

        assert expected(preference + step) > expected(preference) + 0.02
        assert step[3] > step[[2, 4]].max() > step[[1, 5]].max() > step[0]

    def test_it_comes_to_mask_what_is_hard(self, signals, tmp_path):
        """Half of each signal is noise, which nobody can predict."""
        data = signals.signal_data()
        long = data["streams"]["long"] | {"masker": {"name": "learned", "mask_ratio": 0.5}}
        experiment = experiment_from_data(data | {"streams": {"long": long}})
        model = mmmask.build_model(experiment)
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        generator = torch.Generator().manual_seed(0)

        def batch():
            samples = torch.full((32, 2, 64), 100, dtype=torch.uint8)
            samples[..., 32:] = torch.randint(256, (32, 2, 32), generator=generator, dtype=torch.uint8)
            return {"long": samples}

        for step in range(60):
            model(batch(), step=step).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        masked = model(batch()).streams["long"].mask.masked.view(32, 2, 8).float().mean((0, 2))
        assert masked[1] > 0.7 > 0.3 > masked[0]
        assert masked[0] > 0  # chance is left

    def test_it_sees_values_and_places(self):
        masker = learned()
        content = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            masker.mlp[2].weight.mul_(50)
            given = context_of(content, grid=(2, 3))
            same = masker.preference(context_of(content[:, :1].expand(-1, 6, -1), grid=(2, 3)))
            assert same.unique(dim=1).shape[1] == 6  # equal values at other places
            assert masker.preference(given).abs().max() <= 2
            gaps = content.clone()
            gaps[0, 0, 0] = math.nan
            assert masker.preference(context_of(gaps, grid=(2, 3))).isfinite().all()

    def test_ids_have_no_values(self):
        ids = Tokens(torch.zeros(1, 4, 1).long(), (4,), TokenSpec((1,), 1, vocab_size=5))
        given = MaskContext((4,), 1, CPU, sample_noise(0, 0, 1, CPU), 0, ids)
        with pytest.raises(mmmask.MmmaskError, match="masker 'learned' looks at the values of one modality"):
            learned().scores(given)


class TestTheAttentionMasker:
    def test_it_masks_what_is_like_the_whole(self):
        values = torch.tensor([1.0, 0.0]).repeat(64, 8, 1)
        values[:, 5:] = torch.tensor([-0.3, 1.0])  # three tokens of eight are unlike the mean
        of = {
            strength: draw_mask(
                attention(strength=strength, mask_ratio=0.5), None,
                context_of(batch=64, features=lambda: Latents(values)),
            ).masked.float().mean(0)
            for strength in (4.0, -4.0)
        }  # fmt: skip
        assert of[4.0][:5].mean() > 0.75 > 0.1 > of[4.0][5:].mean()
        assert of[-4.0][5:].mean() > 0.95

    def test_a_prefix_token_stands_for_the_whole(self):
        values = torch.eye(8).expand(2, -1, -1)
        prefix = torch.stack([values[0, :1], values[1, 4:5]])  # (2, 1, 8)
        preference = attention().preference(context_of(batch=2, features=lambda: Latents(values, prefix=prefix)))
        assert preference.argmax(1).tolist() == [0, 4]

    def test_it_asks_the_model(self, signals):
        data = signals.signal_data()
        for stream in data["streams"].values():
            stream["masker"] = {"name": "attention", "strength": 20.0, "mask_ratio": 0.5}
        model = mmmask.build_model(experiment_from_data(data))
        samples = torch.randint(256, (3, 2, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        values = model.encode({"long": samples})["long"].values
        cosines = torch.nn.functional.cosine_similarity(values, values.mean(1, keepdim=True), dim=-1)
        output = model({"long": samples}).streams["long"]
        assert (cosines * output.mask.masked).sum() > (cosines * ~output.mask.masked).sum()
        output.loss.backward()
        for by in ("model", "teacher"):
            with pytest.raises(mmmask.MmmaskError, match=f"masker 'attention' asks the {by} for features"):
                attention(by=by).scores(context_of())

    def test_it_asks_the_teacher(self, signals, tmp_path):
        data = signals.signal_data()
        for stream in data["streams"].values():
            stream["masker"] = {"name": "attention", "strength": 20.0, "mask_ratio": 0.5, "by": "teacher"}
        with pytest.raises(
            mmmask.MmmaskError, match=r"streams.long: masker 'attention' asks a teacher .*set model.teacher"
        ):
            mmmask.build_model(experiment_from_data(data))
        other = mmmask.build_model(experiment_from_data(signals.signal_data(seed=5)))
        save(other, tmp_path / "other.safetensors")
        data["model"]["teacher"] = str(tmp_path / "other.safetensors")
        experiment = with_teacher(experiment_from_data(data))
        model = mmmask.build_model(experiment)
        teach(model, experiment)
        samples = torch.randint(256, (3, 2, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        masks = [model({"long": samples}).streams["long"].mask.masked]
        with torch.no_grad():
            for parameter in model.encoder.parameters():
                parameter.normal_()
        masks.append(model({"long": samples}).streams["long"].mask.masked)
        assert torch.equal(*masks)
        values = other.encode({"long": samples})["long"].values
        cosines = torch.nn.functional.cosine_similarity(values, values.mean(1, keepdim=True), dim=-1)
        assert (cosines * masks[0]).sum() > (cosines * ~masks[0]).sum()
        data["streams"]["long"]["modality"]["patch"] = 8
        with pytest.raises(mmmask.MmmaskError, match=r"streams\.long: model\.teacher: its tokens .* are none of"):
            mmmask.build_model(with_teacher(experiment_from_data(data)))
