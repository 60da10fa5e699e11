"""`mmmask submit`: jobs of submitit's local executor and of a SLURM that exists only here, with real signals."""

import os
import re
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("submitit")

MOMENTS = Path(__file__).parent / "moments.py"
COMMANDS = {
    # one machine, jobs one at a time: a job's script runs again for as long as somebody has asked for it
    "sbatch": """#!/bin/sh
    export SLURM_JOB_ID=77 SLURM_NTASKS=$(sed -n 's/#SBATCH --ntasks-per-node=//p' $1)
    export SLURM_JOB_NUM_NODES=1 SLURM_JOB_NODELIST=localhost
    (echo once > {here}/requeue; while [ -s {here}/requeue ]; do : > {here}/requeue; bash $1; done) > /dev/null 2>&1 &
    echo $! > {here}/pid
    echo Submitted batch job $SLURM_JOB_ID
    """,
    "srun": """#!/bin/sh
    out=$3 err=$5
    shift 7  # --unbuffered --output ... --error ... --cpus-per-task ...
    for rank in $(seq 0 $((SLURM_NTASKS - 1))); do
        named="s/%j/$SLURM_JOB_ID/g; s/%t/$rank/"
        mkdir -p $(dirname $out | sed "$named")
        SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" >> $(echo $out | sed "$named") 2>> $(echo $err | sed "$named") &
        tasks="$tasks $!"
    done
    set -- $tasks
    wait $1
    [ -s {here}/requeue ] && kill -9 $tasks  # what is requeued is ended
    wait
    """,
    "scontrol": "#!/bin/sh\necho $2 > {here}/requeue\n",
}


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    here = tmp_path / "slurm"
    here.mkdir()
    for name, text in COMMANDS.items():
        (here / name).write_text(text.replace("{here}", str(here)).replace("\n    ", "\n"))
        (here / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{here}:{os.environ['PATH']}")
    return here


@pytest.fixture
def submit(forker, signals, tmp_path):
    """Submits a run into `run`; its steps take a while."""

    def submit(file, *arguments, moment="slow:0.3"):
        arguments += ("--gpus-per-node", "0", "--plugin", signals.PLUGIN_FILE, "--plugin", MOMENTS)
        arguments = ("submit", file, "--output", tmp_path / "run", *arguments)
        ended = forker.start(*arguments, cwd=tmp_path, PATH=os.environ["PATH"], TEST_MOMENT=moment).wait()
        assert ended.code == 0, ended.err
        return ended.out

    return submit


def processes_below(pid):
    """Processes that this one started, and those that they did."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [*map(int, children), *(below for child in children for below in processes_below(child))]


def tasks_of(pid):
    found = {}
    for process in processes_below(pid):
        try:
            command = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
            rank = re.search(rb"(?:PROCID|GLOBALID)=(\d)", Path(f"/proc/{process}/environ").read_bytes())
        except OSError:
            continue
        if b"submitit.core._submit" in command and rank and Path(command[0].decode()).name.startswith("python"):
            found.setdefault(int(rank[1]), process)  # its workers are deeper
    return found


def runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def said(folder):
    return "".join(path.read_text() for path in sorted(folder.rglob("*_log.*")))


def steps_of(folder):
    metrics = folder / "metrics.jsonl"
    return metrics.read_text().count("\n") if metrics.exists() else 0


def wait_for(happened, folder, seconds=90):
    deadline = time.monotonic() + seconds
    while not (found := happened()):
        assert time.monotonic() < deadline, said(folder)
        time.sleep(0.05)
    return found


def tell(tasks, number):
    for process in {process for task in tasks.values() for process in (task, *processes_below(task))}:
        with suppress(ProcessLookupError):  # a worker that has just ended
            os.kill(process, number)


def preempt(pid, folder, terminates):
    """Sends the preemption signal to all processes of the job, as SLURM does, once it has gone on by a step.

    Args:
        terminates: with SIGTERM first, as in a partition with a grace time, and the signal to one process only.
    """
    before = steps_of(folder)
    wait_for(lambda: steps_of(folder) > before, folder)
    tasks = tasks_of(pid)
    assert sorted(tasks) == [0, 1]
    if terminates:
        interruptions = said(folder).count("interrupted after step")
        tell(tasks, signal.SIGTERM)
        wait_for(lambda: said(folder).count("interrupted after step") > interruptions, folder)
        time.sleep(1)
        assert all(map(runs, tasks.values())), "they wait for SLURM"
        os.kill(tasks[0], signal.SIGUSR2)
    else:
        tell(tasks, signal.SIGUSR2)
    wait_for(lambda: not any(map(runs, tasks.values())), folder)


@pytest.mark.slow
@pytest.mark.parametrize(("cluster", "sharding"), [("local", "none"), ("slurm", "full")])
def test_preempted_twice_it_goes_on_by_itself(
    submit, slurm, left, reference, experiment_file, tmp_path, cluster, sharding
):
    file, folder = experiment_file(workers=1, sharding=sharding), tmp_path / "run"
    out = submit(file, "--cluster", cluster, "--tasks-per-node", "2", "--time", "20")
    job = re.search(r"job (\d+): 2 processes", out)[1]
    pid = int(job if cluster == "local" else (slurm / "pid").read_text())
    file.unlink()  # a job trains what was submitted
    preempt(pid, folder, terminates=False)
    preempt(pid, folder, terminates=cluster == "slurm")
    wait_for(lambda: not runs(pid), folder)
    printed = said(folder)
    assert printed.count("Requeued job") == 2
    assert len(re.findall(r"going on from step \d", printed)) == 2
    assert "run: " in printed
    left(folder).same_as(reference(experiment_file(workers=1, sharding=sharding), processes=2))


@pytest.mark.slow
def test_cancelled_it_saves_and_does_not_come_back(submit, experiment_file, tmp_path):
    out = submit(experiment_file(), "--cluster", "local")
    folder = tmp_path / "run"
    wait_for(lambda: steps_of(folder) >= 2, folder)
    cancel = re.search(r"cancel: (kill \d+)", out)[1].split()
    subprocess.run(cancel, check=True)
    wait_for(lambda: not runs(int(cancel[1])), folder)
    steps = steps_of(folder)
    assert steps < 8
    assert f"interrupted after step {steps}" in said(folder)
    assert (folder / f"checkpoints/step_{steps:08}.pt").exists()
    assert "Requeued" not in said(folder)


@pytest.mark.slow
def test_a_run_that_a_hook_stops_holds_no_machine(submit, slurm, experiment_file, tmp_path):
    """On the main process alone, as where figures are told of."""
    folder = tmp_path / "run"
    (folder / "logs").mkdir(parents=True)
    (folder / "logs" / "7.yaml").write_text("an experiment whose job is queued still")
    submit(experiment_file(), "--tasks-per-node", "2", moment="stop:2")
    assert {path.name for path in (folder / "logs").glob("*.yaml")} == {"7.yaml", "8.yaml"}
    wait_for(lambda: not runs(int((slurm / "pid").read_text())), folder)
    assert "interrupted after step" in said(folder)
    assert "Requeued" not in said(folder)
