"""Samples loaded by a process of their own: the same ones, and no end of it goes unnoticed."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from mmmask.components import components
from mmmask.data.process import WorkerProcessEnded
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

    def fed(process=True, workers=2, sample_seconds=0.5, **source):
        data = signals.signal_data(accumulate=2)
        data["streams"] = {"long": data["streams"]["long"] | {"source": {"name": "fatal", **source}}}
        data["data"] |= {"workers": workers, "process": process, "sample_seconds": sample_seconds}
        return streams_of(experiment_from_data(data))

    return fed


def take(streams, steps=3, first=0):
    return [micro for step in range(first, first + steps) for micro in streams.micro_steps(step)]


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


def child_processes():
    while True:
        try:
            tasks = Path("/proc/self/task").iterdir()
            return {int(pid) for task in tasks for pid in (task / "children").read_text().split()}
        except (FileNotFoundError, ProcessLookupError):  # a thread of an earlier test ended between list and read
            continue


@pytest.fixture
def children():
    """Numbers of the children that this process got during the test and that have not ended."""
    before = child_processes()
    return lambda: [pid for pid in child_processes() - before if not gone(pid, 0.1)]


def test_a_process_loads_the_same_samples(experiment, streams_of, same, children):
    there = streams_of(experiment({"workers": 2, "process": True}, accumulate=2))
    here = streams_of(experiment({"workers": 0}, accumulate=2))
    for found, wanted in zip(take(there), take(here), strict=True):
        same(found, wanted)
    (supervisor,) = children()
    there.close()
    assert gone(supervisor)


def test_labels_and_bad_samples_come_along(fed, same):
    there, here = take(fed(how="bad"), 3), take(fed(process=False, how="bad"), 3)
    for found, wanted in zip(there, here, strict=True):
        same(found, wanted)
    assert any(micro.loaded["long"].bad for micro in there)
    assert there[0].batches["long"].labels["label"].unique().tolist() == [0, 1]


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("segfault", "the process that decoded it was ended by SIGSEGV, 2 times"),
        ("kill", "the process that decoded it was ended by SIGKILL, 2 times"),
        ("exit", "the process that decoded it ended with status 3, 2 times"),
        ("hang", "not decoded within data.sample_seconds = 0.5, 2 times"),
        ("memory", "needs more memory than data.sample_memory = 4 GiB, 2 times"),
    ],
)
def test_a_sample_that_ends_its_worker_is_bad(fed, same, how, reason):
    there = take(fed(how=how), 8)
    here = take(fed(process=False, how="bad"), 8)
    found = {record for micro in there for record in micro.loaded["long"].bad}
    assert [(record.sample, reason in record.reason) for record in found] == [("sample 5", True)]
    for one, other in zip(there, here, strict=True):  # it is replaced as any bad sample is
        reasons = {name: replace(part, bad=other.loaded[name].bad) for name, part in one.loaded.items()}
        same(replace(one, loaded=reasons), other)


def test_closing_does_not_wait_for_a_sample_under_way(fed, children):
    streams = fed(how="hang", at=1, count=3, sample_seconds=None)

    def wait():
        with pytest.raises(WorkerProcessEnded, match="have been closed"):
            take(streams, 100)

    waiting = threading.Thread(target=wait)
    waiting.start()
    time.sleep(1)
    started = time.monotonic()
    streams.close()
    waiting.join(5)
    assert time.monotonic() - started < 5
    assert not children()


def test_signals_to_the_whole_group_are_for_the_trainer(fed, children):
    streams = fed()
    take(streams, 1)
    (supervisor,) = children()
    workers = [int(pid) for pid in Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()]
    for pid in (supervisor, *workers):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(pid, number)
    take(streams, 4, first=1)


def test_a_worker_that_ends_once_is_replaced(fed, same, tmp_path):
    there = take(fed(how="once", file=str(tmp_path / "ended")), 8)
    assert (tmp_path / "ended").exists()
    for one, other in zip(there, take(fed(process=False), 8), strict=True):
        same(one, other)


class Unfinished:
    """Garbage in a cycle, with a finaliser that names the process it ran in."""

    def __init__(self, log):
        self.me, self.log = self, log

    def __del__(self):
        with self.log.open("a") as file:
            file.write(f"{os.getpid()}\n")


def test_garbage_of_the_trainer_is_not_finalised_by_workers(fed, tmp_path):
    # FFmpeg's decoders wait for threads that a fork does not have
    gc.disable()  # it is still there when workers are forked
    try:
        Unfinished(tmp_path / "log")
        take(fed(how="collect"), 8)
    finally:
        gc.enable()
    gc.collect()
    assert (tmp_path / "log").read_text().split() == [str(os.getpid())]


def test_the_end_of_the_supervisor_is_an_error_that_says_so(fed, children):
    streams = fed()
    take(streams, 1)
    (supervisor,) = children()
    os.kill(supervisor, signal.SIGKILL)
    with pytest.raises(WorkerProcessEnded, match=r"^data\.process: .* were ended by SIGKILL.*data\.process: false"):
        take(streams, 100)


def test_errors_of_a_sample_arrive_as_they_do_from_threads(fed):
    with pytest.raises(RuntimeError, match=r"(?s)in the worker process.*ZeroDivisionError: in the plugin"):
        take(fed(how="label error"))
    with pytest.raises(MmmaskError, match="^this and that$"):
        take(fed(how="own error"))
    with pytest.raises(TooManyBad, match="made to be bad") as raised:
        take(fed(how="bad", count=1, at=0))
    assert {record.stream for record in raised.value.records} == {"long"}
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

main()
"""


@pytest.fixture
def script(tmp_path, signals):
    def start(how):
        path = tmp_path / "script.py"
        path.write_text(SCRIPT)
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
