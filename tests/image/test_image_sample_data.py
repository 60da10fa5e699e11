import csv
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from mmmask_image.sample_data import COUNTS, SIZES, write
from mmmask_pixels.shapes import SHAPES
from mmmask_registry import MmmaskError

FEW = {"train": 3, "held_out": 1}


def quiet(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    write(folder, 0, quiet, FEW)
    return folder / "images"


def test_every_file_is_a_jpeg_of_a_known_size(corpus):
    files = list(corpus.rglob("*.jpg"))
    assert len(files) == 4 * len(SHAPES)
    sizes = set()
    for path in files:
        with Image.open(path) as image:
            assert image.format == "JPEG"
            assert image.mode == "RGB"
            assert (image.height, image.width) in SIZES
            assert np.asarray(image).std() > 10
            sizes.add(image.size)
    assert len(sizes) > 3


def test_folders_and_labels_say_the_shape(corpus):
    with (corpus / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["path"] for row in rows} == {str(path.relative_to(corpus)) for path in corpus.rglob("*.jpg")}
    assert all(row["label"] == row["shape"] == row["path"].split("/")[1] for row in rows)
    assert Counter(row["label"] for row in rows) == dict.fromkeys(SHAPES, 4)


def test_the_same_seed_gives_the_same_pixels(corpus, tmp_path):
    write(tmp_path, 0, quiet, {"held_out": 1})
    write(tmp_path / "other", 1, quiet, {"held_out": 1})
    for path in (tmp_path / "images").rglob("*.jpg"):
        relative = path.relative_to(tmp_path / "images")
        assert path.read_bytes() == (corpus / relative).read_bytes()
        assert path.read_bytes() != (tmp_path / "other" / "images" / relative).read_bytes()


def test_an_interruption_leaves_no_half_part(tmp_path):
    def interrupt(line: str) -> None:
        if "held_out" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, 0, interrupt, {"train": 1, "held_out": 1})
    assert list(tmp_path.iterdir()) == []


def test_a_users_images_are_refused(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "cat.jpg").touch()
    with pytest.raises(MmmaskError, match="was not written by"):
        write(tmp_path, 0, quiet, FEW)


def test_the_whole_part_is_small():
    assert sum(COUNTS.values()) * len(SHAPES) == 544
