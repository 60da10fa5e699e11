"""Every format writes what it reads: the same keys, bit for bit; and what is written is the same model."""

import pytest
import torch

from mmmask.components import components
from mmmask.interfaces.component import validate_strictly
from mmmask.interop import read
from mmmask.model.build import settings_of

SYSTEMS = ("omnimae", "mae", "mae_st", "videomae", "videomaev2", "simmim", "convmae")


@pytest.fixture
def cases(official):
    """[(system, name, state dict, options)] of every golden file, pretrained and fine-tuned."""

    def find(system):
        parts = [(name, part) for kind in ("cases", "classified") for name, part in official(system)[kind].items()]
        return [(name, dict(part["weights"]), part["options"]) for name, part in parts]

    return find


def write(model, format):
    """What a format writes of a model, without a file."""
    format_class = components().get("format", format)
    config = validate_strictly(format_class.Config, {"name": format})
    return format_class(config).write(settings_of(model), model.state_dict())


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    assert {key: (found[key].shape, found[key].dtype) for key in found} == {
        key: (tensor.shape, tensor.dtype) for key, tensor in expected.items()
    }
    assert [key for key in found if not torch.equal(found[key], expected[key])] == []


@pytest.mark.parametrize("system", SYSTEMS)
def test_golden_files_are_written_as_they_were(cases, system):
    """Tables and indices that mmmask computes are no exceptions: the file's numbers are the same."""
    for _, state, options in cases(system):
        loaded = read(state, **options)
        written = write(loaded.model, system)
        assert written.left_out == {}
        assert written.config is None
        assert_equal(written.state, state)
        again = read(written.state, **options)
        assert_equal(again.model.state_dict(), loaded.model.state_dict())
        assert settings_of(again.model) == settings_of(loaded.model)
        assert str(again.report) == str(loaded.report)


@pytest.mark.parametrize("system", SYSTEMS)
def test_models_in_half_precision(cases, system):
    _, state, options = cases(system)[0]
    half = {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in state.items()}
    assert_equal(write(read(half, **options).model, system).state, half)
