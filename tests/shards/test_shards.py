"""Tar files in WebDataset's layout: which members are samples, and what damage makes of them."""

import io
import os
import shutil
import subprocess
import sys
import tarfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from mmmask.components import components
from mmmask.interfaces import BadSample, SourceError
from mmmask.interfaces.component import validate_strictly
from mmmask_registry import MmmaskError
from mmmask_shards import pack
from mmmask_shards.__main__ import main
from mmmask_shards.source import ShardSource

ENDINGS = (".jpg", ".png")


def shards(path, extensions=ENDINGS, **settings):
    path = [str(one) for one in path] if isinstance(path, list) else str(path)
    config = validate_strictly(ShardSource.Config, {"name": "shards", "path": path, **settings})
    return ShardSource(config, extensions=extensions)


def write_tar(path, members, mode="w"):
    """Members are (name, bytes) or TarInfo."""
    with tarfile.open(path, mode, format=tarfile.PAX_FORMAT) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                entry = tarfile.TarInfo(member[0])
                entry.size = len(member[1])
                archive.addfile(entry, io.BytesIO(member[1]))
    return path


def contents(source):
    """{name: content, or why it is bad}."""
    found = {}
    for index in range(len(source)):
        try:
            found[source.name(index)] = source.load(index).read()
        except BadSample as error:
            found[source.name(index)] = str(error)
    return found


def labels(source):
    return [source.label(index) for index in range(len(source))]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("FVCORE_CACHE", str(folder))
    return folder


@pytest.fixture
def pictures(tmp_path):
    """Pictures of three classes, two of them broken."""
    generator = np.random.default_rng(0)
    for number in range(18):
        path = tmp_path / "pictures" / f"{number % 3}" / f"{number:03}.{('jpg', 'png')[number % 2]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(path)
    (tmp_path / "pictures/0/006.jpg").write_bytes(b"\xff\xd8\xff no picture")
    cut = tmp_path / "pictures/1/007.png"
    cut.write_bytes(cut.read_bytes()[:900])
    return tmp_path / "pictures"


@pytest.fixture
def packed(pictures, tmp_path):
    return pack(str(pictures), str(tmp_path / "tar/train-%03d.tar"), max_bytes=20480)


