"""benchmarks/gpu.py, as far as a machine without a GPU can try it."""

import subprocess
import sys
from pathlib import Path

import pytest

GPU = Path(__file__).parents[2] / "benchmarks/gpu.py"


def tables(folder, *words):
    command = [sys.executable, str(GPU), *words, "--quick", "--device", "cpu", "--output", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    return (folder / "gpu.md").read_text()


@pytest.mark.slow
def test_the_golden_numbers_and_what_is_left_out(tmp_path):
    text = tables(tmp_path, "golden", "cifar10")
    assert "| omnimae | image_75 | " in text
    assert text.count(" | True |") == 5
    assert " | False |" not in text
    assert "failed" not in text
    assert "| CIFAR-10 |  |  | left out: --cifar10 None: no folder with train and test |" in text


def test_a_part_that_takes_too_long_is_told_and_the_next_one_begins(tmp_path):
    text = tables(tmp_path, "draws", "resume", "--seconds", "0.01")
    assert text.count("\nstopped after 0.01 s; ") == 2
