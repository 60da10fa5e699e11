"""The command line itself: arguments, plugins' files, environments, terminals."""

from pathlib import Path

import pytest

from mmmask.cli import COMMANDS
from tests.abuse.harness import Abuse, write

MASKER = """
import torch
import mmmask
from mmmask.interfaces import Masker

class Mine(Masker):
    class Config(Masker.Config):
        pass

    def scores(self, context):
        {scores}

    def num_masked(self, grid, step):
        {count}

mmmask.register("masker", "mine", Mine)
"""
USE = "train image.yaml streams.s.masker=mine --plugin p.py --output runs/new"


def masker(
    name,
    scores="return context.noise((context.batch, 4))",
    count="return 2",
    refused=r"masker.*mine|mine.*masker",
    command=USE,
):
    return Abuse(
        f"plugin: {name}", command, refused=refused, prepare=write("p.py", MASKER.format(scores=scores, count=count))
    )


def plugin(name, code, refused, command="list --plugin p.py"):
    return Abuse(f"plugin: {name}", command, refused=refused, prepare=write("p.py", code))


def published(name, hook, call, said):
    code = f"import mmmask\n@mmmask.hookimpl\ndef {hook}(publish):\n    {call}\n"
    everything = rf"(?s)experiment  quickstart.*checkpoint  mae/.*{said}"
    return Abuse(f"plugin: {name}", "list --plugin p.py", accepted=everything, prepare=write("p.py", code))


