"""Learned positions: one table, and tables of place and step that are added."""

import pytest
import torch

from mmmask.builtins.positions import LearnedPositions, LearnedSeparablePositions, resize_table
from mmmask.interfaces import Component


def learned(*grids, width=8, num_prefix=0):
    return LearnedPositions(Component.Config(name="learned"), width, grids, num_prefix)


def separable(*grids, width=8, num_prefix=0):
    return LearnedSeparablePositions(Component.Config(name="learned_separable"), width, grids, num_prefix)


def shapes(module):
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


def test_what_is_learned():
    assert shapes(learned((4, 4))) == {"table": (16, 8)}
    assert shapes(learned((1, 4, 4), (3, 4, 4), num_prefix=2)) == {"table": (48, 8), "prefix_table": (2, 8)}
    assert shapes(learned((10,))) == {"table": (10, 8)}
    assert shapes(separable((3, 4, 5), num_prefix=1)) == {"space": (20, 8), "time": (3, 8), "prefix_table": (1, 8)}
    assert shapes(separable((2, 3, 4, 5))) == {"space": (20, 8), "time": (6, 8)}
    assert shapes(separable((1, 4, 4))) == {"space": (16, 8), "time": (1, 8)}
    assert shapes(separable((4, 4))) == {"space": (16, 8)}


@pytest.mark.parametrize("build", [learned, separable])
def test_it_begins_as_a_narrow_normal(build):
    torch.manual_seed(0)
    positions = build((4, 14, 14), width=64, num_prefix=64)
    for table in positions.parameters():
        assert table.std().item() == pytest.approx(0.02, rel=0.1)
        assert abs(table.mean().item()) < 0.004


@pytest.mark.parametrize("build", [learned, separable])
def test_prefix_tokens_have_rows_of_their_own(build):
    assert build((2, 4, 4)).prefix() is None
    positions = build((2, 4, 4), num_prefix=3)
    assert positions.prefix() is positions.prefix_table
    assert positions.prefix().shape == (3, 8)


def test_the_grid_with_most_tokens_takes_the_table_itself():
    positions = learned((1, 6, 6), (3, 4, 4))
    assert positions.reference == (3, 4, 4)
    assert positions((3, 4, 4)) is positions.table


@pytest.mark.parametrize("grid", [(3, 6, 6), (6, 4, 4), (2, 3, 7), (1, 6, 6)])
def test_other_grids_take_it_resized(grid):
    positions = learned((3, 4, 4))
    assert torch.equal(positions(grid), resize_table(positions.table, (3, 4, 4), grid))


def test_a_still_shares_the_rows_of_the_first_step():
    positions = learned((1, 4, 4), (3, 4, 4))
    assert torch.equal(positions((1, 4, 4)), positions.table[:16])


def test_a_line_has_learned_positions_too():
    positions = learned((4,), (8,))
    torch.testing.assert_close(positions((4,)), (positions.table[0::2] + positions.table[1::2]) / 2)
    with pytest.raises(ValueError, match="one is a line"):
        learned((4,), (8, 8))


def test_place_and_step_are_added():
    positions = separable((3, 2, 4))
    table = positions((3, 2, 4))
    for step in range(3):
        for cell in range(8):
            expected = positions.time[step] + positions.space[cell]
            assert torch.equal(table[step * 8 + cell], expected)


def test_without_steps_there_is_place_alone():
    positions = separable((2, 4))
    assert torch.equal(positions((2, 4)), positions.space)
    assert torch.equal(positions((3, 2, 4)), positions.space.repeat(3, 1))


def test_leading_axes_are_one_line_of_steps():
    positions = separable((2, 3, 2, 2))
    assert torch.equal(positions((2, 3, 2, 2)), positions((6, 2, 2)))


def test_places_are_resized_bicubically_and_steps_linearly():
    positions = separable((4, 4, 4))
    space = resize_table(positions.space, (4, 4), (6, 2))
    halves = (positions.time[0::2] + positions.time[1::2]) / 2
    expected = (halves.unsqueeze(1) + space).flatten(0, 1)
    torch.testing.assert_close(positions((2, 6, 2)), expected)
    assert torch.equal(positions((1, 6, 2)), positions.time[:1] + space)
    assert torch.equal(positions((6, 2)), positions.time[:1] + space)


def test_the_largest_plane_and_the_most_steps_have_tables_of_their_own():
    positions = separable((1, 6, 6), (5, 2, 2))
    assert (positions.plane, positions.frames) == ((6, 6), 5)
    assert shapes(positions) == {"space": (36, 8), "time": (5, 8)}


def test_place_and_step_need_a_plane():
    with pytest.raises(ValueError, match="has one axis.*choose the positions learned"):
        separable((16,))


@pytest.mark.parametrize("build", [learned, separable])
@pytest.mark.parametrize("grid", [(3, 4, 4), (5, 6, 3)])
def test_a_gradient_reaches_every_number(build, grid):
    positions = build((3, 4, 4), num_prefix=2)
    (positions(grid).square().sum() + positions.prefix().square().sum()).backward()
    for parameter in positions.parameters():
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any(dim=1).all()


@pytest.mark.parametrize("build", [learned, separable])
def test_it_follows_dtype_and_device(build):
    positions = build((3, 4, 4), num_prefix=1)
    assert positions((3, 4, 4)).dtype == positions((2, 6, 6)).dtype == torch.float32
    positions.to(torch.bfloat16)
    assert positions((3, 4, 4)).dtype == positions((2, 6, 6)).dtype == positions.prefix().dtype == torch.bfloat16
    positions.double()
    assert positions((2, 6, 6)).dtype == torch.float64
    positions.to("meta")
    assert positions((2, 6, 6)).device.type == positions.prefix().device.type == "meta"


@pytest.mark.parametrize("build", [learned, separable])
def test_nothing_is_added_to_attention(build):
    assert build((2, 2, 2)).bias((2, 2, 2), None) is None
