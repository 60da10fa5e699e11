"""Drop path and dropout of the built-in encoders and decoders, through their interfaces; and outputs of stages."""

import pytest
import torch
from torch import nn

from mmmask.components import components
from mmmask.interfaces import DecoderInput, Embedding, EncoderInput, Latents, Mask, Part, Tokens, TokenSpec, build
from mmmask.interfaces.component import validate_strictly
from mmmask.model.dropping import path_factors
from mmmask.randomness import sample_noise
from mmmask_registry import MmmaskError

CPU = torch.device("cpu")
GRID, SPEC = (4, 4), TokenSpec((16, 16), 3)
BATCH = 6
ENCODERS = {
    "vit": {"width": 32, "depth": 3, "num_heads": 4},
    "conv_vit": {"width": 32, "depth": 2, "num_heads": 4, "stage_widths": [8, 16], "stage_depths": [2, 1]},
    "swin": {"width": 32, "depth": 2, "num_heads": 4, "window": 4, "embed_patch": 2},
}
DECODERS = {
    "transformer": {"width": 16, "depth": 3, "num_heads": 4},
    "in_place": {"width": 16, "depth": 3, "num_heads": 4},
}
DROPPING = [
    *(("encoder", name, {"drop_path": 0.5}) for name in ENCODERS),
    *(("encoder", name, {"dropout": 0.2}) for name in ("vit", "conv_vit")),
    *(("decoder", name, {"drop_path": 0.5, "dropout": 0.2}) for name in DECODERS),
]


def made(kind, name, settings):
    block = (ENCODERS | DECODERS)[name] | {"name": name} | settings
    config = validate_strictly(components().get(kind, name).Config, block)
    torch.manual_seed(0)
    embeddings = {"a": Embedding(SPEC, (GRID,), lambda width: nn.Linear(SPEC.content_dim, width))}
    part = build(kind, config, embeddings=embeddings, **({"latent_width": 24} if kind == "decoder" else {}))
    with torch.no_grad():  # branches large enough to be seen
        for number, parameter in enumerate(part.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) * 0.3)
    return part


def mask(batch):
    order = torch.randn(batch, 16, generator=torch.Generator().manual_seed(5)).argsort(dim=1)
    masked = torch.zeros(batch, 16, dtype=torch.bool).scatter_(1, order[:, :10], True)
    visible, predicted = (which.nonzero()[:, 1].view(batch, -1) for which in (~masked, masked))
    return Mask(visible, predicted, torch.ones(predicted.shape), masked)


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def answers(kind, part, noise, rows=slice(0, BATCH), recomputed=(None,)):
    """(rows, ...) of some rows of one batch, of inputs of which some may be recomputed one after the other."""
    whole = mask(BATCH)
    some = Mask(whole.visible[rows], whole.predicted[rows], whole.counted[rows], whole.masked[rows])
    if kind == "decoder":
        latents = Latents(draw(BATCH, 16, 24)[rows])
        inputs = [DecoderInput("a", latents, some, GRID, noise, activation_checkpointing=each) for each in recomputed]
        return torch.cat(part(inputs))
    tokens = Tokens(draw(BATCH, 16, SPEC.content_dim)[rows], GRID, SPEC)
    inputs = [EncoderInput((Part("a", tokens),), some, noise, each) for each in recomputed]
    return torch.cat([latents.values for latents in part(inputs)])