ABUSES = [
    *(
        Abuse(f"{command} without arguments", command, refused=r"usage|required")
        for command in COMMANDS
        if command not in ("list", "env")
    ),
    *(Abuse(f"{command} with an unknown option", f"{command} --nonsense", refused=r"usage") for command in COMMANDS),
    *(
        Abuse(f"{command} of nothing that exists", f"{command} nowhere.yaml", refused=r"nowhere")
        for command in ("train", "show", "check", "bench")
    ),
    *(
        Abuse(f"--plugin {name}", f"list --plugin {name}", refused=r"plugin")
        for name in ("nowhere.py", "img", "img/0.jpg", "/dev/null/x.py")
    ),
    Abuse("no command", "", refused=r"usage"),
    Abuse("no such command", "trian", refused=r"train"),
    Abuse("describe: no such kind", "describe mask random", refused=r"mask"),
    Abuse("describe: no such name", "describe masker randm", refused=r"random"),
    Abuse("describe: a path", "describe masker ../../etc/passwd", refused=r"passwd"),
    Abuse("list: no such kind", "list thing", refused=r"thing"),
    Abuse("new: no such kind", "new thing mine", refused=r"thing"),
    Abuse("new: a taken name", "new masker random --output n", refused=r"random"),
    Abuse("new: a name that leaves the folder", "new masker ../../mine --output n", refused=r"mine"),
    Abuse("new: a keyword", "new masker class --output n", refused=r"class"),
    Abuse("new: a number", "new masker 3d --output n", refused=r"3d"),
    Abuse("new: beyond ASCII", "new masker mäsk --output n", refused=r"mäsk"),
    Abuse("new: it is there", "new masker mine --output n", refused=r"mine", prepare=write("n/mmmask-mine/x", "mine")),
    Abuse("verify: no such name", "verify masker randm", refused=r"random"),
    Abuse("verify: a setting that is not there", "verify masker random ratio=0.5", refused=r"ratio"),
    Abuse("sample-data: a file", "sample-data own.safetensors", refused=r"own\.safetensors"),
    Abuse(
        "sample-data: somebody's folder", "sample-data s", refused=r"s/images", prepare=write("s/images/mine.txt", "x")
    ),
    Abuse("sample-data: a seed that is no number", "sample-data s --seed x", refused=r"seed"),
    Abuse("bench: no samples", "bench image.yaml --samples 0", refused=r"samples"),
    Abuse("bench: too many numbers", "bench image.yaml --samples 1,2,3", refused=r"samples"),
    Abuse("bench: no precision", "bench image.yaml --precision fp8", refused=r"fp8"),
    Abuse("bench: no repetitions", "bench image.yaml --repetitions 0", refused=r"repetitions"),
    Abuse("extract: batches of 0", "extract runs/done img -o f.npz --batch-size 0", refused=r"batch-size"),
    Abuse("extract: no such stream", "extract runs/done img -o f.npz --stream t", refused=r"\bt\b"),
    Abuse("extract: no such pool", "extract runs/done img -o f.npz --pool medium", refused=r"medium"),
    Abuse("extract: no such split", "extract runs/done --split test -o f.npz", refused=r"test"),
    Abuse("extract: a split that the run lacks", "extract runs/done --split held_out -o f.npz", refused=r"held_out"),
    Abuse(
        "extract: files and a source",
        "extract runs/done img --source '{name: folder, path: img}' -o f.npz",
        refused=r"source",
    ),
    Abuse("extract: nothing to read", "extract runs/done -o f.npz", refused=r"INPUT|files"),
    Abuse(
        "extract: a source that is no YAML", "extract runs/done --source '{name: folder' -o f.npz", refused=r"source"
    ),
    Abuse(
        "extract: an empty folder",
        "extract runs/done e -o f.npz",
        refused=r"\be\b",
        prepare=lambda f: (f / "e").mkdir(),
    ),
    Abuse("reconstruct: a seed that is no number", "reconstruct runs/done img/0.jpg --seed x", refused=r"seed"),
    Abuse("width 0", "list", accepted="masker", environment=(("COLUMNS", "0"),)),
    Abuse(
        "a nonsense terminal",
        "train image.yaml --output runs/new",
        accepted="2 steps",
        environment=(("TERM", "nonsense"), ("COLUMNS", "-3")),
    ),
    Abuse("no home", "list", accepted="masker", environment=(("HOME", "/nowhere"),)),
    Abuse("an address that is none", "convert http:// -o x.safetensors", refused=r"http"),
    Abuse(
        "an address that nobody answers", "convert http://127.0.0.1:9/x.pt -o x.safetensors", refused=r"127\.0\.0\.1"
    ),
    Abuse(
        "an address that leaves the cache",
        "convert http://127.0.0.1:9/../../../x.pt -o x.safetensors",
        refused=r"127\.0\.0\.1",
    ),
    Abuse("an address of another protocol", "convert s3://bucket/x.pt -o x.safetensors", refused=r"s3"),
    plugin("not Python", "def (", r"p\.py.*line 1"),
    plugin("fails", "raise ValueError('mine')", r"p\.py.*mine"),
    plugin("ends the program", "raise SystemExit(0)", r"p\.py"),
    plugin("an import that fails", "import nothing_of_this_name", r"p\.py.*nothing_of_this_name"),
    plugin("endless recursion", "def f(): f()\nf()", r"p\.py"),
    plugin(
        "an abstract class",
        "import mmmask\nfrom mmmask.interfaces import Masker\nmmmask.register('masker', 'm1', Masker)",
        r"m1|abstract",
    ),
    plugin(
        "a class of another kind",
        "import mmmask\nfrom mmmask.interfaces import Loss\nmmmask.register('masker', 'm1', Loss)",
        r"m1",
    ),
    plugin("an instance", "import mmmask\nmmmask.register('masker', 'm1', object())", r"m1"),
    plugin("a name that is a number", "import mmmask\nmmmask.register('masker', 3, object)", r"3"),
    plugin("no such kind", "import mmmask\nmmmask.register('thing', 'm1', object)", r"thing"),
    plugin(
        "a taken name",
        "import mmmask\nfrom mmmask.builtins.maskers.random import RandomMasker\nmmmask.register('masker', 'random', RandomMasker)",
        r"random",
    ),
    masker("counts with a text", count="return 'two'"),
    masker("counts with a fraction", count="return 1.5"),
    masker("counts below zero", count="return -1"),
    masker("counts more than there are", count="return 99"),
    masker("counts nothing", count="return 0"),
    masker("counts with None", count="return None"),
    masker("scores of another shape", scores="return context.noise((context.batch, 3))"),
    masker("scores that are no tensor", scores="return [1, 2, 3, 4]"),
    masker("scores that are None", scores="return None"),
    masker("scores that are NaN", scores="return torch.full((context.batch, 4), float('nan'))"),
    masker("the same, checked", count="return 'two'", command="check image.yaml streams.s.masker=mine --plugin p.py"),
    *(
        Abuse(
            f"a full disk behind the output: {command.split()[0]}",
            command,
            refused="the output cannot be written: No space",
            output="/dev/full",
            may_change="x.safetensors|f.npz|r.png|runs/.*",
        )
        for command in (
            "list",
            "env",
            "show image.yaml",
            "describe masker random",
            "check image.yaml",
            "convert runs/done -o x.safetensors",
            "extract runs/done img -o f.npz",
            "reconstruct runs/done img/0.jpg --output r.png",
        )
    ),
    Abuse(
        "a name that the terminal cannot show",
        "show x.yaml",
        accepted=r"\\u0438",
        environment=(("PYTHONIOENCODING", "ascii"),),
        prepare=lambda f: (f / "x.yaml").write_text((f / "image.yaml").read_text().replace("  s:", "  изображения:")),
    ),
    plugin(
        "an import path without a class",
        "import mmmask\nmmmask.register('masker', 'm1', 'no_colon')",
        r"m1.*package\.module:Class",
    ),
    plugin(
        "a name of two lines",
        "import mmmask\nmmmask.register('masker', 'a\\nb', 'm:C')",
        r"masker 'a\\nb' of this session: expected a name",
    ),
    plugin(
        "a description that is no text", "import mmmask\nmmmask.register('masker', 'm1', 'm:C', 3)", r"m1.*description"
    ),
    published(
        "a checkpoint whose name is a number",
        "publish_checkpoints",
        "publish(3, 'http://x/x.pt', 'mae', 'MIT')",
        r"plugin p\.py: publish_checkpoints failed: publish: name: .* 3",
    ),
    published(
        "a checkpoint without a licence",
        "publish_checkpoints",
        "publish('x', 'http://x/x.pt', 'mae', None)",
        r"p\.py.*licence",
    ),
    published("a checkpoint of nothing", "publish_checkpoints", "publish()", r"p\.py.*publish_checkpoints failed"),
    published(
        "checkpoints that end the program",
        "publish_checkpoints",
        "raise SystemExit(0)",
        r"p\.py.*publish_checkpoints failed",
    ),
    published(
        "an experiment whose name is a number",
        "publish_experiments",
        "publish(3, 'image.yaml')",
        r"experiment 3 of p\.py",
    ),
    published(
        "an experiment that is not there",
        "publish_experiments",
        "publish('x', 'nowhere.yaml')",
        r"p\.py.*nowhere\.yaml",
    ),
    published("an experiment that is a picture", "publish_experiments", "publish('x', 'img/0.jpg')", ""),
    published("an experiment that is a number", "publish_experiments", "publish('x', 3)", r"p\.py"),
    Abuse(
        "plugin: the same file twice",
        "list --plugin p.py --plugin p.py",
        accepted="mine",
        prepare=write("p.py", MASKER.format(scores="return None", count="return 1")),
    ),
]


@pytest.mark.parametrize("abuse", ABUSES, ids=lambda abuse: abuse.name)
def test_command(examine, abuse):
    examine(abuse)


def test_every_group_has_its_table():
    groups = [path.stem for path in Path(__file__).parent.glob("test_*.py")]
    assert len(groups) >= 5
