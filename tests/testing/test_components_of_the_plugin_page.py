"""The components of docs/plugins.md are what plugins are copied from: they keep every promise."""

import re
import sys
import types
from pathlib import Path

import pytest

from mmmask import testing
from mmmask.components import components

PAGE = Path(__file__).parents[2] / "docs" / "plugins.md"
EXAMINED = [
    ("masker", "checkerboard", {}),
    ("masker", "checkerboard", {"keep_one_in": 4}),
    ("modality", "stereo", {}),
    ("source", "sines", {}),
    ("positions", "learned_table", {}),
    ("encoder", "one_layer", {"positions": "learned_table"}),
    ("encoder", "one_layer", {"positions": "flat_sinusoid"}),
    ("decoder", "looking", {"positions": "learned_table"}),
    ("loss", "log_cosh", {}),
]
CASES = [
    pytest.param(kind, name, settings, check, id=f"{name}-{number}-{check}")
    for number, (kind, name, settings) in enumerate(EXAMINED)
    for check in testing.checks(kind)
]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Registers what the page registers, and takes it away again."""
    folder, found = tmp_path_factory.mktemp("page"), components()
    before = {(kind, entry.name) for kind, registry in found.registries.items() for entry in registry}
    plugins = found.manager.get_plugins()
    module = types.ModuleType("components_of_the_plugin_page")
    sys.modules[module.__name__] = module  # its classes can be pickled
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    for number, code in enumerate(blocks):
        named = re.match(r"# (\w+\.py)\n", code)
        path = folder / (named[1] if named else f"block_{number}.py")
        path.write_text(code, encoding="utf-8")  # torch.compile reads it again
        if named:
            found.add_plugin_file(str(path))
        elif "mmmask.register(" in code:
            exec(compile(code, str(path), "exec"), vars(module))
    yield
    for kind, registry in found.registries.items():
        for name in [entry.name for entry in registry if (kind, entry.name) not in before]:
            registry.unregister(name)
    for plugin in found.manager.get_plugins() - plugins:
        found.manager.unregister(plugin)
    del sys.modules[module.__name__]


@pytest.mark.usefixtures("page")
@pytest.mark.parametrize(("kind", "name", "settings", "check"), CASES)
def test_it_keeps_its_promises(kind, name, settings, check):
    try:
        check(name, **settings)
    except testing.NotApplicable as reason:
        pytest.skip(str(reason))
