"""Runs: folders that were tampered with, disks that are full, terminals that close, second thoughts."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.abuse.harness import Abuse, lines, write, write_picture

MORE = "train image.yaml training.steps=4 --output runs/done"
SAME = "train image.yaml --output runs/done"
RUN = r"runs/done/(?!bad_samples).*"


def removed(name):
    def prepare(folder: Path):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return prepare


def replaced_line(name, number, text):
    """A preparation: one line of a log replaced."""

    def prepare(folder: Path):
        path = folder / name
        content = path.read_text().splitlines()
        content[number] = text
        path.write_text("\n".join(content) + "\n")

    return prepare


def torn(name):
    def prepare(folder: Path):
        with (folder / name).open("a") as file:
            file.write('{"step": 3, "lo')

    return prepare


def flipped(name, where=0.5):
    """A preparation: one byte in the middle of a file."""

    def prepare(folder: Path):
        for path in sorted(folder.glob(name)):
            content = bytearray(path.read_bytes())
            content[int(len(content) * where)] ^= 255
            path.write_bytes(content)

    return prepare


def saved(name, state):
    def prepare(folder: Path):
        import torch

        torch.save(state, folder / name)

    return prepare


def changed_checkpoint(**changes):
    """A preparation: keys of the newest checkpoint changed, or removed with None."""

    def prepare(folder: Path):
        import torch

        path = sorted((folder / "runs/done/checkpoints").glob("*.pt"))[-1]
        state = torch.load(path, weights_only=True) | changes
        torch.save({key: value for key, value in state.items() if value is not None}, path)

    return prepare


def larger_model(folder: Path):
    import torch

    changed_checkpoint(model={"encoder.norm.weight": torch.ones(99)})(folder)


def pictures_in_the_way(folder: Path):
    removed("runs/done/reconstructions")(folder)
    (folder / "runs/done/reconstructions").write_text("")


def steps(folder, run, expected):
    found = [line["step"] for line in lines(folder / run / "metrics.jsonl")]
    return None if found == expected else f"steps {found} in the log, not {expected}"


def logs_kept(folder: Path):
    """A damaged log still holds every good line."""
    text = (folder / "runs/done/metrics.jsonl").read_text()
    return None if '"step": 1' in text and '"step": 2' in text else "a good line of the log is gone"


def two_steps(folder: Path):
    return steps(folder, "runs/done", [1, 2])


GREEDY = """
import mmmask
import torch


class Greedy(mmmask.Masker):
    \"\"\"Takes more memory than there is.\"\"\"

    def num_masked(self, grid, step):
        return 2

    def scores(self, context):
        return torch.empty(10**13)


