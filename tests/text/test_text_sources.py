"""Windows of joined files and of lines: exact to the byte, whatever the borders."""

import json
import pickle
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmmask.interfaces import BadSample, SourceError
from mmmask_text.sources import JsonLinesSource, TextFilesSource


def text_files(path, **settings):
    config = TextFilesSource.Config(name="text_files", path=path if isinstance(path, tuple) else str(path), **settings)
    return TextFilesSource(config, (".txt", ".md"))


def json_lines(path, **settings):
    config = JsonLinesSource.Config(name="json_lines", path=path if isinstance(path, tuple) else str(path), **settings)
    return JsonLinesSource(config)


def loaded(source):
    return [source.load(index) for index in range(len(source))]


def write(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def write_lines(path, texts, **more):
    path.write_text("".join(json.dumps({"text": text, **more}) + "\n" for text in texts), encoding="utf-8")
    return path


class TestTextFiles:
    @given(
        contents=st.lists(st.binary(max_size=12), min_size=1, max_size=6).filter(any),
        window=st.integers(1, 9),
        separator=st.sampled_from(["", "\n", "|--|", "é"]),
    )
    def test_windows_are_those_of_the_joined_files(self, tmp_path_factory, contents, window, separator):
        folder = tmp_path_factory.mktemp("texts")
        for number, content in enumerate(contents):
            (folder / f"{number}.txt").write_bytes(content)
        whole = separator.encode().join(content for content in contents if content)
        found = loaded(text_files(folder, window=window, separator=separator))
        assert len(found) == max(1, len(whole) // window)
        assert found == [whole[window * number : window * (number + 1)] for number in range(len(found))]

    def test_bytes_are_taken_as_they_are(self, tmp_path):
        write(tmp_path, a_txt="one\r\ntwo\r\n", b_txt="", c_txt="\ufeffZoë", d_md=b"\xff\xfe")
        assert loaded(text_files(tmp_path, window=100)) == ["one\r\ntwo\r\n\n\ufeffZoë\n".encode() + b"\xff\xfe"]

    def test_what_is_left_at_the_end_is_left_out(self, tmp_path):
        write(tmp_path, a_txt="abcdefghij")
        assert loaded(text_files(tmp_path, window=4)) == [b"abcd", b"efgh"]
        assert loaded(text_files(tmp_path, window=4, limit=1)) == [b"abcd"]
        assert len(text_files(tmp_path, window=4, limit=9)) == 2

    def test_folders_patterns_and_lists_of_files(self, tmp_path):
        write(tmp_path / "x", b_txt="B", a_txt="A", sub__c_txt="C", d_csv="D", sub__e_md="E")
        whole = {"window": 1, "separator": ""}
        assert b"".join(loaded(text_files(tmp_path / "x", **whole))) == b"ABCE"
        assert b"".join(loaded(text_files(tmp_path / "x" / "*.txt", **whole))) == b"AB"
        assert b"".join(loaded(text_files(tmp_path / "x" / "**" / "*.txt", **whole))) == b"ABC"
        named = tuple(str(tmp_path / "x" / name) for name in ("d.csv", "b.txt", "*.txt", "d.csv"))
        assert b"".join(loaded(text_files(named, **whole))) == b"DBA"

    def test_a_name_may_look_like_a_pattern(self, tmp_path):
        (tmp_path / "a[1].txt").write_text("brackets")
        assert loaded(text_files(tmp_path / "a[1].txt", window=8)) == [b"brackets"]

    def test_labels_are_of_windows_that_have_one(self, tmp_path):
        write(tmp_path, a__1_txt="aaaa", a__2_txt="aaaa", b__1_txt="bbbb", c_txt="cc")
        source = text_files(tmp_path, window=2, separator="")
        assert loaded(source) == [b"aa"] * 4 + [b"bb"] * 2 + [b"cc"]
        assert [source.label(index) for index in range(7)] == ["a"] * 4 + ["b"] * 2 + [None]
        crossing = text_files(tmp_path, window=3, separator="")
        assert loaded(crossing) == [b"aaa", b"aaa", b"aab", b"bbb"]
        assert [crossing.label(index) for index in range(4)] == ["a", "a", None, "b"]

    def test_samples_have_names(self, tmp_path):
        write(tmp_path, a_txt="aaaa", b_txt="bbbb")
        source = text_files(tmp_path, window=3)
        assert [source.describe(index) for index in range(3)] == [
            f"{tmp_path}/a.txt, byte 0", f"{tmp_path}/a.txt, byte 3", f"{tmp_path}/b.txt, byte 1",
        ]  # fmt: skip

    def test_nothing_large_is_held(self, tmp_path):
        write(tmp_path, a_txt=b"x" * 2_000_000)
        source = text_files(tmp_path, window=10)
        assert len(source) == 200_000
        assert len(pickle.dumps(source)) < 2000
        assert source.load(199_999) == b"x" * 10

    def test_copies_and_threads_load_the_same(self, tmp_path):
        write(tmp_path, **{f"f{number}_txt": f"{number} is a number. " * number for number in range(30)})
        source = text_files(tmp_path, window=64)
        alone = loaded(source)
        assert loaded(pickle.loads(pickle.dumps(source))) == alone
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(source.load, range(len(source)))) == alone

    def test_files_that_change_are_bad_samples(self, tmp_path):
        write(tmp_path, a_txt="aaaa", b_txt="bbbb")
        source = text_files(tmp_path, window=4, separator="")
        (tmp_path / "a.txt").write_text("aa")
        (tmp_path / "b.txt").unlink()
        with pytest.raises(BadSample, match=r"a\.txt: has become shorter"):
            source.load(0)
        with pytest.raises(BadSample, match=r"b\.txt: No such file"):
            source.load(1)

    def test_what_cannot_be_a_source(self, tmp_path):
        write(tmp_path / "empty", a_txt="", b_txt="")
        write(tmp_path / "others", a_csv="x", b_txt_gz="x")
        for path, message in [
            (tmp_path / "empty", "source text_files: .*empty: every file is empty"),
            (tmp_path / "others", r"source text_files: .* holds no files that end in \.txt, \.md, but 2 others"),
            (tmp_path / "none", r"source text_files: .*none cannot be read \(No such file"),
            (tmp_path / "*.none", r"source text_files: .* matches nothing"),
            (tmp_path / "others" / "b.txt.gz", "compressed files have no middle to read from. Unpack it"),
        ]:
            with pytest.raises(SourceError, match=message):
                text_files(path)


class TestJsonLines:
    def test_a_line_is_a_sample_where_no_window_is_wanted(self, tmp_path):
        texts = ["one", "Zoë €\n\u2028", "", "four " * 5000]
        source = json_lines(write_lines(tmp_path / "a.jsonl", texts), window=None)
        assert loaded(source) == [text.encode() for text in texts]
        assert [source.describe(index) for index in range(2)] == [f"{tmp_path}/a.jsonl: line {n}" for n in (1, 2)]

    @given(
        texts=st.lists(st.lists(st.text(max_size=30), max_size=8), min_size=1, max_size=3).filter(any),
        window=st.integers(1, 60),
        newline_at_end=st.booleans(),
        ascii_only=st.booleans(),
    )
    def test_windows_are_pieces_of_the_texts_one_after_the_other(
        self, tmp_path_factory, texts, window, newline_at_end, ascii_only
    ):
        folder = tmp_path_factory.mktemp("lines")
        for number, lines in enumerate(texts):
            dumped = [json.dumps({"text": line}, ensure_ascii=ascii_only) for line in lines]
            written = "\n".join(dumped) + ("\n" if dumped and newline_at_end else "")
            (folder / f"{number}.jsonl").write_bytes(written.encode())
        parts = [line.encode() for lines in texts for line in lines if line]
        once = b"\n".join(parts)
        source = json_lines(folder, window=window)
        total = sum(path.stat().st_size for path in folder.iterdir())
        found = loaded(source)
        assert len(found) == max(1, total // window)
        round_and_round = once + b"\n" + once
        reached = 0
        for sample in found:
            assert len(sample) <= window
            limit = reached + round_and_round.startswith(b"\n", reached)  # what is between two lines may be passed over
            place = round_and_round.rfind(sample, 0, limit + len(sample))
            assert place >= 0, "a piece of the texts that begins where the last one ended, or before"
            reached = max(reached, place + len(sample))

    def test_long_lines_are_cut_without_gaps(self, tmp_path):
        text = "".join(f"{number:05}" for number in range(4000))
        source = json_lines(write_lines(tmp_path / "a.jsonl", [text]), window=100)
        assert len(source) == len(text) // 100
        whole, end = text.encode(), 0
        for sample in loaded(source):
            assert len(sample) == 100 or sample == loaded(source)[-1]
            place = whole.index(sample)
            assert end - 2 <= place <= end
            end = place + len(sample)

    def test_short_lines_are_joined_and_the_first_follows_the_last(self, tmp_path):
        source = json_lines(write_lines(tmp_path / "a.jsonl", ["ab", "cd", "ef"]), window=20)
        assert loaded(source) == [b"ab\ncd\nef", b"cd\nef\nab", b"f\nab\ncd"][: len(source)]
        assert json_lines(tmp_path / "a.jsonl", window=5, separator="").load(0) == b"abcde"

    def test_lines_end_in_any_way(self, tmp_path):
        (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\r\n\n  \n{"text": "b"}')
        (tmp_path / "b.ndjson").write_bytes(b"")
        (tmp_path / "c.ndjson").write_bytes(b'{"text": "c"}\n')
        source = json_lines(tmp_path, window=9)
        assert source.load(0) == b"a\nb\nc"
        single = json_lines(tmp_path, window=None)
        assert len(single) == 5
        assert [single.load(index) for index in (0, 3, 4)] == [b"a", b"b", b"c"]
        assert single.describe(4) == f"{tmp_path}/c.ndjson: line 1"

    def test_bad_lines_are_named(self, tmp_path):
        lines = [b'{"text": "fine"}', b'{"text": ', b'{"txt": "a"}', b'["text"]', b'{"text": 3}', b"\xff", b""]
        (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines) + b"\n")
        source = json_lines(tmp_path / "a.jsonl", window=None)
        assert source.load(0) == b"fine"
        messages = ["not JSON", *["no object with a text under 'text'"] * 3, "not JSON", "not JSON"]
        for line, message in enumerate(messages, start=2):
            assert source.describe(line - 1) == f"{tmp_path}/a.jsonl: line {line}"
            with pytest.raises(BadSample, match=f"^{message}"):
                source.load(line - 1)
        deep = b'{"text": ' + b"[" * 200_000
        (tmp_path / "a.jsonl").write_bytes(deep)
        with pytest.raises(BadSample, match="^not JSON"):
            json_lines(tmp_path / "a.jsonl", window=None).load(0)

    def test_a_bad_line_spoils_its_windows_only(self, tmp_path):
        lines = [json.dumps({"text": "x" * 80}) for _ in range(20)]
        lines[10] = "{" * len(lines[10])
        (tmp_path / "a.jsonl").write_text("\n".join(lines))
        source = json_lines(tmp_path / "a.jsonl", window=40)
        bad = []
        for index in range(len(source)):
            try:
                source.load(index)
            except BadSample:
                bad.append(index)
        assert 2 <= len(bad) <= 5
        assert {bool(re.search("line 11", source.describe(index))) for index in bad} == {True, False}
        for index in bad:  # the line is named once, by the sample's name or by the reason
            begins_there = "line 11" in source.describe(index)
            with pytest.raises(BadSample, match="^not JSON" if begins_there else r"^.*a\.jsonl: line 11: not JSON"):
                source.load(index)

    def test_other_keys_and_labels(self, tmp_path):
        records = [{"body": "aaaa", "kind": 1}, {"body": "bbbb", "kind": "two"}, {"body": "cccc"}]
        (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
        source = json_lines(tmp_path / "a.jsonl", window=None, field="body", label_field="kind")
        assert loaded(source) == [b"aaaa", b"bbbb", b"cccc"]
        assert [source.label(index) for index in range(3)] == ["1", "two", None]
        assert json_lines(tmp_path / "a.jsonl", window=None, field="body").label(0) is None
        joined = json_lines(tmp_path / "a.jsonl", window=4, field="body", label_field="kind")
        assert (joined.load(0), joined.label(0)) == (b"aaaa", "1")
        wide = json_lines(tmp_path / "a.jsonl", window=9, field="body", label_field="kind")
        assert (wide.load(0), wide.label(0)) == (b"aaaa\nbbbb", None)

    def test_samples_have_names_of_their_own(self, tmp_path):
        source = json_lines(write_lines(tmp_path / "a.jsonl", ["x" * 100, "y" * 100]), window=30)
        names = [source.describe(index) for index in range(len(source))]
        assert len(set(names)) == len(names)
        assert names[0] == f"{tmp_path}/a.jsonl: line 1"
        assert names[1] == f"{tmp_path}/a.jsonl: line 1, byte 30"

    def test_limit_copies_and_threads(self, tmp_path):
        path = write_lines(tmp_path / "a.jsonl", [f"line {number} of many" for number in range(300)])
        source = json_lines(path, window=100, limit=50)
        assert len(source) == 50
        alone = loaded(source)
        assert loaded(pickle.loads(pickle.dumps(source))) == alone
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(source.load, range(50))) == alone

    def test_files_that_change_are_bad_samples(self, tmp_path):
        path = write_lines(tmp_path / "a.jsonl", ["some words"] * 20)
        source = json_lines(path, window=50)
        path.write_text("{}")
        with pytest.raises(BadSample, match="has become shorter"):
            source.load(3)
        path.unlink()
        with pytest.raises(BadSample, match="No such file"):
            source.load(3)

    def test_what_cannot_be_a_source(self, tmp_path):
        write(tmp_path / "empty", a_jsonl="")
        write(tmp_path / "packed", a_jsonl_gz="x")
        for path, message in [
            (tmp_path / "empty", "source json_lines: .*empty: every file is empty"),
            (tmp_path / "packed", r"source json_lines: .* that end in \.jsonl, \.ndjson, but 1 others \(1 \.gz\)"),
            (tmp_path / "packed" / "a.jsonl.gz", "compressed files have no middle to read from"),
            (tmp_path / "none.jsonl", r"cannot be read \(No such file"),
        ]:
            with pytest.raises(SourceError, match=message):
                json_lines(path)


@pytest.mark.parametrize("way", ["{}", "{}/*/*", "{}/a/1.txt"])
def test_names_of_windows_do_not_depend_on_where_the_files_lie(tmp_path, way):
    def names(root):
        source = text_files(way.format(root), window=4)
        return [source.name(index) for index in range(len(source))]

    for place in ("here", "there"):
        write(tmp_path / place, a__1_txt="0123456789", b__2_txt="abcdef")
    assert names(tmp_path / "here") == names(tmp_path / "there")
    assert names(tmp_path / "here")[1] == ("1.txt, byte 4" if way.endswith("txt") else "a/1.txt, byte 4")


def test_names_of_lines_do_not_depend_on_where_the_files_lie(tmp_path):
    write_lines(tmp_path / "1.jsonl", ["one", "two"])
    assert json_lines(tmp_path, window=None).name(1) == "1.jsonl: line 2"
    assert json_lines(tmp_path, window=20).name(1) == "1.jsonl: line 2, byte 4"


def test_classes_are_the_labels_of_files_and_of_lines(tmp_path):
    assert text_files(write(tmp_path / "texts", b__1_txt="0123", a__2_txt="4567")).classes == {"label": ("a", "b")}
    path = tmp_path / "lines.jsonl"
    path.write_text('{"text": "one", "kind": "z"}\nno JSON\n{"text": "two", "kind": 3}\n{"text": "three"}\n')
    assert json_lines(path, label_field="kind").classes == {"label": ("3", "z")}
    assert json_lines(path).classes == {}
