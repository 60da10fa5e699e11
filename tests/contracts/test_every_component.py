"""Promises of every registered component, whoever supplies it; a new one is tested by being registered.

The promises stand in `mmmask.testing`. Here is what their checks need to know of each component.
"""

import inspect
import itertools
import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import BaseModel

from mmmask import testing
from mmmask.builtins.losses.codebook import save_codebook
from mmmask.components import INTERFACES, components
from mmmask.experiment import Experiment, StreamSettings, experiment_from_data
from mmmask.interfaces.component import chosen_kind, validate_strictly
from mmmask.interfaces.files import SourceFile
from mmmask.model.build import build_model, settings_of
from mmmask.testing.synthetic import chosen
from mmmask_shards import pack

ENTRIES = [(kind, entry.name) for kind, registry in components().registries.items() for entry in registry]
# settings that have no default
PLAIN = {"name": "pixels", "normalize": "none"}
REQUIRED = {("objective", "masked"): {"masker": {"name": "random"}, "loss": PLAIN}}
# so that a model is small: taken where a component has such settings
SMALL = {"width": 32, "depth": 2, "num_heads": 4}
# what fits a component to the synthetic samples, beyond that
FITTING = {
    ("objective", "contrastive"): {"hidden_dim": 24, "output_dim": 8},
    ("encoder", "swin"): {"embed_patch": 2, "window": 4},
    ("encoder", "conv_vit"): {"stage_widths": [8, 16]},
    **{("source", name): {"window": 50} for name in ("text_files", "json_lines")},
}
# other settings that make another component of it
VARIANTS = {
    ("encoder", "vit"): [
        {"masked_tokens": "replace", "prefix_tokens": 2, "positions": "relative_bias", "drop_path": 0.3},
        {"cosine_attention": True, "qkv_bias": "query_value", "layer_scale": 0.1, "dropout": 0.2},
    ],
    ("decoder", "transformer"): [
        {"positions": "relative_bias", "prefix": "drop"},
        {"positions_at": "decoder", "prefix_tokens": 1, "drop_path": 0.3},
    ],
    ("decoder", "in_place"): [{"depth": 0}],
    ("decoder", "cross_attention"): [
        {"queries": "predicted", "residual": True, "depth": 0, "cross_depth": 2, "latent_stages": 2}
    ],
    ("loss", "pixels"): [
        {"normalize": "none", "unnormalize": False, "error": "absolute"},
        {"normalize": "token", "slices": 1, "error": "smooth_l1"},
    ],
    ("objective", "masked"): [
        {"targets": {"values": {"loss": PLAIN}, "tokens": {"loss": PLAIN, "head": "own", "average": "samples"}}},
        {"targets": {"second": {"loss": PLAIN}, "again": {"part": "first", "loss": PLAIN, "weight": 0.5}}},
        {"maskers": {"first": "random", "second": "random"}, "targets": {"first": {"loss": PLAIN}}},
    ],
    ("loss", "cross_entropy"): [{"label_smoothing": 0.1}],
    ("loss", "depth"): [{"normalize": "none", "error": "smooth_l1"}, {"trim": 0.0}],
    ("loss", "hog"): [{"bins": 6, "cell": 4}],
    ("masker", "grid"): [{"random_offset": True}],
    ("masker", "random"): [{"round_down": "visible"}],
    ("modality", "image"): [{"size": 64, "patch_size": [2, 16, 16]}],
    ("modality", "depth"): [{"standardize": True, "missing": None}, {"interpolation": "bilinear"}],
    ("modality", "labels"): [{"ignore": 255, "classes": ["wall", "floor"]}],
    ("source", "json_lines"): [{"window": None}],
    ("source", "list"): [{"label_separator": "o", "skip_missing": True}],
    ("source", "folder"): [{"per_class": 1}],
    ("source", "shards"): [{"label": ".cls", "limit": 2}, {"per_class": 1, "label": "folder"}],
    ("source", "parquet"): [{"labels": "folder", "kept_bytes": 0}],
    ("source", "table"): [
        {"file": "{path}", "labels": {"kind": "label", "size": "number"}, "classes": {"size": 12}, "start": "number"},
        {"labels": {"label": "number"}, "label_separator": "1", "limit": 2},
    ],
    ("positions", "flat_sinusoid"): [{"trained_grid": [4, 4]}],
}
# small samples
MODALITIES = {
    "image": {"size": 64, "patch_size": [16, 16]},
    "video": {"size": 64, "num_frames": 4, "patch_size": [2, 16, 16]},
    "text": {"length": 32},
    "depth": {"size": 64},
    "labels": {"size": 16, "patch_size": [4, 4], "classes": 10, "class_width": 4},
}


