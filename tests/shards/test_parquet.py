"""Parquet files as data sets are published: columns, names, labels, row groups of any size, damage."""

import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmmask.interfaces import BadSample, SourceError
from mmmask.interfaces.component import validate_strictly
from mmmask_registry import MmmaskError
from mmmask_shards import pack
from mmmask_shards.parquet import ParquetSource

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
NAMES = ["dog", "ant", "cat"]


def parquet(path, extensions=(".jpg",), **settings):
    path = [str(one) for one in path] if isinstance(path, list) else str(path)
    config = validate_strictly(ParquetSource.Config, {"name": "parquet", "path": path, **settings})
    return ParquetSource(config, extensions=extensions)


def content(number):
    return np.random.default_rng(number).bytes(1000 + number)


def write(path, rows, fields, classes=None, **options):
    """A file whose columns in `classes` are numbers of classes, as Hugging Face describes them."""
    features = {column: {"_type": "ClassLabel", "names": names} for column, names in (classes or {}).items()}
    schema = pa.schema(fields, {"huggingface": json.dumps({"info": {"features": features}})} if classes else None)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema), path, **options)
    return path


def published(path, paths, labels=(0, 1, 2), **options):
    rows = [
        {"image": {"bytes": content(number), "path": name}, "label": labels[number % len(labels)]}
        for number, name in enumerate(paths)
    ]
    return write(path, rows, [("image", IMAGE), ("label", pa.int64())], {"label": NAMES}, **options)


def labels(source):
    return [source.label(index) for index in range(len(source))]


def names(source):
    return [source.name(index) for index in range(len(source))]


@pytest.mark.parametrize("kept_bytes", [0, 2**26])
@pytest.mark.parametrize("options", [{}, {"row_group_size": 7}, {"use_dictionary": False, "compression": "zstd"}])
def test_samples_are_those_of_the_rows_in_any_order(tmp_path, options, kept_bytes):
    for part in range(2):
        published(tmp_path / f"{part}.parquet", [f"{part}/{number}.jpg" for number in range(50)], **options)
    source = parquet(tmp_path / "{0..1}.parquet", kept_bytes=kept_bytes)
    assert names(source) == [f"{part}/{number}.jpg" for part in range(2) for number in range(50)]
    for index in np.random.default_rng(0).permutation(100):
        assert source.load(int(index)).read() == content(index % 50)
    assert labels(source)[:4] == ["dog", "ant", "cat", "dog"]
    assert source.classes == {"label": tuple(NAMES)}
    assert source.describe(60) == f"{tmp_path}/1.parquet: 1/10.jpg"
    assert source.load(60).path == "1/10.jpg"


def test_rows_without_names_or_with_equal_ones_are_named_by_their_number(tmp_path):
    published(tmp_path / "a.parquet", [None] * 3)
    published(tmp_path / "b.parquet", ["x.jpg", "x.jpg", "y.jpg"])
    assert names(parquet(tmp_path / "a.parquet")) == ["0", "1", "2"]
    assert names(parquet(tmp_path / "b.parquet")) == ["0/x.jpg", "1/x.jpg", "2/y.jpg"]
    assert names(parquet([tmp_path / "a.parquet"] * 2)) == ["0", "1", "2"], "the same file twice is one"
    published(tmp_path / "c.parquet", [None] * 2)
    assert names(parquet([tmp_path / f"{name}.parquet" for name in "ca"]))[1:3] == ["c.parquet/1", "a.parquet/0"]


def test_rows_that_the_modality_cannot_decode_are_left_out(tmp_path):
    published(tmp_path / "a.parquet", ["0.jpg", "1.json", "2.JPG"])
    source = parquet(tmp_path / "a.parquet")
    assert names(source) == ["0.jpg", "2.JPG"]
    published(tmp_path / "b.parquet", ["0.jpg", "1.json", None])
    assert names(parquet(tmp_path / "b.parquet")) == ["0/0.jpg", "2"], "what has no ending may be of any kind"
    assert source.load(1).read() == content(2)
    assert source.left_out == "1 of .json"
    published(tmp_path / "c.parquet", ["0.depth.png", "1.png", "2.DEPTH.PNG"])
    assert names(parquet(tmp_path / "c.parquet", (".depth.png",))) == ["0.depth.png", "2.DEPTH.PNG"]
    with pytest.raises(
        SourceError, match=r"holds no samples that end in \.wav, but others \(\.jpg, \.json\).*or source\.id"
    ):
        parquet(tmp_path / "a.parquet", (".wav",))


