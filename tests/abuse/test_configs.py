"""Mistakes in experiments: keys, values, YAML, composition, sizes without sense."""

import os
import re

import pytest

from tests.abuse.harness import Abuse, write


def shown(name, change, refused):
    return Abuse(name, f"show image.yaml '{change}'", refused=refused)


def file(name, content, refused):
    return Abuse(name, "show x.yaml", refused=refused, prepare=write("x.yaml", content))


def wrong(keys, value):
    """A value that none of the keys takes."""
    keys = [key for key in keys if (key, value) not in DEFAULTS]
    overrides = " ".join(f"'{key}={value}'" for key in keys)
    every_one = "".join(rf"(?=.*^mmmask: \S+: {re.escape(key)}\b)" for key in keys)
    return Abuse(f"{keys[0]} ...: {value[:12]}", f"show image.yaml {overrides}", refused=f"(?sm)\\A{every_one}")


DEFAULTS = [("training.optimizer.clip_gradient", "null"), ("training.steps", "null")]

# every key of a row takes none of its values; given a value at once, every one is named
WRONG_VALUES = {
    ("streams.s.batch_size", "streams.s.replicate", "training.steps", "training.accumulate", "data.workers"):
        ("-1", "1.5", "x", "null", "[]", "{a: 1}", "1e999", ".nan", "true", "9" * 4301),
    ("model.encoder.width", "model.encoder.depth", "model.encoder.num_heads", "model.decoder.width"):
        ("-1", "1.5", "x", "null", "[]", "true"),
    ("streams.s.masker.mask_ratio", "streams.s.loss_weight"):
        ("-1", "x", "null", "[]", ".nan", ".inf", "true"),
    ("training.optimizer.learning_rate", "training.optimizer.weight_decay", "training.optimizer.clip_gradient"):
        ("-1", "x", "[]", ".nan", ".inf", '"1e-3 "', "true"),
    ("streams.s.modality.size", "streams.s.modality.patch_size"):
        ("0", "-8", "x", "null", "{}", "[8]", "[1,2,3,4]", "[0, 8]", "true"),
    ("model.encoder", "model.decoder", "streams.s.modality", "streams.s.masker", "streams.s.source", "streams.s.loss"):
        ("nothing_of_this_name", "3", "[]", "{name: 3}", "{name: null}", "{nam: vit}"),
    ("streams.s.modality.augment", "callbacks"): ("x", "{name: x}", "[3]", "[{}]", "[[flip]]"),
    ("training.mixing", "training.precision", "training.schedule.name"): ("x", "3", "null", "[]"),
    ("streams.s", "training", "data", "model"): ("3", "x", "[]", "[1]"),
    ("streams",): ("3", "x", "[]", "[1]"),
}  # fmt: skip

