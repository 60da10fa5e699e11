"""Files are found in the same order everywhere; what is wrong with a source is said in one line."""

import os
import shutil

import pytest

from mmmask.builtins.sources.listings import FolderSource, GlobSource, ListSource
from mmmask.interfaces.files import BadSample, SourceFile
from mmmask.interfaces.source import SourceError

ENDINGS = (".jpg", ".png")


@pytest.fixture
def tree(tmp_path):
    for name in ("b/2.JPG", "b/deep/1.png", "a/3.jpg", "top.png", "a/notes.txt", ".masked/4.jpg", "a/.5.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def folder(path, extensions=ENDINGS, **settings):
    return FolderSource(FolderSource.Config(name="folder", path=str(path), **settings), extensions=extensions)


def list_of(path, **settings):
    return ListSource(ListSource.Config(name="list", path=str(path), **settings), extensions=ENDINGS)


def glob_of(pattern, extensions=ENDINGS, **settings):
    return GlobSource(GlobSource.Config(name="glob", path=str(pattern), **settings), extensions=extensions)


def names(source, root):
    return [os.path.relpath(source.describe(i), root) for i in range(len(source))]


def test_folder_finds_by_ending_sorted_and_without_hidden_names(tree):
    source = folder(tree)
    assert names(source, tree) == ["a/3.jpg", "b/2.JPG", "b/deep/1.png", "top.png"]
    assert [source.label(i) for i in range(4)] == ["a", "b", "b", None]
    assert source.load(1) == SourceFile(str(tree / "b/2.JPG"))
    assert source.load(1).read() == b"b/2.JPG"


def test_folder_order_does_not_depend_on_the_machine(tree, monkeypatch):
    straight = names(folder(tree), tree)
    walk = os.walk

    def backwards(*args, **kwargs):
        for path, subfolders, files in walk(*args, **kwargs):
            subfolders.sort(reverse=True)
            yield path, subfolders, sorted(files, reverse=True)

    monkeypatch.setattr(os, "walk", backwards)
    assert names(folder(tree), tree) == straight


def test_limit_takes_the_first(tree):
    assert names(folder(tree, limit=2), tree) == ["a/3.jpg", "b/2.JPG"]


def test_linked_folders_are_followed_and_circles_end(tree, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "9.jpg").touch()
    (tree / "c").symlink_to(elsewhere)
    (tree / "a" / "again").symlink_to(tree)
    assert names(folder(tree), tree) == ["a/3.jpg", "b/2.JPG", "b/deep/1.png", "c/9.jpg", "top.png"]


def test_a_folder_that_cannot_be_read_is_not_left_out(tree, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(SourceError, match=rf"^source folder: {tree}/b/deep cannot be read \(Permission denied\)\. "):
        folder(tree)


def test_folder_without_extensions_takes_everything(tree):
    assert "a/notes.txt" in names(folder(tree, extensions=()), tree)


def test_missing_folder(tmp_path):
    with pytest.raises(SourceError, match=r"source folder: .*nowhere does not exist\. Set source\.path"):
        folder(tmp_path / "nowhere")


def test_a_file_is_no_folder(tree):
    with pytest.raises(SourceError, match=r"is a file, not a folder\. .*source list"):
        folder(tree / "top.png")


def test_folders_that_cannot_be_looked_through():
    with pytest.raises(SourceError, match=r"cannot be looked through\. Name the files in a source list"):
        folder("https://example.org/pictures")
    with pytest.raises(SourceError, match="does not exist .*iopath handler"):
        folder("nosuch://pictures")


def test_empty_folder(tmp_path):
    with pytest.raises(SourceError, match=r"holds no files that end in \.jpg, \.png: it is empty"):
        folder(tmp_path)


def test_folder_of_other_files_names_them(tmp_path):
    for name in ("1.mp4", "2.mp4", "3", "4.txt"):
        (tmp_path / name).touch()
    with pytest.raises(
        SourceError, match=r"end in \.jpg, \.png, but 4 others \(2 \.mp4, 1 no ending, 1 \.txt\)"
    ) as error:
        folder(tmp_path)
    assert "\n" not in str(error.value)


def test_glob_is_recursive_sorted_and_filtered(tree):
    assert names(glob_of(tree / "**" / "*"), tree) == ["a/3.jpg", "b/2.JPG", "b/deep/1.png", "top.png"]
    assert names(glob_of(tree / "*" / "*.jpg"), tree) == ["a/3.jpg"]
    assert glob_of(tree / "*" / "*.jpg").label(0) is None


def test_glob_errors(tree):
    with pytest.raises(SourceError, match="matches nothing"):
        glob_of(tree / "*.gif")
    with pytest.raises(SourceError, match=r"source glob: .*1 others \(1 \.txt\)"):
        glob_of(tree / "a" / "*.txt")
    with pytest.raises(SourceError, match="local files only"):
        glob_of("https://example.org/*.jpg")


def test_list_lines(tmp_path):
    (tmp_path / "list.txt").write_text(
        "\ufeff# a comment\nb/1.jpg,cat\n\n /data/2.jpg \nwith, comma.jpg,dog\nno label, here.jpg,\n"
        "https://example.org/3.jpg,bird\n",
        encoding="utf-8",
    )
    source = list_of(tmp_path / "list.txt")
    assert [source.describe(i) for i in range(len(source))] == [
        str(tmp_path / "b/1.jpg"),
        "/data/2.jpg",
        str(tmp_path / "with, comma.jpg"),
        str(tmp_path / "no label, here.jpg"),
        "https://example.org/3.jpg",
    ]
    assert [source.label(i) for i in range(len(source))] == ["cat", None, "dog", None, "bird"]
    assert len(list_of(tmp_path / "list.txt", limit=2)) == 2


def test_list_errors(tmp_path):
    with pytest.raises(SourceError, match=r"source list: .*missing\.txt cannot be read \(FileNotFoundError\)"):
        list_of(tmp_path / "missing.txt")
    (tmp_path / "empty.txt").write_text("# nothing\n\n")
    with pytest.raises(SourceError, match="names no file"):
        list_of(tmp_path / "empty.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SourceError, match=r"cannot be read \(UnicodeDecodeError\)"):
        list_of(tmp_path / "binary.txt")


def test_a_listed_file_that_is_missing_is_a_bad_sample(tmp_path):
    (tmp_path / "list.txt").write_text("gone.jpg\n")
    with pytest.raises(BadSample, match="FileNotFoundError"):
        list_of(tmp_path / "list.txt").load(0).read()


@pytest.mark.parametrize("root", ["bucket://", "bucket://."])
def test_a_remote_folder_is_walked_through_iopath(tree, monkeypatch, root):
    from iopath.common.file_io import NativePathHandler, PathManager

    from mmmask.builtins.sources import listings
    from mmmask.interfaces import files

    class Bucket(NativePathHandler):
        def _get_supported_prefixes(self):
            return ["bucket://"]

        def _get_path_with_cwd(self, path):
            return str(tree / path.removeprefix("bucket://"))

    manager = PathManager()
    manager.register_handler(Bucket())
    monkeypatch.setattr(listings, "path_manager", lambda: manager)
    monkeypatch.setattr(files, "path_manager", lambda: manager)
    source = folder(root)
    found = [source.describe(i) for i in range(len(source))]
    prefix = root if root.endswith("/") else f"{root}/"
    assert found == [f"{prefix}{name}" for name in ("a/3.jpg", "b/2.JPG", "b/deep/1.png", "top.png")]
    assert source.label(2) == "b"
    assert source.load(2).read() == b"b/deep/1.png"


def test_classes_are_the_sorted_labels(tree):
    assert folder(tree).classes == {"label": ("a", "b")}
    assert folder(tree).labels(0) == {"label": "a"}
    assert folder(tree).labels(3) == {}
    assert folder(tree / "a").classes == {}
    assert glob_of(tree / "*/*.jpg").classes == {}
    (tree / "list.txt").write_text("one.jpg, zebra\ntwo.jpg, ant\nthree.jpg\n")
    assert list_of(tree / "list.txt").classes == {"label": ("ant", "zebra")}


def test_names_do_not_depend_on_where_the_source_lies(tree, tmp_path_factory):
    def all_names(source):
        return [source.name(index) for index in range(len(source))]

    (tree / "list.txt").write_text("b/2.JPG\na/3.jpg\n/elsewhere/4.jpg\ns3://bucket/5.jpg\n")
    moved = tmp_path_factory.mktemp("moved") / "there"
    shutil.copytree(tree, moved)
    for root in (tree, f"{tree}/", moved):
        assert all_names(folder(root)) == ["a/3.jpg", "b/2.JPG", "b/deep/1.png", "top.png"]
        assert all_names(glob_of(f"{root}/*/*")) == ["a/3.jpg", "b/2.JPG"]
        assert all_names(glob_of(f"{root}/b/**/*.png")) == ["deep/1.png"]
        assert all_names(list_of(f"{root}/list.txt")) == ["b/2.JPG", "a/3.jpg", "/elsewhere/4.jpg", "s3://bucket/5.jpg"]


def test_names_of_a_pattern_relative_to_the_working_folder(tree, monkeypatch):
    monkeypatch.chdir(tree)
    source = glob_of("*/3.jpg")
    assert source.name(0) == "a/3.jpg"


def test_what_is_left_out_is_counted(tree):
    assert folder(tree).left_out == "1 .txt"
    assert glob_of(tree / "**/*").left_out == "1 .txt"
    assert folder(tree, extensions=()).left_out == ""
    assert folder(tree / "b").left_out == ""


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_lists_are_split_at_newlines_only(tmp_path, ending):
    names = [f"a{strange}b.jpg" for strange in "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e"]
    (tmp_path / "list.txt").write_bytes(ending.join([*names, "", "c.jpg"]).encode())
    source = list_of(tmp_path / "list.txt")
    assert [source.describe(i) for i in range(len(source))] == [str(tmp_path / name) for name in [*names, "c.jpg"]]
