"""Labels of lists and folders: separators, roots, depths, the order of classes, balanced subsets, missing files."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmmask.components import components
from mmmask.data.labels import count_labels
from mmmask.interfaces import SourceError
from mmmask.interfaces.listing import ClassNames, Listing


def source(kind, path, extensions=(), **settings):
    component = components().get("source", kind)
    return component(component.Config(name=kind, path=str(path), **settings), extensions=extensions)


def paths(found):
    return [found.describe(index) for index in range(len(found))]


def labels(found):
    return [found.label(index) for index in range(len(found))]


def written(path, text):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(("depth", "expected"), [(1, ["a", "a", "b", None]), (2, ["x", "y", None, None])])
def test_the_level_of_the_label(tmp_path, depth, expected):
    for name in ("a/x/1.jpg", "a/y/z/2.jpg", "b/3.jpg", "top.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert labels(source("folder", tmp_path, label_depth=depth)) == expected


@pytest.mark.parametrize(
    ("separator", "text", "expected"),
    [
        ("space", "b/1.jpg 7\na b.jpg  \t12 \nalone.jpg\n", [("b/1.jpg", "7"), ("a b.jpg", "12"), ("alone.jpg", None)]),
        ("tab", "b/1.jpg\ta cat\na b.jpg\n", [("b/1.jpg", "a cat"), ("a b.jpg", None)]),
        ("comma", "b/1.jpg,a cat\na,b.jpg,\n", [("b/1.jpg", "a cat"), ("a,b.jpg", None)]),
    ],
)
def test_separators_and_a_root_elsewhere(tmp_path, separator, text, expected):
    found = source("list", written(tmp_path / "l.txt", text), separator=separator, root="/data")
    assert list(zip(paths(found), labels(found), strict=True)) == [(f"/data/{name}", label) for name, label in expected]
    assert [found.name(index) for index in range(len(found))] == [name for name, _ in expected]
    beside = source("list", tmp_path / "l.txt", separator=separator)
    assert paths(beside)[0] == str(tmp_path / "b/1.jpg")
    assert beside.name(0) == found.name(0), "a root that was moved is no other data set"


FILES = Listing("", ["0.jpg", "1.jpg", "2.jpg"])
NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1)


@given(
    rows=st.lists(
        st.tuples(NAMES.filter(lambda name: name[0] not in "#~/\ufeff" and "://" not in name), NAMES), min_size=1
    )
)
def test_whatever_is_written_with_blanks_is_read(rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "l.txt"
    path.write_bytes("\n".join(f"{name} {label}" for name, label in rows).encode())
    found = source("list", path, separator="space", root="/r")
    assert [found.name(index) for index in range(len(found))] == [name for name, _ in rows]
    assert labels(found) == [label for _, label in rows]
    assert found.classes == {"label": tuple(sorted({label for _, label in rows}))}


def test_numbers_keep_their_order(tmp_path):
    path = written(tmp_path / "l.txt", "a 10\nb 2\nc 2\n")
    assert source("list", path, separator="space").classes == {"label": ("10", "2")}, "sorted as texts"
    assert source("list", path, separator="space", classes=11).classes == {"label": tuple(map(str, range(11)))}
    names = written(tmp_path / "names.txt", "\n".join(f"class {n}" for n in range(12)) + "\n\n")
    found = source("list", path, separator="space", classes=str(names))
    assert labels(found) == ["class 10", "class 2", "class 2"]
    assert found.classes["label"][10] == "class 10"
    assert (
        found.classes["label"] == source("list", path, separator="space", classes=str(names), limit=1).classes["label"]
    )


@pytest.mark.parametrize(
    ("name", "text", "label", "number"),
    [
        ("n.txt", "zebra\r\nant\n", "ant", 1),
        ("n.txt", "zebra\nant", "1", 1),
        ("n.txt", "\ufeff2\n1\n", "1", 1),  # names that are numbers stand for themselves
        ("n.json", json.dumps({"ant": "1", "zebra": "0"}), "ant", 1),
        ("n.json", json.dumps({"ant": 1, "zebra": 0}), "0", 0),
        ("N.JSON", json.dumps(["zebra", "ant"]), "zebra", 0),
    ],
)
def test_files_of_class_names(tmp_path, name, text, label, number):
    classes = written(tmp_path / name, text)
    found = source("list", written(tmp_path / "l.csv", f"a.jpg,{label}\n"), classes=str(classes))
    assert found.classes["label"].index(found.label(0)) == number


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("n.txt", "", "names no class"),
        ("n.txt", "a\n\nb", "line 2: a blank line"),
        ("n.txt", "a\nb\na", r"class 'a' stands there twice \(places 0 and 2\)"),
        ("n.txt", "a\nb", r"l\.csv, line 3: class 'strange' is none of the 2 classes \(.*n\.txt\)"),
        ("n.txt", "1\n2", "class 'strange'"),
        ("n.json", "{", "is not JSON"),
        ("n.json", "[" * 100_000, "is not JSON"),
        ("n.json", '{"a": 1, "b": 2}', "numbers are not 0 to 1"),
        ("n.json", '{"a": [1]}', "numbers are not 0 to 0"),
        ("n.json", '["a", 3]', "neither an object of numbers nor a list of names"),
        ("n.json", "3", "neither"),
    ],
)
def test_mistakes_in_files_of_class_names(tmp_path, name, text, problem):
    rows = written(tmp_path / "l.csv", "# first\na.jpg,strange\nb.jpg,strange\n".replace("a.jpg,strange", "a.jpg,"))
    with pytest.raises(SourceError, match=problem) as error:
        source("list", rows, classes=str(written(tmp_path / name, text)))
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("source list: ")


def test_classes_that_fit_no_label_set(tmp_path):
    plain, labelled = written(tmp_path / "p.txt", "a.jpg\n"), written(tmp_path / "l.csv", "a.jpg,3\n")
    with pytest.raises(SourceError, match="no file has a label"):
        source("list", plain, classes=3)
    with pytest.raises(SourceError, match=r"line 1: class '3' is none of the 3 classes \(0 to 2\)"):
        source("list", labelled, classes=3)
    with pytest.raises(SourceError, match=r"no label set 'verb' \(label\)"):
        source("list", labelled, classes={"verb": 3})
    with pytest.raises(SourceError, match=r"cannot be read \(FileNotFoundError\)"):
        source("list", labelled, classes=str(tmp_path / "gone.txt"))
    assert source("list", labelled, classes={"label": 4}).classes == {"label": ("0", "1", "2", "3")}


@given(count=st.integers(1, 4), draw=st.integers(0, 5))
def test_a_balanced_subset(count, draw, tmp_path_factory):
    folder = tmp_path_factory.mktemp("few")
    sizes = {"a": 9, "b": 3, "c": 1}
    lines = [f"{label}{number}.jpg,{label}" for label, size in sizes.items() for number in range(size)]
    found = source("list", written(folder / "l.csv", "\n".join([*lines, "none.jpg"])), per_class=count, draw=draw)
    assert Counter(labels(found)) == {label: min(size, count) for label, size in sizes.items()}
    assert found.classes == {"label": ("a", "b", "c")}
    whole = paths(source("list", folder / "l.csv"))
    assert paths(found) == [path for path in whole if path in paths(found)], "in their order"
    shuffled = source("list", written(folder / "s.csv", "\n".join(lines[::-1])), per_class=count, draw=draw)
    assert sorted(paths(shuffled)) == sorted(paths(found)), "whatever the order of the list"
    more = source("list", folder / "l.csv", per_class=count + 1, draw=draw)
    assert set(paths(found)) <= set(paths(more))


def test_a_leading_slash_below_a_root(tmp_path):
    path = written(tmp_path / "l.txt", "/a/airfield/1.jpg 0\n/data/b.jpg 1\n")
    found = source("list", path, separator="space", root="/data")
    assert paths(found) == ["/data/a/airfield/1.jpg", "/data/b.jpg"]
    assert paths(source("list", path, separator="space")) == ["/a/airfield/1.jpg", "/data/b.jpg"]


def test_other_draws_take_other_files(tmp_path):
    path = written(tmp_path / "l.csv", "\n".join(f"{number}.jpg,a" for number in range(200)))
    assert len({tuple(paths(source("list", path, per_class=3, draw=draw))) for draw in range(4)}) == 4


def test_missing_files_are_left_out_and_counted(tmp_path):
    (tmp_path / "1.jpg").touch()
    path = written(tmp_path / "l.csv", "gone.jpg,a\n1.jpg,b\nhttps://example.org/2.jpg,c\n")
    assert len(source("list", path)) == 3
    found = source("list", path, skip_missing=True)
    assert labels(found) == ["b", "c"]
    assert found.left_out == "1 of 3 files, which are not there"
    with pytest.raises(
        SourceError, match=r"not one of 1 files is there; the first: /nowhere/gone\.jpg\. Set source\.root"
    ):
        source("list", written(path, "gone.jpg,a\n"), skip_missing=True, root="/nowhere")


def test_several_labels_of_a_file(tmp_path):
    path = written(tmp_path / "l.csv", "a.jpg,cat; dog\nb.jpg,dog;dog\nc.jpg,;\nd.jpg\n")
    found = source("list", path, label_separator=";")
    assert found.several == ("label",)
    assert found.classes == {"label": ("cat", "dog")}
    assert [found.labels(index).get("label") for index in range(4)] == [("cat", "dog"), ("dog",), (), None]
    assert labels(found) == ["cat, dog", "dog", "", None]
    numbered = source("list", written(path, "a.jpg,1;0\n"), label_separator=";", classes=2)
    assert numbered.labels(0) == {"label": ("1", "0")}


def test_counts_of_classes(tmp_path):
    path = written(tmp_path / "l.csv", "a.jpg,x\nb.jpg,y\nc.jpg\nd.jpg,x\n")
    (counts,) = count_labels(source("list", path)).values()
    assert (dict(counts.samples), counts.unlabelled, counts.first_unlabelled) == ({"x": 2, "y": 1}, 1, 2)
    assert str(counts) == "2 classes, 1 to 2 samples each; 1 samples without a label"
    (counts,) = count_labels(source("list", written(path, "a.jpg,1\nb.jpg,3\n"), classes=5)).values()
    assert str(counts) == "5 classes, 1 samples each; 3 classes without a sample"
    assert count_labels(source("list", written(path, "a.jpg\n"))) == {}


def test_class_names_are_a_function_of_the_setting():
    assert ClassNames.read(3, "here").of(["2", None, ("0", "1")], FILES, "here") == ["2", None, ("0", "1")]
    with pytest.raises(SourceError, match=r"here: 0.jpg: class '\u0663'"):
        ClassNames.read(9, "here").of(["\u0663"], FILES, "here")  # a digit, but no ASCII one


def test_folders_have_classes_too(tmp_path):
    for name in ("10/a.jpg", "9/b.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    assert source("folder", tmp_path).classes == {"label": ("10", "9")}
    assert source("folder", tmp_path, classes=11).classes["label"][9:] == ("9", "10")
    assert len(source("folder", tmp_path, per_class=1, limit=1)) == 1
