"""The learned bias of the attention: which row of its table serves which pair of tokens."""

import itertools

import pytest
import torch

from mmmask.builtins.positions import RelativeBias


def build(*grids, num_heads=3, num_prefix=0):
    positions = RelativeBias(RelativeBias.Config(num_heads=num_heads), 48, grids, num_prefix)
    with torch.no_grad():
        positions.table.copy_(torch.arange(float(positions.table.numel())).view_as(positions.table))
    return positions


def expected_index(grid, reference, num_prefix):
    cells = list(itertools.product(*(range(size) for size in grid)))
    offsets = list(itertools.product(*(range(1 - size, size) for size in reference)))
    rows = {offset: number for number, offset in enumerate(offsets)}
    total = num_prefix + len(cells)
    index = [[0] * total for _ in range(total)]
    for query in range(total):
        for key in range(total):
            if query < num_prefix and key < num_prefix:
                index[query][key] = len(offsets) + 2
            elif query < num_prefix:
                index[query][key] = len(offsets)
            elif key < num_prefix:
                index[query][key] = len(offsets) + 1
            else:
                pair = zip(cells[query - num_prefix], cells[key - num_prefix], strict=True)
                index[query][key] = rows[tuple(i - j for i, j in pair)]
    return torch.tensor(index)


def test_the_index_of_two_rows_and_three_columns():
    assert build((2, 3)).index((2, 3)).tolist() == [
        [7, 6, 5, 2, 1, 0],
        [8, 7, 6, 3, 2, 1],
        [9, 8, 7, 4, 3, 2],
        [12, 11, 10, 7, 6, 5],
        [13, 12, 11, 8, 7, 6],
        [14, 13, 12, 9, 8, 7],
    ]


def test_the_index_with_a_prefix_token_is_the_published_one():
    """Literals of the official index of 6 x 6 tokens and a cls token."""
    index = build((6, 6), num_prefix=1).index((6, 6))
    assert index.shape == (37, 37)
    assert index[0].tolist() == [123] + [121] * 36
    assert index[1:, 0].tolist() == [122] * 36
    assert index[1, 1:8].tolist() == [60, 59, 58, 57, 56, 55, 49]
    assert index[2, 1:5].tolist() == [61, 60, 59, 58]
    assert (index.min().item(), index[1:, 1:].max().item()) == (0, 120)


@pytest.mark.parametrize("num_prefix", [0, 1, 3])
@pytest.mark.parametrize(
    ("grid", "reference"),
    [((5,), (5,)), ((2, 3), (2, 3)), ((2, 3), (4, 3)), ((2, 2, 3), (2, 2, 3)), ((1, 3, 2), (2, 3, 3))],
)
def test_the_index_against_loops(grid, reference, num_prefix):
    positions = build(grid, reference, num_prefix=num_prefix)
    assert torch.equal(positions.index(grid), expected_index(grid, reference, num_prefix))


@pytest.mark.parametrize("num_prefix", [0, 2])
def test_the_bias_of_all_tokens(num_prefix):
    positions = build((2, 3), num_prefix=num_prefix)
    bias, index = positions.bias((2, 3), None), positions.index((2, 3))
    assert bias.shape == (3, 6 + num_prefix, 6 + num_prefix)
    for head in range(3):
        assert torch.equal(bias[head], positions.table[:, head][index])


@pytest.mark.parametrize("num_prefix", [0, 2])
def test_the_bias_of_some_tokens_is_that_part_of_all(num_prefix):
    positions = build((3, 3), num_prefix=num_prefix)
    rows = torch.tensor([[0, 4, 7], [2, 3, 8], [1, 0, 5]])
    found, whole = positions.bias((3, 3), rows), positions.bias((3, 3), None)
    assert found.shape == (3, 3, 3 + num_prefix, 3 + num_prefix)
    for sample in range(3):
        at = [*range(num_prefix), *(row + num_prefix for row in rows[sample].tolist())]
        assert torch.equal(found[sample], whole[:, at][:, :, at])


def test_the_table_covers_the_largest_size_along_each_axis():
    positions = build((1, 6, 4), (3, 4, 5), num_prefix=1)
    assert positions.reference == (3, 6, 5)
    assert positions.table.shape == (5 * 11 * 9 + 3, 3)
    assert build((4, 4)).table.shape == (49, 3)


def test_a_larger_grid_is_refused():
    with pytest.raises(ValueError, match=r"\(5, 4\) does not fit into \(4, 4\).*resize_relative_table"):
        build((4, 4)).bias((5, 4), None)
    with pytest.raises(ValueError, match="does not fit"):
        build((4, 4)).bias((1, 4, 4), None)
    with pytest.raises(ValueError, match="not as many axes"):
        build((4, 4), (1, 4, 4))


def test_it_begins_at_zero_and_is_all_there_is_to_save():
    positions = RelativeBias(RelativeBias.Config(num_heads=12), 48, [(2, 2)], 1)
    positions.bias((2, 2), None)
    assert {key: tuple(value.shape) for key, value in positions.state_dict().items()} == {"table": (12, 12)}
    assert not positions.table.any()
    assert positions((2, 2)) is None
    assert positions.prefix() is None


@pytest.mark.parametrize("rows", [None, torch.tensor([[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]])])
def test_a_gradient_reaches_every_row(rows):
    positions = build((2, 3), num_prefix=2)
    index = positions.index((2, 3))
    positions.bias((2, 3), rows).sum().backward()
    counts = index.flatten().bincount(minlength=len(positions.table)) * (1 if rows is None else len(rows))
    assert counts.all()
    assert torch.equal(positions.table.grad, counts.float().unsqueeze(1).expand(-1, 3))


def test_indices_made_without_gradients_serve_training_later():
    positions = build((2, 2))
    with torch.inference_mode():
        positions.bias((2, 2), None)
    positions.bias((2, 2), None).sum().backward()
    assert positions.table.grad.all()
    assert positions.index((2, 2)) is positions.index((2, 2))


def test_it_follows_dtype_and_device():
    positions = build((2, 2), num_prefix=1)
    positions.bias((2, 2), None)
    assert positions.double().bias((2, 2), None).dtype == torch.float64
    positions.to("meta")
    assert positions.bias((2, 2), None).device.type == "meta"
    assert positions.bias((2, 2), torch.zeros(1, 2, dtype=torch.int64, device="meta")).shape == (1, 3, 3, 3)


def test_heads_that_nobody_gives_are_asked_for():
    with pytest.raises(ValueError, match="num_heads is not known here: give it"):
        RelativeBias(RelativeBias.Config(), 48, [(2, 2)])
