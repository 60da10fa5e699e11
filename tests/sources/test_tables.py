"""Tables: columns and templates, several label sets, parts of recordings; a mistake names its line."""

import csv
import io
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmmask.builtins.sources.table import TableSource
from mmmask.interfaces import SourceError


def table(path, **settings):
    return TableSource(TableSource.Config(name="table", path=str(path), **settings))


def rows(found):
    return [(found.name(index), dict(found.labels(index))) for index in range(len(found))]


@pytest.fixture
def file(tmp_path):
    def write(content, name="t.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


CELLS = st.text(st.characters(codec="utf-8"), max_size=9)


@given(cells=st.lists(st.tuples(CELLS.filter(str.strip), CELLS), min_size=1), data=st.data())
def test_whatever_the_csv_module_writes_is_read(cells, data, tmp_path_factory):
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    text = io.StringIO(newline="")
    # quoted, as the module leaves a lone carriage return bare
    writer = csv.writer(text, lineterminator=data.draw(st.sampled_from(["\n", "\r\n"])), quoting=csv.QUOTE_ALL)
    writer.writerows([("id", "kind"), *((f"_{name}", label) for name, label in cells)])
    path.write_bytes(text.getvalue().encode())
    found = table(path, file="id", labels={"kind": "kind"}, root="/r")
    wanted = [(f"_{name}".strip(), {"kind": label.strip()} if label.strip() else {}) for name, label in cells]
    assert rows(found) == wanted


def test_json_csv_tabs_blanks_and_lines_say_the_same(file):
    records = [{"id": 7, "kind": "cat", "more": 1.5}, {"id": 12, "kind": "dog", "more": None}]
    columns = {"separator": "space", "columns": ("id", "kind", "more")}
    tables = [
        ("t.csv", "id,kind,more\n7,cat,1.5\n12,dog,\n", {}),
        ("t.tsv", "\ufeffid\tkind\tmore\n7\tcat\t1.5\n\n12\tdog\t\n", {}),
        ("t.txt", "7  cat 1\n12 dog 2\n", columns),
        ("t.json", json.dumps(records), {}),
        ("t.jsonl", "\n".join(map(json.dumps, records)), {}),
    ]
    for name, content, more in tables:
        found = table(file(content, name), file="{id:04d}.mp4", labels={"label": "kind"}, **more)
        assert rows(found) == [("0007.mp4", {"label": "cat"}), ("0012.mp4", {"label": "dog"})]
        assert found.load(0).window is None
        assert found.classes == {"label": ("cat", "dog")}


def test_without_settings_the_columns_are_path_and_label(file):
    assert rows(table(file("path,label\na.jpg,x\n"))) == [("a.jpg", {"label": "x"})]
    assert rows(table(file("path,kind\na.jpg,x\n"))) == [("a.jpg", {})]


def test_several_label_sets_and_templates_of_labels(file):
    path = file("path,verb,noun\na,3,10\nb,2,\n")
    found = table(path, labels={"verb": "verb", "noun": "noun"}, classes={"noun": 11})
    assert rows(found) == [("a", {"verb": "3", "noun": "10"}), ("b", {"verb": "2"})]
    assert found.classes == {"verb": ("2", "3"), "noun": tuple(map(str, range(11)))}
    assert (found.label(0), found.several) == (None, ())
    assert table(path, labels={"pair": "{verb} {path}"}).label(1) == "2 b"
    assert len(table(path, labels={"verb": "verb", "noun": "noun"}, per_class=1)) == 1, "none without a label"
    with pytest.raises(SourceError, match=r"classes: there are several label sets, so \{set: classes\} \(verb, noun\)"):
        table(path, labels={"verb": "verb", "noun": "noun"}, classes=3)


def test_lists_of_labels_in_json(file):
    records = [{"path": "a", "label": ["x", "y", "x"]}, {"path": "b", "label": "y"}, {"path": "c", "label": []}]
    found = table(file(json.dumps([*records, {"path": "d"}]), "t.json"))
    assert found.several == ("label",)
    assert [found.labels(index).get("label") for index in range(4)] == [("x", "y"), ("y",), (), None]


def test_images_and_annotations(file):
    data = {
        "images": [{"id": 1, "file_name": "Aves/7/a.jpg"}, {"id": 2, "file_name": "Fungi/1/b.jpg"}],
        "annotations": [{"id": 9, "image_id": 2, "category_id": 1}, {"id": 8, "image_id": 1, "category_id": 7}],
        "categories": [{"id": 1, "name": "mushroom"}, {"id": 7, "name": "owl"}],
    }
    found = table(file(json.dumps(data), "t.json"), file="image.file_name", labels={"label": "category_id"}, classes=8)
    assert rows(found) == [("Fungi/1/b.jpg", {"label": "1"}), ("Aves/7/a.jpg", {"label": "7"})]
    assert (
        table(file(json.dumps(data), "t.json"), file="{image.file_name}", labels={"l": "category.name"}).label(1)
        == "owl"
    )
    with pytest.raises(SourceError, match=r"do not fit: '3 is not there'"):
        table(file(json.dumps(data | {"annotations": [{"image_id": 3}]}), "t.json"))
    for broken in ({"images": 3}, {"images": [3]}, {"categories": [{"id": 1}]}, {"annotations": [3]}):
        with pytest.raises(SourceError, match="do not fit"):
            table(file(json.dumps(data | broken), "t.json"))


def test_rows_with_a_value(file):
    path = file("path,split,n\na,train,1\nb,val,1\nc,train,2\n")
    assert [name for name, _ in rows(table(path, where={"split": "train", "n": 2}))] == ["c"]
    with pytest.raises(SourceError, match=r"has no row with split test"):
        table(path, where={"split": "test"})


def test_characters_dropped_from_labels(file):
    found = table(file("path,label\na,Holding [something]\n"), drop_from_labels="[]")
    assert found.label(0) == "Holding something"


@pytest.mark.parametrize(
    ("cells", "settings", "window"),
    [
        ("3,4.5", {}, (3, 4.5)),
        ("00:01:02.25,1:00:00", {}, (62.25, 3600)),
        ("2:05,", {}, (125, math.inf)),
        (",7", {}, (0, 7)),
        (",", {}, (0, math.inf)),
        ("50,125", {"frame_rate": 50}, (1, 2.5)),
        ("50,125", {"frame_rate": 50, "end": None}, (1, math.inf)),
    ],
)
def test_parts_of_recordings(file, cells, settings, window):
    found = table(file(f"path,a,b\nv.mp4,{cells}\n"), **({"start": "a", "end": "b"} | settings))
    assert found.load(0).window == window
    assert found.name(0) == f"v.mp4, {window[0]:.10g} to {window[1]:.10g} s"


def test_parts_of_one_video_have_names_of_their_own(file):
    found = table(file("path,a,b\n" + "".join(f"v.mp4,{n / 8},{n + 1}\n" for n in range(50))), start="a", end="b")
    assert len({found.name(index) for index in range(50)}) == len({found.describe(index) for index in range(50)}) == 50
    assert len(table(found.config.path, start="a", end="b", limit=3)) == 3
    assert table(found.config.path, start="a", end="b").load(7).window == (7 / 8, 8)


TIMES = {"start": "a", "end": "b"}


@pytest.mark.parametrize(
    ("name", "content", "settings", "problem"),
    [
        ("t.csv", "", {}, r"has no row\. Set source\.path to a table"),
        ("t.csv", "path,label\n", {}, "has no row"),
        ("t.csv", "pth,label\na,b\n", {}, r"line 2: no column 'path' Did you mean 'pth'\? \('pth, label'\)"),
        ("t.csv", "path,label\na,b\nc\n", {}, "line 3: 1 cells, where there are 2 columns"),
        ("t.csv", "path,path\na,b\n", {}, "line 1: the header names a column twice"),
        ("t.csv", 'path,label\na,"b\nc,d\n', {}, r"line 3: cells .* \(unexpected end of data\)"),
        ("t.csv", 'path,label\na,"b"x\n', {}, r"line 2: cells that are not as CSV"),
        ("t.csv", "path,label\na," + "x" * 200_000 + "\n", {}, r"line 2: cells .* \(field larger"),
        ("t.csv", b"path,label\na,caf\xe9\n", {}, r"t\.csv: the label 'caf\\udce9' is not UTF-8"),
        ("t.jsonl", b'{"path": "\xff"}\n', {}, r"cannot be read \(UnicodeDecodeError\)"),
        ("t.csv", "path\na\n".encode("utf-16"), {}, "no column 'path'"),
        ("t.csv", "path\n\na,b\n", {}, r"line 3: 2 cells"),
        ("t.csv", "path,x\n ,1\n", {}, "line 2: column 'path' is empty"),
        ("t.csv", "path,n\na,x\n", {"file": "{n:06d}"}, r"line 2: column 'n' holds 'x', no number for \{n:06d\}"),
        ("t.csv", "path,n\na,1.5\n", {"file": "{n:06d}"}, "no number"),
        ("t.csv", f"path,n\na,{'9' * 5000}\n", {"file": "{n:d}"}, "no number"),
        ("t.csv", "path,n\na,nan\n", {"file": "{n:.2f}"}, "no number"),
        ("t.csv", "path\na\n", {"file": "{path!r}"}, "the template '{path!r}': .* format other than 06d"),
        ("t.csv", "path\na\n", {"file": "{path:>99999999}"}, "format other than 06d"),
        ("t.csv", "path\na\n", {"file": "{path.__class__}"}, "no column 'path.__class__'"),
        ("t.csv", "path\na\n", {"file": "{path"}, "the template '{path': expected '}'"),
        ("t.csv", "path\na\n", {"labels": {"l": "kind"}}, "no column 'kind'"),
        ("t.csv", "path\na\n", {"where": {"kind": "x"}}, "no column 'kind'"),
        ("t.csv", "path,a,b\nv,5,3\n", TIMES, "line 2: a part from 5 to 3 s, which is none"),
        ("t.csv", "path,a,b\nv,-5,3\n", TIMES, "line 2: column 'a' holds '-5', no time in seconds or h:m:s"),
        ("t.csv", "path,a,b\nv,nan,3\n", TIMES, "holds 'nan', no time"),
        ("t.csv", "path,a,b\nv,1,1e400\n", TIMES, "holds '1e400', no time"),
        ("t.csv", "path,a,b\nv,1:2:3:4,5\n", TIMES, "no time"),
        ("t.txt", "path label\na b\n", {}, r"\.txt does not tell what it is"),
        ("t", "path label\na b\n", {}, "no ending does not tell what it is"),
        ("t.json", "[", {}, "is not JSON"),
        ("t.json", "[" * 100_000, {}, "is not JSON"),
        ("t.json", "{}", {}, "neither a list of objects nor"),
        ("t.json", "[3]", {}, "record 1: no object"),
        ("t.json", "[]", {}, "has no row"),
        ("t.json", '[{"path": "a"}, {}]', {}, "record 2: column 'path' is empty"),
        ("t.json", '[{"path": ["a"]}]', {}, r"record 1: a text or a number is wanted, not '\[\"a\"\]'"),
        ("t.json", '[{"path": "a", "label": {"x": 1}}]', {}, "record 1: a text or a number is wanted"),
        ("t.json", '[{"path": "a"}]', {"columns": ("path",)}, r"columns are those of a text: set source\.separator"),
        ("t.jsonl", '{"path": "a"}\n{"path"\n', {}, r"line 2: not JSON"),
        ("t.jsonl", "[]\n", {}, "line 1: no JSON object"),
        ("t.csv", "path,label\na,5\n", {"classes": 5}, r"line 2: class '5' is none of the 5 classes \(0 to 4\)"),
    ],
)  # fmt: skip
def test_mistakes(file, name, content, settings, problem):
    path = file(content, name)
    with pytest.raises(SourceError, match=problem) as error:
        table(path, **settings)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"source table: {path}")
    assert len(str(error.value)) < 700


def test_a_table_that_is_not_there(tmp_path):
    with pytest.raises(SourceError, match=r"gone\.csv cannot be read \(FileNotFoundError\)"):
        table(tmp_path / "gone.csv")
