"""Properties that all parts of the corpus share, and the parts that an experiment writes."""

import csv
from collections import Counter
from pathlib import Path

import pytest

import mmmask
from mmmask.data.sample_corpus import needed_parts
from mmmask_samples import audio, images, text, videos

PARTS = {module.PART.name: module.PART for module in (images, videos, audio, text)}
SAMPLES = {"images": 2112, "videos": 608, "audio": 112, "text": 276}


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.glob("*/*/*")}


@pytest.mark.parametrize("name", PARTS)
def test_folders_and_labels_say_the_kind(corpus, name):
    with (corpus[name] / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["path"] for row in rows} == set(files(corpus[name]))
    assert all(row["label"] == row["path"].split("/")[1] for row in rows)
    assert Counter(row["label"] for row in rows) == dict.fromkeys(PARTS[name].labels, 3)
    told = {"images": "shape", "videos": "motion"}.get(name, "label")
    assert all(row[told] == row["label"] for row in rows)


@pytest.mark.parametrize("name", PARTS)
def test_the_same_seed_gives_the_same_files(corpus, name, tmp_path, write_few):
    again = files(write_few(name, tmp_path, held_out=1))
    assert len(again) == len(PARTS[name].labels)
    assert again.items() <= files(corpus[name]).items()
    other = files(write_few(name, tmp_path / "other", seed=1, held_out=1))
    assert other.keys() == again.keys()
    assert not set(other.values()) & set(again.values())


@pytest.mark.parametrize("name", PARTS)
def test_no_two_files_are_equal(corpus, name):
    found = files(corpus[name])
    assert len(set(found.values())) == len(found)


@pytest.mark.parametrize("name", PARTS)
def test_the_whole_part_is_small(name):
    assert sum(PARTS[name].counts.values()) * len(PARTS[name].labels) == SAMPLES[name]


def test_only_the_parts_asked_for_are_written(tmp_path):
    assert mmmask.write_sample_data(tmp_path, parts={"text"}) == tmp_path
    assert {path.name for path in tmp_path.iterdir()} == {"text"}
    assert len(files(tmp_path / "text")) == SAMPLES["text"]


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ([], {"images", "videos"}),
        (["streams.videos=null"], {"images"}),
        (["streams.videos=null", "streams.images.held_out.path=sample-data/holiday/x"], {"images", "holiday"}),
        (["data.sample_data=./sample-data/../sample-data"], {"images", "videos"}),
        (["streams.videos.source={name: glob, path: 'sample-data/videos/*/up/*.mp4'}"], {"images", "videos"}),
        (["streams.videos.source={name: glob, path: 'sample-data/*/train/**'}"], None),
        (["streams.videos.source.path=sample-data"], None),
        (["data.sample_data=elsewhere"], None),
    ],
)
def test_an_experiment_needs_what_its_sources_read(overrides, parts):
    assert needed_parts(mmmask.load_experiment("quickstart", overrides)) == parts


def test_several_paths_of_a_source_are_all_seen():
    paths = "streams.text.source.path=[sample-data/text/train, sample-data/more]"
    found = needed_parts(mmmask.load_experiment("omnivorous/quickstart", [paths]))
    assert found == {"images", "videos", "audio", "text", "more"}


def test_training_writes_what_its_sources_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ["streams.images=null", "streams.videos=null", "streams.audio=null", "streams.text.modality.length=16"]
    small += ["training.steps=1", "training.log={tensorboard: false, reconstruct_every: 0}", "data.workers=0"]
    small += ["model.encoder={name: vit, width: 16, depth: 1, num_heads: 2}", "streams.text.batch_size=2"]
    small += ["model.decoder={name: transformer, width: 16, depth: 1, num_heads: 2}", "training.evaluate.samples=2"]
    mmmask.train(mmmask.load_experiment("omnivorous/quickstart", small), device="cpu")
    assert [path.name for path in Path("sample-data").iterdir()] == ["text"]
