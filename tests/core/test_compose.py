"""Finding a file, `extends`, dotted overrides: experiments as plain data."""

import pytest

from mmmask.components import components
from mmmask.experiment.compose import (
    apply_overrides,
    dump_yaml,
    merge,
    parse_yaml,
    published_experiments,
    read_experiment,
)
from mmmask.experiment.errors import ExperimentError
from mmmask_registry import BrokenPlugin


def write(folder, name, text):
    path = folder / name
    path.write_text(text)
    return str(path)


def test_the_published_experiments_are_found_by_name():
    assert {"quickstart", "omnimae/vit_base", "omnimae/vit_base_released"} <= set(published_experiments())
    assert read_experiment("omnimae/vit_base")["streams"]["videos"]["masker"]["mask_ratio"] == 0.95


def test_a_file_extends_a_shipped_experiment(tmp_path):
    path = write(tmp_path, "mine.yaml", "extends: omnimae/vit_base\nmodel: {encoder: {depth: 2}}\n")
    data = read_experiment(path)
    assert "extends" not in data
    assert data["model"]["encoder"] == {
        "name": "vit",
        "size": "base",
        "positions": {"name": "flat_sinusoid"},
        "depth": 2,
    }
    assert set(data["streams"]) == {"images", "videos"}


def test_a_file_extends_its_neighbour(tmp_path, monkeypatch):
    write(tmp_path, "base.yaml", "training: {steps: 5, seed: 1}\n")
    path = write(tmp_path, "mine.yaml", "extends: base.yaml\ntraining: {steps: 7}\n")
    monkeypatch.chdir("/")
    assert read_experiment(path) == {"training": {"steps": 7, "seed": 1}}


def test_extends_goes_over_several_levels(tmp_path, monkeypatch):
    """Each file's paths are relative to itself, wherever it is read from."""
    (tmp_path / "deep").mkdir()
    write(tmp_path, "deep/a.yaml", "training: {steps: 1, seed: 1, mixing: joint}\n")
    write(tmp_path, "deep/b.yaml", "extends: a.yaml\ntraining: {steps: 2, seed: 2}\n")
    write(tmp_path, "c.yaml", "extends: deep/b.yaml\n")
    path = write(tmp_path, "d.yaml", "extends: ./c.yaml\ntraining: {steps: 4}\n")
    write(tmp_path, "a.yaml", "training: {steps: 99}\n")
    monkeypatch.chdir(tmp_path)
    expected = {"training": {"steps": 4, "seed": 2, "mixing": "joint"}}
    assert read_experiment(path) == read_experiment("d.yaml") == expected
    monkeypatch.chdir("/")
    assert read_experiment(path) == expected


def test_another_name_drops_settings_at_every_level(tmp_path):
    write(tmp_path, "a.yaml", "masker: {name: random, mask_ratio: 0.9}\n")
    write(tmp_path, "b.yaml", "extends: a.yaml\nmasker: {name: tube}\n")
    path = write(tmp_path, "c.yaml", "extends: b.yaml\nmasker: {name: random}\n")
    assert read_experiment(path) == {"masker": {"name": "random"}}


def test_a_file_extends_a_shipped_experiment_that_extends_another(tmp_path):
    path = write(tmp_path, "mine.yaml", "extends: omnimae/vit_huge\n")
    assert read_experiment(path) == read_experiment("omnimae/vit_huge")


def test_a_name_without_ending_is_no_file(tmp_path):
    write(tmp_path, "quickstart", "training: {steps: 1}\n")
    path = write(tmp_path, "mine.yaml", "extends: quickstart\n")
    assert read_experiment(path) == read_experiment("quickstart")