def test_columns_are_told_or_chosen(tmp_path):
    fields = [("id", pa.string()), ("rgb", pa.binary()), ("depth", pa.large_binary()), ("fine", pa.int8())]
    fields += [("coarse", pa.int16()), ("scene", pa.string())]
    rows = [
        {"id": f"{n}", "rgb": b"rgb%d" % n, "depth": b"depth%d" % n, "fine": n, "coarse": -1, "scene": f"s{n % 2}"}
        for n in range(3)
    ]
    path = write(tmp_path / "a.parquet", rows, fields, {"fine": NAMES, "coarse": ["x"]})
    with pytest.raises(
        SourceError, match=r"several columns could be loaded \(columns of bytes: rgb, depth; .*column\."
    ):
        parquet(path)
    with pytest.raises(SourceError, match="column 'fine' holds no bytes"):
        parquet(path, column="fine")
    with pytest.raises(SourceError, match="no column 'key' for the names"):
        parquet(path, column="rgb", id="key")
    source = parquet(path, column="depth", id="id")
    assert [source.load(index).read() for index in range(3)] == [b"depth0", b"depth1", b"depth2"]
    assert names(source) == ["0", "1", "2"]
    assert dict(source.labels(1)) == {"fine": "ant"}
    assert source.classes == {"fine": tuple(NAMES), "coarse": ("x",)}
    assert labels(parquet(path, column="rgb", labels={"label": "scene"})) == ["s0", "s1", "s0"]
    assert labels(parquet(path, column="rgb", labels={"label": "scene"}, per_class=1, limit=2)) == ["s0", "s1"]
    with pytest.raises(SourceError, match="column 'kind' holds no labels"):
        parquet(path, column="rgb", labels={"label": "kind"})
    with pytest.raises(SourceError, match=r"column 'depth' holds no labels \(texts or numbers\)"):
        parquet(path, column="rgb", labels={"label": "depth"})


def test_bytes_and_nothing_else(tmp_path):
    path = write(tmp_path / "a.parquet", [{"x": b"0"}, {"x": b"1"}], [("x", pa.binary())])
    source = parquet(path)
    assert [source.load(index).read() for index in range(2)] == [b"0", b"1"]
    assert (names(source), labels(source), source.classes) == (["0", "1"], [None, None], {})


def test_names_of_a_column_may_have_dots(tmp_path):
    rows = [{"x": b"0", "id": "clip.1"}, {"x": b"1", "id": "clip.2"}]
    assert names(parquet(write(tmp_path / "a.parquet", rows, [("x", pa.binary()), ("id", pa.string())]), id="id")) == [
        "clip.1",
        "clip.2",
    ]


def test_labels_of_folders_and_without_names(tmp_path):
    path = write(tmp_path / "a.parquet", [{"image": {"bytes": b"x", "path": "a/b/0.jpg"}}], [("image", IMAGE)])
    assert labels(parquet(path)) == ["a"]
    assert labels(parquet(path, label_depth=2)) == ["b"]
    rows = [{"image": {"bytes": b"x", "path": f"{n}.jpg"}, "label": n} for n in (2, 10, None)]
    path = write(tmp_path / "b.parquet", rows, [("image", IMAGE), ("label", pa.int64())])
    assert labels(parquet(path)) == ["2", "10", None]
    assert parquet(path, classes=11).classes["label"] == tuple(map(str, range(11)))


