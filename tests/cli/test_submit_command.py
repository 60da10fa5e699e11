"""`mmmask submit`: the script for sbatch, and mistakes; jobs that run are in tests/training."""

import argparse
import os
import sys

import pytest

from mmmask.cli.submit import minutes

pytest.importorskip("submitit")


@pytest.fixture
def srun(tmp_path, monkeypatch):
    """A machine of a cluster, as submitit tells one."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")


def test_the_script_says_what_was_asked_for(cli, srun, tmp_path):
    done = cli(
        "submit", "quickstart", "training.steps=3", "streams.images.batch_size=64",
        "streams.videos.batch_size=64", "--output", tmp_path / "run", "--nodes", 4, "--gpus-per-node", 8,
        "--cpus-per-task", 10, "--partition", "long", "--account", "lab", "--qos", "high", "--mem", "480G",
        "--constraint", "h200", "--time", "2-00:00:00", "--slurm", "mail-type=END", "--slurm", "exclusive=user",
        "--dry-run",
    )  # fmt: skip
    assert done.code == 0, done.err
    options = {line.removeprefix("#SBATCH --") for line in done.out.splitlines() if line.startswith("#SBATCH")}
    assert options >= {
        "nodes=4", "gpus-per-node=8", "ntasks-per-node=8", "cpus-per-task=10", "partition=long", "account=lab",
        "qos=high", "mem=480G", "constraint=h200", "time=2880", "mail-type=END", "exclusive=user", "signal=USR2@300",
        "job-name=quickstart", "open-mode=append", f"output={tmp_path}/run/logs/%j/%j_0_log.out",
    }  # fmt: skip
    assert "srun --unbuffered" in done.out
    assert "--cpus-per-task 10 " in done.out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90), ("90:30", 90), ("24:00:00", 1440), ("1-12", 2160), ("1-12:30", 2190), ("2-00:00:59", 2880)],
)
def test_times_are_those_of_sbatch(text, expected):
    assert minutes(text) == expected


@pytest.mark.parametrize("text", ["", "0", "00:00:30", "a day", "1:2:3:4", "-5"])
def test_a_time_that_is_none(text):
    with pytest.raises(argparse.ArgumentTypeError):
        minutes(text)


def test_a_number_of_gpus_that_is_none(cli):
    assert "'-1': expected a whole number, 0 or more" in cli("submit", "quickstart", "--gpus-per-node", "-1").err


def test_mistakes_are_one_line(mistake, srun, tmp_path, monkeypatch):
    output = "--output", tmp_path / "run"
    assert "no experiment is named 'quickstrat'" in mistake("submit", "quickstrat")
    assert "--slurm mail-type: expected key=value" in mistake("submit", "quickstart", "--slurm", "mail-type")
    assert "--slurm =8: expected key=value" in mistake("submit", "quickstart", "--slurm", "=8")
    assert "--slurm nodes=9: give --nodes instead" in mistake("submit", "quickstart", "--slurm", "nodes=9")
    three = "--gpus-per-node", 8, "--tasks-per-node", 3
    assert "--tasks-per-node 3: a process has one GPU" in mistake("submit", "quickstart", *three)
    undivided = mistake("submit", "quickstart", "streams.images.batch_size=6", "--nodes", 2, "--gpus-per-node", 2)
    assert "streams.images.batch_size: 6 does not divide by processes x accumulate x replicate (4 x" in undivided
    local = "submit", "quickstart", *output, "--gpus-per-node", 0, "--cluster", "local"
    assert "only one node" in mistake(*local, "--nodes", 2)
    assert "there is no script" in mistake(*local, "--dry-run")
    assert "this machine has " in mistake(*local, "--gpus-per-node", 8)
    assert "--cluster debug runs one process" in mistake(*local, "--cluster", "debug", "--tasks-per-node", 2)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    assert "not empty, and no run of mmmask" in mistake("submit", "quickstart", "--output", tmp_path / "thesis")
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["thesis.tex"]
    monkeypatch.setenv("PATH", "")
    assert "(--cluster local trains on this machine)" in mistake("submit", "quickstart", *output)
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert mistake("submit", "quickstart", *output) == "submitting needs submitit: pip install 'mmmask[slurm]'"
