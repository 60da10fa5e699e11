"""`mmmask codebook`: what it says, and mistakes in one line."""

import pytest


@pytest.fixture
def words(corpus, tmp_path):
    """An experiment's file, whose loss is a codebook that is not there yet."""
    (tmp_path / "words.yaml").write_text(
        f"""
model:
  encoder: {{name: vit, width: 24, depth: 1, num_heads: 2}}
  decoder: {{name: transformer, width: 16, depth: 1, num_heads: 2}}
streams:
  images:
    modality: {{name: image, size: 32, patch_size: [8, 8]}}
    source: {{name: folder, path: {corpus / "images" / "train"}}}
    masker: {{name: random, mask_ratio: 0.5}}
    loss: {{name: codebook, path: {tmp_path / "words.safetensors"}, ids: 4, of: {{name: hog, cell: 4}}}}
    batch_size: 8
training: {{steps: 1, log: {{tensorboard: false}}}}
data: {{workers: 0}}
"""
    )
    return tmp_path / "words.yaml"


def test_it_writes_what_training_needs(cli, words, tmp_path):
    book = tmp_path / "words.safetensors"
    done = cli("codebook", words, "--samples", "7", "--device", "cpu")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == "images: 4 centroids of 108 numbers, by 56 tokens of 7 samples"
    assert lines[1].startswith("error: ")
    assert lines[1].endswith("% of the variance is left within the ids")
    assert lines[2].startswith("use: 4 of 4 ids, perplexity ")
    assert lines[3] == f"written: {book}"
    done = cli("train", words, "--output", tmp_path / "run", "--device", "cpu")
    assert done.code == 0, done.err


def test_mistakes(mistake, cli, words, tmp_path):
    book = tmp_path / "words.safetensors"
    missing = f"loss 'codebook': path: {book}: there is no such file: `mmmask codebook EXPERIMENT` writes one"
    assert mistake("train", words, "--output", tmp_path / "run", "--device", "cpu") == missing
    assert mistake("check", words, "--device", "cpu") == missing
    assert cli("codebook", words, "--device", "cpu").code == 0
    assert mistake("codebook", words) == f"{book}: there is a file already; nothing is overwritten without --overwrite"
    assert cli("codebook", words, "--overwrite", "--device", "cpu").code == 0
    assert mistake("codebook", words, "--stream", "image") == (
        "no target of the loss codebook is named 'image'. Did you mean 'images'? Known: images."
    )
    pixels = "streams.images.loss=pixels"
    assert mistake("codebook", words, pixels).startswith("no stream has the loss codebook; such as loss: {name: ")