def small(kind, name):
    fields = components().get(kind, name).Config.model_fields
    sized = {key: value for key, value in SMALL.items() if key in fields} if kind in ("encoder", "decoder") else {}
    samples = MODALITIES.get(name, {}) if kind == "modality" else {}
    return sized | samples | FITTING.get((kind, name), {}) | REQUIRED.get((kind, name), {})


def examined():
    """Every component with every check of its kind, in every variant."""
    for kind, name in ENTRIES:
        for number, variant in enumerate([{}, *VARIANTS.get((kind, name), [])]):
            for check in testing.checks(kind):
                label = f"{kind}-{name}{f'-{number}' if number else ''}-{check}"
                marks = [pytest.mark.slow] if check.name == "compiles_once" else []
                settings = small(kind, name) | variant
                for several, one in (("maskers", "masker"), ("targets", "loss")):
                    settings = {key: settings[key] for key in settings if key != one or several not in settings}
                yield pytest.param(kind, name, check, settings, id=label, marks=marks)


@pytest.mark.parametrize(("kind", "name", "check", "settings"), list(examined()))
def test_it_keeps_its_promises(kind, name, check, settings, examples, other_processes):
    try:
        check(name, **settings, **examples(kind, name))
    except testing.NotApplicable as reason:
        pytest.skip(str(reason))


