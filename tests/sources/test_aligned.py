"""Parts of a sample find each other by name; what lacks a part is kept and told."""

import numpy as np
import pytest

from mmmask.builtins.sources.aligned import AlignedSource, ArraysSource
from mmmask.interfaces import BadSample
from mmmask.interfaces.component import validate_strictly
from mmmask.interfaces.source import SourceError

ENDINGS = {"rgb": (".jpg",), "depth": (".png", ".npy")}


@pytest.fixture
def tree(tmp_path):
    names = [
        "rgb/a/2.jpg",
        "rgb/a/1.jpg",
        "rgb/b/3.jpg",
        "rgb/x.txt",
        "depth/a/1.png",
        "depth/a/2.npy",
        "depth/c/4.png",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def aligned(parts, extensions=ENDINGS, **settings):
    config = {"name": "aligned", "parts": parts, **settings}
    return AlignedSource(validate_strictly(AlignedSource.Config, config), extensions=extensions)


def folders(tree, *parts, **settings):
    return aligned(
        {part: {"name": "folder", "path": str(tree / part), **settings} for part in parts or ("rgb", "depth")}
    )


def contents(source):
    return [
        {part: None if file is None else file.read().decode() for part, file in source.load(index).items()}
        for index in range(len(source))
    ]


def test_parts_are_paired_by_name(tree):
    source = folders(tree)
    assert [source.name(index) for index in range(len(source))] == ["a/1", "a/2", "b/3", "c/4"]
    assert contents(source) == [
        {"rgb": "rgb/a/1.jpg", "depth": "depth/a/1.png"},
        {"rgb": "rgb/a/2.jpg", "depth": "depth/a/2.npy"},
        {"rgb": "rgb/b/3.jpg", "depth": None},
        {"rgb": None, "depth": "depth/c/4.png"},
    ]
    assert source.left_out == "rgb: 1 .txt; 1 of 4 samples have no rgb; 1 of 4 samples have no depth"
    assert source.describe(0) == str(tree / "rgb/a/1.jpg")
    assert source.describe(3) == str(tree / "depth/c/4.png")


def test_labels_are_those_of_the_first_part_that_has_some(tree):
    source = folders(tree)
    assert source.classes == {"label": ("a", "b")}
    assert [source.label(index) for index in range(4)] == ["a", "a", "b", None]
    assert [source.labels(index) for index in (0, 3)] == [{"label": "a"}, {}]
    flat = aligned(
        {
            "rgb": {"name": "glob", "path": str(tree / "rgb/*/*.jpg")},
            "depth": {"name": "folder", "path": str(tree / "depth")},
        }
    )
    assert flat.classes == {"label": ("a", "c")}


def test_limit_takes_the_first(tree):
    config = {part: {"name": "folder", "path": str(tree / part)} for part in ("rgb", "depth")}
    source = aligned(config, limit=2)
    assert len(source) == 2
    assert source.left_out == "rgb: 1 .txt"


def test_one_folder_may_hold_all_parts(tmp_path):
    for number in range(3):
        for part in ("rgb", "depth"):
            (tmp_path / f"{number}_{part}.png").write_bytes(f"{part} {number}".encode())
    parts = dict.fromkeys(("rgb", "depth"), {"name": "folder", "path": str(tmp_path)})
    endings = dict.fromkeys(parts, (".png",))
    source = aligned(parts, endings, suffixes={"rgb": "_rgb", "depth": "_depth"})
    assert contents(source) == [{"rgb": f"rgb {number}", "depth": f"depth {number}"} for number in range(3)]
    with pytest.raises(SourceError, match="suffixes: 'sound' is none of the parts rgb, depth"):
        aligned(parts, endings, suffixes={"sound": "_s"})
    with pytest.raises(SourceError, match="depth: no name ends in '_d', such as 0_depth.png"):
        aligned(parts, endings, suffixes={"depth": "_d"})


def test_several_parts_may_be_of_one_file(tmp_path):
    (tmp_path / "1.mp4").write_bytes(b"both")
    (tmp_path / "2.wav").write_bytes(b"sound")
    parts = dict.fromkeys(("picture", "sound"), {"name": "folder", "path": str(tmp_path)})
    source = aligned(parts, {"picture": (".mp4",), "sound": (".mp4", ".wav")})
    assert contents(source) == [{"picture": "both", "sound": "both"}, {"picture": None, "sound": "sound"}]


def test_a_table_has_a_column_for_every_part(tmp_path):
    table = tmp_path / "pairs.csv"
    table.write_text("scene,colour,metres,room\ns2,x/7.jpg,y/1.png,kitchen\ns1,x/8.jpg,,office\ns3,x/9.jpg,y/3.png,\n")

    def part(column, **settings):
        return {"name": "table", "path": str(table), "file": column, "id": "scene", **settings}

    source = aligned({"rgb": part("colour", labels={"label": "room"}), "depth": part("metres")})
    assert [source.name(index) for index in range(3)] == ["s1", "s2", "s3"]
    paths = [{name: file and file.path for name, file in source.load(index).items()} for index in range(3)]
    assert paths == [
        {"rgb": f"{tmp_path}/x/8.jpg", "depth": None},
        {"rgb": f"{tmp_path}/x/7.jpg", "depth": f"{tmp_path}/y/1.png"},
        {"rgb": f"{tmp_path}/x/9.jpg", "depth": f"{tmp_path}/y/3.png"},
    ]
    assert [source.label(index) for index in range(3)] == ["office", "kitchen", None]
    # templates too, as of a list without endings
    listed = tmp_path / "list.txt"
    listed.write_text("office/1 office\noffice/2 office\n")

    def named(ending):
        columns = {"separator": "space", "columns": ["id", "room"]}
        return {"name": "table", "path": str(listed), "file": f"{{id}}{ending}", "id": "id", **columns}

    source = aligned({"rgb": named("_rgb.jpg"), "depth": named("_depth.png")})
    assert source.load(1)["depth"].path == f"{tmp_path}/office/2_depth.png"


def test_windows_of_one_recording_are_paired_with_each_other(tmp_path):
    for part in ("picture", "sound"):
        ending = {"picture": "mp4", "sound": "wav"}[part]
        rows = [f"a, b.{ending},{start},{start + 2.5}" for start in (10, 0)]
        (tmp_path / f"{part}.csv").write_text("\n".join(["path,start,end", *(f'"{row[:8]}"{row[8:]}' for row in rows)]))
    parts = {
        part: {"name": "table", "path": str(tmp_path / f"{part}.csv"), "start": "start", "end": "end"}
        for part in ("picture", "sound")
    }
    source = aligned(parts, dict.fromkeys(parts, ()))
    assert [source.name(index) for index in range(len(source))] == ["a, b, 0 to 2.5 s", "a, b, 10 to 12.5 s"]
    assert [file.window for file in source.load(1).values()] == [(10, 12.5)] * 2


def test_what_is_wrong_is_said(tree, tmp_path):
    with pytest.raises(SourceError, match=r"depth: source folder: .*nowhere does not exist"):
        aligned({"rgb": {"name": "folder", "path": str(tree)}, "depth": {"name": "folder", "path": "nowhere"}})
    with pytest.raises(SourceError, match="parts rgb, but the stream's modalities are rgb, depth: name the same"):
        folders(tree, "rgb")
    (tree / "depth/a/1.npy").touch()
    with pytest.raises(SourceError, match="depth: a/1.npy and a/1.png are both named 'a/1'"):
        folders(tree)
    strangers = {
        "rgb": {"name": "folder", "path": str(tree / "rgb")},
        "depth": {"name": "folder", "path": str(tree / "depth/c")},
    }
    with pytest.raises(SourceError, match=r"no sample has two parts.*\(rgb has 'a/1', depth has '4'\)\. Set suffixes"):
        aligned(strangers)


def arrays(folder, extensions=ENDINGS, **settings):
    config = {"name": "arrays", "files": {"name": "folder", "path": str(folder)}, **settings}
    return ArraysSource(validate_strictly(ArraysSource.Config, config), extensions=extensions)


def test_arrays_of_one_file(tmp_path):
    (tmp_path / "kitchen").mkdir()
    np.savez_compressed(tmp_path / "kitchen/1.npz", rgb=np.ones((4, 4, 3), np.uint8), depth=np.zeros((4, 4)), more=1)
    np.savez(tmp_path / "kitchen/2.npz", rgb=np.ones((4, 4, 3), np.uint8))
    source = arrays(tmp_path)
    assert (len(source), source.name(0), source.label(0)) == (2, "kitchen/1.npz", "kitchen")
    assert source.classes == {"label": ("kitchen",)}
    assert {part: array.shape for part, array in source.load(0).items()} == {"rgb": (4, 4, 3), "depth": (4, 4)}
    assert source.load(1)["depth"] is None
    renamed = arrays(tmp_path, parts={"depth": "more"})
    assert renamed.load(0)["depth"] == 1
    with pytest.raises(SourceError, match="'sound' is none of the stream's rgb, depth"):
        arrays(tmp_path, parts={"sound": "more"})


def test_damaged_and_large_arrays_are_bad_samples(tmp_path):
    np.savez_compressed(tmp_path / "1.npz", rgb=np.zeros(10**5), depth=np.zeros(4))
    (tmp_path / "2.npz").write_bytes((tmp_path / "1.npz").read_bytes()[:-100])
    np.savez(tmp_path / "3.npz", rgb=np.array([{}]))
    source = arrays(tmp_path, max_bytes=10**5)
    with pytest.raises(BadSample, match="arrays of 800288 bytes, more than max_bytes = 100000"):
        source.load(0)
    for index, problem in ((1, "BadZipFile"), (2, "Object arrays")):
        with pytest.raises(BadSample, match=f"damaged .npz: .*{problem}"):
            source.load(index)


def test_arrays_need_a_source_of_files(tmp_path):
    np.savez(tmp_path / "1.npz", rgb=1)
    inner = {"name": "arrays", "files": {"name": "folder", "path": str(tmp_path)}}
    source = ArraysSource(validate_strictly(ArraysSource.Config, {"name": "arrays", "files": inner}), ENDINGS)
    with pytest.raises(SourceError, match="source arrays gives no files"):
        source.load(0)
