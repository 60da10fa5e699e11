"""Texts in one block of memory."""

import pickle
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmmask.interfaces import Texts

TEXT = st.text(st.characters(exclude_categories=())) | st.just("\udcff.jpg")  # as file names that are no UTF-8


@given(st.lists(TEXT), st.slices(12))
def test_texts_are_what_was_put_in(texts, some):
    found = Texts(texts)
    assert list(found) == texts
    assert list(found[some]) == texts[some]
    assert [found[-number - 1] for number in range(len(texts))] == texts[::-1]
    assert list(pickle.loads(pickle.dumps(found))) == texts
    with pytest.raises(IndexError):
        found[len(texts)]


def test_texts_take_little_more_than_their_bytes():
    texts = [f"n{number:08d}/{number}.jpg" for number in range(10_000)]
    as_list = sum(map(sys.getsizeof, texts)) + sys.getsizeof(texts)
    assert len(pickle.dumps(Texts(texts))) < sum(map(len, texts)) + 8 * len(texts) + 1000 < as_list / 2.5
