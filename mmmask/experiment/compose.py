"""An experiment as plain data: finding its file, `extends`, dotted overrides. Knows no keys."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, Event, NodeEvent
from ruamel.yaml.nodes import Node, ScalarNode

from mmmask.components import components
from mmmask.experiment.errors import ExperimentError
from mmmask_registry import did_you_mean

MAX_DEPTH = 50
MAX_VALUES = 100_000
MAX_DIGITS = 18  # what fits into 64 bits


@dataclass(frozen=True)
class PublishedExperiment:
    """YAML file of an experiment that is known by name, and the distribution or plugin file that it comes with."""

    path: Path
    supplier: str


def published_experiments(report: Callable[[str], None] = lambda problem: None) -> dict[str, PublishedExperiment]:
    """{name: experiment} of mmmask and of all plugins, mmmask's own first.

    Args:
        report: takes a line for every plugin that fails, every file that is not there, and every name that is taken
            already; who was first keeps it, and all other experiments stay.
    """
    found: dict[str, PublishedExperiment] = {}

    def publish(supplier: str, name: str, path: str | Path) -> None:
        left_out = f"the experiment {name!r} of {supplier} is left out: "
        if not isinstance(name, str):
            report(f"{left_out}expected a name")
        elif name in found:
            report(f"{left_out}{found[name].supplier} has one of this name")
        elif not isinstance(path, str | Path) or not Path(path).is_file():
            report(f"{left_out}there is no file {path}")
        else:
            found[name] = PublishedExperiment(Path(path), supplier)

    components().ask_every_plugin("publish_experiments", publish, report)
    return found


def read_experiment(name_or_path: str) -> dict[str, Any]:
    """The data of an experiment, known by name or in a YAML file, with `extends` applied, nothing validated yet.

    Raises:
        ExperimentError: no such experiment, not YAML, or it extends itself.
    """
    path, name = _find(name_or_path), name_or_path
    levels: dict[Path, tuple[str, dict[str, Any]]] = {}  # {file: its name, its own data}, from the top down
    while True:
        data = _load(path)
        base = data.pop("extends", None)
        levels[path.resolve()] = name, data
        if base is None:
            break
        if not isinstance(base, str):
            raise ExperimentError([f"extends: expected a name or a .yaml file, not {base!r}"], str(path))
        path, name = _find(base, said_in=path), base
        if path.resolve() in levels:
            circle = [name for name, _ in levels.values()][list(levels).index(path.resolve()) :]
            raise ExperimentError([f"extends: a circle: {' extends '.join([*circle, circle[0]])}"], name_or_path)
    return reduce(merge, [data for _, data in reversed(levels.values())])


def apply_overrides(data: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Sets dotted keys, in order: `dotted.key=value`, the value read as YAML.

    Raises:
        ExperimentError: all that cannot be read, at once.
    """
    problems = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not all(key.split(".")):
            problems.append(f"{override!r} is not `key.path=value`")
            continue
        if key.count(".") >= MAX_DEPTH:
            problems.append(f"{key[:40]}...: nested more than {MAX_DEPTH} deep")
            continue
        try:
            value = parse_yaml(text) if text else ""
        except YAMLError as error:
            problems.append(f"{key}: {text!r} is not YAML: {_first_line(error)}")
            continue
        first, *rest = key.split(".")
        for part in reversed(rest):
            value = {part: value}
        data = merge(data, {first: value})
    if problems:
        raise ExperimentError(problems, "override")
    return data


def merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """`change` laid over `base`, mapping by mapping.

    Where `change` gives a block another `name`, the old component's settings are dropped with it.
    """
    if "name" in change and "name" in base and base["name"] != change["name"]:
        return change
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        # `masker: tube` is short for `masker: {name: tube}`
        if isinstance(old, str) and isinstance(value, dict) and "name" not in value:
            old = {"name": old}
        if isinstance(value, str) and isinstance(old, dict) and "name" in old:
            value = {"name": value}
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def parse_yaml(text: str) -> Any:  # noqa: ANN401 - any YAML value
    """Reads YAML 1.2: `1e-3` is a number, `off` and `2026-01-31` words, a duplicate key an error.

    Raises:
        ruamel.yaml.error.YAMLError: it is not YAML, or says more than plain data can.
    """
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _PlainConstructor
    _check_extent(yaml.parse(text))
    try:
        value = yaml.load(text)
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise YAMLError(f"not plain data: half a character, {error.object[error.start]!a}") from error
    except (TypeError, ValueError) as error:  # an alias inside itself
        raise YAMLError(f"not plain data: {error}") from error
    return value


