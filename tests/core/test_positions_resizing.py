"""Tables of one grid made to fit another: values against loops, shapes, what is kept."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmmask.builtins.positions import resize_relative_table, resize_table

SIZES = st.integers(1, 5)


def table_of(grid, width=3, dtype=torch.float64, extra=0):
    rows = math.prod(grid) + extra
    return torch.randn(rows, width, dtype=dtype, generator=torch.Generator().manual_seed(0))


def cubic(distance):
    """Keys' kernel with a = -0.75."""
    x, a = abs(distance), -0.75
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def linear(distance):
    return max(0.0, 1 - abs(distance))


def weights(trained, size, kernel):
    """(size, trained): what each cell takes of the trained ones, the outermost repeated beyond the border."""
    matrix = torch.zeros(size, trained, dtype=torch.float64)
    for cell in range(size):
        center = (cell + 0.5) * trained / size - 0.5
        for source in range(math.floor(center) - 1, math.floor(center) + 3):
            matrix[cell, min(max(source, 0), trained - 1)] += kernel(center - source)
    return matrix


@pytest.mark.parametrize(
    ("trained", "grid"),
    [((4, 4), (6, 6)), ((5, 3), (2, 7)), ((4, 4, 4), (4, 3, 8)), ((4, 3, 3), (6, 3, 3)), ((5, 4, 3), (2, 6, 5))],
)
def test_planes_bicubically_and_steps_linearly(trained, grid):
    table = table_of(trained)
    steps, trained_steps = math.prod(grid[:-2]), math.prod(trained[:-2])
    expected = torch.einsum(
        "as,by,cx,syxd->abcd",
        weights(trained_steps, steps, linear),
        weights(trained[-2], grid[-2], cubic),
        weights(trained[-1], grid[-1], cubic),
        table.unflatten(0, (trained_steps, *trained[-2:])),
    )
    torch.testing.assert_close(resize_table(table, trained, grid), expected.flatten(0, 2))


def test_leading_axes_are_one_line_of_steps():
    table = table_of((2, 3, 2, 2))
    assert torch.equal(resize_table(table, (2, 3, 2, 2), (4, 2, 2)), resize_table(table, (6, 2, 2), (4, 2, 2)))


def test_one_step_takes_the_first_steps_rows():
    table = table_of((4, 3, 3))
    assert torch.equal(resize_table(table, (4, 3, 3), (1, 3, 3)), table[:9])
    assert torch.equal(resize_table(table, (4, 3, 3), (3, 3)), table[:9])
    assert torch.equal(resize_table(table, (4, 3, 3), (1, 5, 2)), resize_table(table[:9], (3, 3), (5, 2)))


def test_one_trained_step_is_repeated():
    table = table_of((3, 3))
    assert torch.equal(resize_table(table, (3, 3), (4, 3, 3)), table.repeat(4, 1))
    assert torch.equal(resize_table(table, (1, 3, 3), (2, 5, 5)), resize_table(table, (3, 3), (5, 5)).repeat(2, 1))


def test_a_line_linearly():
    table = table_of((5,))
    torch.testing.assert_close(resize_table(table, (5,), (8,)), weights(5, 8, linear) @ table)


def test_an_equal_grid_returns_the_table_itself():
    table = table_of((2, 3, 3))
    assert resize_table(table, (2, 3, 3), (2, 3, 3)) is table
    offsets = table_of((3, 5), extra=3)
    assert resize_relative_table(offsets, (2, 3), (2, 3), extra=3) is offsets


@given(trained=st.lists(SIZES, min_size=2, max_size=4), grid=st.lists(SIZES, min_size=2, max_size=4))
def test_shapes_constants_and_gradients(trained, grid):
    table = torch.full((math.prod(trained), 2), 1.5, requires_grad=True)
    resized = resize_table(table, tuple(trained), tuple(grid))
    assert resized.shape == (math.prod(grid), 2)
    torch.testing.assert_close(resized, torch.full_like(resized, 1.5))
    resized.sum().backward()
    assert table.grad.sum().item() == pytest.approx(resized.numel(), rel=1e-4)


