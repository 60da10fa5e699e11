"""Texts as pictures: every token in a place of its own, masked ones as blocks."""

import numpy as np
import pytest
import torch

from mmmask_text.decoding import UNSHOWN, open_vocabulary
from mmmask_text.pictures import CELL_HEIGHT, CELL_WIDTH, LEAST_HEIGHT, MASKED, PAPER, draw_tokens
from mmmask_text.preparation import TextPreparation

BYTES = open_vocabulary(None)


def shown(text, masked=()):
    ids = list(text if isinstance(text, bytes) else text.encode())
    return BYTES.texts([256 if place in masked else byte for place, byte in enumerate(ids)])


def cells(picture):
    """(lines, columns, cell height, cell width, 3)."""
    lines = picture.shape[0] // CELL_HEIGHT
    return picture[: lines * CELL_HEIGHT].reshape(lines, CELL_HEIGHT, -1, CELL_WIDTH, 3).swapaxes(1, 2)


def is_block(cell):
    return (cell == MASKED).all(-1).mean() > 0.8


def test_letters_and_what_cannot_be_seen():
    assert shown("a b\n\t\x7f") == ["a", " ", "b", UNSHOWN, UNSHOWN, UNSHOWN]


def test_characters_of_several_bytes_stand_at_their_first():
    assert shown("é€😀z") == ["é", "", "€", "", "", "😀", "", "", "", "z"]


@pytest.mark.parametrize("masked", [0, 1])
def test_what_is_left_of_a_character_that_lacks_a_byte(masked):
    expected = [UNSHOWN, UNSHOWN, "a"]
    expected[masked] = None
    assert shown("éa", {masked}) == expected
    assert shown("é".encode()[:1]) == [UNSHOWN]
    assert shown(b"\x80a\xc0\xff\xf5") == [UNSHOWN, "a", UNSHOWN, UNSHOWN, UNSHOWN]
    assert shown(b"\xed\xa0\x80") == [UNSHOWN] * 3, "half of a pair of UTF-16"


def test_masked_tokens_are_blocks_and_nothing_else_moves():
    ids = torch.tensor([list(("The cat sat on the mat. " * 10).encode())])
    masked = torch.zeros_like(ids, dtype=torch.bool)
    masked[0, [0, 3, 79, 80, 200]] = True
    covered = ids.masked_fill(masked, 256)
    preparation = TextPreparation(240, None, 10**6)
    before, after = (
        cells(preparation.show(sample)).reshape(-1, CELL_HEIGHT, CELL_WIDTH, 3) for sample in (ids, covered)
    )
    blocks = np.array([is_block(cell) for cell in after[:240]])
    assert blocks.tolist() == masked[0].tolist()
    assert not any(map(is_block, before))
    assert np.array_equal(before[:240][~blocks], after[:240][~blocks])
    letters = np.array([byte != 32 for byte in ids[0].tolist()])
    assert ((before[:240] != PAPER).any(axis=(1, 2, 3)) == letters).all()


@pytest.mark.parametrize(("tokens", "lines"), [(1, 1), (79, 1), (80, 1), (81, 2), (1000, 13)])
def test_the_size_of_a_picture(tokens, lines):
    picture = draw_tokens(["x"] * tokens, 1)
    assert picture.dtype == np.uint8
    assert picture.shape == (max(LEAST_HEIGHT, lines * CELL_HEIGHT), min(tokens, 80) * CELL_WIDTH, 3)


def test_long_tokens_are_cut():
    short, cut, longer = (draw_tokens([text, "next"], 9) for text in ("word", "twelve words", "twelve words and more"))
    assert short.shape == cut.shape == (LEAST_HEIGHT, 2 * 9 * CELL_WIDTH, 3)
    assert np.array_equal(cut, longer)
    assert not np.array_equal(short, cut)
    assert np.array_equal(short[:, 9 * CELL_WIDTH :], cut[:, 9 * CELL_WIDTH :])


def test_a_font_that_every_pillow_has(monkeypatch):
    monkeypatch.setattr("mmmask_text.pictures.FONTS", ("a font that nobody has.ttf",))
    picture = draw_tokens(["a", None, "é"], 1)
    assert (picture[:, :CELL_WIDTH] != 255).any()


def test_tokens_of_a_vocabulary(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"the": 0, "cat": 1, "\n": 2}, unk_token="the"))
    made.save(str(tmp_path / "tokenizer.json"))
    vocabulary = open_vocabulary(str(tmp_path / "tokenizer.json"))
    assert vocabulary.texts([1, 0, 3, 2]) == ["cat", "the", None, UNSHOWN]
    picture = TextPreparation(3, str(tmp_path / "tokenizer.json"), 99).show(torch.tensor([[1, 3, 0]]))
    assert picture.shape == (LEAST_HEIGHT, 3 * 9 * CELL_WIDTH, 3)
    assert [is_block(picture[:CELL_HEIGHT, 90 * cell : 90 * cell + 90]) for cell in range(3)] == [False, True, False]
