"""Names -> classes: what is found, what is refused, and what the messages say."""

import json
import subprocess
import sys

import pytest

from mmmask_registry import BrokenComponent, DuplicateName, MmmaskError, Registry, UnknownName, did_you_mean


class Animal:
    pass


class Cat(Animal):
    """Purrs.

    And more.
    """


class Stone:
    pass


@pytest.fixture
def animals():
    registry = Registry("animal", Animal)
    registry.register("cat", Cat, supplier="house")
    registry.register("tiger", f"{__name__}:Cat", supplier="zoo", description="large")
    return registry


def test_a_registered_class_is_found_by_its_name(animals):
    assert animals.get("cat") is Cat
    assert "cat" in animals
    assert "dog" not in animals
    assert len(animals) == 2


def test_entries_come_sorted_with_supplier_and_description(animals):
    animals.register("ant", Cat, supplier="garden")
    found = [(e.name, e.supplier, e.description) for e in animals]
    assert found == [("ant", "garden", "Purrs."), ("cat", "house", "Purrs."), ("tiger", "zoo", "large")]


def test_an_unknown_name_lists_the_known_ones_and_the_closest(animals):
    with pytest.raises(UnknownName) as raised:
        animals.get("tigr")
    assert str(raised.value) == "no animal is named 'tigr'. Did you mean 'tiger'? Known: cat, tiger."
    assert (raised.value.kind, raised.value.name, raised.value.known) == ("animal", "tigr", ["cat", "tiger"])
    assert isinstance(raised.value, MmmaskError)
    assert isinstance(raised.value, LookupError)


def test_nothing_is_suggested_where_nothing_is_close(animals):
    with pytest.raises(UnknownName, match=r"no animal is named 'xylophone'\. Known: cat, tiger\.$"):
        animals.get("xylophone")


def test_an_empty_registry_says_so():
    with pytest.raises(UnknownName, match="Known: none"):
        Registry("animal", Animal).get("cat")


@pytest.mark.parametrize(
    ("name", "suggestion"), [("tubee", " Did you mean 'tube'?"), ("tube", " Did you mean 'tube'?"), ("qqq", "")]
)
def test_did_you_mean(name, suggestion):
    assert did_you_mean(name, ["tube", "random"]) == suggestion


def test_a_duplicate_says_who_has_the_name_and_who_wants_it(animals):
    with pytest.raises(DuplicateName) as raised:
        animals.register("cat", Cat, supplier="circus")
    assert str(raised.value) == (
        "the animal 'cat' is supplied by house already, and circus supplies it again: rename or uninstall one of them."
    )
    assert (raised.value.first, raised.value.second) == ("house", "circus")
    assert animals.entry("cat").supplier == "house"


def test_even_its_own_supplier_cannot_register_a_name_twice_by_accident(animals):
    with pytest.raises(DuplicateName):
        animals.register("cat", Cat, supplier="house")


def test_a_supplier_may_replace_its_own_name_and_no_one_elses(animals):
    class Other(Animal):
        pass

    animals.register("cat", Other, supplier="house", replace=True)
    assert animals.get("cat") is Other
    with pytest.raises(DuplicateName):
        animals.register("cat", Cat, supplier="circus", replace=True)
    assert animals.get("cat") is Other


def test_unregister_forgets(animals):
    animals.unregister("cat")
    assert "cat" not in animals
    with pytest.raises(UnknownName):
        animals.unregister("cat")


@pytest.mark.parametrize(
    ("name", "target", "problem"),
    [
        ("", Cat, "expected a name"),
        (" ", Cat, "expected a name"),
        (3, Cat, "expected a name"),
        ("cow", "package.module.Class", "expected a class or `package.module:Class`"),
        ("cow", Cat(), "expected a class, not an object of Cat"),
        ("cow", Stone, "Stone is not a subclass of Animal"),
    ],
)
def test_a_name_and_a_class_or_its_import_path_are_needed(animals, name, target, problem):
    with pytest.raises(BrokenComponent, match=f"animal {name!r} of house: {problem}"):
        animals.register(name, target, supplier="house")


def test_a_target_is_imported_only_when_it_is_asked_for(tmp_path, monkeypatch):
    (tmp_path / "lazy_animals.py").write_text("class Wolf:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry("animal", "lazy_animals:Wolf")
    registry.register("wolf", "lazy_animals:Wolf", supplier="wood", description="howls")
    assert registry.entry("wolf").description == "howls"
    assert [entry.name for entry in registry] == ["wolf"]
    assert "lazy_animals" not in sys.modules
    assert registry.get("wolf").__name__ == "Wolf"
    assert sys.modules.pop("lazy_animals")


def test_a_module_that_cannot_be_imported_is_named_with_supplier_and_reason(tmp_path, monkeypatch, animals):
    (tmp_path / "broken_animals.py").write_text("raise RuntimeError('no food')\n")
    monkeypatch.syspath_prepend(tmp_path)
    animals.register("wolf", "broken_animals:Wolf", supplier="wood")
    with pytest.raises(BrokenComponent) as raised:
        animals.get("wolf")
    assert str(raised.value) == "animal 'wolf' of wood: importing broken_animals:Wolf failed: RuntimeError: no food"
    assert isinstance(raised.value.__cause__, RuntimeError)


@pytest.mark.parametrize(
    ("target", "reason"),
    [("no_such_module:Wolf", "ModuleNotFoundError"), ("json:Wolf", "AttributeError"), ("json:", "AttributeError")],
)
def test_what_does_not_exist_is_a_broken_component(animals, target, reason):
    animals.register("wolf", target, supplier="wood")
    with pytest.raises(BrokenComponent, match=reason):
        animals.get("wolf")


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("json:JSONDecoder", "JSONDecoder is not a subclass of Animal"),
        ("json:loads", "expected a class, not an object of function"),
        ("json:decoder", "expected a class, not an object of module"),
    ],
)
def test_what_is_no_subclass_is_refused(animals, target, problem):
    animals.register("stone", target, supplier="quarry")
    with pytest.raises(BrokenComponent, match=f"animal 'stone' of quarry: {problem}"):
        animals.get("stone")


def test_importing_the_registry_imports_neither_torch_nor_mmmask():
    code = "import sys, json, mmmask_registry; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(json.loads(done.stdout))
    assert "mmmask_registry.discovery" in modules
    assert not modules & {"torch", "mmmask", "numpy", "pydantic"}


def test_importing_mmmask_does_not_import_torch():
    code = "import sys, mmmask; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
