"""Promises of a run's folder: nothing good is deleted, nobody writes twice, the data is still the same data."""

import json

import portalocker
import pytest
import torch

from mmmask.experiment import experiment_from_data
from mmmask.experiment.errors import ExperimentError
from mmmask.interop.checkpoints import Checkpoints
from mmmask.interop.runs import RunFolder
from mmmask.training.folder import opened
from mmmask.training.logs import append_jsonl


def test_a_damaged_checkpoint_never_pushes_out_a_good_one(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(100, {"model": {}})
    checkpoints.save(300, {"model": {}})
    (tmp_path / "step_00000300.pt").write_bytes(b"not a checkpoint")
    checkpoints.save(200, {"model": {"weight": torch.ones(2)}})
    assert [path.name for path in checkpoints.paths()] == ["step_00000200.pt"]
    newest = checkpoints.newest()
    assert newest is not None
    assert newest["step"] == 200
    assert (tmp_path / "step_00000300.damaged").read_bytes() == b"not a checkpoint", "nothing is lost"


def test_one_process_at_a_time_trains_into_a_folder(train, experiment_file, tmp_path):
    file, run = experiment_file(), tmp_path / "run"
    assert train(file, run, "training.steps=1").code == 0
    with portalocker.Lock(run / ".lock", timeout=0, fail_when_locked=True):
        ended = train(file, run)
    assert ended.code == 2
    assert "another process is training into this folder" in ended.err
    assert "Traceback" not in ended.err
    assert train(file, run).code == 0


def test_a_run_does_not_go_on_with_other_data(train, experiment_file, tmp_path):
    """Another number of samples is another order."""
    file, run = experiment_file(), tmp_path / "run"
    assert train(file, run, "training.steps=3").code == 0
    checkpoint = max((run / "checkpoints").glob("*.pt"))
    state = torch.load(checkpoint, weights_only=True)
    state["data"]["sizes"]["long"] += 1
    torch.save(state, checkpoint)
    ended = train(file, run)
    assert ended.code == 2
    assert "streams.long.source: 25 samples when the run was interrupted, now 24" in ended.err


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_samples_are_written_down_even_if_they_end_the_run(train, experiment_file, tmp_path, workers):
    bad = "{name: waves, bad: [" + ", ".join(map(str, range(24))) + "]}"
    settings = [f"streams.long.source={bad}", "data.max_bad_share=1.0", f"data.workers={workers}"]
    ended = train(experiment_file(), tmp_path / "run", *settings)
    assert ended.code == 2
    lines = [json.loads(line) for line in (tmp_path / "run" / "bad_samples.jsonl").read_text().splitlines()]
    assert lines
    assert all(line["reason"] == "made to be bad" for line in lines)
    last = ended.err.partition("the last: ")[2].partition(":")[0]
    assert last in {line["sample"] for line in lines}


def test_every_process_writes_down_the_bad_samples_that_it_ends_over(train, experiment_file, tmp_path):
    bad = "{name: waves, bad: [" + ", ".join(map(str, range(24))) + "]}"
    settings = [f"streams.long.source={bad}", "data.max_bad_share=1.0"]
    for process in train(experiment_file(), tmp_path / "run", *settings, processes=2):
        assert process.code == 2
        last = process.err.partition("the last: ")[2].partition(":")[0]
        lines = [json.loads(line) for line in (tmp_path / "run" / "bad_samples.jsonl").read_text().splitlines()]
        assert last in {line["sample"] for line in lines}


def test_a_log_is_strict_json(tmp_path):
    line = {"step": 1, "loss": float("nan"), "parts": [float("inf"), 2.0]}
    append_jsonl(tmp_path / "log.jsonl", line)
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 1, "loss": null, "parts": [null, 2.0]}\n'


def test_a_source_may_be_found_elsewhere_and_nothing_else_of_it_may_change(signals, tmp_path):
    def experiment(path, keys=("source", "held_out"), **source):
        data = signals.signal_data()
        for key in ("source", "held_out"):
            data["streams"]["long"][key] = {"name": "folder", "path": path}
        for key in keys:
            data["streams"]["long"][key] = {"name": "folder", "path": path} | source
        return experiment_from_data(data)

    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    (folder.path / ".versions.json.0123abcd.partial").touch()  # of a process killed before it trained
    with opened(folder, experiment("here")) as begin:
        begin()
    assert not list(folder.path.glob(".*.partial"))
    Checkpoints(folder.checkpoints).save(1, {})
    with opened(folder, experiment("there")):
        pass
    message = r"streams\.long\.source\.limit: None in the run, now 3"
    with pytest.raises(ExperimentError, match=message), opened(folder, experiment("there", limit=3)):
        pass
    with opened(folder, experiment("there.tar", ["source"], name="shards", limit=3)):
        pass  # the samples are compared, of it as of the path
    message = r"streams\.long\.held_out\.name: 'folder' in the run, now 'shards'"
    with pytest.raises(ExperimentError, match=message), opened(folder, experiment("there.tar", name="shards")):
        pass
