"""The encoder of masked convolutions and a ViT: its interface, and against one that computes masked cells as well."""

from __future__ import annotations

import shutil

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from mmmask.builtins.encoders.conv_vit import ConvViTEncoder, places_on_plane
from mmmask.interfaces import Embedding, EncoderInput, GridError, Mask, Part, Tokens, TokenSpec, gather_rows, patchify
from mmmask.model.compiling import compile_stages
from mmmask_registry import MmmaskError

SMALL = {
    "width": 32, "depth": 2, "num_heads": 4, "stage_widths": (8, 16), "stage_depths": (2, 1), "stage_patches": (4, 2),
}  # fmt: skip


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def embedding(grids=((4, 4),), patch_size=(16, 16), channels=3, **spec):
    return Embedding(TokenSpec(patch_size, channels, **spec), tuple(grids), lambda width: nn.Linear(1, width))


def build(embeddings=None, seed=0, **settings):
    torch.manual_seed(seed)
    return ConvViTEncoder(ConvViTEncoder.Config(**(SMALL | settings)), embeddings or {"a": embedding()})


def group(samples, masked=None, patch=(16, 16), key="a"):
    """Samples (batch, channels, height, width); masked (batch, tokens), as many in every sample, or None."""
    grid = (samples.shape[2] // patch[0], samples.shape[3] // patch[1])
    masked = torch.zeros(samples.shape[0], grid[0] * grid[1], dtype=torch.bool) if masked is None else masked
    visible = (~masked).nonzero()[:, 1].view(masked.shape[0], -1)
    predicted = masked.nonzero()[:, 1].view(masked.shape[0], -1)
    tokens = Tokens(patchify(samples, patch), grid, TokenSpec(patch, samples.shape[1]))
    return EncoderInput((Part(key, tokens),), Mask(visible, predicted, predicted.float(), masked))


def some_masked(batch=2, tokens=16, count=10):
    return draw(batch, tokens, seed=5).argsort(dim=1) < count


def spread(module, seed=1):
    """Weights large enough that everything matters."""
    for number, parameter in enumerate(module.parameters()):
        parameter.data = draw(*parameter.shape, seed=seed + number) * (0.5 if parameter.ndim == 1 else 0.3)
    return module


def upsampled(visible, plane):
    """(batch, 1, *grid) -> the same at the size of a plane."""
    return F.interpolate(visible, size=plane.shape[2:], mode="nearest")


def channels(norm, plane):
    """A LayerNorm over the channels of (batch, channels, height, width)."""
    return norm(plane.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def convolution(linear, plane, side):
    """A linear layer over patches, channel fastest, as the convolution it stands for."""
    weight = linear.weight.unflatten(1, (side, side, -1)).permute(0, 3, 1, 2)
    return F.conv2d(plane, weight, linear.bias, stride=side)


def dense(encoder, samples, masked, grid, key="a"):
    """The encoder as the paper draws it, on whole planes, masked cells too: (latents of all tokens, planes).

    Latents are those of the visible tokens; in the place of others there are zeros.
    """
    visible = (~masked).to(samples.dtype).view(-1, 1, *grid)
    plane, planes, shares = samples, [], []
    for number, (stage, side) in enumerate(zip(encoder.pyramid, encoder.config.stage_patches, strict=True)):
        plane = convolution(stage.embed.proj if number else encoder.embeddings[key], plane, side)
        plane = F.gelu(channels(stage.embed.norm, plane))
        for block in stage.blocks:
            inner = convolution(block.conv1, channels(block.norm1, plane), 1) * upsampled(visible, plane)
            inner = F.conv2d(inner, block.depthwise.weight, block.depthwise.bias, padding="same", groups=inner.shape[1])
            plane = plane + convolution(block.conv2, inner, 1)
            inner = F.gelu(convolution(block.mlp.fc1, channels(block.norm2, plane), 1))
            plane = plane + convolution(block.mlp.fc2, inner, 1)
        planes.append(plane)
        shares.append(convolution(stage.fuse, plane, plane.shape[2] // grid[0]).flatten(2).transpose(1, 2))
    plane = convolution(encoder.embed.proj, plane, plane.shape[2] // grid[0])
    rows = encoder.project(F.gelu(encoder.embed.norm(plane.flatten(2).transpose(1, 2))))
    rows = rows + encoder.positions[key](grid)
    latents = torch.zeros_like(rows)
    for sample, seen in enumerate(~masked):
        part = encoder.blocks([rows[sample : sample + 1, seen]])[0][0]
        latents[sample, seen] = encoder.norm(part + sum(share[sample, seen] for share in shares))[0]
    return latents, planes


@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (1, 2)], ids=str)
@pytest.mark.parametrize("share", [0.0, 0.25, 0.75])
def test_nothing_is_lost_by_leaving_masked_cells_out(grid, share):
    encoder, tokens = spread(build({"a": embedding((grid,))})).double(), grid[0] * grid[1]
    samples, masked = draw(2, 3, 16 * grid[0], 16 * grid[1]).double(), some_masked(2, tokens, int(share * tokens))
    expected, planes = dense(encoder, samples, masked, grid)
    of = group(samples, masked)
    (latents,) = encoder([of])
    if latents.index is None:
        assert not masked.any()
        (maps,) = encoder.feature_maps([of])
        for got, want in zip(maps, planes, strict=False):
            torch.testing.assert_close(got, want, atol=1e-10, rtol=0)
    else:
        assert torch.equal(latents.index, of.mask.visible)
        expected = gather_rows(expected, latents.index)
    torch.testing.assert_close(latents.values, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    ("patch", "settings"),
    [
        ((16, 8), {}),  # the last patch embedding then takes 2 x 1 cells
        ((8, 8), {}),  # and here one
        ((12, 12), {"stage_patches": (2, 3), "conv_kernel": 3}),
        ((8, 16), {"stage_widths": (8,), "stage_depths": (2,), "stage_patches": (4,)}),
        ((16, 16), {"stage_widths": (4, 8, 12), "stage_depths": (1, 0, 2), "stage_patches": (2, 2, 2)}),
    ],
    ids=str,
)
def test_tokens_and_stages_of_other_sizes(patch, settings):
    grid, masked = (3, 4), some_masked(2, 12, 7)
    encoder = spread(build({"a": embedding((grid,), patch)}, **settings)).double()
    samples = draw(2, 3, 3 * patch[0], 4 * patch[1]).double()
    (maps,) = encoder.feature_maps([group(samples, patch=patch)])
    assert len(maps) == len(encoder.config.stage_widths) + 1
    assert maps[-1].shape == (2, 32, 3, 4)
    of = group(samples, masked, patch)
    (latents,) = encoder([of])
    changed = torch.where(
        masked.view(2, 1, 3, 4).repeat_interleave(patch[0], 2).repeat_interleave(patch[1], 3), samples + 1, samples
    )
    assert torch.equal(encoder([group(changed, masked, patch)])[0].values, latents.values)
    if patch[0] == patch[1]:  # what the reference can
        expected, _ = dense(encoder, samples, masked, grid)
        torch.testing.assert_close(latents.values, gather_rows(expected, latents.index), atol=1e-10, rtol=0)


def test_pixels_of_masked_tokens_change_nothing():
    encoder, samples, masked = spread(build()), draw(2, 3, 64, 64), some_masked()
    at = masked.view(2, 1, 4, 4).repeat_interleave(16, 2).repeat_interleave(16, 3)
    other = draw(2, 3, 64, 64, seed=9)
    (first,) = encoder([group(samples, masked)])
    (again,) = encoder([group(torch.where(at, other, samples), masked)])
    (seen,) = encoder([group(torch.where(at, samples, other), masked)])
    assert first.values.shape == (2, 6, 32)
    assert torch.equal(first.values, again.values)
    assert not torch.allclose(first.values, seen.values, atol=1e-2)
    infinite = torch.where(at, torch.tensor(float("nan")), samples)
    assert torch.equal(encoder([group(infinite, masked)])[0].values, first.values)


def test_visible_tokens_see_each_other_through_the_convolutions():
    """Without transformer blocks a token's latents reach as far as the depth-wise convolutions, over visible tokens."""
    encoder = spread(build(depth=0, stage_depths=(1, 0))).double()  # a reach of two cells, half a token
    samples = draw(1, 3, 64, 64).double()
    changed = samples.clone()
    changed[..., 16:32, 16:32] += 1  # token 5, in row 1 and column 1
    near = torch.zeros(4, 4, dtype=torch.bool)
    near[:3, :3] = True
    moved = [
        (encoder([group(samples, masked)])[0].values != encoder([group(changed, masked)])[0].values).any(dim=-1)
        for masked in (None, torch.arange(16).unsqueeze(0) == 9)
    ]
    assert torch.equal(moved[0].view(4, 4), near)
    assert torch.equal(moved[1][0], near.flatten()[torch.arange(16) != 9])


def test_feature_maps_get_coarser_and_end_in_the_latents():
    encoder = spread(build())
    of = group(draw(2, 3, 64, 64))
    (maps,) = encoder.feature_maps([of])
    assert [tuple(part.shape) for part in maps] == [(2, 8, 16, 16), (2, 16, 8, 8), (2, 32, 4, 4)]
    assert torch.equal(maps[-1].flatten(2).transpose(1, 2), encoder([of])[0].values)
    with pytest.raises(MmmaskError, match="feature maps need all tokens: mask nothing"):
        encoder.feature_maps([group(draw(2, 3, 64, 64), some_masked())])


def test_a_gradient_reaches_every_parameter():
    encoder = spread(build({"a": embedding(), "b": embedding(channels=1)}))
    groups = [group(draw(2, 3, 64, 64), some_masked()), group(draw(2, 1, 64, 64), some_masked(), key="b")]
    sum(latents.values.mul(draw(2, 6, 32)).sum() for latents in encoder(groups)).backward()
    assert not [name for name, parameter in encoder.named_parameters() if not parameter.grad.any()]


def test_what_stands_in_the_weights():
    names = {name for name, _ in build(depth=1, stage_depths=(1, 1)).named_parameters()}
    block = ("norm1", "conv1", "depthwise", "conv2", "norm2", "mlp.fc1", "mlp.fc2")
    modules = [f"pyramid.{stage}.blocks.0.{layer}" for stage in (0, 1) for layer in block]
    modules += ["embeddings.a", "pyramid.0.embed.norm", "pyramid.1.embed.proj", "pyramid.1.embed.norm", "embed.proj"]
    modules += ["embed.norm", "project", "norm", "pyramid.0.fuse", "pyramid.1.fuse"]
    expected = {f"{module}.{part}" for module in modules for part in ("weight", "bias")}
    assert {name for name in names if not name.startswith("blocks.0.")} == expected


def test_samples_and_groups_do_not_see_each_other():
    encoder = spread(build({"a": embedding(), "b": embedding(((2, 4),), channels=1)}))
    one = group(draw(3, 3, 64, 64), some_masked(3))
    other = group(draw(2, 1, 32, 64), some_masked(2, 8, 3), key="b")
    together = encoder([one, other])
    assert torch.allclose(together[1].values, encoder([other])[0].values, atol=1e-5)
    for row in range(3):
        alone = group(draw(3, 3, 64, 64)[row : row + 1], some_masked(3)[row : row + 1])
        assert torch.allclose(encoder([alone])[0].values, together[0].values[row : row + 1], atol=1e-5)


def test_the_same_seed_gives_the_same_latents_in_both_precisions():
    samples, masked = draw(2, 3, 64, 64), some_masked()
    first, again, wide = build(seed=3), build(seed=3), build(seed=3).double()
    latents = first([group(samples, masked)])[0].values
    assert torch.equal(again([group(samples, masked)])[0].values, latents)
    exact = wide([group(samples.double(), masked)])[0].values
    assert exact.dtype == torch.float64
    assert torch.allclose(exact.float(), latents, atol=1e-5)


def test_it_runs_in_bf16():
    encoder, of = build(), group(draw(2, 3, 64, 64), some_masked())
    exact = encoder([of])[0].values
    with torch.autocast("cpu", torch.bfloat16):
        latents = encoder([of])[0].values
    latents.square().sum().backward()
    assert torch.allclose(latents.float(), exact, atol=0.15)


def test_bytes_are_normalised_as_their_spec_says():
    encoder = spread(build())
    raw = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    spec = TokenSpec((16, 16), 3, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), scale=255.0)
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (spec.mean, spec.std))
    of = group((raw.float() / 255 - mean) / std, some_masked())
    bytes_ = EncoderInput((Part("a", Tokens(patchify(raw, (16, 16)), (4, 4), spec)),), of.mask)
    assert torch.allclose(encoder([bytes_])[0].values, encoder([of])[0].values, atol=1e-4)


def test_recomputing_activations_changes_no_gradient():
    gradients = []
    for recompute in (False, True):
        encoder = spread(build(activation_checkpointing=recompute))
        encoder([group(draw(2, 3, 64, 64), some_masked())])[0].values.square().sum().backward()
        gradients.append([parameter.grad for parameter in encoder.parameters()])
    assert all(torch.allclose(*pair, rtol=1e-4, atol=1e-4) for pair in zip(*gradients, strict=True))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
# dynamo looks at `.grad` of the inputs it traces; they are no leaves here
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning")
# torch's own inductor still builds a TorchScript helper
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_compiled_stages_give_the_same_latents_and_gradients():
    plain, compiled = (spread(build(depth=0, stage_depths=(1, 1))) for _ in range(2))
    compile_stages(compiled.stages)
    gradients = []
    for encoder in (plain, compiled):
        latents = encoder([group(draw(2, 3, 64, 64), some_masked())])[0].values
        latents.mul(draw(2, 6, 32)).sum().backward()
        gradients.append([latents, *(parameter.grad for parameter in encoder.parameters())])
    assert all(torch.allclose(*pair, rtol=1e-4, atol=1e-4) for pair in zip(*gradients, strict=True))


def test_cells_of_visible_tokens_lie_where_their_pixels_do():
    """Planes of 2 x 3 tokens of 2 x 2 cells: 4 rows of 6."""
    places = places_on_plane(torch.tensor([[1, 3], [0, 5]]), (2, 3), (2, 2)).view(2, 2, 4)
    assert places[0].tolist() == [[2, 3, 8, 9], [12, 13, 18, 19]]
    assert (places[1] - 24).tolist() == [[0, 1, 6, 7], [16, 17, 22, 23]]


def test_other_positions_can_be_chosen():
    for name in ("learned", "flat_sinusoid", "relative_bias"):
        encoder = spread(build(positions={"name": name}))
        assert encoder([group(draw(2, 3, 64, 64), some_masked())])[0].values.isfinite().all()


def test_parameters_of_the_published_size():
    """ConvMAE-Base is published with 88 M parameters."""
    with torch.device("meta"):
        encoder = ConvViTEncoder(ConvViTEncoder.Config(), {"a": embedding(((14, 14),))})
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 88_782_208


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stage_depths": (2,)}, r"stage_depths \(1 numbers\) and stage_widths \(2\) must be as long"),
        ({"stage_patches": (4, 2, 2)}, r"stage_patches \(3 numbers\) and stage_widths \(2\) must be as long"),
        ({"stage_widths": (), "stage_depths": (), "stage_patches": ()}, "at least 1"),
        ({"conv_kernel": 4}, r"conv_kernel \(4\) must be odd"),
        ({"num_heads": 5}, r"num_heads \(5\) must divide width \(32\)"),
    ],
)
def test_settings_that_cannot_be_built(settings, message):
    with pytest.raises(ValidationError, match=message):
        ConvViTEncoder.Config(**(SMALL | settings))


@pytest.mark.parametrize(
    ("of", "message"),
    [
        ({"patch_size": (2, 16, 16), "grids": ((2, 4, 4),)}, "embeddings.a: conv_vit takes grids of two axes, not 3"),
        ({"patch_size": (16,), "grids": ((4,),)}, "embeddings.a: conv_vit takes grids of two axes, not 1"),
        ({"patch_size": (16, 12)}, r"cells of 8 x 8, and a token is 16 x 12: set the modality's patch_size to multipl"),
        ({"vocab_size": 10}, "embeddings.a: conv_vit embeds values, not ids"),
    ],
)
def test_tokens_that_do_not_fit(of, message):
    with pytest.raises(GridError, match=message):
        build({"a": embedding(**of)})
    assert issubclass(GridError, ValueError)


def test_streams_must_have_tokens_of_one_size():
    with pytest.raises(GridError, match=r"embeddings a and b are of tokens of \(16, 16\) and \(8, 8\)"):
        build({"a": embedding(), "b": embedding(patch_size=(8, 8))})
    encoder = build()
    with pytest.raises(GridError, match=r"a token of \(8, 8\), and the encoder was built for \(16, 16\)"):
        encoder([group(draw(1, 3, 32, 32), patch=(8, 8))])