ABUSES = [
    *(wrong(keys, value) for keys, values in WRONG_VALUES.items() for value in values),
    shown("unknown key", "trainig.steps=3", r"trainig.*training"),
    shown("unknown key, deep", "streams.s.masker.ratio=0.5", r"streams\.s\.masker\.ratio.*mask_ratio"),
    shown("key through a number", "training.steps.more=3", r"training\.steps"),
    shown("key through a list", "streams.s.modality.patch_size.0=3", r"patch_size"),
    shown("empty key", "=3", r"key\.path=value"),
    shown("no key", "..=3", r"\.\."),
    shown("no value", "training.steps", r"key\.path=value"),
    shown("a name that no module can have", "streams.keys={modality: image}", r"streams"),
    shown("patches that do not fit", "streams.s.modality.size=17", r"17"),
    shown("heads that do not fit", "model.encoder.num_heads=3", r"num_heads"),
    Abuse("a width beyond all memory", "check image.yaml model.encoder.width=100000000000", refused=r"memory|width"),
    Abuse("a million blocks", "check image.yaml model.encoder.depth=1000000", refused=r"memory|depth"),
    Abuse("a billion channels", "check image.yaml streams.s.modality.channels=1000000000", refused=r"channels"),
    Abuse("a billion samples a step", "check image.yaml streams.s.batch_size=1000000000", refused=r"memory|batch_size"),
    Abuse("the same, trained", "train image.yaml streams.s.batch_size=1000000000 --output runs/new", refused=r"memory|batch_size"),
    Abuse("a hundred thousand workers", "train image.yaml data.workers=100000 --output runs/new", refused=r"workers"),
    Abuse("mlp_ratio 1e30", "check image.yaml model.encoder.mlp_ratio=1e30", refused=r"memory|mlp_ratio"),
    Abuse("crop ratio without extent", "check image.yaml 'streams.s.modality.augment=[{name: crop, ratio: [1e-320,1e-320]}]'", refused=r"ratio"),
    Abuse("neither steps nor epochs", "check image.yaml training.steps=null", refused=r"training\.steps"),
    shown("patches of one number", "streams.s.modality.patch_size=[8]", r"patch_size: expected a list of two, each a whole number of at least 1, or three of them; not \[8\]\n\Z"),
    shown("size 0", "streams.s.modality.size=0", r"\Ammmask: \S+: streams.s.modality.size: expected a whole number of at least 1, or two of them; not 0\n\Z"),
    shown("epochs and steps", "training.epochs={s: 1}", r"epochs"),
    shown("1.7e308 epochs", "training={steps: null, epochs: {s: 1.7e308}}", r"epochs\.s: .*not 1.7e\+308"),
    shown("half a character", 'description="\\ud800"', r"^mmmask: override: description: .*half a character"),
    shown("a value of 5000 letters", "model=" + "n" * 5000, r"model: should be an object"),
    shown("a list of 5000 numbers", f"model={list(range(5000))}", r"model: should be an object"),
    shown("a whole number of 19 digits", "training.seed=" + "9" * 19, r"training\.seed: .*18 digits"),
    shown("a sound of 1e300 seconds", "streams.s.modality={name: audio, seconds: 1e300}", r"seconds"),
    shown("a hop without length", "streams.s.modality={name: audio, hop_ms: 1e-320}", r"hop_ms"),
    Abuse("a clip of a billion frames", "check video.yaml streams.s.modality.num_frames=1000000000", refused=r"streams\.s\.modality.*tokens"),
    Abuse("a text of a billion tokens", "check text.yaml streams.s.modality.length=1000000000", refused=r"streams\.s\.modality.*tokens"),
    Abuse("pictures beyond all memory", "check image.yaml streams.s.modality.patch_size=[80000,80000] streams.s.modality.size=80000", refused=r"streams\.s: 32 samples .* GiB"),
    Abuse("batches beyond all memory", "train image.yaml streams.s.batch_size=1048576 streams.s.modality.size=512 data.workers=300 --output runs/new", refused=r"streams\.s: .*samples .* GiB"),
    Abuse("a width beyond all memory, trained", "train image.yaml model.encoder.width=1000000 --output runs/new", refused=r"memory.*width"),
    Abuse("a million blocks, trained", "train image.yaml model.encoder.depth=1000000 --output runs/new", refused=r"depth"),
    Abuse("a trillion registers", "check image.yaml model.encoder.prefix_tokens=1000000000000", refused=r"streams\.s: .*memory"),
    Abuse("a patch of a billion frames", "check image.yaml streams.s.modality.patch_size=[1000000000,8,8]", refused=r"streams\.s: .*memory"),
    Abuse("a table of positions beyond all memory", "check image.yaml 'model.encoder.positions={name: sincos_2d, trained_grid: [1000000,1000000]}'", refused=r"streams\.s: .*memory"),
    Abuse("a window larger than the grid", "check image.yaml 'model.encoder={name: swin, width: 16, depths: [1,1], num_heads: 2, window: 100000}' model.decoder=in_place streams.s.modality.size=128 'streams.s.modality.patch_size=[8,8]'", accepted="ready to train"),
    Abuse("a kernel beyond all memory", "check image.yaml 'model.encoder={name: conv_vit, conv_kernel: 1000001}' streams.s.modality.size=64 'streams.s.modality.patch_size=[16,16]'", refused=r"kernel|memory"),
    Abuse("a standard deviation of nearly nothing", "check image.yaml streams.s.modality.std=[1e-320,1e-320,1e-320]", refused=r"loss|std"),
    Abuse("extends a file of another ending", "show x.yaml", accepted="steps: 2", prepare=lambda f: (
        (f / "image.yaml").rename(f / "base.txt"), (f / "x.yaml").write_text("extends: base.txt"))),
    Abuse("a file's name of 5000 letters", f"show {'n' * 5000}.yaml", refused=r"no such file"),
    Abuse("more workers than pipes", "train image.yaml data.workers=500 data.process=true --output runs/new", refused=r"data\.workers: 500", limits=(("RLIMIT_NOFILE", 100),)),
    shown("crop ratio without extent", "streams.s.modality.augment=[{name: crop, ratio: [1e-320,1e-320]}]", r"ratio"),
    shown("augmentation of 200 levels", "streams.s.modality.augment=" + "[" * 200 + "]" * 200, r"."),
    file("empty file", "", r"x\.yaml"),
    file("a text", "hello", r"x\.yaml"),
    file("a number", "3", r"x\.yaml"),
    file("a list", "- 1\n- 2", r"x\.yaml"),
    file("not UTF-8", b"\xff\xfe\x00a", r"x\.yaml"),
    file("a zero byte", "a: \0", r"x\.yaml"),
    file("torn YAML", "model: {encoder: {name: vit", r"x\.yaml.*line"),
    file("a tag that runs code", "model: !!python/object/apply:os.system ['touch hit']", r"x\.yaml.*line 1"),
    file("a key twice", "training: {steps: 1}\ntraining: {steps: 2}", r"twice|duplicate"),
    file("an alias bomb", "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(8)), r"x\.yaml"),
    file("nested 5000 deep", "a: " + "[" * 5000 + "]" * 5000, r"x\.yaml"),
    file("an integer of 5000 digits", "training: {steps: " + "9" * 5000 + "}", r"x\.yaml"),
    file("keys that are no text: null", "streams: {null: {}, \"null\": {}}", r"x\.yaml.*a key is a text, not null.*line 1, column 11"),
    file("keys that are no text: true", "streams: {true: {}, \"true\": {}}", r"a key is a text, not true"),
    file("keys that are no text: 1", "streams: {1: {}, \"1\": {}}", r"a key is a text, not 1"),
    file("keys that are no text: a list", "streams: {[1]: {}}", r"a key is a text, not a list"),
    file("a surrogate", 'description: "\\ud800"', r"x\.yaml"),
    file("a number without digits", "training: {steps: !!float }", r"x\.yaml.*line 1, column 19"),
    file("a time without time", "training: {steps: !!timestamp x}", r"steps"),
    file("a number of letters", "training: {steps: !!int x}", r"x\.yaml.*kind.*line 1"),
    file("extends itself", "extends: x.yaml", r"extends"),
    file("extends nothing", "extends: nowhere", r"nowhere"),
    file("extends a number", "extends: 3", r"extends"),
    file("extends a list of lists", "extends: [[quickstart]]", r"extends"),
    file("a name of 5000 letters", "name: " + "n" * 5000, r"name"),
    Abuse("no such experiment", "show quickstrt", refused=r"quickstart"),
    Abuse("no such file", "show nowhere/x.yaml", refused=r"nowhere/x\.yaml"),
    Abuse("a folder", "show img", refused=r"img"),
    Abuse("a picture", "show img/0.jpg", refused=r"img/0\.jpg"),
    Abuse("an experiment of another ending", "show image.yaml.txt", accepted="", prepare=lambda f: (f / "image.yaml").rename(f / "image.yaml.txt")),
    Abuse("an ending in capitals", "show image.YAML", accepted="", prepare=lambda f: (f / "image.yaml").rename(f / "image.YAML")),
    Abuse("no arguments", "show", refused=r"required: EXPERIMENT\n"),
    Abuse("nothing masked: ratio 0", "check image.yaml streams.s.masker.mask_ratio=0", refused=r"streams\.s.*mask"),
    Abuse("nothing masked: ratio rounds to 0", "train image.yaml streams.s.masker.mask_ratio=0.01 --output runs/new", refused=r"streams\.s.*mask"),
    Abuse("nothing masked: one token", "train image.yaml streams.s.modality.size=8 --output runs/new", refused=r"streams\.s.*mask"),
    *(
        Abuse(
            f"nothing counted: {command}",
            f"{command} 'streams.s.masker={{name: causal, mask_ratio: 0.25}}' "
            f"'streams.s.decoder_masker={{name: causal, mask_ratio: 0.25}}' {output}",
            refused=r"streams\.s: its loss is 0 from the start, as if no prediction counted",
        )
        for command, output in (("check image.yaml", ""), ("train image.yaml", "--output runs/new"))
    ),
    Abuse("nothing visible", "check image.yaml streams.s.masker.mask_ratio=1", refused=r"streams\.s"),
    Abuse("nothing masked: a text of one token", "train text.yaml streams.s.modality.length=1 --output runs/new", refused=r"streams\.s"),
    Abuse("a grid beyond reckoning", "check image.yaml streams.s.modality.size=800000", refused=r"streams\.s\.modality: .*tokens"),
]  # fmt: skip


@pytest.mark.parametrize("abuse", ABUSES, ids=lambda abuse: abuse.name)
def test_config(examine, abuse):
    examine(abuse)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_closed_file(examine):
    close = Abuse(
        "a closed file", "show x.yaml", refused=r"x\.yaml.*ermission", prepare=lambda f: (f / "image.yaml").chmod(0)
    )
    examine(close)
