import csv
import re
import time
from collections import Counter

import pytest

from mmmask.interfaces import PLAIN, BadSample
from mmmask_registry import MmmaskError
from mmmask_text.modality import TextModality
from mmmask_text.sample_data import COUNTS, PARAGRAPHS, SIZES, write

FEW = {"train": 2, "held_out": 1}


def quiet(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    write(folder, 0, quiet, FEW)
    return folder / "text"


def read(corpus, kind):
    return "".join(path.read_text(encoding="utf-8") for path in sorted(corpus.glob(f"*/{kind}/*.txt")))


def test_every_file_is_a_text_long_enough_for_samples(corpus):
    files = list(corpus.rglob("*.txt"))
    assert len(files) == 3 * len(PARAGRAPHS)
    for path in files:
        assert SIZES[0] <= path.stat().st_size < SIZES[1] + 600
        assert path.read_text(encoding="utf-8").endswith("\n")
    preparation = TextModality(TextModality.Config(length=SIZES[0])).preparation
    assert all(preparation.prepare(preparation.decode(path.read_bytes(), PLAIN), PLAIN) is not None for path in files)
    with pytest.raises(BadSample):
        preparation.prepare(preparation.decode(b"short", PLAIN), PLAIN)


def test_folders_and_labels_say_the_kind(corpus):
    with (corpus / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["path"] for row in rows} == {path.relative_to(corpus).as_posix() for path in corpus.rglob("*.txt")}
    assert all(row["label"] == row["path"].split("/")[1] for row in rows)
    assert Counter(row["label"] for row in rows) == dict.fromkeys(PARAGRAPHS, 3)


def test_the_same_seed_gives_the_same_texts(corpus, tmp_path):
    write(tmp_path, 0, quiet, {"held_out": 1})
    write(tmp_path / "other", 1, quiet, {"held_out": 1})
    for path in (tmp_path / "text").rglob("*.txt"):
        relative = path.relative_to(tmp_path / "text")
        assert path.read_bytes() == (corpus / relative).read_bytes()
        assert path.read_bytes() != (tmp_path / "other" / "text" / relative).read_bytes()


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


def test_a_users_texts_are_refused(tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "mine.txt").touch()
    with pytest.raises(MmmaskError, match="was not written by"):
        write(tmp_path, 0, quiet, FEW)


def test_the_whole_part_is_small_and_quick(tmp_path):
    started = time.perf_counter()
    write(tmp_path, 0, quiet)
    assert time.perf_counter() - started < 10
    files = list(tmp_path.rglob("*.txt"))
    assert len(files) == sum(COUNTS.values()) * len(PARAGRAPHS)
    assert sum(path.stat().st_size for path in files) < 1.3e6
