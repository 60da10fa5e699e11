"""Plugins: installed ones, a file, a notebook; a broken one is that plugin's problem only."""

import importlib.metadata
import textwrap

import pytest

import mmmask
from mmmask.components import INTERFACES, Components, components
from mmmask.interfaces import Masker
from mmmask_registry import BrokenComponent, DuplicateName, MmmaskError, UnknownName

HEAD = """
    import mmmask
    from mmmask.interfaces import Masker

    class Mine(Masker):
        "Masks nothing."
        def scores(self, context): ...
        def num_masked(self, grid, step): return 0
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Writes a module and gives an entry point of it, as an installed distribution would."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name, body):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(HEAD) + textwrap.dedent(body))
        return importlib.metadata.EntryPoint(name, name, "mmmask")

    return write


def registering(*calls):
    lines = "\n".join(f"    {call}" for call in calls)
    return f"@mmmask.hookimpl\ndef register_components(register):\n{lines}\n"


def test_a_plugin_supplies_its_names(plugin):
    point = plugin("plugin_good", registering("register('masker', 'mine', Mine, 'masks nothing')"))
    found = Components([point])
    assert found.broken == []
    entry = found.registry("masker").entry("mine")
    assert (entry.supplier, entry.description) == ("plugin_good", "masks nothing")
    assert found.get("masker", "mine").__name__ == "Mine"
    assert "random" in found.registry("masker")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise RuntimeError('no licence')", "RuntimeError: no licence"),
        ("import sys; sys.exit('no licence')", "SystemExit: no licence"),
        ("raise RuntimeError('of two\\nlines')", "RuntimeError: of two lines"),
        ("import a_package_nobody_has", "ModuleNotFoundError: No module named 'a_package_nobody_has'"),
        ("def (", "SyntaxError"),
        ("@mmmask.hookimpl\ndef register_componets(register): ...", "unknown hook 'register_componets'"),
        ("@mmmask.hookimpl\ndef register_components(registers): ...", "registers"),
        (registering("1 / 0"), "ZeroDivisionError"),
        (registering("register('maskr', 'mine', Mine, '')"), "no kind of component is named 'maskr'. Did you mean"),
        (registering("register('masker', 'mine', 'no.colon', '')"), "expected a class or `package.module:Class`"),
        (registering("register('masker', 3, Mine)"), "masker 3 of "),
        (registering("register('masker', 'a\\nb', Mine)"), "expected a name, not 'a\\nb'"),
        (registering("register('masker', 'mine', Mine, None)"), "expected a line of description, not None"),
        (registering("register('masker', 'mine', object())"), "masker 'mine' of "),
        (registering("register('masker', 'mine', mmmask.Masker)"), "Masker is abstract, it lacks num_masked, scores"),
        (registering("register('loss', 'mine', Mine)"), "Mine is not a subclass of Loss"),
        (registering("register('masker', 'fine', Mine)", "register('masker', 'random', Mine)"), "'random' is supplied"),
        (registering("register('masker', 'fine', Mine)", "register('masker', 'fine', Mine)"), "supplies it again"),
    ],
)
def test_one_broken_plugin_is_reported_and_the_others_work(plugin, body, reason):
    name = f"plugin_{abs(hash(body))}"
    good = plugin("plugin_zz_good", registering("register('masker', 'mine', Mine)"))
    found = Components([plugin(name, body), good])
    (broken,) = found.broken
    assert (broken.name, broken.supplier) == (name, name)
    assert reason in broken.reason
    # none of its names was taken, built-in ones and those of others are there
    assert [entry.name for entry in found.registry("masker") if entry.supplier != "mmmask"] == ["mine"]
    assert found.get("masker", "random").__module__ == "mmmask.builtins.maskers.random"
    assert not found.manager.has_plugin(f"{name}:{name}")


def test_a_broken_plugin_is_named_where_one_of_its_names_may_be_missing(plugin):
    found = Components([plugin("plugin_raises", "raise RuntimeError('no licence')")])
    with pytest.raises(UnknownName) as raised:
        found.get("masker", "theirs")
    assert str(raised.value).startswith("no masker is named 'theirs'. Known: ")
    failed = "\nplugin plugin_raises (plugin_raises) failed to load: RuntimeError: no licence"
    assert str(raised.value).endswith(failed)


def test_of_two_plugins_that_claim_one_name_the_second_is_refused_whole(plugin):
    first = plugin("plugin_a", registering("register('masker', 'mine', Mine)"))
    second = plugin("plugin_b", registering("register('masker', 'other', Mine)", "register('masker', 'mine', Mine)"))
    found = Components([second, first])  # sorted by name, so that the outcome does not depend on the order
    (broken,) = found.broken
    assert broken.name == "plugin_b"
    assert "the masker 'mine' is supplied by plugin_a already, and plugin_b supplies it again" in broken.reason
    assert "other" not in found.registry("masker")


def test_a_class_that_is_imported_late_is_checked_when_it_is_used(plugin):
    found = Components([plugin("plugin_wrong", registering("register('loss', 'mine', 'plugin_wrong:Mine')"))])
    assert found.broken == []
    with pytest.raises(BrokenComponent, match="is not a subclass of Loss"):
        found.get("loss", "mine")


def test_a_module_that_two_entry_points_lead_to_is_one_plugin(plugin):
    point = plugin("plugin_once", registering("register('masker', 'mine', Mine)"))
    found = Components([point, importlib.metadata.EntryPoint("again", point.value, "mmmask")])
    assert found.broken == []
    assert found.get("masker", "mine")


def test_an_unknown_kind_is_named():
    with pytest.raises(UnknownName, match="no kind of component is named 'maskers'. Did you mean 'masker'"):
        Components([]).get("maskers", "random")


def test_the_installed_plugins_all_load():
    found = components()
    assert found.broken == []
    assert {entry.name for entry in found.registry("modality")} >= {"image", "video"}


@pytest.mark.parametrize("kind", INTERFACES)
def test_every_kind_has_a_component_and_every_component_keeps_its_interface(kind):
    names = [entry.name for entry in components().registry(kind)]
    assert names
    for name in names:
        assert components().get(kind, name)


def write_file(tmp_path, body, name="my_plugin.py"):
    path = tmp_path / name
    path.write_text(textwrap.dedent(HEAD) + textwrap.dedent(body))
    return str(path)


def test_a_plugin_file_supplies_its_names_under_its_path(tmp_path):
    path = write_file(tmp_path, registering("register('masker', 'mine', Mine)"))
    found = Components([])
    found.add_plugin_file(path)
    assert found.registry("masker").entry("mine").supplier == path
    assert found.registry("masker").entry("mine").description == "Masks nothing."


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def (", "SyntaxError"),
        ("@mmmask.hookimpl\ndef step_endet(run): ...", "unknown hook 'step_endet'"),
        (registering("register('masker', 'random', Mine)"), "the masker 'random' is supplied by mmmask already"),
        (registering("register('maskr', 'mine', Mine)"), "no kind of component is named 'maskr'"),
        (registering("register('masker', 'good', Mine)", "1 / 0"), "ZeroDivisionError"),
        (registering("register('masker', 'good', Mine)", "register('masker', 'bad', 'no.colon')"), "no.colon"),
    ],
)
def test_a_plugin_file_that_cannot_be_used_says_why_and_takes_no_name(tmp_path, body, reason):
    path = write_file(tmp_path, body)
    found = Components([])
    with pytest.raises(MmmaskError) as raised:
        found.add_plugin_file(path)
    assert reason in str(raised.value)
    assert path in str(raised.value)
    assert {entry.supplier for entry in found.registry("masker")} == {"mmmask"}
    assert not found.manager.has_plugin(path)


def test_the_same_plugin_file_twice_is_one_plugin(tmp_path):
    path = write_file(tmp_path, registering("register('masker', 'mine', Mine)"))
    found = Components([])
    module = found.add_plugin_file(path)
    assert found.add_plugin_file(f"{tmp_path}/../{tmp_path.name}/my_plugin.py") is module
    assert found.plugin_files == [path]
    assert found.get("masker", "mine")
    assert found.manager.has_plugin(path)


def test_a_plugin_file_must_exist_and_be_python(tmp_path):
    with pytest.raises(MmmaskError, match="--plugin missing.py: there is no such file"):
        Components([]).add_plugin_file("missing.py")
    (tmp_path / "plugin.txt").write_text("")
    with pytest.raises(MmmaskError, match="not a Python file"):
        Components([]).add_plugin_file(str(tmp_path / "plugin.txt"))
    with pytest.raises(MmmaskError, match="there is no such file"):
        Components([]).add_plugin_file(str(tmp_path))


class Notebook(Masker):
    """One line."""

    def scores(self, context): ...
    def num_masked(self, grid, step): ...


@pytest.fixture
def session_name():
    yield "of_a_notebook"
    if "of_a_notebook" in components().registry("masker"):
        components().registry("masker").unregister("of_a_notebook")


def test_a_notebooks_cell_can_be_run_twice(session_name):
    mmmask.register("masker", session_name, Notebook)

    class Again(Notebook):
        pass

    mmmask.register("masker", session_name, Again, "better")
    assert components().get("masker", session_name) is Again
    entry = components().registry("masker").entry(session_name)
    assert (entry.supplier, entry.description) == ("this session", "better")


def test_a_notebook_never_replaces_a_plugins_component():
    with pytest.raises(DuplicateName, match="'random' is supplied by mmmask already, and this session supplies it"):
        mmmask.register("masker", "random", Notebook)
    with pytest.raises(UnknownName, match="Did you mean 'masker'"):
        mmmask.register("maskr", "mine", Notebook)


def test_a_registered_class_can_be_chosen_in_an_experiment(session_name, signals):
    from mmmask.experiment import experiment_from_data

    mmmask.register("masker", session_name, Notebook)
    data = signals.signal_data()
    data["streams"]["long"]["masker"] = session_name
    assert experiment_from_data(data).streams["long"].masker.name == session_name


def test_nobody_takes_a_name_of_ours_by_the_alphabet(plugin):
    """The first of two that register a name keeps it, and mmmask's own plugins come first."""
    early = plugin("aardvark", registering("register('modality', 'image', Mine, 'another')"))
    ours = [point for point in importlib.metadata.entry_points(group="mmmask") if point.name == "image"]
    found = Components([early, *ours])
    assert found.registry("modality").entry("image").supplier == "mmmask"
    (broken,) = found.broken
    assert broken.name == "aardvark"
    assert not broken.reason.startswith("DuplicateName")
