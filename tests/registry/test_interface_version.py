"""A plugin says which interface it was written for; one that is too new is refused, clearly, and nothing else is."""

import importlib.metadata
import subprocess
import sys
import types

import pytest

import mmmask
from mmmask.components import Components
from mmmask.interfaces import VERSION
from mmmask_registry import MmmaskError

TOO_NEW = f"written for interface version {VERSION + 1}, this mmmask has {VERSION}: upgrade mmmask"
PLUGIN = """
import mmmask
from mmmask.interfaces import Masker

class Mine(Masker):
    "Masks nothing."
    def scores(self, context): ...
    def num_masked(self, grid, step): return 0

@mmmask.hookimpl
def register_components(register):
    register("masker", "of_NAME", Mine)
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)

    def write(name, more=""):
        (tmp_path / f"{name}.py").write_text(PLUGIN.replace("NAME", name) + more)
        return importlib.metadata.EntryPoint(name, name, "mmmask")

    return write


def test_the_version_is_a_number_that_costs_nothing():
    assert mmmask.interfaces.VERSION == VERSION == 2
    code = "import sys, mmmask.components as c; assert c.INTERFACE_VERSION == 2; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("version", range(1, VERSION + 1))
def test_a_plugin_of_this_version_or_an_older_one_works(plugin, version):
    found = Components([plugin(f"plugin_of_version_{version}", f"MMMASK_INTERFACE = {version}")])
    assert found.broken == []
    assert f"of_plugin_of_version_{version}" in found.registry("masker")


def test_a_plugin_that_is_too_new_is_named_and_the_others_work(plugin):
    newer = plugin("plugin_too_new", f"MMMASK_INTERFACE = {VERSION + 1}")
    found = Components([newer, plugin("plugin_without_version")])
    (broken,) = found.broken
    assert broken.name == "plugin_too_new"
    assert TOO_NEW in broken.reason
    assert "of_plugin_too_new" not in found.registry("masker")
    assert {"of_plugin_without_version", "random"} <= {entry.name for entry in found.registry("masker")}
    with pytest.raises(MmmaskError, match="upgrade mmmask"):
        found.get("masker", "of_plugin_too_new")


def test_its_version_is_told_before_hooks_that_are_newer_too(plugin):
    hook = "\n@mmmask.hookimpl\ndef a_hook_of_tomorrow(run): ..."
    found = Components([plugin("plugin_of_tomorrow", f"MMMASK_INTERFACE = {VERSION + 1}{hook}")])
    assert TOO_NEW in found.broken[0].reason


def test_a_version_that_is_none_is_refused(plugin):
    found = Components([plugin("plugin_of_no_version", "MMMASK_INTERFACE = 'two'")])
    assert "MMMASK_INTERFACE is a whole number from 1, not 'two'" in found.broken[0].reason


def test_a_plugin_file_that_is_too_new_is_refused_with_its_path(plugin, tmp_path):
    plugin("a_file", f"MMMASK_INTERFACE = {VERSION + 1}")
    path = str(tmp_path / "a_file.py")
    found = Components([])
    with pytest.raises(MmmaskError) as raised:
        found.add_plugin_file(path)
    assert str(raised.value) == f"--plugin {path}: {TOO_NEW}"
    assert "of_a_file" not in found.registry("masker")
    assert not found.manager.has_plugin(path)


def test_an_object_that_listens_to_a_run_may_name_its_version_too():
    listener = types.SimpleNamespace(MMMASK_INTERFACE=VERSION + 1)
    with pytest.raises(MmmaskError, match="upgrade mmmask"):
        Components([]).manager.register(listener)
