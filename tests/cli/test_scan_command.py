"""`mmmask scan`: every sample of a source once, and a table that sources read."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from mmmask.components import components
from mmmask.data.scanning import scan
from mmmask.data.streams import sample_loader
from mmmask.experiment import experiment_from_data
from mmmask.interfaces import SourceError
from mmmask_registry import MmmaskError
from mmmask_shards import pack

PLUGIN = Path(__file__).parents[1] / "data" / "worker_plugin.py"
EXPERIMENT = """
model: {encoder: {name: vit, width: 24, depth: 1, num_heads: 2}}
streams:
  s:
    modality: {name: image, size: 32, patch_size: [2, 16, 16]}
    masker: random
    loss: pixels
    batch_size: 4
training: {steps: 2}
"""


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "e.yaml").write_text(EXPERIMENT)
    return tmp_path / "e.yaml"


@pytest.fixture
def pictures(tmp_path):
    """Six pictures of two classes; one is cut off, one is none."""
    generator = np.random.default_rng(0)
    for number in range(6):
        path = tmp_path / "pictures" / f"{number % 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(path)
    cut = tmp_path / "pictures/0/2.jpg"
    cut.write_bytes(cut.read_bytes()[:700])
    (tmp_path / "pictures/1/5.jpg").write_bytes(b"none")
    return tmp_path / "pictures"


def source(name, **settings):
    component = components().get("source", name)
    return component(component.Config(name=name, **settings), extensions=(".jpg",))


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def names(found):
    return [found.name(index) for index in range(len(found))]


def test_it_finds_the_bad_ones_of_every_source_and_sources_leave_them_out(cli, experiment, pictures, tmp_path):
    for ending in ("tar", "parquet"):
        pack(str(pictures), str(tmp_path / f"{ending}/%d.{ending}"))
    (tmp_path / "files.csv").write_text("".join(f"pictures/{n % 2}/{n}.jpg,{n % 2}\n" for n in (0, 2, 4, 1, 3, 5)))
    sources = {
        "folder": pictures, "list": tmp_path / "files.csv", "shards": tmp_path / "tar/0.tar",
        "parquet": tmp_path / "parquet/0.parquet",
    }  # fmt: skip
    good = None
    for kind, path in sources.items():
        output = tmp_path / f"{kind}.csv"
        done = cli("scan", experiment, f"streams.s.source={{name: {kind}, path: {path}}}", "-o", output, "--workers", 2)
        assert done.code == 0, done.err
        size = sum(path.stat().st_size for path in pictures.rglob("*.jpg"))
        assert done.out == f"s: 6 samples, 2 of them bad; {size / 1e6:.1f} MB\nwritten: {output}\n"
        assert done.err.count("mmmask: skipped: ") == 2
        found = rows(output)
        assert [row["label"] for row in found] == ["0", "0", "0", "1", "1", "1"]
        assert [bool(row["reason"]) for row in found] == [False, True, False, False, False, True]
        assert [row["bytes"] for row in found][5] == "4"
        assert all(not row["seconds"] for row in found)
        left = source(kind, path=str(path), leave_out=str(output))
        assert len(left) == 4
        assert left.left_out == f"2 that {output} names"
        content = [left.load(index).read() for index in range(4)]
        good = good or content
        assert content == good
        assert [left.label(index) for index in range(4)] == ["0", "0", "1", "1"]
    table = source("table", path=str(tmp_path / "folder.csv"), where={"reason": ""})
    assert [table.load(index).read() for index in range(4)] == good
    assert [table.label(index) for index in range(4)] == ["0", "0", "1", "1"]
    assert all(not row["path"] for row in rows(tmp_path / "shards.csv"))
    assert names(source("folder", path=str(pictures), leave_out=str(tmp_path / "folder.csv"), limit=3)) == [
        "0/0.jpg", "0/4.jpg", "1/1.jpg"
    ]  # fmt: skip


def test_recordings_have_a_length(cli, experiment, corpus, tmp_path):
    videos = sorted(corpus.glob("videos/train/*/*.mp4"))
    settings = ["streams.s.modality={name: video, size: 32, num_frames: 4, patch_size: [2, 16, 16]}", "--clips", 3]
    (tmp_path / "t.csv").write_text(f"path,start,end\n{videos[0]},0,\n{videos[0]},0.5,0.75\n")
    table = f"streams.s.source={{name: table, path: {tmp_path}/t.csv, start: start, end: end}}"
    assert cli("scan", experiment, table, *settings, "-o", tmp_path / "o.csv").code == 0
    whole, part = rows(tmp_path / "o.csv")
    assert part["seconds"] == "0.250"
    assert float(whole["seconds"]) > 1
    assert whole["path"] == part["path"] == "", "a part is no file of its own"
    assert part["name"].endswith(".mp4, 0.5 to 0.75 s")
    assert whole["bytes"] == part["bytes"] == "", "or the file would count once for each part"


def test_names_that_are_no_utf_8(pictures, tmp_path):
    os.rename(pictures / "1/5.jpg", os.fsencode(pictures) + b"/1/bad\xff.jpg")
    os.rename(pictures / "1/3.jpg", os.fsencode(pictures) + b"/1/good\xff.jpg")
    settings = yaml.safe_load(EXPERIMENT)
    settings["streams"]["s"]["source"] = {"name": "folder", "path": str(pictures)}
    settings = experiment_from_data(settings)
    scan(sample_loader(settings, "s"), tmp_path / "o.csv", settings.data)
    left = source("folder", path=str(pictures), leave_out=str(tmp_path / "o.csv"))
    table = source("table", path=str(tmp_path / "o.csv"), where={"reason": ""})
    assert names(left) == ["0/0.jpg", "0/4.jpg", "1/1.jpg", "1/good\udcff.jpg"]
    assert [table.load(index).read() for index in range(4)] == [left.load(index).read() for index in range(4)]


def test_a_file_that_is_not_there_has_a_path(cli, experiment, pictures, tmp_path):
    (tmp_path / "l.csv").write_text("pictures/0/0.jpg\npictures/none.jpg\n")
    listed = f"streams.s.source={{name: list, path: {tmp_path}/l.csv}}"
    assert cli("scan", experiment, listed, "-o", tmp_path / "o.csv").code == 0
    missing = rows(tmp_path / "o.csv")[1]
    assert missing["path"] == str(pictures / "none.jpg")
    assert "FileNotFoundError" in missing["reason"]


def test_a_scan_that_is_stopped_goes_on(cli, experiment, pictures, tmp_path, monkeypatch):
    folder = f"streams.s.source={{name: folder, path: {pictures}}}"
    assert cli("scan", experiment, folder, "-o", tmp_path / "whole.csv").code == 0
    settings = yaml.safe_load(EXPERIMENT)
    settings["streams"]["s"]["source"] = {"name": "folder", "path": str(pictures)}
    settings = experiment_from_data(settings)
    loader, path = sample_loader(settings, "s"), tmp_path / "o.csv"

    def stop(done, total, skipped):
        if done == 3:
            with pytest.raises(MmmaskError, match=r"o\.csv: another process is writing it"):
                scan(loader, path, settings.data)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan(loader, path, settings.data, progress=stop)
    assert not path.exists()
    (partial,) = tmp_path.glob(".o.csv.*")
    header, *_ = partial.read_bytes().splitlines(keepends=True)
    partial.with_name(".p.csv.1.partial").write_bytes(header)
    assert cli("scan", experiment, folder, "-o", tmp_path / "p.csv").code == 0
    assert (tmp_path / "p.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    with partial.open("ab") as file:
        file.write(b"1/3.jpg,torn")
    done = cli("scan", experiment, folder, "-o", path)
    size = sum(path.stat().st_size for path in pictures.rglob("*.jpg"))
    assert done.out == (
        f"3 of them by a scan that was stopped\ns: 6 samples, 2 of them bad; {size / 1e6:.1f} MB\nwritten: {path}\n"
    )
    assert path.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not partial.exists()


def test_a_scan_goes_on_with_the_same_samples_only(mistake, experiment, pictures, tmp_path):
    partial = tmp_path / ".o.csv.1.partial"
    partial.write_text("name,path,bytes,seconds,reason,label\r\n0/none.jpg,,,,,0\r\n", newline="")
    folder = f"streams.s.source={{name: folder, path: {pictures}}}"
    assert "of a scan of other samples, which was stopped: delete it" in mistake(
        "scan", experiment, folder, "-o", tmp_path / "o.csv"
    )
    assert partial.exists()


def test_a_sample_that_ends_its_process_is_bad(cli, experiment, tmp_path):
    settings = ["streams.s.source={name: fatal, how: kill, at: 3, count: 6}", "--plugin", PLUGIN]
    done = cli("scan", experiment, *settings, "-o", tmp_path / "o.csv", "--workers", 1)
    assert done.code == 0
    reasons = [row["reason"] for row in rows(tmp_path / "o.csv")]
    assert reasons[3] == "the process that decoded it was ended by SIGKILL, 2 times"


def test_mistakes_are_told(mistake, experiment, pictures, tmp_path):
    folder = f"streams.s.source={{name: folder, path: {pictures}}}"
    assert "let the name end in .csv" in mistake("scan", experiment, folder, "-o", tmp_path / "x.txt")
    assert "no stream" in mistake("scan", experiment, folder, "--stream", "t", "-o", tmp_path / "x.csv")
    assert "streams.s.source: required here" in mistake("scan", experiment, "-o", tmp_path / "x.csv")
    assert not (tmp_path / "x.csv").exists()
    (tmp_path / "x.csv").write_text("path\nx\n")
    with pytest.raises(SourceError, match=r"leave_out: .*x\.csv has no columns name and reason"):
        source("folder", path=str(pictures), leave_out=str(tmp_path / "x.csv"))
    (tmp_path / "x.csv").write_text("name,reason\nelsewhere.jpg,bad\n")
    with pytest.raises(SourceError, match=r"names no sample of this source, as 'elsewhere.jpg'"):
        source("folder", path=str(pictures), leave_out=str(tmp_path / "x.csv"))