class TestLayout:
    def test_files_of_one_stem_are_one_sample(self, tmp_path):
        members = [
            ("./a/0.JPG", b"first"), ("./a/0.cls", b"7\n"), ("a/0.json", b'{"kind": "cat", "n": 3}'),
            ("a/.hidden.jpg", b""), ("a/1.seg.png", b"map"), ("a/1.jpg", b"second"), ("a/1.json", b"{}"),
            ("a/1.cls", b"12"),
        ]  # fmt: skip
        path = write_tar(tmp_path / "x.tar", members)
        source = shards(path)
        assert contents(source) == {"a/0.JPG": b"first", "a/1.jpg": b"second"}
        assert labels(source) == ["7", "12"]
        assert source.classes == {"label": ("12", "7")}
        assert shards(path, classes=13).classes["label"] == tuple(map(str, range(13)))
        assert labels(shards(path, label="folder")) == ["a", "a"]
        assert labels(shards(path, label="json:kind")) == ["cat", None]
        assert labels(shards(path, label="json:n")) == ["3", None]
        assert shards(path, member=".seg.png").name(1) == "a/1.seg.png"
        (tmp_path / "names.txt").write_text("\n".join("abcdefghijklm"))
        assert labels(shards(path, classes=str(tmp_path / "names.txt"))) == ["h", "m"]
        with pytest.raises(SourceError, match="a/1.jpg: class '12' is none of the 8 classes"):
            shards(path, classes=8)

    def test_two_members_that_could_be_loaded_are_an_error(self, tmp_path):
        path = write_tar(tmp_path / "x.tar", [("0.jpg", b"1"), ("0.png", b"2")])
        with pytest.raises(SourceError, match=r"x.tar: 0 has several members .*\(.jpg, .png\). Set source.member"):
            shards(path)
        assert contents(shards(path, member=".png")) == {"0.png": b"2"}

    def test_patterns_ranges_and_lists(self, tmp_path):
        for number in (8, 9, 10):
            write_tar(tmp_path / f"t-{number:02}.tar", [(f"{number}.jpg", b"%d" % number)])
        names = ["8.jpg", "9.jpg", "10.jpg"]
        assert list(contents(shards(tmp_path / "t-{08..10}.tar"))) == names
        assert list(contents(shards(tmp_path / "t-*.tar"))) == names
        assert list(contents(shards([tmp_path / "t-10.tar", tmp_path / "t-0*.tar"], limit=2))) == ["10.jpg", "8.jpg"]
        with pytest.raises(SourceError, match="t-11.tar cannot be read .*FileNotFoundError"):
            shards(tmp_path / "t-{08..11}.tar")
        for wrong in ("none-*.tar", "t-{10..08}.tar"):
            with pytest.raises(SourceError, match="matches nothing|no range"):
                shards(tmp_path / wrong)

    def test_equal_names_are_told_apart_by_their_shards(self, tmp_path):
        for number in range(2):
            write_tar(tmp_path / f"{number}.tar", [("0.jpg", b"%d" % number)])
        assert contents(shards(tmp_path / "*.tar")) == {"0.tar/0.jpg": b"0", "1.tar/0.jpg": b"1"}

    def test_parts_of_a_sample_are_paired_by_name(self, tmp_path):
        path = str(write_tar(tmp_path / "x.tar", [("0.jpg", b"rgb"), ("0.png", b"depth"), ("1.jpg", b"alone")]))
        parts = {
            "rgb": {"name": "shards", "path": path, "member": ".jpg"},
            "depth": {"name": "shards", "path": path, "member": ".png", "limit": 1},
        }
        from mmmask.builtins.sources.aligned import AlignedSource

        config = validate_strictly(AlignedSource.Config, {"name": "aligned", "parts": parts})
        source = AlignedSource(config, extensions={"rgb": (".jpg",), "depth": (".png",)})
        assert {part: file.read() for part, file in source.load(0).items()} == {"rgb": b"rgb", "depth": b"depth"}


