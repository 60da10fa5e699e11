"""A folder and what is packed of it, into tar or parquet files, are the same data set: samples, batches, whole runs."""

import json

import av
import numpy as np
import pytest
import torch
from PIL import Image

from mmmask import hookimpl
from mmmask.data.streams import sample_loader
from mmmask.experiment import experiment_from_data
from mmmask.experiment.errors import ExperimentError
from mmmask.interfaces import BadSample, build
from mmmask.training.train import train
from mmmask_registry import MmmaskError
from mmmask_shards import pack

KINDS = ["tar", "parquet"]
SIZES = {"pictures": 18, "clips": 6}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path_factory.mktemp("cache")))


def write_clip(path, generator):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 40, "yuv420p"
        for _ in range(10):
            frame = generator.integers(0, 256, (40, 48, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """{kind: {stream: source}}: pictures of three classes and clips of two, some of both cut off."""
    folder, generator = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for number in range(SIZES["pictures"]):
        path = folder / "pictures" / f"{number % 3}" / f"{number // 2:03}.{('jpg', 'png')[number % 2]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(path)
    # two that differ in their endings only are two samples
    path.rename(path.with_stem(next(path.parent.glob("*.jpg")).stem))
    for number in range(SIZES["clips"]):
        path = folder / "clips" / f"{number % 2}" / f"{number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_clip(path, generator)
    for cut in (folder / "pictures/0/000.jpg", folder / "clips/1/1.mp4"):
        cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 3])
    sources = {"folder": {name: {"name": "folder", "path": str(folder / name)} for name in SIZES}}
    for kind in KINDS:
        for name in SIZES:
            pack(str(folder / name), str(folder / f"{kind}/{name}-%03d.{kind}"), max_bytes=20480)
        component = {"tar": "shards"}.get(kind, kind)
        sources[kind] = {name: {"name": component, "path": str(folder / f"{kind}/{name}-*.{kind}")} for name in SIZES}
    return sources


def experiment(sources, workers=0):
    size = {"size": 32, "patch_size": [2, 16, 16]}
    modalities = {"pictures": {"name": "image", **size}, "clips": {"name": "video", "num_frames": 2, **size}}
    return experiment_from_data(
        {
            "model": {"encoder": {"name": "vit", "width": 24, "depth": 1, "num_heads": 2}},
            "streams": {
                name: {
                    "objective": "classification", "modality": modalities[name], "source": source, "batch_size": 4
                } for name, source in sources.items()
            },
            "training": {
                "steps": 6,
                "checkpoint": {"every": 2},
                "log": {"every": 1, "reconstruct_every": 0, "tensorboard": False},
            },
            "data": {"max_bad_share": 0.5, "workers": workers},
        }
    )  # fmt: skip


def trained(output, experiment, *plugins):
    """Losses of the steps, and streams and reasons of bad samples."""
    train(experiment, output, plugins=plugins)
    losses, bad = (
        [json.loads(line) for line in (output / f"{log}.jsonl").read_text().splitlines()]
        for log in ("metrics", "bad_samples")
    )
    reasons = sorted((line["stream"], line["reason"]) for line in bad)
    return [{key: line[key] for key in line if "loss" in key} for line in losses], reasons


class Stop:
    @hookimpl
    def optimizer_stepped(self, run):
        if run.step == 3:
            raise MmmaskError("stopped here")


@pytest.mark.parametrize("kind", KINDS)
def test_samples_names_labels_and_batches_are_the_same(data, kind):
    for stream, size in SIZES.items():
        found = []
        for sources in (data["folder"], data[kind]):
            settings = experiment(sources)
            loader = sample_loader(settings, stream)
            source = build("source", settings.streams[stream].source, extensions=loader.preparation.extensions)
            names = [source.name(index) for index in range(size)]
            contents = [source.load(index).read() for index in range(size)]
            labels = [source.label(index) for index in range(size)]
            batches = [loader.batch([(epoch, index) for index in range(size)]).batch for epoch in range(2)]
            tensors = [tensor for batch in batches for tensor in (batch.content, batch.labels["label"])]
            found.append((names, contents, labels, source.classes, tensors))
        (*one, tensors), (*other, others) = found
        assert one == other
        assert all(torch.equal(*pair) for pair in zip(tensors, others, strict=True))


@pytest.fixture(scope="module")
def reference(data, tmp_path_factory):
    found = trained(tmp_path_factory.mktemp("runs") / "folder", experiment(data["folder"]))
    losses, bad = found
    assert len(losses) == 6
    assert [stream for stream, _ in bad] == ["clips", "pictures"]
    return found


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["folder", *KINDS])
def test_a_run_has_the_same_losses_and_bad_samples(data, reference, tmp_path, kind, workers):
    assert trained(tmp_path / "run", experiment(data[kind], workers)) == reference


@pytest.mark.parametrize(("begun", "gone_on"), [("folder", "tar"), ("tar", "parquet"), ("parquet", "folder")])
def test_a_run_goes_on_with_what_was_packed(data, reference, tmp_path, begun, gone_on):
    with pytest.raises(MmmaskError, match="stopped here"):
        train(experiment(data[begun]), tmp_path / "run", plugins=(Stop(),))
    losses, _ = trained(tmp_path / "run", experiment(data[gone_on]))
    assert losses == reference[0]


def test_a_run_does_not_go_on_with_other_samples(data, tmp_path):
    with pytest.raises(MmmaskError, match="stopped here"):
        train(experiment(data["folder"]), tmp_path / "run", plugins=(Stop(),))
    other = data["tar"] | {"pictures": data["tar"]["pictures"] | {"limit": 17}}
    with pytest.raises(
        ExperimentError, match="streams.pictures.source: 18 samples when the run was interrupted, now 17"
    ):
        train(experiment(other), tmp_path / "run")
    source = sample_loader(experiment(data["folder"]), "pictures").source
    rows = [f"{source.name(index)},{index % 3}\n" for index in range(18)]
    (tmp_path / "t.csv").write_text("path,label\n" + "".join(rows))
    relabelled = {"name": "table", "path": str(tmp_path / "t.csv"), "root": data["folder"]["pictures"]["path"]}
    with pytest.raises(ExperimentError, match=r"streams\.pictures\.source: .* or in another order \(their names"):
        train(experiment(data["folder"] | {"pictures": relabelled}), tmp_path / "run")


def test_a_sample_that_is_cut_off_is_bad_in_all(data):
    for sources in data.values():
        for stream, number in (("pictures", 0), ("clips", 3)):
            with pytest.raises(BadSample):
                sample_loader(experiment(sources), stream).plain(number)
