"""Files that are written whole or not at all."""

import os
import resource
import time
from contextlib import contextmanager

import pytest
import torch

from mmmask.interfaces.writing import WriteError, written_whole


@contextmanager
def largest_file(size):
    """Within this block only, as pytest's own output may be a longer file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_gets_its_name_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "file.bin"
    with written_whole(path) as file:
        file.write(b"whole")
        assert not path.exists()
        assert os.path.dirname(file.name) == str(path.parent)
    assert path.read_bytes() == b"whole"
    assert os.listdir(path.parent) == ["file.bin"]


def test_several_may_write_the_same_file(tmp_path):
    path = tmp_path / "file.bin"
    with written_whole(path) as one, written_whole(path) as other:
        one.write(b"one")
        other.write(b"other")
    assert path.read_bytes() == b"one"
    assert os.listdir(tmp_path) == ["file.bin"]


def test_what_a_killed_process_left_is_removed_a_day_later(tmp_path):
    old, new = tmp_path / ".f[1].bin.0123abcd.partial", tmp_path / ".f[1].bin.0123abce.partial"
    other = tmp_path / ".f1.bin.0123abcd.partial"
    for leftover, days in ((old, 2), (new, 0.5), (other, 2)):
        leftover.touch()
        os.utime(leftover, (time.time() - days * 86_400,) * 2)
    with written_whole(tmp_path / "f[1].bin"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"f[1].bin", new.name, other.name}


@pytest.mark.parametrize("raised", [ValueError, KeyboardInterrupt])
def test_whatever_goes_wrong_the_old_file_stays(tmp_path, raised):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")

    def write():
        with written_whole(path) as file:
            file.write(b"half of the new")
            raise raised

    with pytest.raises(raised):
        write()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file.bin"]


@pytest.mark.parametrize("after", [0, 100, 20_000, 40_000])
def test_what_torch_conceals_is_said(tmp_path, after):
    path = tmp_path / "file.pt"

    def save():
        with written_whole(path, size=4_000_000) as file:
            torch.save({"weight": torch.ones(10_000)}, file)

    with largest_file(after), pytest.raises(WriteError) as raised:
        save()
    assert str(raised.value).startswith(f"{path}: cannot be written: File too large; 4.00 MB are needed; ")
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="file/x: cannot be written: File exists"), written_whole(tmp_path / "file/x"):
        pass