def test_what_is_no_such_file_is_an_error(tmp_path):
    path = published(tmp_path / "a.parquet", ["0.jpg"] * 3, labels=(0, 3))
    with pytest.raises(SourceError, match="label: 3 is none of the 3 classes that the file names"):
        parquet(path)
    whole = published(path, ["0.jpg", "1.jpg"]).read_bytes()
    for damaged in (whole[:-100], b"", b"PAR1 and nothing else"):
        path.write_bytes(damaged)
        with pytest.raises(SourceError, match=r"source parquet: .*a\.parquet is no parquet file, or damaged"):
            parquet(path)
    with pytest.raises(SourceError, match="none.parquet cannot be read .*FileNotFoundError"):
        parquet(tmp_path / "none.parquet")
    with pytest.raises(SourceError, match=r"is a folder. Set source.path to a pattern of files, such as .*\*\.parquet"):
        parquet(tmp_path)
    with pytest.raises(SourceError, match=r"s3://b/0\.parquet .*iopath has no handler of s3:// addresses"):
        parquet("s3://b/0.parquet")
    write(path, [{"text": "x"}], [("text", pa.string())])
    with pytest.raises(SourceError, match="no column could be loaded"):
        parquet(path)
    published(tmp_path / "1.parquet", ["0.jpg"])
    rows = [{"image": {"bytes": b"x", "path": "1.jpg"}, "label": 0}]
    other = write(tmp_path / "2.parquet", rows, [("image", IMAGE), ("label", pa.int64())], {"label": ["bee"]})
    with pytest.raises(SourceError, match=r"2\.parquet names other classes than .*1\.parquet"):
        parquet([tmp_path / "1.parquet", other])
    other = write(tmp_path / "3.parquet", [{"picture": b"x"}], [("picture", pa.binary())])
    with pytest.raises(SourceError, match=r"3\.parquet: the contents are in the column picture, and in image\.bytes"):
        parquet([tmp_path / "1.parquet", other])


def test_files_without_a_label_set_have_no_labels_of_it_wherever_they_stand(tmp_path):
    paths = [tmp_path / f"{name}.parquet" for name in "abcd"]
    for path, label in zip(paths, (None, "x", None, "y"), strict=True):
        fields = [("image", pa.binary())] + [("label", pa.string())] * (label is not None)
        write(path, [{"image": path.name.encode(), "label": label}] * 2, fields)
    found = parquet(paths)
    assert labels(found) == [None, None, "x", "x", None, None, "y", "y"]
    contents = [found.load(index).read().decode() for index in range(len(found))]
    assert contents == [path.name for path in paths for _ in range(2)]


@pytest.mark.parametrize("kept_bytes", [0, 2**26])
def test_damage_and_missing_bytes_make_bad_samples(tmp_path, kept_bytes):
    path = published(tmp_path / "a.parquet", [f"{n}.jpg" for n in range(40)], row_group_size=10, use_dictionary=False)
    data = bytearray(path.read_bytes())
    start = pq.read_metadata(path).row_group(1).column(0).data_page_offset
    data[start : start + 60] = b"\xff" * 60
    path.write_bytes(data)
    source = parquet(path, kept_bytes=kept_bytes)
    assert [source.load(index).read() for index in (0, 35)] == [content(0), content(35)]
    with pytest.raises(BadSample, match=r"^its row group cannot be read"):
        source.load(12)
    published(path, ["0.jpg"])
    with pytest.raises(BadSample, match=r"^the file has changed since the start"):
        source.load(0)
    write(path, [{"image": {"bytes": None, "path": "far/0.jpg"}}], [("image", IMAGE)])
    with pytest.raises(BadSample, match=r"^the row holds no bytes"):
        parquet(path).load(0)


def test_what_is_packed_is_a_published_file_of_small_row_groups(tmp_path):
    for number in range(40):
        (tmp_path / f"files/{NAMES[number % 3]}").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"files/{NAMES[number % 3]}/{number}.jpg").write_bytes(content(number) * 200)
    (tmp_path / "files/top.jpg").write_bytes(b"without a label")
    written = pack(str(tmp_path / "files"), str(tmp_path / "p/%d.parquet"), max_bytes=4_000_000, endings=(".jpg",))
    assert len(written) == 3
    assert all(path.stat().st_size <= 4_000_000 for path in written)
    groups = [pq.read_metadata(path).row_group(0) for path in written]
    assert all(group.total_byte_size < 1.1 * 2**20 for group in groups)
    source = parquet(tmp_path / "p/*.parquet")
    assert source.classes == {"label": ("ant", "cat", "dog")}
    assert labels(source)[-1] is None
    assert source.load(40).read() == b"without a label"
    (tmp_path / "files/\udcff.jpg").write_bytes(b"")
    with pytest.raises(MmmaskError, match="a name is no UTF-8"):
        pack(str(tmp_path / "files"), str(tmp_path / "q/%d.parquet"))
    assert not list((tmp_path / "q").iterdir())


def test_without_the_library_there_is_one_line(tmp_path):
    program = "import sys; sys.modules['pyarrow'] = None; from mmmask.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", program, "describe", "source", "parquet"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "pip install 'mmmask[parquet]'" in done.stderr
    assert done.stderr.count("\n") == 1
