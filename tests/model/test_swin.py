"""The Swin encoder through its interface, and its windows against attention over the whole plane."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from mmmask.builtins.encoders.swin import PatchMerging, SwinBlock, SwinEncoder
from mmmask.builtins.encoders.windows import (
    WindowAttention,
    across_border,
    join_windows,
    split_windows,
)
from mmmask.builtins.positions.relative import relative_index
from mmmask.interfaces import Embedding, EncoderInput, GridError, Mask, Part, Tokens, TokenSpec, patchify

SMALL = {"width": 32, "depth": 2, "num_heads": 4, "window": 4, "embed_patch": 2}  # a token is 16 x 16


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def embedding(grids=((4, 4),), patch_size=(16, 16), channels=3, **spec):
    return Embedding(TokenSpec(patch_size, channels, **spec), tuple(grids), lambda width: nn.Linear(1, width))


def build(embeddings=None, seed=0, **settings):
    torch.manual_seed(seed)
    return SwinEncoder(SwinEncoder.Config(**(SMALL | settings)), embeddings or {"a": embedding()})


def group(samples, masked=None, side=16, key="a"):
    """Samples (batch, channels, height, width); masked (batch, tokens) or None."""
    grid = (samples.shape[2] // side, samples.shape[3] // side)
    masked = torch.zeros(samples.shape[0], grid[0] * grid[1], dtype=torch.bool) if masked is None else masked
    nowhere = torch.zeros(samples.shape[0], 0, dtype=torch.int64)
    tokens = Tokens(patchify(samples, (side, side)), grid, TokenSpec((side, side), samples.shape[1]))
    return EncoderInput((Part(key, tokens),), Mask(nowhere, nowhere, nowhere.float(), masked))


def half_masked(batch=2, tokens=16):
    return draw(batch, tokens, seed=5).argsort(dim=1) < tokens // 2


def spread(module, seed=1):
    """Weights large enough that everything matters."""
    for number, parameter in enumerate(module.parameters()):
        parameter.data = draw(*parameter.shape, seed=seed + number) * (0.5 if parameter.ndim == 1 else 0.3)
    return module


def test_one_latent_per_token_in_order():
    encoder = build()
    (latents,) = encoder([group(draw(2, 3, 64, 64), half_masked())])
    assert latents.values.shape == (2, 16, 32)
    assert encoder.width == 32
    assert latents.index is None
    assert latents.prefix is None


def test_feature_maps_get_coarser_and_end_in_the_latents():
    encoder = spread(build())
    of = group(draw(2, 3, 64, 64))
    (maps,) = encoder.feature_maps([of])
    assert [tuple(part.shape) for part in maps] == [(2, 4, 32, 32), (2, 8, 16, 16), (2, 16, 8, 8), (2, 32, 4, 4)]
    assert torch.equal(maps[-1].flatten(2).transpose(1, 2), encoder([of])[0].values)


def test_a_gradient_reaches_every_parameter():
    encoder = spread(build())
    encoder([group(draw(2, 3, 64, 64), half_masked())])[0].values.mul(draw(2, 16, 32)).sum().backward()
    assert not [name for name, parameter in encoder.named_parameters() if not parameter.grad.any()]


def test_pixels_of_masked_tokens_change_nothing():
    encoder, samples, masked = spread(build()), draw(2, 3, 64, 64), half_masked()
    first = encoder.feature_maps([group(samples, masked)])[0]
    at = masked.unflatten(1, (4, 4)).repeat_interleave(16, 1).repeat_interleave(16, 2).unsqueeze(1)
    again = encoder.feature_maps([group(torch.where(at, draw(2, 3, 64, 64, seed=9), samples), masked)])[0]
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    seen = torch.where(at, samples, draw(2, 3, 64, 64, seed=9))
    assert not torch.allclose(encoder([group(seen, masked)])[0].values, again[-1].flatten(2).transpose(1, 2))


def test_the_mask_token_takes_the_place_of_masked_tokens_only():
    """Without blocks each latent belongs to one token: masked ones are alike, the others as with nothing masked."""
    encoder, samples, masked = spread(build(depth=0)), draw(2, 3, 64, 64), half_masked()
    latents, plain = (encoder([group(samples, which)])[0].values for which in (masked, None))
    assert torch.allclose(latents[~masked], plain[~masked], atol=1e-6)
    assert torch.allclose(latents[masked], latents[masked][:1], atol=1e-6)
    assert not torch.allclose(plain[masked], plain[masked][:1], atol=1e-2)


def test_samples_and_groups_do_not_see_each_other():
    encoder = spread(build({"a": embedding(), "b": embedding(channels=1)}))
    one, other = group(draw(3, 3, 64, 64), half_masked(3)), group(draw(2, 1, 64, 64), half_masked(), key="b")
    together = encoder([one, other])
    assert torch.equal(together[1].values, encoder([other])[0].values)
    for row in range(3):
        alone = group(draw(3, 3, 64, 64)[row : row + 1], half_masked(3)[row : row + 1])
        assert torch.allclose(encoder([alone])[0].values, together[0].values[row : row + 1], atol=1e-5)


def test_the_same_seed_gives_the_same_latents_in_both_precisions():
    samples, masked = draw(2, 3, 64, 64), half_masked()
    first, again, wide = build(seed=3), build(seed=3), build(seed=3).double()
    latents = first([group(samples, masked)])[0].values
    assert torch.equal(again([group(samples, masked)])[0].values, latents)
    exact = wide([group(samples.double(), masked)])[0].values
    assert exact.dtype == torch.float64
    assert torch.allclose(exact.float(), latents, atol=1e-5)


def test_bytes_are_normalised_as_their_spec_says():
    encoder = spread(build())
    raw = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    spec = TokenSpec((16, 16), 3, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), scale=255.0)
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (spec.mean, spec.std))
    of = group((raw.float() / 255 - mean) / std)
    bytes_ = EncoderInput((Part("a", Tokens(patchify(raw, (16, 16)), (4, 4), spec)),), of.mask)
    assert torch.allclose(encoder([bytes_])[0].values, encoder([of])[0].values, atol=1e-4)


def test_recomputing_activations_changes_no_gradient():
    gradients = []
    for recompute in (False, True):
        encoder = spread(build(activation_checkpointing=recompute))
        encoder([group(draw(2, 3, 64, 64), half_masked())])[0].values.square().sum().backward()
        gradients.append([parameter.grad for parameter in encoder.parameters()])
    assert all(torch.allclose(*pair, rtol=1e-4, atol=1e-4) for pair in zip(*gradients, strict=True))


def test_windows_are_joined_as_they_were_split():
    plane = draw(2, 4, 6, 3)
    windows = split_windows(plane, 2)
    assert windows.shape == (12, 4, 3)
    assert torch.equal(windows[4].view(2, 2, 3), plane[0, 2:4, 2:4])  # second row of windows, second of three
    assert torch.equal(join_windows(windows, 4, 6, 2), plane)


def test_an_offset_has_one_row_of_the_bias_table():
    index = relative_index((3, 3), (3, 3), 0)
    assert index.shape == (9, 9)
    assert index.unique().tolist() == list(range(25))
    assert (index.diagonal() == 12).all()
    assert index[3, 0] == index[4, 1] == 17  # one row below: (1 + 2) * 5 + 2
    assert index[0, 2] == index[6, 8] == 10  # two columns to the left: 2 * 5 + 0


def test_windows_attend_as_written_out():
    """Softmax with the bias of each offset, in float64 and by loops."""
    width, heads, side = 8, 2, 3
    layer = spread(WindowAttention(width, heads, side, qkv_bias=True)).double()
    rows = draw(2, side * side, width).double()
    query, key, value = layer.qkv(rows).view(2, 9, 3, heads, 4).permute(2, 0, 3, 1, 4)
    scores = query @ key.transpose(-1, -2) / 2
    for q in range(9):
        for k in range(9):
            down, right = q // 3 - k // 3, q % 3 - k % 3
            scores[:, :, q, k] += layer.relative_table[(down + 2) * 5 + right + 2]
    expected = layer.proj((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))
    assert torch.allclose(layer(rows), expected, atol=1e-12)


def reach(block, plane, at, shift):
    """Cells (height, width) of the first sample that a change at one cell reaches through a block."""
    _, height, width, _ = plane.shape
    apart = across_border(height, width, block.window, shift, plane.device) if shift else None
    changed = plane.clone()
    changed[0, at[0], at[1]] = draw(plane.shape[-1], seed=7)
    moved = block(changed, shift, apart) != block(plane, shift, apart)
    assert not moved[1:].any()
    return moved[0].any(dim=-1)


@pytest.mark.parametrize("at", [(0, 0), (0, 5), (1, 3), (2, 7), (5, 4), (7, 0), (7, 7), (6, 1)], ids=str)
@pytest.mark.parametrize("shift", [0, 2])
def test_a_cell_reaches_its_window_and_no_further(at, shift):
    """Windows shifted by 2 cut a plane of 8 into 2 + 4 + 2, rolled around or not."""
    block = spread(SwinBlock(SwinEncoder.Config(**SMALL), stage=1, window=4))
    edges = [0, 4, 8] if not shift else [0, 2, 6, 8]
    (top, bottom), (left, right) = (
        next((low, high) for low, high in zip(edges, edges[1:], strict=False) if low <= place < high) for place in at
    )
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[top:bottom, left:right] = True
    assert torch.equal(reach(block, draw(2, 8, 8, 8), at, shift), expected)


def test_every_second_block_is_shifted_where_a_plane_is_larger_than_a_window():
    encoder = spread(build(depth=3))
    seen = []
    for stage in encoder.pyramid:
        for block in stage.blocks:
            block.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    encoder([group(draw(1, 3, 64, 64))])
    assert seen == [0, 2, 0] * 3 + [0, 0, 0]


def test_neighbours_merge_in_the_published_order():
    merging = PatchMerging(2, norm_epsilon=1e-5).double()
    plane = torch.arange(16.0).double().view(1, 2, 4, 2)
    cells = plane[0, :, 2:]
    expected = merging.reduction(merging.norm(torch.cat([cells[0, 0], cells[1, 0], cells[0, 1], cells[1, 1]])))
    assert torch.allclose(merging(plane)[0, 0, 1], expected)


def test_planes_may_be_oblong_and_others_than_the_first_of_the_same_windows():
    grids = ((4, 8), (4, 4))
    encoder = spread(build({"a": embedding(grids)}))
    for height, width in ((64, 128), (64, 64), (128, 64)):
        (latents,) = encoder([group(draw(1, 3, height, width))])
        assert latents.values.shape == (1, height * width // 256, 32)


def test_a_small_plane_is_a_window_of_its_own():
    encoder = build({"a": embedding(((2, 2),))})
    assert encoder.windows == [4, 4, 4, 2]
    assert encoder.pyramid[3].blocks[0].attn.relative_table.shape == (9, 4)


def test_settings_of_the_stages():
    config = SwinEncoder.Config()
    assert (config.widths, config.heads) == ([128, 256, 512, 1024], [4, 8, 16, 32])
    small = SwinEncoder.Config(width=32, depth=2, num_heads=2)
    assert (small.widths, small.heads) == ([4, 8, 16, 32], [1, 1, 1, 2])
    given = SwinEncoder.Config(width=48, stage_heads=(1, 2, 3, 4), depths=(2, 2, 2, 1))
    assert (given.widths, given.heads) == ([6, 12, 24, 48], [1, 2, 3, 4])
    two = build({"a": embedding(((4, 4),), (4, 4))}, depths=(1, 3), depth=None)
    assert [len(stage.blocks) for stage in two.pyramid] == [1, 3]
    assert [len(stage.blocks) for stage in build(depth=1).pyramid] == [1, 1, 1, 1]


def test_parameters_of_the_published_size():
    """Swin-B is published with 88 M parameters, 1.025 M of them the classifier's (Swin, table 1a)."""
    with torch.device("meta"):
        settings = SwinEncoder.Config(window=7)
        encoder = SwinEncoder(settings, {"a": embedding(((7, 7),), (32, 32))})
    mask_token = 128
    assert sum(parameter.numel() for parameter in encoder.parameters()) - mask_token == 86_743_224


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 36}, r"width \(36\) must be a multiple of 8: it doubles in 4 stages"),
        ({"num_heads": 5}, r"5 heads of stage 3 must divide its width 32"),
        ({"stage_heads": (1, 2, 4)}, r"stage_heads \(3 numbers\) and depths \(4\) must be as long"),
        ({"stage_heads": (1, 3, 4, 4)}, r"3 heads of stage 1 must divide its width 8"),
        ({"depths": ()}, "at least 1"),
        ({"depths": (1, -1)}, "greater than or equal to 0"),
    ],
)
def test_settings_that_cannot_be_built(settings, message):
    with pytest.raises(ValidationError, match=message):
        SwinEncoder.Config(**(SMALL | settings))