@given(sizes=st.lists(st.tuples(SIZES, SIZES), min_size=1, max_size=4), extra=st.integers(0, 3))
def test_shapes_and_constants_of_offsets(sizes, extra):
    trained, grid = zip(*sizes, strict=True)
    table = torch.full((math.prod(2 * size - 1 for size in trained) + extra, 2), 1.5)
    resized = resize_relative_table(table, trained, grid, extra=extra)
    assert resized.shape == (math.prod(2 * size - 1 for size in grid) + extra, 2)
    torch.testing.assert_close(resized, torch.full_like(resized, 1.5))


@pytest.mark.parametrize(("trained", "grid"), [((4, 4), (6, 6)), ((3, 2), (2, 4)), ((4, 3, 3), (2, 5, 3))])
def test_offsets_bicubically_and_linearly_before_the_last_two_axes(trained, grid):
    offsets, wanted = [2 * size - 1 for size in trained], [2 * size - 1 for size in grid]
    table = table_of(offsets, extra=3)
    cells = table[:-3].unflatten(0, offsets)
    cells = cells if len(trained) == 3 else cells.unsqueeze(0)
    leading = weights(offsets[0], wanted[0], linear) if len(trained) == 3 else torch.ones(1, 1, dtype=torch.float64)
    expected = torch.einsum(
        "as,by,cx,syxd->abcd",
        leading,
        weights(offsets[-2], wanted[-2], cubic),
        weights(offsets[-1], wanted[-1], cubic),
        cells,
    )
    found = resize_relative_table(table, trained, grid, extra=3)
    torch.testing.assert_close(found[:-3], expected.flatten(0, 2))
    assert torch.equal(found[-3:], table[-3:]), "rows of prefix tokens stay"


@pytest.mark.parametrize(("trained", "grid"), [((5,), (2,)), ((4, 3), (2, 6)), ((8, 3, 3), (1, 3, 3))])
def test_no_offset_stays_in_the_middle(trained, grid):
    """Odd functions of the offsets are 0 at offset 0, before and after."""
    offsets = [2 * size - 1 for size in trained]
    table = table_of(offsets)
    table = table - table.flip(0)
    found = resize_relative_table(table, trained, grid)
    torch.testing.assert_close(found[len(found) // 2], torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_tables_are_resized_in_float32(dtype):
    table = table_of((3, 3), dtype=torch.float32).to(dtype)
    expected = resize_table(table.float(), (3, 3), (5, 5)).to(dtype)
    assert torch.equal(resize_table(table, (3, 3), (5, 5)), expected)
    assert resize_relative_table(table, (2, 2), (3, 3)).dtype == dtype


def test_gradients_of_both_are_right():
    table = table_of((2, 3, 3), width=2).requires_grad_()
    torch.autograd.gradcheck(lambda each: resize_table(each, (2, 3, 3), (3, 2, 4)), table)
    offsets = table_of((3, 5), width=2, extra=1).requires_grad_()
    torch.autograd.gradcheck(lambda each: resize_relative_table(each, (2, 3), (3, 2), extra=1), offsets)


@pytest.mark.parametrize(
    ("rows", "trained", "grid", "message"),
    [
        (15, (4, 4), (4, 4), r"shape \(15, 2\) is not one of the grid \(4, 4\): that has 16 rows"),
        (16, (4, 4), (16,), "one is a line"),
        (4, (4,), (2, 2), "one is a line"),
        (16, (4, 4), (0, 4), "every size at least 1"),
        (1, (), (4, 4), "at least one axis"),
    ],
)
def test_what_does_not_fit_is_refused(rows, trained, grid, message):
    with pytest.raises(ValueError, match=message):
        resize_table(torch.zeros(rows, 2), trained, grid)


def test_offsets_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="49 offsets and 3 rows for prefix tokens"):
        resize_relative_table(torch.zeros(49, 2), (4, 4), (5, 5), extra=3)
    with pytest.raises(ValueError, match="as many axes"):
        resize_relative_table(torch.zeros(49, 2), (4, 4), (1, 4, 4))