@pytest.mark.parametrize(("kind", "name", "settings"), DROPPING, ids=str)
class TestDropping:
    def test_nothing_is_dropped_without_noise(self, kind, name, settings):
        plain, dropping = made(kind, name, {}), made(kind, name, settings)
        assert torch.equal(answers(kind, dropping, None), answers(kind, plain, None))

    def test_a_rate_of_zero_is_bit_for_bit_nothing(self, kind, name, settings):
        plain = made(kind, name, {})
        assert torch.equal(answers(kind, plain, sample_noise(0, 0, BATCH, CPU)), answers(kind, plain, None))

    def test_a_seed_drops_the_same_again_and_another_seed_other_things(self, kind, name, settings):
        part = made(kind, name, settings)
        first, again, other = (answers(kind, part, sample_noise(seed, 0, BATCH, CPU)) for seed in (0, 0, 1))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert not torch.equal(first, answers(kind, part, None))

    def test_what_is_dropped_does_not_depend_on_the_split(self, kind, name, settings):
        part = made(kind, name, settings)
        whole = answers(kind, part, sample_noise(0, 0, BATCH, CPU))
        for size in (2, 3):
            for first in range(0, BATCH, size):
                own = answers(kind, part, sample_noise(0, first, BATCH, CPU), slice(first, first + size))
                torch.testing.assert_close(own, whole[first : first + size], rtol=1e-4, atol=1e-4)

    def test_recomputed_activations_drop_the_same(self, kind, name, settings):
        gradients = []
        for recompute in (False, True):
            part = made(kind, name, settings | {"activation_checkpointing": recompute})
            answers(kind, part, sample_noise(0, 0, BATCH, CPU)).square().mean().backward()
            gradients.append([parameter.grad for parameter in part.parameters()])
        for plain, recomputed in zip(*gradients, strict=True):
            assert torch.equal(plain, recomputed)

    def test_an_input_may_be_recomputed_and_another_not(self, kind, name, settings):
        found = []
        for asked, setting in (((False,) * 3, False), ((True, None, True), False), ((None, False, None), True)):
            part, kept = made(kind, name, settings | {"activation_checkpointing": setting}), []

            def keep(tensor, kept=kept):
                kept.append(tensor.nbytes)
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                answer = answers(kind, part, sample_noise(0, 0, BATCH, CPU), recomputed=asked)
            answer.square().mean().backward()
            found.append((sum(kept), answer, [parameter.grad for parameter in part.parameters()]))
        (most, expected, gradients), *others = found
        for bytes_kept, answer, other in others:
            assert bytes_kept < 0.8 * most
            torch.testing.assert_close(answer, expected)
            for one, two in zip(gradients, other, strict=True):
                torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-3)

    def test_no_global_randomness_is_used(self, kind, name, settings):
        part = made(kind, name, settings)
        before = torch.get_rng_state()
        answers(kind, part, sample_noise(0, 0, BATCH, CPU))
        assert torch.equal(torch.get_rng_state(), before)


def test_the_rate_of_drop_path_grows_linearly_and_the_expectation_stays():
    rows = 20_000
    factors = path_factors(sample_noise(0, 0, rows, CPU), rows, 0.4, 5)
    assert factors is not None
    assert factors.shape == (5, 2, rows)
    for block, rate in enumerate((0.0, 0.1, 0.2, 0.3, 0.4)):
        for branch in factors[block]:
            assert float((branch == 0).float().mean()) == pytest.approx(rate, abs=0.02)
            assert float(branch.mean()) == pytest.approx(1, abs=0.03)
            torch.testing.assert_close(branch[branch > 0], torch.full_like(branch[branch > 0], 1 / (1 - rate)))
    alone = path_factors(sample_noise(0, 0, rows, CPU), rows, 0.4, 1)
    assert alone is not None
    assert (alone == 0).float().mean() > 0.3, "it is the last"


@pytest.mark.parametrize(
    ("name", "settings", "rate", "rates"),
    [
        ("vit", {"depth": 12}, 0.11, [0.01 * block for block in range(12)]),
        ("vit", {"depth": 3}, 0.2, [0.0, 0.1, 0.2]),
        ("vit", {"depth": 1}, 0.1, [0.1]),
        ("swin", {"depth": None, "depths": [2, 3], "embed_patch": 8}, 0.2, [0.0, 0.05, 0.1, 0.15, 0.2]),
        ("swin", {"depth": 1}, 0.3, [0.0, 0.1, 0.2, 0.3]),
        ("conv_vit", {"depth": 2}, 0.2, [0.0, 0.05, 0.1, 0.15, 0.2]),
        ("conv_vit", {"depth": 0}, 0.1, [0.0, 0.05, 0.1]),
        ("conv_vit", {"depth": 3, "stage_depths": [0, 1]}, 0.3, [0.0, 0.1, 0.2, 0.3]),
    ],
    ids=str,
)
def test_rates_of_drop_path_of_every_block(name, settings, rate, rates):
    """Branches that survive are divided by 1 - rate, which tells the rate that a block was given, exactly."""
    encoder, given = made("encoder", name, settings | {"drop_path": rate}), []

    def keep(module, arguments):
        path = next(
            (
                part
                for part in arguments
                if isinstance(part, torch.Tensor) and part.dtype == torch.float32 and len(part) == 2
            ),
            None,
        )
        assert path is not None
        given.append([1 - 1 / float(branch.max()) for branch in path])

    for module in encoder.modules():
        if type(module).__name__ in ("Block", "SwinBlock", "ConvBlock"):
            module.register_forward_pre_hook(keep)
    encoder.train()
    answers("encoder", encoder, sample_noise(0, 0, BATCH, CPU))
    assert len(given) == len(rates)
    for branches, wanted in zip(given, rates, strict=True):
        assert branches == pytest.approx([wanted, wanted], abs=1e-6)


