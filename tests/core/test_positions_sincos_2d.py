"""MAE's fixed table of columns and rows: the formula, published values, steps, other sizes."""

import math

import pytest
import torch

from mmmask.builtins.positions import SinCos2d, resize_table, sincos_2d_table
from mmmask.experiment import ExperimentError, experiment_from_data
from mmmask.interfaces.component import validate_strictly
from mmmask.model.build import build_model


def build(width, *grids, trained_grid=None, num_prefix=0):
    config = validate_strictly(SinCos2d.Config, {"name": "sincos_2d", "trained_grid": trained_grid})
    return SinCos2d(config, width=width, grids=grids, num_prefix=num_prefix)


@pytest.mark.parametrize("width", [4, 24])
def test_the_formula(width):
    table = sincos_2d_table((3, 5), width)
    assert table.shape == (15, width)
    quarter = width // 4
    for row in range(3):
        for column in range(5):
            expected = []
            for place in (column, row):
                angles = [place * 10000 ** (-k / quarter) for k in range(quarter)]
                expected += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
            found = table[row * 5 + column].tolist()
            assert found == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize(
    ("width", "values", "total", "weighted"),
    [
        (
            48,
            {
                (1, 0): 0.8414709568023682, (1, 11): 0.00021544346236623824, (1, 12): 0.5403022766113281,
                (6, 13): 0.5991816520690918, (9, 24): 0.9092974066734314, (14, 47): 0.9999997615814209,
                (15, 3): 0.29552021622657776,
            },
            390.9592521409504, 19701.69187643996,
        ),
        (
            32,
            {
                (1, 0): 0.8414709568023682, (1, 11): 0.999500036239624, (6, 13): 0.9999799728393555,
                (9, 16): 0.9092974066734314, (14, 31): 0.9999995231628418, (15, 3): 0.0947260931134224,
            },
            254.98901308211498, 12309.614970207622,
        ),
    ],
)  # fmt: skip
def test_it_is_the_published_table(width, values, total, weighted):
    """Literals of tables of 4 x 4 tokens that the official implementation makes."""
    table = sincos_2d_table((4, 4), width)
    assert {key: table[key].item() for key in values} == values
    assert table.double().sum().item() == pytest.approx(total, abs=1e-9)
    assert (table.double().flatten() * (torch.arange(16 * width) % 97)).sum().item() == pytest.approx(
        weighted, rel=1e-9
    )


@pytest.mark.parametrize("leading", [(1,), (3,), (2, 2)])
def test_the_plane_repeats_at_every_step(leading):
    plane = sincos_2d_table((2, 5), 8)
    steps = build(8, (*leading, 2, 5))((*leading, 2, 5)).unflatten(0, (-1, 10))
    assert len(steps) == math.prod(leading)
    assert all(torch.equal(step, plane) for step in steps)


def test_the_row_first_is_the_transposed_table():
    column, row = (sincos_2d_table((4, 4), 8, first).unflatten(0, (4, 4)) for first in ("column", "row"))
    assert torch.equal(row, column.transpose(0, 1))


def test_every_grid_is_computed_anew():
    positions = build(8, (1, 4, 4), (2, 6, 6))
    assert torch.equal(positions((1, 4, 4)), sincos_2d_table((4, 4), 8))
    assert torch.equal(positions((7, 3)), sincos_2d_table((7, 3), 8))


def test_with_a_trained_grid_its_plane_is_resized():
    positions = build(8, (1, 6, 6), (3, 6, 6), trained_grid=(2, 4, 4))
    plane = resize_table(sincos_2d_table((4, 4), 8), (4, 4), (6, 6))
    assert torch.equal(positions((1, 6, 6)), plane)
    assert torch.equal(positions((3, 6, 6)), plane.repeat(3, 1))
    assert torch.equal(positions((5, 4, 4)), sincos_2d_table((5, 4, 4), 8))


def test_a_width_that_does_not_divide_by_four_is_refused():
    with pytest.raises(ValueError, match="width 50 does not divide by 4.*choose a width that does"):
        build(50, (4, 4))
    with pytest.raises(ValueError, match="divide by 4"):
        sincos_2d_table((4, 4), 6)


def test_a_grid_of_one_axis_is_refused():
    with pytest.raises(ValueError, match="has one axis.*flat_sinusoid"):
        build(8, (4, 4), (16,))
    with pytest.raises(ValueError, match="has one axis.*flat_sinusoid"):
        build(8, (4, 4))((16,))


def test_in_an_experiment_that_is_an_error_of_one_line(signals):
    data = signals.signal_data()
    data["model"]["encoder"]["positions"] = "sincos_2d"
    with pytest.raises(ExperimentError, match="^model: positions sincos_2d: the grid .* has one axis") as caught:
        build_model(experiment_from_data(data))
    assert len(caught.value.problems) == 1
    data["model"]["encoder"]["positions"] = {"name": "sincos_2d", "trained_grid": [16]}
    with pytest.raises(ExperimentError, match="trained_grid"):
        experiment_from_data(data)


def test_it_follows_dtype_and_device_and_is_not_saved():
    positions = build(8, (2, 2), num_prefix=1)
    assert positions.state_dict() == {}
    assert list(positions.parameters()) == []
    assert positions((2, 2)) is positions((2, 2))
    assert positions((2, 2)).dtype == torch.float32
    assert positions.double()((2, 2)).dtype == torch.float64
    assert positions.to("meta")((2, 2)).device.type == "meta"
    with torch.device("meta"):
        assert sincos_2d_table((2, 2), 8).device.type == "cpu"


@pytest.mark.parametrize("trained_grid", [None, (2, 2)])
def test_tables_made_without_gradients_serve_training_later(trained_grid):
    positions = build(8, (3, 3), trained_grid=trained_grid)
    with torch.inference_mode():
        positions((3, 3))
    weight = torch.ones(8, requires_grad=True)
    (positions((3, 3)) * weight).sum().backward()
    assert weight.grad is not None


def test_nothing_is_added_to_prefixes_or_attention():
    positions = build(8, (2, 2), num_prefix=2)
    assert positions.prefix() is None
    assert positions.bias((2, 2), None) is None
