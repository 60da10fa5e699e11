"""Depth and labels of little rooms are learned, whatever is missing."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

import mmmask
from mmmask.data.streams import sample_loader
from mmmask.evaluation.pictures import reconstruct
from mmmask.model.cost import meta_model, stream_cost

MAPS = {
    "depth": {"modality": {"name": "depth", "size": 32, "patch_size": [8, 8], "missing": 0}, "loss": "depth"},
    "labels": {
        "modality": {"name": "labels", "size": 16, "patch_size": [4, 4], "classes": 5, "ignore": 255},
        "loss": "cross_entropy",
    },
}


def write_rooms(folder, count=16):
    """A wall, a floor that comes nearer, and a box: 16-bit millimetres, and classes; the last two are nearly empty."""
    generator = np.random.default_rng(0)
    for number in range(count):
        far, horizon = generator.uniform(2, 6), generator.integers(12, 28)
        depth = np.full((40, 48), far)
        depth[horizon:] = np.linspace(far, 1, 40 - horizon)[:, None]
        labels = np.zeros((40, 48), np.uint8)
        labels[horizon:] = 1
        top, left = generator.integers(8, 24, 2)
        depth[top : top + 12, left : left + 12], labels[top : top + 12, left : left + 12] = 1.5, 2 + number % 3
        if number >= count - 2:
            depth[4:], labels[4:] = 0, 255
        for part, image in (("depth", (1000 * depth).astype(np.uint16)), ("labels", labels)):
            (folder / part).mkdir(exist_ok=True)
            Image.fromarray(image).save(folder / part / f"{number:02}.png")


def experiment(folder, name, steps=60):
    return {
        "model": {
            "encoder": {"name": "vit", "width": 32, "depth": 1, "num_heads": 2},
            "decoder": {"name": "transformer", "width": 32, "depth": 1, "num_heads": 2},
        },
        "streams": {
            name: {
                **MAPS[name],
                "source": {"name": "folder", "path": str(folder / name)},
                "held_out": {"name": "folder", "path": str(folder / name), "limit": 8},
                "masker": {"name": "random", "mask_ratio": 0.5},
                "batch_size": 8,
            }
        },
        "training": {"steps": steps, "optimizer": {"learning_rate": 3e-3}, "evaluate": {"every": steps}},
        "data": {"workers": 0},
    }


@pytest.mark.parametrize("name", MAPS)
def test_it_is_learned_and_shown(tmp_path, name):
    write_rooms(tmp_path)
    settings = tmp_path / "experiment.yaml"
    settings.write_text(json.dumps(experiment(tmp_path, name)))  # which is YAML too
    mmmask.train(mmmask.load_experiment(settings), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.7 * losses[0]
    page = mmmask.reconstruct(tmp_path / "run", split="held_out", output=tmp_path / "page.png")
    assert len(page.names[name]) == 4
    assert Image.open(io.BytesIO((tmp_path / "page.png").read_bytes())).width > 200


def rooms(folder, **changes):
    """Aligned: depth of all rooms, pictures of all but one."""
    write_rooms(folder, 6)
    (folder / "rgb").mkdir()
    for number in range(5):
        pixels = np.random.default_rng(number).integers(0, 256, (80, 96, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "rgb" / f"{number:02}.png")
    data = experiment(folder, "depth", steps=2)
    parts = {part: {"name": "folder", "path": str(folder / part)} for part in ("rgb", "depth")}
    data["streams"] = {
        "rooms": {
            "modalities": {
                "rgb": {"name": "image", "size": 32, "patch_size": [8, 8]},
                "depth": MAPS["depth"]["modality"],
            },
            "source": {"name": "aligned", "parts": parts},
            "masker": {"name": "budget", "mask_ratio": 0.75},
            "targets": {"depth": {"loss": "depth"}},
            "batch_size": 4,
            **changes,
        }
    }
    (folder / "rooms.yaml").write_text(json.dumps(data))
    return mmmask.load_experiment(folder / "rooms.yaml")


def test_pictures_of_aligned_parts_stay_bytes_where_some_are_missing(tmp_path):
    loader = sample_loader(rooms(tmp_path, missing="mask"), "rooms")
    assert loader.source.left_out == "1 of 6 samples have no rgb"
    loaded = loader.batch([(0, index) for index in range(6)])
    assert loaded.bad == ()
    assert loaded.batch.parts["rgb"].dtype == torch.uint8
    assert loaded.batch.parts["depth"].dtype == torch.float32
    assert loaded.batch.present["rgb"].tolist() == [True] * 5 + [False]


def test_reconstructions_keep_what_is_visible(tmp_path):
    data = rooms(tmp_path)
    batch = sample_loader(data, "rooms").batch([(0, index) for index in range(4)]).batch
    ((tokens, (found,)),) = reconstruct(mmmask.build_model(data), "rooms", batch).values()
    seen = (found.masked != tokens.spec.middle).any(-1)
    assert len(set(seen.sum(1).tolist())) > 1  # samples show different numbers of tokens of a part
    assert torch.equal(found.restored[seen].nan_to_num(), found.masked[seen].nan_to_num())


def test_its_cost_is_counted(tmp_path):
    write_rooms(tmp_path, 2)
    (tmp_path / "experiment.yaml").write_text(json.dumps(experiment(tmp_path, "depth")))
    found = stream_cost(meta_model(mmmask.load_experiment(tmp_path / "experiment.yaml")), "depth")
    assert (found.tokens, found.visible) == (16, 8)


def test_fine_tuning_starts_from_pretraining_on_colour_and_depth(tmp_path):
    for number in range(16):
        kind, near = ("far", "near")[number % 2], number % 2
        depth, light = np.full((32, 32), 4000 - 3000 * near, np.uint16), np.full((32, 32, 3), 60 + 120 * near, np.uint8)
        depth[:8, : 2 * number] = 0
        for part, image in (("depth", depth), ("rgb", light)):
            (tmp_path / part / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(tmp_path / part / kind / f"{number:02}.png")
    data = experiment(tmp_path, "depth", steps=2)
    source = {part: {"name": "folder", "path": str(tmp_path / part)} for part in ("rgb", "depth")}
    pair = {"source": {"name": "aligned", "parts": source}, "held_out": {"name": "aligned", "parts": source}}
    colour = {"name": "image", "size": 32, "patch_size": [8, 8], "embedding": "colour"}
    parts = {"modalities": {"rgb": colour, "depth": MAPS["depth"]["modality"]}, "batch_size": 8}
    classify = {"objective": "classification", "mixup": 0.8, "cutmix": 1.0, "batch_size": 8}

    def train(name, stream, **model):
        given = data | {"model": data["model"] | model, "streams": {name: stream}}
        (tmp_path / f"{name}.yaml").write_text(json.dumps(given))
        return mmmask.train(mmmask.load_experiment(tmp_path / f"{name}.yaml"), tmp_path / name)

    masking = {"masker": {"name": "budget", "mask_ratio": 0.5}, "targets": {"depth": {"loss": "depth"}}}
    before = train("before", parts | pair | masking).model.encoder.embeddings
    data["training"] = {"steps": 40, "optimizer": {"learning_rate": 3e-3}}
    train("both", parts | pair | classify, weights=str(tmp_path / "before"))
    assert mmmask.evaluate(tmp_path / "both").figures["top1"] == 1
    data["training"] = {"steps": 1, "optimizer": {"learning_rate": 1e-30}}
    alone = {"modality": colour, "source": source["rgb"], "held_out": source["rgb"]}
    after = train("alone", alone | classify, weights=str(tmp_path / "before")).model.encoder.embeddings
    assert list(after) == ["colour"]
    torch.testing.assert_close(after["colour"].weight, before["colour"].weight, rtol=1e-4, atol=1e-5)
