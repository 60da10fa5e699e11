"""Evaluation of released fine-tuned layouts against loops written out by hand, and several views of real clips."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mmmask
from mmmask.interfaces import BadSample, Component, Preparation, Source, SourceFile, View
from mmmask.interop import load

SYSTEMS = ("omnimae", "mae", "mae_st", "videomae", "videomaev2", "simmim", "convmae")


def golden(system):
    return torch.load(Path(__file__).with_name(f"golden_{system}.pt"), weights_only=True)


CLASSIFIED = [(system, case) for system in SYSTEMS for case in golden(system)["classified"]]
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


class Given(Source):
    """Samples that are there already, and their classes."""

    def __init__(self, samples, labels):
        super().__init__(Component.Config(name="given"))
        self.samples, self.given = samples, labels

    def __len__(self):
        return len(self.samples)

    def load(self, index):
        if self.samples[index].isnan().any():
            raise BadSample("it holds nothing")
        return self.samples[index]

    def label(self, index):
        return self.given[index]

    @property
    def classes(self):
        return {"label": tuple(f"class {number}" for number in range(10))}


class AsGiven(Preparation):
    def prepare(self, decoded, view):
        return decoded


class Untouched:
    """A modality whose samples are prepared already."""

    def __init__(self, modality):
        self._modality, self.preparation = modality, AsGiven()

    def __getattr__(self, name):
        return getattr(self._modality, name)


@pytest.mark.parametrize(("system", "name"), CLASSIFIED)
def test_top1_is_that_of_a_loop_over_the_golden_logits(system, name):
    part = golden(system)["classified"][name]
    model = load(part["weights"], **part["options"])
    model.modalities[part["stream"]] = Untouched(model.modalities[part["stream"]])
    predicted = [max(range(10), key=row.__getitem__) for row in part["logits"].tolist()]
    true = [predicted[0], (predicted[1] + 1) % 10]
    source = Given(part["inputs"], [f"class {number}" for number in true])
    found = mmmask.evaluate(model, source=source, stream=part["stream"], batch_size=1, device="cpu")
    right = [one == other for one, other in zip(predicted, true, strict=True)]
    assert found.figures["top1"] == sum(right) / len(right) == 0.5
    (only,) = found.label_sets.values()
    assert only.predicted == [f"class {number}" for number in predicted]
    torch.testing.assert_close(only.probabilities, part["logits"].softmax(1), atol=1e-5, rtol=0)


def test_pictures_in_folders(tmp_path, capsys):
    """The command, from a released layout in a file and PNG files in a folder for each class."""
    from mmmask.cli import main

    part = golden("mae")["classified"]["cls_token"]
    torch.save(part["weights"], tmp_path / "tuned.pth")
    generator = np.random.default_rng(0)
    paths = []
    for number in range(10):
        for copy in range(1 + number % 2):
            path = tmp_path / "test" / f"class {number}" / f"{copy}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(256, size=(64, 64, 3), dtype=np.uint8)).save(path)
            paths.append(path)
    (tmp_path / "test" / "class 3" / "torn.png").write_bytes(b"no picture")
    model = load(part["weights"], **part["options"])
    logits = []
    for path in paths:
        with Image.open(path) as picture:
            pixels = torch.tensor(np.array(picture)).permute(2, 0, 1) / 255
        with torch.inference_mode():
            sample = (pixels - MEAN[:, None, None]) / STD[:, None, None]
            logits.append(model.logits({"images": sample.unsqueeze(0)})["images"][0])
    right = sum(int(row.argmax()) == int(path.parent.name.split()[1]) for row, path in zip(logits, paths, strict=True))
    code = main(
        ["evaluate", str(tmp_path / "tuned.pth"), str(tmp_path / "test"), "num_heads=4", "--modality", "crop_share=1.0"]
        + ["--predictions", str(tmp_path / "all.csv"), "--confusion", str(tmp_path / "who.png"), "--device", "cpu"]
    )
    out = capsys.readouterr().out
    assert code == 0
    assert f"label: top-1 {100 * right / 15:.2f} %" in out
    assert "skipped, as they could not be decoded: 1 samples, which are in no figure" in out
    assert "torn.png: " in out
    with open(tmp_path / "all.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["sample"] for line in lines] == [str(path) for path in paths]
    for line, row in zip(lines, logits, strict=True):
        assert line["label"] == Path(line["sample"]).parent.name
        assert line["predicted"] == f"class {int(row.argmax())}"
        expected = row.softmax(0).tolist()
        assert [float(line[f"probability.class {c}"]) for c in range(10)] == pytest.approx(expected, abs=1e-5)
    with Image.open(tmp_path / "who.png") as picture:
        assert picture.width > 300


def test_views_of_a_real_clip(tmp_path):
    """5 x 3 views of mp4 files: five clips at even distances, three squares of each, the mean of their softmax."""
    from mmmask.interfaces import write_part
    from mmmask_samples import videos

    write_part(replace(videos.PART, counts={"train": 1, "held_out": 0}), tmp_path, 0, lambda line: None)
    paths = sorted((tmp_path / "videos").rglob("*.mp4"))[:3]
    part = golden("omnimae")["classified"]["video"]
    model = load(part["weights"], **part["options"])
    (tmp_path / "list.txt").write_text("".join(f"{path},{number}\n" for number, path in enumerate(paths)))
    found = mmmask.evaluate(
        model, source={"name": "list", "path": str(tmp_path / "list.txt")}, stream="videos", views="5x3",
        batch_size=4, modality={"crop_share": 0.75}, device="cpu",
    )  # fmt: skip
    modality = model.modalities["videos"]
    assert modality.config.crop_share == 1  # a model is left as it was
    preparation = type(modality)(modality.config.model_copy(update={"crop_share": 0.75})).preparation
    expected = []
    for path in paths:
        total = torch.zeros(10)
        for clip in range(5):
            decoded = preparation.decode(SourceFile(str(path)), View(index=clip, of=5))
            for crop in range(3):
                shown = preparation.prepare(decoded, View(index=crop, of=3))
                with torch.inference_mode():
                    total += model.logits({"videos": shown.unsqueeze(0)})["videos"][0].softmax(0)
        expected.append(total / 15)
    (only,) = found.label_sets.values()
    assert found.views == (5, 3)
    assert only.classes == tuple(map(str, range(10)))
    torch.testing.assert_close(only.probabilities, torch.stack(expected), atol=1e-5, rtol=0)
    right = [int(row.argmax()) == number for number, row in enumerate(expected)]
    assert found.figures["top1"] == pytest.approx(sum(right) / 3)