@pytest.mark.parametrize(
    ("files", "circle"),
    [
        ({"a": "a"}, "a.yaml extends a.yaml"),
        ({"a": "b", "b": "a"}, "a.yaml extends b.yaml extends a.yaml"),
        ({"a": "b", "b": "c", "c": "d", "d": "b"}, "b.yaml extends c.yaml extends d.yaml extends b.yaml"),
        ({"a": "b", "b": "./../{folder}/a"}, "a.yaml extends b.yaml extends a.yaml"),
    ],
)
def test_a_circle_is_named_whole(tmp_path, monkeypatch, files, circle):
    for name, base in files.items():
        write(tmp_path, f"{name}.yaml", f"extends: {base.format(folder=tmp_path.name)}.yaml\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExperimentError) as raised:
        read_experiment("a.yaml")
    assert str(raised.value) == f"a.yaml: extends: a circle: {circle}"


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (
            "omnimae/vit_bse",
            "extends: no experiment is named 'omnimae/vit_bse'. Did you mean 'omnimae/vit_base'?",
        ),
        ("base.yml", "extends: {folder}/base.yml: there is no such file"),
        ("[quickstart]", "extends: expected a name or a .yaml file, not ['quickstart']"),
    ],
)
def test_a_base_that_is_not_there_is_said_where_it_is_named(tmp_path, base, message):
    middle = write(tmp_path, "middle.yaml", f"extends: {base}\n")
    path = write(tmp_path, "mine.yaml", "extends: middle.yaml\n")
    with pytest.raises(ExperimentError) as raised:
        read_experiment(path)
    assert str(raised.value).startswith(f"{middle}: {message.format(folder=tmp_path)}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("quickstrat", "no experiment is named 'quickstrat'. Did you mean 'quickstart'? Known: "),
        ("omnimae", "no experiment is named 'omnimae'"),
        ("nowhere/mine.yaml", "nowhere/mine.yaml: there is no such file"),
    ],
)
def test_an_unknown_experiment_says_what_is_known(name, message):
    with pytest.raises(ExperimentError) as raised:
        read_experiment(name)
    assert message in str(raised.value)


def test_an_unknown_experiment_may_be_that_of_a_broken_plugin(monkeypatch):
    broken = [BrokenPlugin("theirs", "their-package", "RuntimeError: no licence")]
    monkeypatch.setattr(components(), "broken", broken)
    with pytest.raises(ExperimentError) as raised:
        read_experiment("theirs/best")
    assert raised.value.problems[1:] == ["plugin theirs (their-package) failed to load: RuntimeError: no licence"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {steps: 1, steps: 2}", r'not YAML: found duplicate key "steps"'),
        ("a: [1, 2", r"not YAML: .*\(line 1"),
        ("- a\n- b\n", "an experiment is a mapping"),
        ("", "an experiment is a mapping"),
        ("a: !!python/object/apply:os.system [ls]", "not YAML: could not determine a constructor"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text, message):
    path = write(tmp_path, "mine.yaml", text)
    with pytest.raises(ExperimentError, match=message) as raised:
        read_experiment(path)
    assert str(raised.value).startswith(path)


DEEP = {
    "flow": "{a: " * 2000 + "1" + "}" * 2000,
    "lists": "[" * 5000,
    "block": "\n".join(" " * k + "a:" for k in range(999)),
}


@pytest.mark.parametrize("text", DEEP.values(), ids=DEEP)
def test_what_is_nested_too_deeply_is_refused_in_one_line(tmp_path, text):
    path = write(tmp_path, "mine.yaml", text)
    with pytest.raises(ExperimentError, match=r"not YAML: nested more than 50 deep \(line \d+, column \d+\)") as raised:
        read_experiment(path)
    assert "\n" not in str(raised.value)
    if "\n" not in text:
        with pytest.raises(ExperimentError, match="nested more than 50 deep"):
            apply_overrides({}, [f"a={text}"])


def test_a_key_of_too_many_parts_is_refused():
    key = ".".join("a" * 3000)
    with pytest.raises(ExperimentError, match="nested more than 50 deep"):
        apply_overrides({}, [f"{key}=1", f"{key}=2"])


@pytest.mark.parametrize("kind", ["[{}]", "{{x: [{}]}}"])
def test_aliases_that_multiply_are_refused_in_one_line(tmp_path, kind):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{k}: &a{k} " + kind.format(", ".join([f"*a{k - 1}"] * 10)) for k in range(1, 10)]
    path = write(tmp_path, "mine.yaml", "\n".join(lines))
    with pytest.raises(ExperimentError, match=r"not YAML: more than 100000 values \(line \d+, column \d+\)") as raised:
        read_experiment(path)
    assert "\n" not in str(raised.value)


def test_aliases_that_do_not_are_read():
    assert parse_yaml("{a: &x {b: 1}, c: *x, d: {<<: *x, e: 2}}") == {
        "a": {"b": 1},
        "c": {"b": 1},
        "d": {"b": 1, "e": 2},
    }


def test_binary_files_are_refused(tmp_path):
    (tmp_path / "mine.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ExperimentError, match="not YAML"):
        read_experiment(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001), ("1.6e-3", 0.0016), ("500_000", 500000), ("0.05", 0.05), ("-3", -3), ("true", True),
        ("null", None), ("off", "off"), ("no", "no"), ("on", "on"), ("12:30", "12:30"), ("[1, 2]", [1, 2]),
        ("{name: tube}", {"name": "tube"}), ("'3'", "3"), ("2026-01-31", "2026-01-31"), ("0x1F", 31),
    ],
)  # fmt: skip
def test_values_are_yaml_1_2(text, value):
    found = parse_yaml(text)
    assert found == value
    assert type(found) is type(value)
    assert apply_overrides({}, [f"a.b={text}"]) == {"a": {"b": value}}


