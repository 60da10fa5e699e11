"""Pictures of any number of channels."""

import numpy as np
import pytest
import torch

from mmmask.interfaces.files import BadSample
from mmmask_pixels.limits import check_size
from mmmask_pixels.pictures import picture


def drawn(*values):
    pixels = picture(torch.tensor(values).view(-1, 1, 1))
    assert pixels.dtype == np.uint8
    assert pixels.shape == (1, 1, 3)
    return pixels.ravel().tolist()


def test_channels():
    assert drawn(0.5) == [128, 128, 128]
    assert drawn(0.0, 0.2) == [204, 204, 204]  # a fifth of black on white
    assert drawn(0.0, 0.5, 1.0) == [0, 128, 255]
    assert drawn(1.0, 0.0, 0.0, 0.0) == [255, 255, 255]
    assert drawn(1.0, 0.0, 0.0, 1.0) == [255, 0, 0]
    assert drawn(0.0, 0.5, 1.0, 0.3, 0.3) == [0, 128, 255]


def test_numbers_out_of_range_are_clipped():
    assert drawn(-1.0, 2.0, float("nan")) == [0, 255, 0]


def test_uint8_stays():
    assert picture(torch.tensor([1, 2, 3], dtype=torch.uint8).view(3, 1, 1)).ravel().tolist() == [1, 2, 3]


def test_limit():
    check_size(10, 10, 100)
    with pytest.raises(BadSample, match=r"announces 11 x 10 pixels, more than max_pixels = 100"):
        check_size(10, 11, 100)
    with pytest.raises(BadSample, match="0 x 10"):
        check_size(10, 0, 100)
