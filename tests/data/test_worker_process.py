"""Samples loaded by a process of their own: the same ones, and no end of it goes unnoticed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmmask.components import components
from mmmask.data.process import WorkerProcessEnded, pays
from mmmask.data.samples import TooManyBad
from mmmask.experiment import experiment_from_data
from mmmask.experiment.errors import ExperimentError
from mmmask_registry import MmmaskError

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def fatal():
    return components().add_plugin_file(str(HERE / "worker_plugin.py"))


@pytest.fixture
def fed(signals, fatal, streams_of):
    """Streams of one signal, from a source of worker_plugin.py."""

    def fed(process=True, workers=2, **source):
        data = signals.signal_data(accumulate=2)
        data["streams"] = {"long": data["streams"]["long"] | {"source": {"name": "fatal", **source}}}
        data["data"] |= {"workers": workers, "process": process}
        return streams_of(experiment_from_data(data))

    return fed


def take(streams, steps=3):
    return [micro for step in range(steps) for micro in streams.micro_steps(step)]


def gone(pid, seconds=30.0):
    """Whether a process ends in time; one that nobody waits for yet has ended too."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


def test_a_process_loads_the_same_samples(experiment, streams_of, same):
    there = streams_of(experiment({"workers": 2, "process": True}, accumulate=2))
    here = streams_of(experiment({"workers": 0}, accumulate=2))
    for found, wanted in zip(take(there), take(here), strict=True):
        same(found, wanted)
    pid = there.process.pid
    assert pid not in (None, os.getpid())
    there.close()
    assert gone(pid)


def test_labels_and_bad_samples_come_along(fed, same):
    there, here = take(fed(how="bad"), 3), take(fed(process=False, how="bad"), 3)
    for found, wanted in zip(there, here, strict=True):
        same(found, wanted)
    assert any(micro.loaded["long"].bad for micro in there)
    assert there[0].batches["long"].labels["label"].unique().tolist() == [0, 1]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("segfault", r"the process that loads samples was ended by SIGSEGV \(a decoder may have crashed\)"),
        ("kill", r"was ended by SIGKILL \(the machine may be out of memory\)"),
        ("exit", r"ended with status 3"),
    ],
)
def test_the_end_of_the_process_is_an_error_that_names_it(fed, how, message):
    streams = fed(how=how)
    with pytest.raises(WorkerProcessEnded, match=f"^data.process: .*{message}"):
        take(streams, 3)
    with pytest.raises(WorkerProcessEnded):
        streams.process.load("long", [(0, 1)])


def test_errors_of_a_sample_arrive_as_they_do_from_threads(fed):
    with pytest.raises(RuntimeError, match=r"(?s)in the worker process.*ZeroDivisionError: in the plugin"):
        take(fed(how="label error"))
    with pytest.raises(MmmaskError, match="^this and that$"):
        take(fed(how="own error"))
    with pytest.raises(TooManyBad, match="made to be bad") as raised:
        take(fed(how="bad", count=1, at=0))
    assert raised.value.stream == "long"
    assert len(raised.value.records) == 20


def test_what_cannot_be_sent_is_named(fed):
    with pytest.raises(WorkerProcessEnded, match=r"cannot be sent to another process .*data\.process: false"):
        take(fed(name="locked"))


def test_a_process_needs_workers(fed):
    with pytest.raises(ExperimentError, match=r"data.*process true needs workers"):
        fed(workers=0)


SCRIPT = """
import sys
from mmmask.components import components
from mmmask.data.streams import Streams
from mmmask.experiment import experiment_from_data

def main():
    signals, fatal = (components().add_plugin_file(path) for path in sys.argv[1:3])
    data = signals.signal_data()
    data["streams"] = {"long": data["streams"]["long"] | {"source": {"name": "fatal", "how": "pid", "at": 1}}}
    data["data"] = {"workers": 2, "process": True}
    streams = Streams(experiment_from_data(data))
    for step in range(10**9 if sys.argv[3] == "on" else 3):
        for _ in streams.micro_steps(step):
            pass

%s
"""


@pytest.fixture
def script(tmp_path, signals):
    def start(how, guarded=True):
        path = tmp_path / "script.py"
        path.write_text(SCRIPT % ('if __name__ == "__main__":\n    main()' if guarded else "main()"))
        return subprocess.Popen(
            [sys.executable, str(path), signals.PLUGIN_FILE, str(HERE / "worker_plugin.py"), how],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    return start


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_process_ends_with_a_trainer_that_is_killed(script, number):
    with script("on") as process:
        worker = int(process.stdout.readline())
        assert worker != process.pid
        process.send_signal(number)
        assert process.wait(30) == -number
        assert gone(worker)


def test_a_program_that_ends_without_closing_leaves_nothing(script):
    with script("short") as process:
        worker = int(process.stdout.readline())
        assert process.wait(60) == 0, process.stderr.read()
        assert gone(worker)


def test_a_script_that_cannot_be_imported_again_is_told_so(script):
    with script("short", guarded=False) as process:
        assert process.wait(60) != 0
        assert 'must do so below `if __name__ == "__main__":`' in process.stderr.read()


@pytest.mark.parametrize(
    ("main", "yes"),
    [("/usr/bin/mmmask", True), (None, True), ("/home/me/train.py", False), ("mmmask.__main__", True)],
)
def test_unasked_a_process_is_started_for_a_gpu_where_that_is_safe(monkeypatch, main, yes):
    import types

    module = types.ModuleType("__main__")
    if main == "mmmask.__main__":
        module.__spec__ = types.SimpleNamespace(name=main)
    elif main:
        module.__file__ = main
    monkeypatch.setitem(sys.modules, "__main__", module)
    room = types.SimpleNamespace(f_bavail=2**24, f_frsize=2**12)
    monkeypatch.setattr(os, "statvfs", lambda path: room)
    assert pays(4, gpu=True) is yes
    assert not pays(4, gpu=False)
    assert not pays(3, gpu=True)
    room.f_bavail = 2**14  # 64 MiB
    assert not pays(4, gpu=True)
