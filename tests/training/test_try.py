import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

NEAR = {"rel_tol": 2e-4, "abs_tol": 1e-5}


def same_up_to_rounding(one, several):
    assert [line.keys() for line in one.metrics] == [line.keys() for line in several.metrics]
    for line, other in zip(one.metrics, several.metrics, strict=True):
        for key, value in line.items():
            if key.startswith("loss") or key == "gradient_norm":
                assert math.isclose(value, other[key], **NEAR), (line["step"], key, value, other[key])
            else:
                assert value == other[key], (line["step"], key)
    assert one.state["data"] == several.state["data"]
    assert one.state["bad_samples"] == several.state["bad_samples"]
    assert sorted(map(str, one.bad_samples)) == sorted(map(str, several.bad_samples))
    for line, other in zip(one.evaluations, several.evaluations, strict=True):
        assert line.keys() == other.keys()
        for key in (key for key in line if key.rpartition("/")[2] == "loss"):
            assert math.isclose(line[key], other[key], **NEAR), key
    for key, value in one.state["model"].items():
        torch.testing.assert_close(value, several.state["model"][key], rtol=1e-3, atol=2e-4, msg=key)


@pytest.mark.parametrize("mixing", ["joint","alternate"])
def test_try(reference, experiment_file, mixing):
    file = experiment_file(mixing)
    one=reference(file); two=reference(file, "training.sharding=full", processes=2)
    same_up_to_rounding(one, two)