def test_overrides_set_dotted_keys_in_order():
    data = {"training": {"steps": 5, "seed": 1}}
    assert apply_overrides(data, ["training.steps=7", "training.steps=8", "data.workers=0"]) == {
        "training": {"steps": 8, "seed": 1},
        "data": {"workers": 0},
    }
    assert data == {"training": {"steps": 5, "seed": 1}}


def test_an_override_of_nothing_is_an_empty_text():
    assert apply_overrides({"description": "x"}, ["description="]) == {"description": ""}


def test_an_override_value_may_hold_an_equals_sign():
    assert apply_overrides({}, ["source.path=s3://a/b=c"]) == {"source": {"path": "s3://a/b=c"}}


@pytest.mark.parametrize("text", ["!!set {a, b}", "!!binary aGVsbG8=", "? [1, 2]\n: 3", "&x [*x]", "!mine 3"])
def test_only_plain_data_is_read(text):
    with pytest.raises(ExperimentError, match="not YAML: "):
        apply_overrides({}, [f"a={text}"])


def test_overrides_that_cannot_be_read_are_all_named():
    with pytest.raises(ExperimentError) as raised:
        apply_overrides({}, ["training.steps", "a..b=1", "=1", "a=[1", "fine=1"])
    assert raised.value.problems[:3] == [
        "'training.steps' is not `key.path=value`",
        "'a..b=1' is not `key.path=value`",
        "'=1' is not `key.path=value`",
    ]
    assert raised.value.problems[3].startswith("a: '[1' is not YAML: ")
    assert len(raised.value.problems) == 4


def test_another_name_drops_the_old_components_settings():
    masker = {"name": "random", "mask_ratio": 0.9, "round_down": "visible"}
    assert merge({"masker": masker}, {"masker": {"name": "tube"}}) == {"masker": {"name": "tube"}}
    assert merge({"masker": masker}, {"masker": {"name": "random", "mask_ratio": 0.5}}) == {
        "masker": {"name": "random", "mask_ratio": 0.5, "round_down": "visible"}
    }
    assert merge({"masker": masker}, {"masker": {"mask_ratio": 0.5}})["masker"]["name"] == "random"


def test_another_name_by_override_drops_the_old_components_settings():
    data = {"masker": {"name": "random", "round_down": "visible"}}
    assert apply_overrides(data, ["masker.name=tube", "masker.mask_ratio=0.5"]) == {
        "masker": {"name": "tube", "mask_ratio": 0.5}
    }


def test_a_bare_name_stands_for_a_block():
    data = {"masker": {"name": "random", "mask_ratio": 0.9}}
    assert apply_overrides(data, ["masker=tube"]) == {"masker": {"name": "tube"}}
    assert apply_overrides(data, ["masker=random"]) == data  # the same component keeps its settings
    assert apply_overrides(data, ["masker=tube", "masker.mask_ratio=0.5"]) == {
        "masker": {"name": "tube", "mask_ratio": 0.5}
    }


def test_merging_leaves_what_it_merges_alone():
    base, change = {"a": {"b": 1}}, {"a": {"c": 2}}
    assert merge(base, change) == {"a": {"b": 1, "c": 2}}
    assert (base, change) == ({"a": {"b": 1}}, {"a": {"c": 2}})


def test_what_is_dumped_reads_back():
    data = {"a": None, "b": [1, 2], "c": {"d": "off", "e": 1e-6, "f": True, "g": "3", "h": ""}, "i": [[0, 1], ["x"]]}
    text = dump_yaml(data)
    assert "b: [1, 2]" in text
    assert parse_yaml(text) == data
