import re

import pytest

from mmmask.interfaces import PLAIN, BadSample
from mmmask_samples.text import PARAGRAPHS, SIZES
from mmmask_text.modality import TextModality


def read(corpus, kind):
    return "".join(path.read_text(encoding="utf-8") for path in sorted(corpus["text"].glob(f"*/{kind}/*.txt")))


def test_every_file_is_a_text_long_enough_for_samples(corpus):
    files = list(corpus["text"].rglob("*.txt"))
    assert len(files) == 3 * len(PARAGRAPHS)
    for path in files:
        assert SIZES[0] <= path.stat().st_size < SIZES[1] + 600
        assert path.read_text(encoding="utf-8").endswith("\n")
    preparation = TextModality(TextModality.Config(length=SIZES[0])).preparation
    assert all(preparation.prepare(preparation.decode(path.read_bytes(), PLAIN), PLAIN) is not None for path in files)
    with pytest.raises(BadSample):
        preparation.prepare(preparation.decode(b"short", PLAIN), PLAIN)


def test_sums_are_right(corpus):
    text = read(corpus, "arithmetic")
    sums = re.findall(r"^(\d+) ([-+x]) (\d+) = (\d+)$", text, re.MULTILINE)
    assert len(sums) > 300
    for first, sign, second, result in sums:
        assert eval(f"{first} {sign.replace('x', '*')} {second}") == int(result)
    assert len(re.findall(r"^\w+ plus \w+ is \w+$", text, re.MULTILINE)) > 100


def test_numbers_are_at_equal_distances(corpus):
    for line in read(corpus, "counting").splitlines():
        numbers = [int(number) for number in line.split(", ")]
        assert len(numbers) == 10
        assert len({after - before for before, after in zip(numbers, numbers[1:], strict=False)}) == 1


def test_verbs_agree_with_their_subjects(corpus):
    text = read(corpus, "stories")
    found = re.findall(r"has (\w+) (\w+) (\w+)\. The (\w+) (\w+) in the .*? the \2 \3 (is|are) happy too", text)
    assert len(found) > 20
    for number, _, animals, subject, verb, be in found:
        assert subject == animals
        several = number != "one"
        assert animals.endswith("s") == several
        assert be == ("are" if several else "is")
        assert verb.endswith("s") != several


def test_answers_and_forms_repeat_what_they_follow_from(corpus):
    dialogue = read(corpus, "dialogue")
    repeated = re.findall(
        r"^(\w+): Where is the (\w+ \w+)\?\n(\w+): The \2 is in the (\w+), \1\.\n\1: In the \4\? Thank you, \3!$",
        dialogue,
        re.MULTILINE,
    )
    assert len(repeated) == dialogue.count("Where") > 50
    for born, age in re.findall(r"born: \d+ \w+ (\d+)\nage in 2024: (\d+)", read(corpus, "records")):
        assert int(born) + int(age) == 2024


def test_some_letters_have_several_bytes(corpus):
    assert {"ë", "°"} <= set(read(corpus, "records"))


def test_the_whole_part_is_small(tmp_path, write_few):
    write_few("text", tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.txt")) < 1.3e6