def test_drop_path_leaves_a_branch_out_for_a_whole_sample():
    """One block: a sample is either as without its branches, or they count for more."""
    part = made("encoder", "vit", {"depth": 1, "drop_path": 0.5, "final_norm": False})
    with torch.no_grad():
        embedded = part.embeddings["a"](
            Tokens(draw(BATCH, 16, SPEC.content_dim), GRID, SPEC).values(mask(BATCH).visible)
        )
        embedded += part.positions["a"](GRID)[mask(BATCH).visible]
        bare = 0
        for seed in range(8):
            found = answers("encoder", part, sample_noise(seed, 0, BATCH, CPU))
            same = (found == embedded).flatten(1)
            bare += int(same.all(1).sum())
    assert 0 < bare < 8 * BATCH / 2, "both branches are dropped in a quarter of the samples"


def test_dropout_keeps_the_expectation():
    part = made("encoder", "vit", {"depth": 1, "dropout": 0.3, "final_norm": False})
    with torch.no_grad():
        wanted = answers("encoder", part, None)
        part.blocks[0].mlp.fc2.weight.zero_()  # attention's branch alone is linear in what is dropped
        part.blocks[0].mlp.fc2.bias.zero_()
        wanted = answers("encoder", part, None)
        found = torch.stack([answers("encoder", part, sample_noise(seed, 0, BATCH, CPU)) for seed in range(400)])
    error = (found.mean(0) - wanted).abs() / (found.std(0) / 20 + 1e-6)
    assert error.mean() < 1.0, "standard errors"


@pytest.mark.parametrize("name", ENCODERS)
class TestStages:
    def test_outputs_are_those_of_the_modules_in_the_order_asked_for(self, name):
        encoder, seen = made("encoder", name, {}), {}

        def keep(number):
            def hook(module, given, output):
                seen[number] = output

            return hook

        for number, stage in enumerate(encoder.stages):
            stage.register_forward_hook(keep(number))
        last = len(encoder.stages) - 1
        own = EncoderInput((Part("a", Tokens(draw(2, 16, SPEC.content_dim), GRID, SPEC)),), mask(2))
        (latents,) = encoder([own], stages=(last, 0))
        assert list(seen) == list(range(last + 1)), "every stage is called once, in order"
        assert [len(output) for output in latents.stages] == [2, 2]
        assert {output.shape[1] for output in latents.stages} == {latents.values.shape[1]}
        if name != "conv_vit":  # it adds what its first stages saw before the norm
            torch.testing.assert_close(encoder.norm(latents.stages[0]), latents.values)
        assert encoder([own])[0].stages == ()

    def test_a_stage_that_is_not_there(self, name):
        encoder = made("encoder", name, {})
        with pytest.raises(MmmaskError, match=f"stage 99 is asked for, and the encoder has {len(encoder.stages)}"):
            encoder([], stages=(99,))

    def test_several_aligned_modalities_are_not_taken_and_it_is_said(self, name):
        if name == "vit":
            pytest.skip("it takes them")
        part = Part("a", Tokens(draw(2, 16, SPEC.content_dim), GRID, SPEC))
        with pytest.raises(MmmaskError, match="takes one modality per stream, not 2 aligned ones"):
            made("encoder", name, {})([EncoderInput((part, part), mask(2))])


def test_stages_of_several_inputs_packed_or_not():
    """Each input has its own outputs, whether inputs go through the blocks as one matrix or one after the other."""
    encoder = made("encoder", "vit", {"prefix_tokens": 2})
    inputs = [
        EncoderInput((Part("a", Tokens(draw(count, 16, SPEC.content_dim), GRID, SPEC)),), mask(count))
        for count in (2, 150)
    ]
    for some in (inputs, inputs[:1] * 2):
        for own, latents in zip(some, encoder(some, stages=(1,)), strict=True):
            (alone,) = encoder([own], stages=(1,))
            torch.testing.assert_close(latents.stages[0], alone.stages[0])
            assert latents.stages[0].shape == (len(own.mask.masked), 6, 32)
