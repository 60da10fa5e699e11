"""Files on disk and in memory, read alike."""

import gc
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mmmask.interfaces import BadSample, SourceFile, open_file
from mmmask.interfaces.files import local_path


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """Folder of temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def test_a_file_in_memory_is_read_and_has_a_path(temporary):
    file = SourceFile.of_bytes("archive.tar/a.b/clip.MP4", b"content")
    assert file.read() == b"content"
    assert not os.listdir(temporary), "nothing is written before it is asked for"
    path = file.local_path()
    assert path.endswith(".MP4")
    assert Path(path).read_bytes() == b"content"
    assert file.local_path() == path
    assert SourceFile.of_bytes("empty", b"").read() == b""
    assert "content" not in repr(file)


def test_its_temporary_file_goes_with_it(temporary):
    file = SourceFile.of_bytes("a.wav", b"content")
    file.local_path()
    assert len(os.listdir(temporary)) == 1
    del file
    gc.collect()
    assert not os.listdir(temporary)
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda n: SourceFile.of_bytes(f"{n}.wav", b"x" * n).local_path(), range(40)))
    assert len(paths) == 40
    gc.collect()
    assert not os.listdir(temporary)


def test_nothing_is_left_by_a_program_that_ends(temporary):
    program = (
        "from mmmask.interfaces import SourceFile\n"
        "file = SourceFile.of_bytes('a.wav', b'content')\n"
        "open(file.local_path()).close()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ | {"TMPDIR": str(temporary)})
    assert not os.listdir(temporary)


def test_both_kinds_can_be_sent_to_another_process(temporary):
    file = SourceFile.of_bytes("a.wav", b"content")
    path = file.local_path()
    copy = pickle.loads(pickle.dumps(file))
    assert copy == file
    assert copy.local_path() != path, "each removes its own"
    del copy
    gc.collect()
    assert os.path.exists(path)
    assert pickle.loads(pickle.dumps(SourceFile("here.wav"))) == SourceFile("here.wav")
    part = SourceFile("here.wav", window=(1.5, 2.0))
    assert pickle.loads(pickle.dumps(part)) == part != SourceFile("here.wav")


def test_a_disk_that_is_full_makes_a_bad_sample(temporary, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.mkstemp", full)
    with pytest.raises(BadSample, match="No space left"):
        SourceFile.of_bytes("a.wav", b"content").local_path()


def test_only_regular_files_are_read(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to_a_pipe").symlink_to(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for path in (tmp_path / "pipe", tmp_path / "to_a_pipe", tmp_path / "zero", "/dev/zero"):
        for how in (SourceFile.read, SourceFile.local_path):
            with pytest.raises(BadSample, match="a pipe, a device or a socket"):
                how(SourceFile(str(path)))
        with pytest.raises(OSError, match="only regular files"):
            open_file(str(path))
        with pytest.raises(OSError, match="only regular files"):
            local_path(str(path))
    for path, reason in (
        ("a\0b", "no file has such a name"),
        (str(tmp_path), "Is a directory"),
        ("n" * 5000, "too long"),
    ):
        with pytest.raises(BadSample, match=reason):
            SourceFile(path).read()


def test_local_paths_are_absolute_and_mean_the_same_file(tmp_path, monkeypatch):
    (tmp_path / "far/away").mkdir(parents=True)
    (tmp_path / "far/10:30.wav").write_bytes(b"content")
    (tmp_path / "link").symlink_to(tmp_path / "far/away")
    monkeypatch.chdir(tmp_path)
    for path in ("far/10:30.wav", "link/../10:30.wav"):
        found = SourceFile(path).local_path()
        assert os.path.isabs(found)
        assert Path(found).read_bytes() == b"content"
