"""An experiment as plain data: finding its file, `extends`, dotted overrides. Knows no keys."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, Event, NodeEvent

from mmmask.experiment.errors import ExperimentError
from mmmask_registry import did_you_mean

MAX_DEPTH = 50
MAX_VALUES = 100_000


def shipped_experiments() -> dict[str, Path]:
    """{name: file} of the experiments that come with mmmask, such as `omnimae/vit_base`."""
    package = Path(__file__).parents[1]
    # a wheel holds them inside the package, a checkout beside it
    folder = next(f for f in (package / "configs", package.parent / "configs") if f.is_dir())
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}


def read_experiment(name_or_path: str) -> dict[str, Any]:
    """The data of a shipped experiment or a YAML file, with `extends` applied, nothing validated yet.

    Raises:
        ExperimentError: no such experiment, or not YAML.
    """
    path = _find(name_or_path)
    data = _load(path)
    if (base := data.pop("extends", None)) is not None:
        base_data = _load(_find(str(base), beside=path))
        if "extends" in base_data:
            raise ExperimentError(
                [f"extends: {base} itself extends {base_data['extends']}; only one level is allowed"], name_or_path
            )
        data = merge(base_data, data)
    return data


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
    value = yaml.load(text)
    try:
        json.dumps(value)
    except (TypeError, ValueError) as error:  # lists as keys, an alias inside itself
        raise YAMLError(f"not plain data: {error}") from error
    return value


class _PlainConstructor(SafeConstructor):
    """Mappings, lists, texts, numbers, booleans and null; no dates, sets or bytes."""


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
    yaml.representer.add_representer(type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null"))
    out = io.StringIO()
    yaml.dump(_flow_lists(data), out)
    return out.getvalue()


def _flow_lists(data: object) -> object:
    from ruamel.yaml.comments import CommentedSeq

    if isinstance(data, dict):
        return {key: _flow_lists(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        sequence = CommentedSeq([_flow_lists(value) for value in data])
        sequence.fa.set_flow_style()
        return sequence
    return data


def _find(name_or_path: str, beside: Path | None = None) -> Path:
    shipped = shipped_experiments()
    candidate = Path(name_or_path)
    if candidate.suffix in (".yaml", ".yml"):
        for path in (candidate, *([beside.parent / candidate] if beside else [])):
            if path.is_file():
                return path
        raise ExperimentError(["there is no such file"], name_or_path)
    if name_or_path in shipped:
        return shipped[name_or_path]
    raise ExperimentError(
        [
            f"no experiment is named {name_or_path!r}.{did_you_mean(name_or_path, shipped)} "
            f"Known: {', '.join(shipped)}; or give the path of a .yaml file"
        ]
    )


def _load(path: Path) -> dict[str, Any]:
    try:
        data = parse_yaml(path.read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError) as error:
        raise ExperimentError([f"not YAML: {_first_line(error)}"], str(path)) from error
    if not isinstance(data, dict):
        raise ExperimentError(["an experiment is a mapping with the keys `model`, `streams`, ..."], str(path))
    return data


def _first_line(error: Exception) -> str:
    if isinstance(error, MarkedYAMLError):
        mark = error.problem_mark
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        return f"{error.problem or error.context}{where}"
    return str(error).splitlines()[0]