mmmask.register("masker", "mine", Greedy)
"""

ABUSES = [
    Abuse("a finished run again", SAME, accepted="finished|2 steps", check=two_steps),
    Abuse("a finished run, its log damaged", SAME, accepted="", check=lambda f: None if (f / "runs/done/metrics.jsonl").read_text().startswith("#") else "repaired",
          prepare=replaced_line("runs/done/metrics.jsonl", 0, "# damaged")),
    Abuse("goes on, a line of the log damaged", MORE, accepted="4 steps", may_change=RUN,
          prepare=replaced_line("runs/done/metrics.jsonl", 0, '{"step": 1, "loss" 3}'),
          check=lambda f: None if '"step": 2' in (f / "runs/done/metrics.jsonl").read_text() else "step 2 is gone"),
    Abuse("goes on, the last line torn", MORE, accepted="4 steps", may_change=RUN, prepare=torn("runs/done/metrics.jsonl"), check=lambda f: steps(f, "runs/done", [1, 2, 3, 4])),
    Abuse("goes on, a line without step", MORE, accepted="4 steps", may_change=RUN, prepare=replaced_line("runs/done/metrics.jsonl", 0, '{"loss": 1}')),
    Abuse("goes on, a line that is a number", MORE, accepted="4 steps", may_change=RUN, prepare=replaced_line("runs/done/metrics.jsonl", 0, "17")),
    Abuse("goes on, evaluations without stream", MORE, accepted="4 steps", may_change=RUN, prepare=write("runs/done/evaluations.jsonl", '{"step": 1}\n')),
    Abuse("goes on, bad samples without stream", MORE, accepted="4 steps", may_change=r"runs/done/.*", prepare=write("runs/done/bad_samples.jsonl", '{"step": 1}\n')),
    Abuse("checkpoints moved away", MORE, refused=r"checkpoint", prepare=removed("runs/done/checkpoints"), check=two_steps),
    Abuse("checkpoints moved away, nothing more to do", SAME, refused=r"checkpoint", prepare=removed("runs/done/checkpoints"), check=two_steps),
    Abuse("goes on, NUL at the end of the log", MORE, accepted="4 steps", may_change=RUN, prepare=lambda f: (f / "runs/done/metrics.jsonl").write_bytes((f / "runs/done/metrics.jsonl").read_bytes() + bytes(100)), check=lambda f: steps(f, "runs/done", [1, 2, 3, 4])),
    Abuse("goes on, a line of 100000 brackets", MORE, accepted="4 steps", may_change=RUN, prepare=replaced_line("runs/done/metrics.jsonl", 0, "[" * 100_000)),
    Abuse("goes on, a step that is a text", MORE, accepted="4 steps", may_change=RUN, prepare=replaced_line("runs/done/metrics.jsonl", 0, '{"step": "1"}')),
    Abuse("goes on, the last line without its end", MORE, accepted="4 steps", may_change=RUN, prepare=lambda f: (f / "runs/done/metrics.jsonl").write_bytes((f / "runs/done/metrics.jsonl").read_bytes().rstrip()), check=lambda f: steps(f, "runs/done", [1, 2, 3, 4])),
    Abuse("goes on, without any log", MORE, accepted="4 steps", may_change=RUN, prepare=removed("runs/done/metrics.jsonl"), check=lambda f: steps(f, "runs/done", [3, 4])),
    Abuse("goes on, without versions.json", MORE, accepted="4 steps", may_change=RUN, prepare=removed("runs/done/versions.json")),
    Abuse("checkpoints deleted one by one", MORE, refused=r"checkpoint", prepare=lambda f: [path.unlink() for path in (f / "runs/done/checkpoints").iterdir()], check=two_steps),
    Abuse("newest checkpoint damaged", MORE, accepted="4 steps", may_change=RUN, prepare=flipped("runs/done/checkpoints/step_00000002.pt")),
    Abuse("newest checkpoint damaged, warnings are errors", MORE, accepted="4 steps", may_change=RUN, prepare=flipped("runs/done/checkpoints/step_00000002.pt"), environment=(("PYTHONWARNINGS", "error"),)),
    Abuse("newest checkpoint empty", MORE, accepted="4 steps", may_change=RUN, prepare=write("runs/done/checkpoints/step_00000002.pt", b"")),
    Abuse("all checkpoints damaged", MORE, refused=r"checkpoint", prepare=flipped("runs/done/checkpoints/*.pt")),
    Abuse("newest checkpoint is a list", MORE, accepted="4 steps", may_change=RUN, prepare=saved("runs/done/checkpoints/step_00000002.pt", [1])),
    Abuse("checkpoint of a newer mmmask", MORE, refused=r"version", prepare=changed_checkpoint(version=99)),
    Abuse("checkpoint without its data", MORE, refused=r"checkpoint|step_", prepare=changed_checkpoint(data=None)),
    Abuse("checkpoint without its model", MORE, refused=r"checkpoint|step_", prepare=changed_checkpoint(model=None)),
    Abuse("checkpoint of another model", MORE, refused=r"checkpoint|step_|weights", prepare=changed_checkpoint(model={})),
    Abuse("checkpoint of a larger model", MORE, refused=r"step_00000002\.pt.*encoder\.norm\.weight", prepare=larger_model),
    Abuse("checkpoint with half of its data", MORE, refused=r"step_00000002\.pt: data", prepare=changed_checkpoint(data={"consumed": {}, "orders": {"s": "feistel"}})),
    Abuse("checkpoint whose data is a number", MORE, refused=r"step_00000002\.pt: data", prepare=changed_checkpoint(data=3)),
    Abuse("checkpoint of another optimiser", MORE, refused=r"step_00000002\.pt: optimizer", prepare=changed_checkpoint(optimizer={"state": {}, "param_groups": []})),
    Abuse("checkpoint whose step is a text", MORE, accepted="4 steps", may_change=RUN, prepare=changed_checkpoint(step="two")),
    Abuse("newest checkpoint taken away to go back", MORE, accepted="4 steps", may_change=RUN, prepare=removed("runs/done/checkpoints/step_00000002.pt"), check=lambda f: steps(f, "runs/done", [1, 2, 3, 4])),
    Abuse("no experiment.yaml", SAME, refused=r"runs/done", prepare=removed("runs/done/experiment.yaml")),
    Abuse("experiment.yaml damaged", SAME, refused=r"experiment\.yaml", prepare=write("runs/done/experiment.yaml", "a: [")),
    Abuse("experiment.yaml is a folder", SAME, refused=r"experiment\.yaml", prepare=lambda f: (removed("runs/done/experiment.yaml")(f), (f / "runs/done/experiment.yaml").mkdir())),
    Abuse("other settings", SAME + " model.encoder.depth=2", refused=r"model\.encoder\.depth"),
    Abuse("fewer steps than are done", "train image.yaml training.steps=1 --output runs/done", refused=r"training\.steps|2 steps", check=lambda f: None if "steps: 2" in (f / "runs/done/experiment.yaml").read_text() else "experiment.yaml was changed"),
    Abuse("other files in the source", MORE, refused=r"streams\.s\.source", prepare=lambda f: write_picture(f / "img/more.png")),
    Abuse("as many files of other names", MORE, refused=r"streams\.s\.source", prepare=lambda f: (f / "img/0.jpg").rename(f / "img/zz.jpg")),
    Abuse("the source moved away", MORE, refused=r"img", prepare=lambda f: (f / "img").rename(f / "imgs")),
    Abuse("the source moved, and said so", MORE + " streams.s.source.path=imgs", accepted="4 steps", may_change=RUN + "|img.*", prepare=lambda f: (f / "img").rename(f / "imgs")),
    Abuse("a first try with a mistake in a path", "train image.yaml --output runs/typo", accepted="2 steps", may_change="runs/typo/.*", earlier="train image.yaml --output runs/typo streams.s.source.path=igm"),
    Abuse("a first try that diverged", "train image.yaml --output runs/typo", accepted="2 steps", may_change="runs/typo/.*", earlier="train image.yaml --output runs/typo training.optimizer.learning_rate=1e30 training.steps=20 training.checkpoint.every=99"),
    Abuse("output inside the source", "train image.yaml --output img/run", refused=r"img"),
    Abuse("output is the source", "train image.yaml --output img", refused=r"img"),
    Abuse("output inside held-out samples", "train image.yaml 'streams.s.held_out={name: folder, path: ho}' --output ho/run", refused=r"ho", prepare=lambda f: shutil.copytree(f / "img", f / "ho")),
    Abuse("output is a file", "train image.yaml --output own.safetensors", refused=r"own\.safetensors"),
    Abuse("output is below a file", "train image.yaml --output own.safetensors/run", refused=r"own\.safetensors"),
    Abuse("output cannot be made", "train image.yaml --output /proc/run", refused=r"/proc/run"),
    Abuse("output is somebody's folder", "train image.yaml --output txt", refused=r"txt"),
    Abuse("output is somebody's folder with an experiment", "train image.yaml --output txt", refused=r"txt.*not empty", prepare=write("txt/experiment.yaml", "steps: 3\n")),
    Abuse("output is the folder above the source", "train image.yaml --output .", refused=r"not empty"),
    Abuse("output inside the source by another name", "train image.yaml --output link/run", refused=r"img", prepare=lambda f: (f / "link").symlink_to("img")),
    Abuse("output is a link to nowhere", "train image.yaml --output l", refused=r"\bl\b", prepare=lambda f: (f / "l").symlink_to("/nowhere/at/all")),
    Abuse("metrics.jsonl is a folder", SAME.replace("runs/done", "runs/m"), refused=r"runs/m", prepare=lambda f: (f / "runs/m/metrics.jsonl").mkdir(parents=True), may_change="runs/m/.*"),
    Abuse("pictures cannot be written", MORE, refused=r"reconstructions", may_change=RUN, prepare=pictures_in_the_way,
          check=lambda f: None if (f / "runs/done/checkpoints/step_00000004.pt").exists() else "the last steps are lost"),
    Abuse("pictures cannot be written, long before the next checkpoint", MORE + " training.log.reconstruct_every=3 training.checkpoint.every=99", refused=r"reconstructions", may_change=RUN,
          prepare=pictures_in_the_way,
          check=lambda f: None if (f / "runs/done/checkpoints/step_00000003.pt").exists() else "the step is lost"),
    Abuse("held-out samples vanish before the run goes on", "train image.yaml 'streams.s.held_out={name: folder, path: ho}' training.steps=3 --output runs/h", refused=r"\bho\b", prepare=lambda f: None),
    Abuse("disk full at a checkpoint", "train image.yaml --output runs/new", refused=r"runs/new.*(space|large|written)", limits=(("RLIMIT_FSIZE", 30_000),),
          check=lambda f: "a partial file stays" if list((f / "runs/new").rglob("*.partial")) else None),
    Abuse("disk full at once", "train image.yaml --output runs/new", refused=r"runs/new.*(space|large|written)", limits=(("RLIMIT_FSIZE", 100),)),
    Abuse("a limit of memory from outside", "train image.yaml data.workers=1 --output runs/new", accepted="2 steps", limits=(("RLIMIT_DATA", 3 << 30),), check=lambda f: "bad samples" if lines(f / "runs/new/bad_samples.jsonl") else None),
    Abuse("no memory", "train image.yaml model.encoder.width=32768 --output runs/new", refused=r"memory", limits=(("RLIMIT_AS", 6 << 30),)),
    Abuse("no memory in a step", "train image.yaml streams.s.masker=mine --plugin p.py --output runs/new", refused=r"not enough memory for 40000000000000 bytes more.*training\.accumulate", prepare=write("p.py", GREEDY)),
    Abuse("WORLD_SIZE without a master", SAME, refused=r"MASTER_ADDR|torchrun", environment=(("WORLD_SIZE", "2"), ("RANK", "0"))),
    Abuse("WORLD_SIZE is no number", SAME, refused=r"WORLD_SIZE", environment=(("WORLD_SIZE", "abc"),)),
    Abuse("WORLD_SIZE is negative", SAME, refused=r"WORLD_SIZE", environment=(("WORLD_SIZE", "-2"),)),
    Abuse("RANK is no number", SAME, refused=r"RANK", environment=(("RANK", "first"),)),
    Abuse("RANK beyond WORLD_SIZE", SAME, refused=r"RANK", environment=(("WORLD_SIZE", "2"), ("RANK", "7"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "1"))),
    Abuse("a device that is not there", "train image.yaml --device cuda --output runs/new", refused=r"cuda"),
    Abuse("a device without numbers", "train image.yaml --device meta --output runs/new", refused=r"meta"),
    Abuse("a device of no kind", "train image.yaml --device gpu --output runs/new", refused=r"gpu"),
    Abuse("a stream's name beyond ASCII", "train x.yaml --output runs/new", accepted="2 steps", environment=(("PYTHONIOENCODING", "ascii"),),
          prepare=lambda f: (f / "x.yaml").write_text((f / "image.yaml").read_text().replace("  s:", "  изображения:"))),
    Abuse("too many bad samples", "train image.yaml data.max_bad_share=0 --output runs/new", refused=r"max_bad_share.*z\.jpg", prepare=write("img/z.jpg", b"x"),
          check=lambda f: None if lines(f / "runs/new/bad_samples.jsonl") else "not recorded"),
    Abuse("not finite: a huge learning rate", "train image.yaml training.steps=20 training.optimizer.learning_rate=1e30 --output runs/new", refused=r"not finite.*learning_rate"),
    Abuse("not finite: the gradient's norm", "train image.yaml training.steps=8 streams.s.loss_weight=1e30 training.optimizer.clip_gradient=1 --output runs/new", refused=r"not finite"),
    Abuse("not finite: a huge weight of the loss", "train image.yaml streams.s.loss_weight=1e300 --output runs/new", refused=r"not finite|loss_weight"),
]  # fmt: skip


@pytest.mark.parametrize("abuse", ABUSES, ids=lambda abuse: abuse.name)
def test_run(examine, abuse):
    examine(abuse)


LONG = ("training.steps=100000", "training.checkpoint.every=100000", "--output", "runs/long")


def wait_for_steps(place):
    """Waits until a long run has logged some."""
    log = place / "runs/long/metrics.jsonl"
    deadline = time.monotonic() + 60
    while not log.exists() or log.stat().st_size < 1000:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def place(stage, tmp_path):
    shutil.copytree(stage, tmp_path / "place")
    return tmp_path / "place"


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_a_checkpoint(forker, place, number):
    run = forker.start("train", "image.yaml", *LONG, cwd=place)
    wait_for_steps(place)
    run.kill(number)
    ended = run.wait()
    assert ended.code == 130, ended.err
    assert len(list((place / "runs/long/checkpoints").glob("*.pt"))) == 1


@pytest.fixture
def pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


def test_a_closed_pipe_is_no_success(forker, place, pipe):
    """`mmmask train ... 2>&1 >/dev/null | head -1`: the run saves what it has and does not end with 0."""
    run = forker.start("train", "image.yaml", *LONG, cwd=place, errors=pipe)
    with pipe.open():
        wait_for_steps(place)
    assert run.wait().code not in (0, 1)
    (newest,) = (place / "runs/long/checkpoints").glob("*.pt")
    assert newest.name == f"step_{lines(place / 'runs/long/metrics.jsonl')[-1]['step']:08}.pt"


def test_full_output_device_is_no_traceback(place):
    with open("/dev/full", "w") as full:
        ended = subprocess.run([sys.executable, "-m", "mmmask", "list"], cwd=place, stdout=full, stderr=subprocess.PIPE)
    assert ended.returncode == 2
    assert b"Traceback" not in ended.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_finished_run_of_somebody_else(examine, place):
    examine(Abuse("closed folder", SAME, accepted="", prepare=lambda f: (f / "runs/done").chmod(0o500)))


def test_a_pipe_closed_for_everything_is_no_success(place):
    """The same where results go there too."""
    command = f"{sys.executable} -m mmmask train image.yaml {' '.join(LONG)} 2>&1 | head -2; exit ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", command], cwd=place, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert ended.stderr == ""
    (newest,) = (place / "runs/long/checkpoints").glob("*.pt")
    assert newest.name == f"step_{lines(place / 'runs/long/metrics.jsonl')[-1]['step']:08}.pt"


@pytest.mark.parametrize("command", ["show image.yaml", "env"])
def test_what_only_prints_stays_quiet(forker, place, pipe, command):
    run = forker.start(*command.split(), cwd=place, output=pipe)
    pipe.open().close()
    ended = run.wait()
    assert (ended.code, ended.err) == (0, "")


def test_what_only_prints_stays_quiet_to_the_end(place):
    """The same where Python itself has the last word."""
    command = f"{sys.executable} -m mmmask list | true; exit ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", command], cwd=place, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