class TestDamage:
    def test_what_is_no_sample_is_a_bad_one(self, tmp_path):
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        hard = tarfile.TarInfo("hard.jpg")
        hard.type, hard.linkname = tarfile.LNKTYPE, "0.jpg"
        pipe = tarfile.TarInfo("pipe.jpg")
        pipe.type = tarfile.FIFOTYPE
        members = [
            ("0.jpg", b"fine"), link, hard, pipe, ("../up.jpg", b"x"), ("/abs/1.jpg", b"fine too"), ("2.json", b"{}"),
            ("3.jpg", b"once"), ("4.jpg", b"fine"), ("3.jpg", b"twice"),
        ]  # fmt: skip
        path = write_tar(tmp_path / "x.tar", members)
        assert contents(shards(path)) == {
            "0.jpg": b"fine",
            "link.jpg": "a link; links are not followed",
            "hard.jpg": "a link; links are not followed",
            "pipe.jpg": "a device, a pipe or a sparse file",
            "../up.jpg": "a name that leads out of the archive",
            "abs/1.jpg": b"fine too",
            "2": "no member .jpg, .png",
            "3.jpg": "the tar file has several members of this name",
            "4.jpg": b"fine",
        }

    def test_a_truncated_file_has_a_bad_sample_at_its_end(self, tmp_path):
        path = write_tar(tmp_path / "x.tar", [(f"{number}.jpg", b"x" * 700) for number in range(4)])
        whole = path.read_bytes()
        # in the content of the third member; in its header
        for size, bad in ((2 * 1536 + 900, "2.jpg"), (2 * 1536 + 300, "x.tar after byte 3072")):
            path.write_bytes(whole[:size])
            found = contents(shards(path))
            assert list(found) == ["0.jpg", "1.jpg", bad]
            assert found["1.jpg"] == b"x" * 700
            assert isinstance(found[bad], str)

    def test_a_damaged_header_in_the_middle_is_told(self, tmp_path):
        path = write_tar(tmp_path / "x.tar", [(f"{number}.jpg", b"x") for number in range(4)])
        data = bytearray(path.read_bytes())
        data[2048:2200] = os.urandom(152)
        path.write_bytes(data)
        source = shards(path)
        assert list(contents(source)) == ["0.jpg", "1.jpg", "x.tar after byte 2048"]
        assert source.left_out == f"what is damaged: {path} after byte 2048"

    @pytest.mark.parametrize("content", [b"", b"no tar" * 500, b"\0" * 10240], ids=["empty", "other", "zeros"])
    def test_what_is_no_tar_file_is_an_error(self, tmp_path, content):
        (tmp_path / "x.tar").write_bytes(content)
        with pytest.raises(SourceError, match=r"x\.tar (is no tar file|holds no sample)"):
            shards(tmp_path / "x.tar")

    @pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
    def test_a_compressed_file_is_an_error(self, tmp_path, mode):
        path = write_tar(tmp_path / "x.tar", [("0.jpg", b"x")], mode)
        with pytest.raises(SourceError, match=r"x\.tar is compressed.*Unpack it"):
            shards(path)

    def test_a_size_that_the_file_does_not_have_takes_no_memory(self, tmp_path):
        huge = tarfile.TarInfo("1.jpg")
        path = write_tar(tmp_path / "x.tar", [("0.jpg", b"x")])
        huge.size = 2**40
        path.write_bytes(path.read_bytes()[:1024] + huge.tobuf(tarfile.GNU_FORMAT))
        assert "cut off" in contents(shards(path))["1.jpg"]

    def test_labels_that_are_none_are_errors(self, tmp_path):
        path = write_tar(tmp_path / "x.tar", [("0.jpg", b"x"), ("0.json", b"{"), ("0.cls", b"\xff\xfe\xff")])
        for label in (".cls", "json:kind"):
            with pytest.raises(SourceError, match=r"x\.tar: 0\.(cls|json) holds no label"):
                shards(path, label=label)

    def test_a_file_that_goes_or_changes_meanwhile_makes_bad_samples(self, tmp_path):
        path = write_tar(tmp_path / "x.tar", [("0.jpg", b"x")])
        source = shards(path)
        write_tar(path, [("1.jpg", b"yy")])
        os.utime(path, ns=(1, 1))
        with pytest.raises(BadSample, match=r"^the file has changed since the start"):
            source.load(0)
        path.rename(tmp_path / "renamed.tar")
        with pytest.raises(BadSample, match=r"^FileNotFoundError"):
            source.load(0)


