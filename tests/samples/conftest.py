"""A few samples of every part of the corpus."""

from dataclasses import replace

import pytest

from mmmask.interfaces import write_part
from mmmask_samples import audio, images, text, videos

PARTS = {module.PART.name: module.PART for module in (images, videos, audio, text)}


@pytest.fixture(scope="session")
def write_few():
    """`write_few("images", folder, held_out=1)`: that many samples of each label; without counts, the whole part."""

    def write(name, folder, seed=0, **counts):
        part = PARTS[name]
        write_part(replace(part, counts=counts) if counts else part, folder, seed, lambda line: None)
        return folder / name

    return write


@pytest.fixture(scope="session")
def corpus(tmp_path_factory, write_few):
    """{part: its folder}, with two samples of each label for training and one held out."""
    folder = tmp_path_factory.mktemp("corpus")
    return {name: write_few(name, folder, train=2, held_out=1) for name in PARTS}