FORKING = """
import mmmask.testing.cases.source, os, pickle, sys
for line in iter(sys.stdin.buffer.readline, b""):
    code, *paths = eval(line)
    if (pid := os.fork()) == 0:
        for number, path in enumerate(paths):
            os.dup2(os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT), number)
        sys.stdin = open(0)
        exec(code, {"__name__": "__main__"})
        sys.__stdout__.flush()
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def other_processes(tmp_path_factory):
    """Processes that a check starts are forked from one in which strings hash as the check asks: no torch anew."""
    folder, servers = tmp_path_factory.mktemp("processes"), {}

    def run(command, input, capture_output, env):
        *python, code = command
        assert (python, capture_output) == ([sys.executable, "-c"], True)
        seed = env["PYTHONHASHSEED"]
        if seed not in servers:
            servers[seed] = subprocess.Popen(
                [*python, FORKING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, text=True
            )
        paths = [folder / f"{next(numbers)}.{name}" for name in ("in", "out", "err")]
        paths[0].write_bytes(input)
        servers[seed].stdin.write(f"{(code, *map(str, paths))!r}\n")
        servers[seed].stdin.flush()
        ended = int(servers[seed].stdout.readline())
        return subprocess.CompletedProcess(command, ended, *(path.read_bytes() for path in paths[1:]))

    numbers = itertools.count()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmmask.testing.cases.source.subprocess", SimpleNamespace(run=run))
        yield
    for server in servers.values():
        server.communicate()


@pytest.fixture(scope="session")
def examples(tmp_path_factory):
    """Gives what there is besides settings: files for sources and modalities, state dicts for formats."""
    folder = tmp_path_factory.mktemp("examples")

    @cache
    def example(kind, name):
        match kind:
            case "source":
                return SOURCES[name](folder) if name in SOURCES else {}
            case "modality":
                return {"loaded": SourceFile(str(LOADED[name](folder)))} if name in LOADED else {}
            case "evaluator":
                return {"model": {"classification": small_classifier, "retrieval": small_pair}.get(name, small_model)()}
            case "loss":
                return write_codebook(folder) if name == "codebook" else {}
            case "format":
                return dict(FORMATS[name]()) if name in FORMATS else {}
        return {}

    return example


def write_codebook(folder):
    """Centroids of tokens of 16 numbers, such as synthetic ones with gaps."""
    of = chosen("loss", {"name": "pixels", "normalize": "none"})
    centroids = torch.rand(6, 16, generator=torch.Generator().manual_seed(0))
    save_codebook(folder / "book.safetensors", centroids, torch.arange(6), of)
    return {"path": str(folder / "book.safetensors"), "ids": 6, "of": of.model_dump()}


def write_files(folder):
    for number, name in enumerate(["b/2.jpg", "a/1.jpg", "a/0.JPG", "c.txt"]):
        path = folder / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([number]) * 10)
    rows = ["files/b/2.jpg,two", "files/a/1.jpg,one", "files/a/0.JPG,one"]
    (folder / "list.csv").write_text("\n".join(rows))
    (folder / "table.csv").write_text(
        "\n".join(["path,label,number", *(f"{row},{n + 9}" for n, row in enumerate(rows))])
    )
    return folder


def write_texts(folder):
    folder = folder / "texts"
    folder.mkdir(exist_ok=True)
    for number in range(3):
        lines = [f"{number} and {line} are {number + line}\n" for line in range(9)]
        (folder / f"{number}.txt").write_text("".join(lines))
        records = [json.dumps({"text": line, "kind": number}) for line in lines]
        (folder / f"{number}.jsonl").write_text("\n".join(records))
    return folder


def write_parts(folder):
    for number in range(4):
        for part, ending in (("rgb", "jpg"), ("depth", "png")):
            path = folder / part / f"{number % 2}" / f"{number}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if (number, part) != (3, "depth"):
                path.write_bytes(f"{part} {number}".encode())
        (folder / "npz").mkdir(exist_ok=True)
        np.savez(folder / "npz" / f"{number}.npz", rgb=np.full((2, 2), number), depth=np.zeros(number))
    return folder


def write_shards(folder, ending):
    write_files(folder)
    pack(str(folder / "files"), str(folder / f"{ending}/%02d.{ending}"), max_bytes=10240, endings=(".jpg",))
    return folder / f"{ending}/{{00..00}}.{ending}"


PARTS = {"rgb": (".jpg",), "depth": (".png",)}
SOURCES = {
    "aligned": lambda folder: {
        "parts": {part: {"name": "folder", "path": str(write_parts(folder) / part)} for part in PARTS},
        "extensions": PARTS,
    },
    "arrays": lambda folder: {
        "files": {"name": "folder", "path": str(write_parts(folder) / "npz")},
        "extensions": PARTS,
    },
    "folder": lambda folder: {"path": str(write_files(folder) / "files"), "extensions": (".jpg",)},
    "list": lambda folder: {"path": str(write_files(folder) / "list.csv"), "extensions": (".jpg",)},
    "table": lambda folder: {"path": str(write_files(folder) / "table.csv")},
    "glob": lambda folder: {"path": str(write_files(folder) / "files/**/*.[jJ]*"), "extensions": (".jpg",)},
    "shards": lambda folder: {"path": str(write_shards(folder, "tar")), "extensions": (".jpg",)},
    "parquet": lambda folder: {"path": str(write_shards(folder, "parquet")), "extensions": (".jpg",)},
    "text_files": lambda folder: {"path": str(write_texts(folder) / "*.txt"), "extensions": (".txt",)},
    "json_lines": lambda folder: {"path": str(write_texts(folder)), "label_field": "kind"},
}


def painted(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_image(folder):
    Image.fromarray(painted(80, 96)).save(folder / "painted.png")
    return folder / "painted.png"


def write_depth(folder):
    Image.fromarray(np.random.default_rng(0).integers(0, 9000, (80, 96), dtype=np.uint16)).save(folder / "depth.png")
    return folder / "depth.png"


def write_video(folder):
    path = folder / "painted.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 80, "yuv420p"
        for number in range(12):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(painted(80, 96, number), format="rgb24")))
        container.mux(stream.encode(None))
    return path


LOADED = {"image": write_image, "video": write_video, "depth": write_depth}


def golden(name):
    """A tiny checkpoint of an official system, its options with it."""
    parts = torch.load(Path(__file__).parents[1] / "zoo" / f"golden_{name}.pt", weights_only=True)
    # the last: where pretrained files of two systems have one layout, those of classifiers are told apart
    part = [*parts["cases"].values(), *parts["classified"].values()][-1]
    options = {key: value for key, value in part["options"].items() if key != "format"}
    return {"state": part["weights"], **options}


def small_model(modality="image", encoder=None, decoder=None):
    data = {
        "model": {
            "encoder": {"name": "vit", "width": 24, "depth": 1, "num_heads": 2, **(encoder or {})},
            "decoder": {"name": "transformer", "width": 16, "depth": 1, "num_heads": 2, **(decoder or {})},
        },
        "streams": {
            "a": {
                "modality": {"name": modality, **MODALITIES[modality]},
                "masker": {"name": "random"},
                "loss": {"name": "pixels", "normalize": "token", "unnormalize": False},
            }
        },
    }
    return build_model(experiment_from_data(data))


def small_classifier():
    data = {
        "model": {"encoder": {"name": "vit", "width": 24, "depth": 1, "num_heads": 2}},
        "streams": {"a": {"modality": {"name": "image", **MODALITIES["image"]}, "objective": "classification"}},
    }
    return build_model(experiment_from_data(data), {"a": {"label": ("cat", "dog", "owl")}})


def small_pair():
    parts = {name: {"name": "image", **MODALITIES["image"], "embedding": name} for name in ("left", "right")}
    data = {
        "model": {"encoder": {"name": "vit", "width": 24, "depth": 1, "num_heads": 2}},
        "streams": {"a": {"modalities": parts, "objective": "contrastive", "hidden_dim": 24, "output_dim": 8}},
    }
    return build_model(experiment_from_data(data))


def written(name, modality, encoder, decoder, **options):
    """File that a format writes of a small model."""
    model = small_model(modality, encoder, decoder)
    found = components().get("format", name)
    with_name = validate_strictly(found.Config, {"name": name})
    return {"state": found(with_name).write(settings_of(model), model.state_dict()).state, **options}


MAE = ({"prefix_tokens": 1, "positions": "sincos_2d"}, {"positions": "sincos_2d", "positions_at": "decoder"})
FORMATS = {
    **{
        name: lambda name=name: golden(name)
        for name in ("omnimae", "mae", "mae_st", "videomae", "videomaev2", "simmim", "convmae", "multimae")
    },
    "mmmask": lambda: written("mmmask", "image", {}, {}),
    "huggingface_vitmae": lambda: written("huggingface_vitmae", "image", *MAE, num_heads=2, decoder_num_heads=2),
}


def test_there_is_something_of_every_kind():
    assert {kind for kind, _ in ENTRIES} == set(INTERFACES)


@pytest.mark.parametrize(("kind", "name"), ENTRIES)
def test_it_is_registered_with_a_line_about_it(kind, name):
    assert components().get(kind, name)
    assert components().registry(kind).entry(name).description


@pytest.mark.parametrize(("kind", "name"), ENTRIES)
def test_the_command_line_describes_it(kind, name, capsys):
    from mmmask.cli import main

    assert main(["describe", kind, name]) == 0
    out = capsys.readouterr().out
    for key in components().get(kind, name).Config.model_fields:
        assert key == "name" or f"  {key}: " in out


@pytest.mark.parametrize("modality", [name for kind, name in ENTRIES if kind == "modality"])
@pytest.mark.parametrize(("kind", "name"), [entry for entry in ENTRIES if entry[0] in ("encoder", "decoder")])
def test_it_trains_on_the_samples_of_every_modality(kind, name, modality):
    (check,) = (check for check in testing.checks(kind) if check.name == "trains_every_parameter")
    try:
        check(name, modality={"name": modality, **small("modality", modality)}, **small(kind, name))
    except testing.PromiseBroken as broken:
        if "it refused all" not in broken.came:
            raise
        pytest.skip(broken.came)  # it says so itself


@pytest.mark.parametrize("model", [Experiment, StreamSettings], ids=lambda model: model.__name__)
def test_every_setting_of_an_experiment_is_described(model):
    seen, missing = set(), []

    def look(model, where):
        if model in seen:
            return
        seen.add(model)
        for key, field in model.model_fields.items():
            annotation = field.annotation
            nested = inspect.isclass(annotation) and issubclass(annotation, BaseModel) and chosen_kind(field) is None
            if nested:
                look(annotation, f"{where}{key}.")
            elif not field.description and key != "streams":
                missing.append(where + key)

    look(model, "")
    assert not missing