class TestIndex:
    def kept(self, folder):
        return sorted(folder.rglob("*.npz"))

    def test_it_is_built_once_and_again_when_the_file_changes(self, tmp_path, monkeypatch):
        path = write_tar(tmp_path / "x.tar", [("0.jpg", b"x")])
        first = contents(shards(path))
        (index,) = self.kept(tmp_path)
        assert index.name.startswith(".x.tar.")
        with monkeypatch.context() as patched:
            patched.setattr(tarfile, "open", None)
            assert contents(shards(path)) == first
        write_tar(path, [("1.jpg", b"yy")])
        os.utime(path, ns=(1, 1))
        assert contents(shards(path)) == {"1.jpg": b"yy"}
        assert self.kept(tmp_path) == [index]

    @pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"junk"])
    def test_one_that_is_damaged_is_built_again(self, tmp_path, content):
        path = write_tar(tmp_path / "x.tar", [("0.jpg", b"x")])
        shards(path)
        (index,) = self.kept(tmp_path)
        index.write_bytes(content)
        assert contents(shards(path)) == {"0.jpg": b"x"}

    def test_it_lies_in_the_cache_where_the_folder_cannot_be_written(self, tmp_path, cache, monkeypatch):
        path = write_tar(tmp_path / "x.tar", [("0.jpg", b"x")])
        replace = os.replace

        def refuse(source, target):
            if str(target).startswith(str(tmp_path)):
                raise PermissionError(target)
            replace(source, target)

        monkeypatch.setattr(os, "replace", refuse)
        shards(path)
        assert os.listdir(tmp_path) == ["x.tar"]
        (index,) = self.kept(cache)
        assert index.name.endswith(".index.npz")
        monkeypatch.setattr(tarfile, "open", None)
        assert contents(shards(path)) == {"0.jpg": b"x"}

    def test_that_it_is_built_is_shown_on_a_terminal_where_it_takes_long(self, tmp_path, monkeypatch, capsys):
        def shown(members, delay=0, terminal=True):
            path = write_tar(tmp_path / f"{len(os.listdir(tmp_path))}.tar", members)
            monkeypatch.setattr("mmmask_shards.packed.DELAY", delay)
            monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
            shards(path)
            return capsys.readouterr().err

        members = [(f"{number}.jpg", b"x" * 5000) for number in range(9)]
        assert "B/s" in shown(members)
        assert shown(members, delay=5) == shown(members, terminal=False) == ""
        monkeypatch.setattr(os.path, "getsize", lambda path: 0)
        assert shown(members) == ""


class TestRemote:
    @pytest.fixture
    def server(self, tmp_path, monkeypatch):
        """Address of the folder, and the paths that were asked for."""
        monkeypatch.setenv("no_proxy", "*")
        asked = []

        class Handler(SimpleHTTPRequestHandler):
            def __init__(self, *arguments):
                super().__init__(*arguments, directory=str(tmp_path))

            def log_message(self, *arguments):
                asked.append(self.path)

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            yield f"http://127.0.0.1:{server.server_port}", asked
            server.shutdown()

    @pytest.mark.parametrize("kind", ["shards", "parquet"])
    def test_files_behind_addresses_are_fetched_once(self, pictures, tmp_path, server, cache, kind):
        address, asked = server
        ending = {"shards": "tar"}.get(kind, kind)
        local = pack(str(pictures), str(tmp_path / f"t/%02d.{ending}"), max_bytes=20480)
        component = components().get("source", kind)
        here, there = (
            component(component.Config(name=kind, path=f"{folder}/t/{{00..{len(local) - 1:02}}}.{ending}"), ENDINGS)
            for folder in (tmp_path, address)
        )
        assert contents(there) == contents(here)
        assert labels(there) == labels(here)
        assert there.describe(0) == f"{address}/t/00.{ending}: 0/000.jpg"
        gets = [path for path in asked if path.endswith(ending)]
        assert sorted(set(gets)) == [f"/t/{path.name}" for path in local]
        component(component.Config(name=kind, path=f"{address}/t/00.{ending}"), ENDINGS).load(0)
        assert [path for path in asked if path.endswith(ending)] == gets, "it lies in the cache"
        with pytest.raises(SourceError, match=rf"{address}/t/99\.{ending} cannot be read .*404"):
            component(component.Config(name=kind, path=f"{address}/t/99.{ending}"), ENDINGS)
        assert not [path for path in (tmp_path / "t").iterdir() if "index" in path.name and kind == "parquet"]


