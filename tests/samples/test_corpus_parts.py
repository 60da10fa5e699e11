import csv
import os
import time
from dataclasses import replace

import numpy as np
import pytest

from mmmask.interfaces import CorpusPart, write_part
from mmmask.interfaces.corpus import LABELS, MARKER
from mmmask_registry import MmmaskError


def write_text(path, label, generator):
    path.write_text(f"{label} {generator.integers(1 << 40)}")
    return {"shape": label}


PART = CorpusPart("things", ("cat", "dog"), ".txt", {"train": 2, "held_out": 1}, write_text)


def write(folder, seed=0, progress=lambda line: None, **changes):
    write_part(replace(PART, **changes), folder, seed, progress)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*.txt")}


def test_a_part_has_its_files_its_labels_and_a_line_of_progress_each(tmp_path):
    lines = []
    write(tmp_path / "new" / "corpus", progress=lines.append)
    things = tmp_path / "new" / "corpus" / "things"
    expected = {f"train/{label}/{number:04}.txt" for label in PART.labels for number in range(2)}
    expected |= {f"held_out/{label}/0000.txt" for label in PART.labels}
    assert set(contents(things)) == expected
    assert sorted(lines) == sorted(f"things/{path}" for path in expected)
    with (things / LABELS).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["path"] for row in rows} == expected
    assert all(list(row) == ["path", "label", "shape"] for row in rows), "what the writer says of a sample, and no more"
    assert all(row["label"] == row["shape"] == row["path"].split("/")[1] for row in rows)


def test_a_sample_depends_on_the_seed_and_its_path_alone(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "more", counts={"held_out": 1, "train": 3})
    write(tmp_path / "other seed", seed=1)
    a, more, other = (contents(tmp_path / name) for name in ("a", "more", "other seed"))
    assert a.items() <= more.items()
    assert len(set(more.values())) == len(more)
    assert not set(a.values()) & set(other.values())


def test_a_complete_part_is_left_alone(tmp_path):
    write(tmp_path)
    (tmp_path / "things" / "train" / "mine.txt").write_text("added by hand")

    def refuse(*arguments):
        raise AssertionError("written again")

    write(tmp_path, write_sample=refuse)
    assert (tmp_path / "things" / "train" / "mine.txt").exists()


@pytest.mark.parametrize("problem", [KeyboardInterrupt, ValueError])
def test_an_interruption_leaves_nothing_and_can_be_mended(tmp_path, problem):
    def interrupt(path, label, generator):
        if label == "dog":
            raise problem
        return write_text(path, label, generator)

    with pytest.raises(problem):
        write(tmp_path, write_sample=interrupt)
    assert list(tmp_path.iterdir()) == []
    write(tmp_path)
    assert len(contents(tmp_path / "things")) == 6


def test_what_a_killed_process_left_is_removed_later(tmp_path):
    old, new = tmp_path / ".things.00.partial", tmp_path / ".things.01.partial"
    for path in (old, new):
        (path / "train").mkdir(parents=True)
    long_ago = time.time() - 86400
    os.utime(old, (long_ago, long_ago))
    write(tmp_path)
    assert not old.exists()
    assert new.exists()  # its process may be at work


@pytest.mark.parametrize("name", ["things", "things/"])
def test_a_users_folder_is_refused(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / "things" / "holiday.jpg").write_text("precious")
    with pytest.raises(MmmaskError, match=r"things exists and was not written by `mmmask sample-data`"):
        write(tmp_path)
    assert (tmp_path / "things" / "holiday.jpg").read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["things"]


def test_a_file_in_the_place_is_refused(tmp_path):
    (tmp_path / "things").write_text("a file")
    with pytest.raises(MmmaskError, match="choose another folder"):
        write(tmp_path)
    with pytest.raises(MmmaskError, match="cannot be written"):
        write(tmp_path / "things")


def test_an_empty_folder_is_no_obstacle(tmp_path):
    (tmp_path / "things").mkdir()
    write(tmp_path)
    assert len(contents(tmp_path / "things")) == 6


def test_another_seeds_part_is_refused_by_name(tmp_path):
    write(tmp_path, seed=3)
    with pytest.raises(MmmaskError, match=r"seed 3 there, 0 wanted"):
        write(tmp_path)
    (tmp_path / "things" / MARKER).write_text("garbage")
    with pytest.raises(MmmaskError, match="other sample data"):
        write(tmp_path)


def test_of_two_writers_the_second_keeps_the_firsts_files(tmp_path):
    raced = []

    def race(path, label, generator):
        if not raced:
            raced.append(True)
            write(tmp_path)
            (tmp_path / "things" / "first").touch()
        return write_text(path, label, generator)

    write(tmp_path, write_sample=race)
    assert (tmp_path / "things" / "first").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["things"]


def test_the_callers_random_state_is_untouched(tmp_path):
    np.random.seed(0)
    expected = np.random.RandomState(0).rand()
    write(tmp_path)
    assert np.random.rand() == expected
