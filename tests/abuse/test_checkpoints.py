"""Files of weights: damaged, hostile, of other types; and what commands make of them."""

import functools
import os
import shutil
from pathlib import Path

import pytest
import torch

from tests.abuse.harness import Abuse, write

CONVERT = "convert x.pt -o new.safetensors"


def state(change):
    """A preparation: `x.pt` with the run's weights, changed by `change(state)`."""

    def prepare(folder: Path):
        checkpoint = torch.load(sorted((folder / "runs/done/checkpoints").glob("*.pt"))[-1], weights_only=True)
        torch.save(change(checkpoint["model"]), folder / "x.pt")

    return prepare


def each(change):
    return state(lambda weights: {key: change(weight) for key, weight in weights.items()})


def recursive(weights):
    weights["model"] = weights
    return weights


def hostile(folder: Path):
    import pickle

    class Command:
        def __reduce__(self):
            import os

            return os.system, ("touch hit",)

    (folder / "x.pt").write_bytes(pickle.dumps(Command()))


def hostile_archive(folder: Path):
    class Command:
        def __reduce__(self):
            import os

            return os.system, ("touch hit",)

    torch.save({"model": Command()}, folder / "x.pt")


def own_pickle(where):
    """A preparation: `x.pt`, own weights with one byte of one part changed; between parts is padding."""

    def prepare(folder: Path):
        import zipfile

        from safetensors.torch import load_file

        path = folder / "x.pt"
        torch.save(load_file(folder / "own.safetensors"), path)
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
        part = parts[int(len(parts) * where)]
        content = bytearray(path.read_bytes())
        name, extra = (int.from_bytes(content[part.header_offset + at :][:2], "little") for at in (26, 28))
        content[part.header_offset + 30 + name + extra + part.file_size // 2] ^= 1
        path.write_bytes(content)

    return prepare


def damaged(name, target, where):
    """A preparation: a copy of a file with one byte changed."""

    def prepare(folder: Path):
        content = bytearray(sorted(folder.glob(name))[-1].read_bytes())
        content[int(len(content) * where)] ^= 255
        (folder / target).write_bytes(content)

    return prepare


def cut(name, target, share):
    def prepare(folder: Path):
        content = sorted(folder.glob(name))[-1].read_bytes()
        (folder / target).write_bytes(content[: int(len(content) * share)])

    return prepare


def own(change):
    """A preparation: `x.safetensors`, own weights with some changed by `change(weights)`."""

    def prepare(folder: Path):
        from safetensors.torch import load_file, save_file

        weights = load_file(folder / "own.safetensors")
        change(weights)
        save_file(weights, folder / "x.safetensors")

    return prepare


def settings(text):
    """A preparation: own weights with other settings."""

    return own(
        lambda weights: weights.update({"mmmask.settings": torch.tensor(list(text.encode()), dtype=torch.uint8)})
    )


def not_finite(weights):
    weights["encoder.blocks.0.attn.proj.bias"].fill_(float("nan"))


def integers(weights):
    weights["encoder.blocks.0.attn.proj.bias"] = weights["encoder.blocks.0.attn.proj.bias"].int()


def float8(weights):
    weights["encoder.blocks.0.attn.proj.bias"] = weights["encoder.blocks.0.attn.proj.bias"].to(torch.float8_e4m3fn)


def sized(key, value):
    """A change: the settings ask for another size."""

    def change(weights):
        import json

        settings = json.loads(bytes(weights["mmmask.settings"].tolist()))
        settings["model"]["encoder"][key] = value
        weights["mmmask.settings"] = torch.tensor(list(json.dumps(settings).encode()), dtype=torch.uint8)

    return change


def repeated(weights):
    return {**weights, "mmmask.settings": torch.zeros(1, dtype=torch.uint8).expand(10**11)}


def hostile_run(folder: Path):
    hostile(folder)
    for path in (folder / "runs/done/checkpoints").glob("*.pt"):
        shutil.copy(folder / "x.pt", path)


def not_run(folder: Path):
    return "its code was run" if (folder / "hit").exists() else None


def x(name, prepare, refused, command=CONVERT):
    return Abuse(name, command, refused=refused, prepare=prepare, check=not_run)


OWN = "convert x.safetensors -o new.safetensors"
ABUSES = [
    x("not there", None, r"x\.pt"),
    x("empty", write("x.pt", b""), r"x\.pt"),
    x("a text", write("x.pt", b"hello"), r"x\.pt"),
    x("a folder", lambda folder: (folder / "x.pt").mkdir(), r"x\.pt"),
    x("a named pipe", lambda folder: os.mkfifo(folder / "x.pt"), r"x\.pt"),
    x("a device", lambda folder: (folder / "x.pt").symlink_to("/dev/zero"), r"x\.pt"),
    x("code in a pickle", hostile, r"x\.pt.*plain weights"),
    x("code in an archive", hostile_archive, r"x\.pt.*plain weights"),
    x("cut in half", cut("runs/done/checkpoints/*.pt", "x.pt", 0.5), r"x\.pt"),
    *(
        x(f"one bit changed at {where}", own_pickle(where), r"x\.pt.*damaged")
        for where in (0, 0.2, 0.4, 0.6, 0.8, 0.99)
    ),
    x("a list", state(lambda weights: [weights]), r"x\.pt: .*state dict, not list"),
    x("a number", state(lambda weights: 3), r"x\.pt: .*state dict, not int"),
    x("nothing", state(lambda weights: {}), r"x\.pt: .*not a single tensor"),
    x("holds itself", state(recursive), r"x\.pt: .*in itself"),
    x("keys that are numbers", state(lambda weights: {1: next(iter(weights.values()))}), r"names|keys|format"),
    x("keys of nobody", state(lambda weights: {"a": next(iter(weights.values()))}), r"format|layout"),
    x(
        "nested 400 deep",
        state(lambda weights: functools.reduce(lambda inner, _: {"model": inner}, range(400), weights)),
        r"x\.pt: .*nested",
    ),
    x("complex weights", each(lambda weight: weight.to(torch.complex64)), r"x\.pt: .*complex64"),
    x("sparse weights", each(lambda weight: weight.to_sparse()), r"x\.pt: .*sparse_coo"),
    x("float8 weights", each(lambda weight: weight.to(torch.float8_e4m3fn)), r"x\.pt: .*float8"),
    x("a tensor of one number, repeated", state(repeated), r"x\.pt: mmmask\.settings.*repeated"),
    Abuse(
        "own: a config beside it that it does not use, nested 100000 deep",
        "extract own.safetensors img -o f.npz",
        accepted="6 samples",
        prepare=write("config.json", '{"a":' * 100_000 + "1" + "}" * 100_000),
    ),
    x("own: settings nested 500 deep", settings('{"a":' * 500 + "1" + "}" * 500), r"a|required", OWN),
    x("own: settings of 2 million channels", own(sized("width", 2_000_000)), r"shape.*2000000", OWN),
    x("own: settings of a million blocks", own(sized("depth", 1_000_000)), r"depth", OWN),
    x("own: not there", None, r"x\.safetensors", OWN),
    x("own: a text", write("x.safetensors", b"hello"), r"x\.safetensors", OWN),
    x("own: header of 2^60 bytes", write("x.safetensors", b"\xff" * 7 + b"\x0f" + b"{}"), r"x\.safetensors", OWN),
    x("own: cut in half", cut("own.safetensors", "x.safetensors", 0.5), r"x\.safetensors", OWN),
    x("own: settings that are no JSON", settings("{"), r"x\.safetensors|settings", OWN),
    x("own: settings that are a list", settings("[]"), r"x\.safetensors|settings", OWN),
    x(
        "own: settings nested 100000 deep",
        settings('{"a":' * 100_000 + "1" + "}" * 100_000),
        r"x\.safetensors|settings|deep",
        OWN,
    ),
    x(
        "own: an unknown encoder",
        settings('{"model": {"encoder": {"name": "nobody"}}}'),
        r"x\.safetensors|settings|nobody|required",
        OWN,
    ),
    Abuse(
        "convert: the output is there", "convert runs/done -o own.safetensors", refused=r"own\.safetensors.*overwritten"
    ),
    Abuse(
        "convert: the output is the input", "convert own.safetensors -o own.safetensors", refused=r"own\.safetensors"
    ),
    Abuse("convert: an ending that is not written", "convert runs/done -o x.onnx", refused=r"\.safetensors"),
    Abuse("convert: below a file", "convert runs/done -o own.safetensors/x.safetensors", refused=r"own\.safetensors"),
    Abuse("convert: to no format", "convert runs/done --to nothing -o x.safetensors", refused=r"nothing"),
    Abuse(
        "convert: to a format that cannot hold it", "convert runs/done --to simmim -o x.safetensors", refused=r"simmim"
    ),
    Abuse(
        "convert: disk full",
        "convert runs/done -o x.safetensors",
        refused=r"x\.safetensors",
        limits=(("RLIMIT_FSIZE", 9000),),
        check=lambda f: "a partial file stays" if list(f.glob(".*partial")) or (f / "x.safetensors").exists() else None,
    ),
    Abuse("convert: a picture", "convert img/0.jpg -o x.safetensors", refused=r"img/0\.jpg"),
    Abuse(
        "convert: an empty folder",
        "convert vide -o x.safetensors",
        refused=r"vide",
        prepare=lambda f: (f / "vide").mkdir(),
    ),
    Abuse(
        "convert: a name that was never published",
        "convert mae/vit_bas/pretrain -o x.safetensors",
        refused=r"mae/vit_base/pretrain",
    ),
    Abuse(
        "reconstruct: over its own input", "reconstruct runs/done img/0.jpg --output img/0.jpg", refused=r"img/0\.jpg"
    ),
    Abuse(
        "reconstruct: over its own input, told to",
        "reconstruct runs/done img/0.jpg --output img/0.jpg --overwrite",
        refused=r"img/0\.jpg",
    ),
    Abuse("reconstruct: over a file", "reconstruct runs/done img/0.jpg --output image.yaml", refused=r"image\.yaml"),
    Abuse(
        "reconstruct: over the picture before",
        "reconstruct runs/done img/0.jpg --output r.png",
        refused=r"r\.png.*overwrite",
        prepare=write("r.png", b"mine"),
    ),
    Abuse(
        "reconstruct: over another sample of its source, told to",
        "reconstruct runs/done --source '{name: folder, path: img}' --samples 1 --output img/5.jpg --overwrite",
        refused=r"img/5\.jpg: it is an input",
    ),
    Abuse(
        "reconstruct: over a link to its input, told to",
        "reconstruct runs/done img/0.jpg --output l.jpg --overwrite",
        refused=r"l\.jpg: it is an input",
        prepare=lambda f: (f / "l.jpg").symlink_to("img/0.jpg"),
    ),
    Abuse(
        "reconstruct: disk full",
        "reconstruct runs/done img/0.jpg --output r.png",
        refused=r"r\.png: cannot be written: File too large",
        limits=(("RLIMIT_FSIZE", 1000),),
        check=lambda f: "a partial file stays" if list(f.glob("*r.png*")) else None,
    ),
    Abuse(
        "reconstruct: over the picture before, told to",
        "reconstruct runs/done img/0.jpg --output r.png --overwrite",
        accepted=r"r\.png",
        prepare=write("r.png", b"mine"),
        may_change="r.png",
    ),
    Abuse("reconstruct: an ending of no picture", "reconstruct runs/done img/0.jpg --output r.xyz", refused=r"r\.xyz"),
    Abuse("reconstruct: into no folder", "reconstruct runs/done img/0.jpg --output no/where/r.png", accepted=r"r\.png"),
    Abuse(
        "reconstruct: below a file", "reconstruct runs/done img/0.jpg --output image.yaml/r.png", refused=r"image\.yaml"
    ),
    Abuse(
        "reconstruct: nothing masked", "reconstruct runs/done img/0.jpg --mask-ratio 0 --output r.png", refused=r"mask"
    ),
    Abuse(
        "reconstruct: a ratio beyond 1",
        "reconstruct runs/done img/0.jpg --mask-ratio 2 --output r.png",
        refused=r"mask|ratio",
    ),
    Abuse("reconstruct: of weights alone", "reconstruct own.safetensors img/0.jpg --output r.png", accepted=r"r\.png"),
    Abuse(
        "extract: the output is there",
        "extract runs/done img/0.jpg -o f.npz",
        refused=r"f\.npz.*overwritten",
        prepare=write("f.npz", b"mine"),
    ),
    Abuse("extract: the output is the input", "extract runs/done img/0.jpg -o img/0.jpg", refused=r"img/0\.jpg"),
    Abuse(
        "extract: disk full",
        "extract runs/done img -o f.npz",
        refused=r"f\.npz",
        limits=(("RLIMIT_FSIZE", 500),),
        check=lambda f: "a partial file stays" if list(f.glob("*f.npz*")) else None,
    ),
    Abuse(
        "load a run without checkpoint",
        "extract runs/e img -o f.npz",
        refused=r"runs/e",
        prepare=lambda f: (
            shutil.copytree(f / "runs/done", f / "runs/e", ignore=shutil.ignore_patterns("*.pt")) and None
        ),
    ),
    Abuse(
        "load a run whose newest checkpoint is damaged",
        "extract runs/done img -o f.npz",
        accepted=r"step_00000002\.pt is damaged \(.*checksum\); trying the one before",
        prepare=damaged("runs/done/checkpoints/*2.pt", "runs/done/checkpoints/step_00000002.pt", 0.5),
    ),
    Abuse(
        "load a run whose checkpoints hold code",
        "extract runs/done img -o f.npz",
        refused=r"no checkpoint can be read: .*it is no checkpoint",
        prepare=hostile_run,
        check=not_run,
    ),
    Abuse(
        "load a run whose checkpoints are damaged",
        "extract runs/done img -o f.npz",
        refused=r"checkpoint|step_",
        prepare=lambda f: [
            damaged(f"runs/done/checkpoints/{p.name}", f"runs/done/checkpoints/{p.name}", 0.5)(f)
            for p in (f / "runs/done/checkpoints").glob("*.pt")
        ],
    ),
    Abuse(
        "own: weights that are not finite",
        "extract x.safetensors img -o f.npz",
        refused=r"attn\.proj\.bias: not finite",
        prepare=own(not_finite),
    ),
    Abuse("own: float8 weights", "extract x.safetensors img -o f.npz", refused=r"float8", prepare=own(float8)),
    Abuse(
        "own: not strict, weights that are not finite",
        "extract x.safetensors img -o f.npz --no-strict",
        refused=r"not finite",
        prepare=own(not_finite),
    ),
    Abuse(
        "own: weights that are integers",
        "extract x.safetensors img -o f.npz",
        refused=r"attn\.proj\.bias: int32",
        prepare=own(integers),
    ),
]


@pytest.mark.parametrize("abuse", ABUSES, ids=lambda abuse: abuse.name)
def test_checkpoint(examine, abuse):
    examine(abuse)