class _PlainConstructor(SafeConstructor):
    """Mappings of texts, lists, texts, numbers, booleans and null; no dates, sets or bytes."""

    def check_mapping_key(self, node: Node, key_node: Node, mapping: Any, key: Any, value: Any) -> bool:  # noqa: ANN401
        if not isinstance(key, str):
            given = key_node.value if isinstance(key_node, ScalarNode) else "a list or mapping"
            problem = f"a key is a text, not {given}; a text in quotes may be anything"
            raise MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
        return super().check_mapping_key(node, key_node, mapping, key, value)

    def construct_object(self, node: Node, deep: bool = False) -> Any:  # noqa: ANN401
        try:
            return super().construct_object(node, deep)
        except YAMLError:
            raise
        except Exception as error:  # of `!!float` without a number and the like, ruamel's own
            raise MarkedYAMLError(problem=f"no value of the kind {node.tag}", problem_mark=node.start_mark) from error

    def construct_yaml_int(self, node: ScalarNode) -> int:
        if len(node.value) > MAX_DIGITS:
            problem = f"a whole number of more than {MAX_DIGITS} digits"
            raise MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return super().construct_yaml_int(node)


_PlainConstructor.add_constructor("tag:yaml.org,2002:int", _PlainConstructor.construct_yaml_int)
_PlainConstructor.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)
for _tag in ("binary", "set", "omap", "pairs"):
    _PlainConstructor.yaml_constructors.pop(f"tag:yaml.org,2002:{_tag}", None)


def _check_extent(events: Iterator[Event]) -> None:
    """Refuses what no experiment needs and would take all stack or memory: deep nesting, aliases that multiply.

    Raises:
        YAMLError: it is nested too deeply, or holds too many values with its aliases written out.
    """
    extents: dict[str, int] = {}  # of what has an anchor, aliases written out
    opened: list[tuple[str | None, int]] = []  # anchor, and values before it
    values = 0
    for event in events:
        if isinstance(event, AliasEvent):
            values += extents.get(event.anchor, 1)
        elif isinstance(event, NodeEvent):
            values += 1
            if isinstance(event, CollectionStartEvent):
                opened.append((event.anchor, values - 1))
            elif event.anchor:
                extents[event.anchor] = 1
        elif isinstance(event, CollectionEndEvent):
            anchor, before = opened.pop()
            if anchor:
                extents[anchor] = values - before
        if len(opened) > MAX_DEPTH:
            raise MarkedYAMLError(problem=f"nested more than {MAX_DEPTH} deep", problem_mark=event.start_mark)
        if values > MAX_VALUES:
            raise MarkedYAMLError(problem=f"more than {MAX_VALUES} values", problem_mark=event.start_mark)


def dump_yaml(data: object) -> str:
    """Readable YAML with short lists on one line."""
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 120
    represent = yaml.representer.add_representer
    represent(type(None), lambda to, _: to.represent_scalar("tag:yaml.org,2002:null", "null"))
    for sequence in (list, tuple):
        represent(sequence, lambda to, data: to.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True))
    out = io.StringIO()
    yaml.dump(data, out)
    return out.getvalue()


def _find(name_or_path: str, said_in: Path | None = None) -> Path:
    """The file of an experiment; what a file extends lies beside it, unless it is known by name.

    Raises:
        ExperimentError: there is none.
    """
    where, key = (str(said_in), "extends: ") if said_in else ("", "")
    path = said_in.parent / name_or_path if said_in else Path(name_or_path)
    if name_or_path.endswith((".yaml", ".yml")):
        if os.path.exists(path):
            return path
        raise ExperimentError([f"{key}{path}: there is no such file"], where)
    problems = [str(plugin) for plugin in components().broken]
    known = published_experiments(problems.append)
    if name_or_path in known:
        return known[name_or_path].path
    if os.path.exists(path):  # of whatever ending
        return path
    unknown = (
        f"{key}no experiment is named {name_or_path!r}.{did_you_mean(name_or_path, known)} "
        f"Known: {', '.join(known)}; or give the path of a .yaml file"
    )
    raise ExperimentError([unknown, *problems], where)


def _load(path: Path) -> dict[str, Any]:
    try:
        data = parse_yaml(path.read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError) as error:
        raise ExperimentError([f"not YAML: {_first_line(error)}"], str(path)) from error
    except OSError as error:
        raise ExperimentError([f"cannot be read: {error.strerror}"], str(path)) from error
    if not isinstance(data, dict):
        raise ExperimentError(["an experiment is a mapping with the keys `model`, `streams`, ..."], str(path))
    return data


def _first_line(error: Exception) -> str:
    if isinstance(error, MarkedYAMLError):
        mark = error.problem_mark
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        return f"{error.problem or error.context}{where}"
    return str(error).splitlines()[0]