class TestPack:
    def test_equal_folders_give_equal_bytes_and_sizes_are_kept(self, pictures, packed, tmp_path):
        again = pack(str(shutil.copytree(pictures, tmp_path / "copy")), str(tmp_path / "b/train-%03d.tar"), 20480)
        assert [path.read_bytes() for path in again] == [path.read_bytes() for path in packed]
        assert all(path.stat().st_size <= 20480 for path in packed)
        assert sorted(os.listdir(packed[0].parent)) == [path.name for path in packed]

    def test_long_names_count(self, tmp_path):
        for number in range(20):
            path = tmp_path / "long" / ("d" * 120) / f"{'é' * 60}{number:02}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x" * 100)
        written = pack(str(tmp_path / "long"), str(tmp_path / "t/%d.tar"), 20480)
        assert all(path.stat().st_size <= 20480 for path in written)
        source = shards(tmp_path / "t/*.tar")
        assert len(source) == 20
        assert set(contents(source).values()) == {b"x" * 100}

    def test_files_of_one_stem_stay_samples_of_their_own(self, tmp_path):
        folder = tmp_path / "files"
        folder.mkdir()
        for name in ("0.jpg", "0.png", "0.json", "a.1.jpg", "a.2.jpg"):
            (folder / name).write_bytes(name.encode())
        pack(str(folder), str(tmp_path / "x-%d.tar"))
        found = contents(shards(tmp_path / "x-0.tar"))
        assert found == {"0.jpg": b"0.jpg", "0.png": b"0.png", "a.1.jpg": b"a.1.jpg", "a.2.jpg": b"a.2.jpg"}
        with tarfile.open(tmp_path / "x-0.tar") as archive:
            assert set(archive.getnames()) == {"0.jpg", "0.json", "0-png.png", "a.1.jpg", "a-2-jpg.jpg"}

    def test_the_command(self, pictures, tmp_path, capsys):
        output = str(tmp_path / "t/x-%02d.tar")
        assert main(["pack", str(pictures), output, "--max-size", "20KiB", "--endings", ".jpg"]) == 0
        assert "x-00.tar: " in capsys.readouterr().out
        assert len(shards(tmp_path / "t/*.tar")) == 9
        for arguments, said in (
            ((str(pictures), output), "is there already"),
            ((str(pictures), str(tmp_path / "x.tar")), "no place for a number"),
            ((str(tmp_path / "none"), str(tmp_path / "y-%d.tar")), "does not exist"),
        ):
            assert main(["pack", *arguments]) == 1
            error = capsys.readouterr().err
            assert said in error
            assert error.count("\n") == 1
        with pytest.raises(SystemExit):
            main(["pack", str(pictures), str(tmp_path / "z-%d.tar"), "--max-size", "much"])

    @pytest.mark.slow
    def test_the_module_is_a_command(self):
        done = subprocess.run([sys.executable, "-m", "mmmask_shards", "pack", "--help"], capture_output=True, text=True)
        assert done.returncode == 0
        assert "train-%06d.tar" in done.stdout

    def test_after_an_error_there_is_nothing(self, pictures, tmp_path):
        (pictures / "2/zz.jpg").symlink_to(tmp_path / "gone")
        with pytest.raises(MmmaskError, match=r"2/zz\.jpg cannot be read: FileNotFoundError.*scan` as leave_out"):
            pack(str(pictures), str(tmp_path / "t/x-%d.tar"), 20480)
        assert os.listdir(tmp_path / "t") == []

    def test_ten_comes_after_two(self, tmp_path):
        for number in range(12):
            (tmp_path / "files").mkdir(exist_ok=True)
            (tmp_path / f"files/{number:02}.jpg").write_bytes(bytes(20_000))
        assert len(pack(str(tmp_path / "files"), str(tmp_path / "x-%d.tar"), 20480)) == 12
        packed = shards(tmp_path / "x-*.tar")
        assert [packed.name(number) for number in range(12)] == [f"{number:02}.jpg" for number in range(12)]

    def test_bad_samples_are_left_out(self, pictures, tmp_path):
        (pictures / "2/zz.jpg").symlink_to(tmp_path / "gone")
        (tmp_path / "scan.csv").write_text("name,reason\n2/zz.jpg,FileNotFoundError\n")
        main(["pack", str(pictures), str(tmp_path / "x-%d.tar"), "--leave-out", str(tmp_path / "scan.csv")])
        packed = shards(tmp_path / "x-0.tar")
        assert [packed.name(number) for number in range(len(packed))] == [
            path.relative_to(pictures).as_posix() for path in sorted(pictures.rglob("*.*")) if path.exists()
        ]
