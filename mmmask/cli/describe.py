"""`mmmask describe KIND NAME`."""

from __future__ import annotations

import argparse
import inspect
import json
import typing

from mmmask.cli.arguments import add_plugin
from mmmask.components import components
from mmmask.interop.published import published
from mmmask_registry import MmmaskError, UnknownName, did_you_mean


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """KIND NAME."""
    parser.add_argument("kind", metavar="KIND", help="masker, decoder, ..., or checkpoint")
    parser.add_argument("name", metavar="NAME")
    add_plugin(parser)


def run(arguments: argparse.Namespace) -> None:
    """Prints a component's settings, or what is known of a published checkpoint."""
    found = components()
    if arguments.kind == "checkpoint":
        _describe_checkpoint(arguments.name)
        return
    if arguments.kind not in found.registries:
        raise UnknownName("kind of component", arguments.kind, [*found.registries, "checkpoint"])
    component_class = found.get(arguments.kind, arguments.name)
    entry = found.registry(arguments.kind).entry(arguments.name)
    print(f"{arguments.kind} {arguments.name} ({entry.supplier}): {entry.description}\n")
    if component_class.__doc__:
        print(inspect.cleandoc(component_class.__doc__), end="\n\n")
    from mmmask.interfaces.component import chosen_kind

    fields = {key: field for key, field in component_class.Config.model_fields.items() if key != "name"}
    if not fields:
        print("No settings.")
    for key, field in fields.items():
        kind = chosen_kind(field)
        written = _a(kind) if kind else _type(field.annotation)
        default = field.get_default(call_default_factory=True)
        given = "required" if field.is_required() else f"default {_plain(default)}"
        print(f"  {key}: {written}, {given}{_bounds(field.metadata)}")
        if field.description:
            print(f"      {field.description}")


def _describe_checkpoint(name: str) -> None:
    known = published()
    if name not in known:
        hint = did_you_mean(name, known)
        raise MmmaskError(f"no checkpoint is published as {name!r}.{hint} `mmmask list checkpoint` names all")
    found = known[name]
    options = [
        f"{key}={value if isinstance(value, str) else json.dumps(value, separators=(',', ':'), default=str)}"
        for key, value in found.options.items()
    ]
    by_hand = f"yes: download it, and give the file's path with --format {found.format}" if found.by_hand else "no"
    print(f"checkpoint {name}" + (f": {found.description}" if found.description else ""), end="\n\n")
    print(f"  address: {found.address}")
    print(f"  format: {found.format}")
    print(f"  licence: {found.licence}")
    print(f"  options: {' '.join(options) or 'none'}")
    print(f"  encoder_alone: {'yes: the decoder stays as initialised' if found.encoder_alone else 'no'}")
    print(f"  by_hand: {by_hand}")


def _a(kind: str) -> str:
    """`an encoder`, `a masker`; `positions` is a plural."""
    return kind if kind == "positions" else f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def _type(annotation: object) -> str:
    """A type as a person would write it: `int | [float, float]`."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(inner[0])
    if origin is tuple:
        return f"[{', '.join('...' if part is ... else _type(part) for part in inner)}]"
    if origin is dict:
        return f"{{{_type(inner[0])}: {_type(inner[1])}}}"
    if inner:  # a union's types, a Literal's values
        return " | ".join(_type(part) for part in inner)
    return "null" if annotation is type(None) else getattr(annotation, "__name__", str(annotation))


def _plain(default: object) -> str:
    """A default as YAML would have it; of a component, its name."""
    if isinstance(default, dict):
        return str(default.get("name", default))
    if name := getattr(default, "name", None):
        return str(name)
    if default is None or isinstance(default, bool):
        return json.dumps(default)
    return f"[{', '.join(map(_plain, default))}]" if isinstance(default, tuple) else str(default)


def _bounds(metadata: list[object]) -> str:
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    bounds = [f"{signs[key]} {getattr(part, key)}" for part in metadata for key in signs if hasattr(part, key)]
    return f", {' and '.join(bounds)}" if bounds else ""