@pytest.mark.parametrize(
    ("of", "settings", "message"),
    [
        ({}, {"embed_patch": 4}, r"is 32 x 32: set the modality's patch_size to \[32, 32\], or embed_patch to 2$"),
        ({"patch_size": (16, 32)}, {}, r"embeddings.a: .* is 16 x 16: set the modality's patch_size to \[16, 16\]$"),
        ({"patch_size": (2, 16, 16), "grids": ((2, 4, 4),)}, {}, "takes grids of two axes, not 3"),
        ({"vocab_size": 10}, {}, "embeds values, not ids"),
        ({"grids": ((2, 3),)}, {}, "no window of up to 4 cuts the 2 x 3 patches of stage 3 evenly"),
        ({"grids": ((4, 4), (2, 2))}, {}, r"windows \[4, 4, 4, 4\] and \[4, 4, 4, 2\] .* make window at most 2"),
    ],
)
def test_tokens_and_grids_that_do_not_fit(of, settings, message):
    with pytest.raises(GridError, match=message):
        build({"a": embedding(**of)}, **settings)


def test_windows_that_would_cut_a_plane_unevenly_are_smaller():
    assert build(window=6).windows == [4, 4, 4, 4]
    assert build(window=16).windows == [16, 16, 8, 4]


def test_samples_that_need_other_windows_are_refused():
    encoder = build()
    with pytest.raises(GridError, match=r"a grid \(2, 2\) of tokens needs windows \[4, 4, 4, 2\], and the encoder has"):
        encoder([group(draw(1, 3, 32, 32))])
    with pytest.raises(GridError, match="no window of up to 4 cuts the 5 x 5"):
        encoder([group(draw(1, 3, 80, 80))])
