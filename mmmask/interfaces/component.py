"""Component: a class with a strict, nested Config, chosen by name in an experiment."""

from __future__ import annotations

import inspect
import json
import types
import typing
from abc import ABC
from collections.abc import Sequence
from functools import reduce
from typing import Annotated, Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, ErrorDetails, InitErrorDetails, PydanticCustomError, core_schema

from mmmask.components import components
from mmmask_registry import BrokenComponent, MmmaskError, did_you_mean

Model = TypeVar("Model", bound=BaseModel)


class StrictModel(BaseModel):
    """Settings: unknown keys, wrong types and infinite numbers are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Component(ABC):  # noqa: B024 - the abstract methods are those of each kind
    """Anything that an experiment chooses by name.

    A subclass nests `class Config(Parent.Config)` with its settings (a `Field(description=...)` on each shows in
    `mmmask describe`) and takes a Config as first argument of `__init__`.
    """

    class Config(StrictModel):
        name: str = ""

    def __init__(self, config: Any) -> None:  # noqa: ANN401 - each subclass narrows it to its own Config
        self.config = config


def validate_strictly(model: type[Model], data: object) -> Model:
    """Validates plain data as strict JSON: "3" is no number, a list is a fine tuple.

    Raises:
        pydantic.ValidationError: all problems at once; an unknown key comes with the known ones.
    """
    try:
        return model.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        # a union has an error for each of its alternatives, which all become the same line
        lines = {line.get("loc"): line for line in (_plainly(model, detail, data) for detail in error.errors())}
    raise ValidationError.from_exception_data(model.__name__, list(lines.values()), "json")


def _plainly(model: type[BaseModel], detail: ErrorDetails, data: object) -> InitErrorDetails:
    """The same error in a user's words; inside the block of a component, its own validation has said it already."""
    path, context, kind = detail["loc"], detail.get("ctx", {}), detail["type"]
    annotation, depth = _setting_at(model, path)
    message = None
    if "url" not in detail:  # no error of pydantic's own
        message = detail["msg"]
    elif _alternatives(annotation)[1:] and depth < len(path):
        value = reduce(lambda part, key: part[key], path[:depth], cast("Any", data))
        path, kind, message = path[:depth], "no_alternative", f"expected {_expected(annotation)}; not {value!r}"
    elif kind == "extra_forbidden":
        known = list(cast("type[BaseModel]", annotation).model_fields)
        hint = did_you_mean(str(path[-1]), known)
        kind, message = "unknown_key", f"unknown key.{hint} Known: {', '.join(known) or 'none'}"
    if message is None:
        return InitErrorDetails(type=kind, loc=path, input=detail["input"], ctx=context)
    error = PydanticCustomError(kind, "{message}", {**context, "message": message})  # pyright: ignore[reportArgumentType]
    return InitErrorDetails(type=error, loc=path, input=detail["input"])


def _setting_at(model: type[BaseModel], path: Sequence[str | int]) -> tuple[object, int]:
    """The annotation at a path, and its depth: the path's own length, or less where it goes on into a union, or to a
    key that is none."""
    annotation: object = model
    for depth, part in enumerate(path):
        alternatives = _alternatives(annotation)
        inner: Any = _plain(alternatives[0])
        arguments = typing.get_args(inner)
        if len(alternatives) > 1:
            return annotation, depth
        if inspect.isclass(inner) and issubclass(inner, BaseModel):
            field = inner.model_fields.get(str(part))
            if field is None:
                return inner, depth
            annotation = Annotated[field.annotation, field]
        elif typing.get_origin(inner) is dict:
            annotation = arguments[1]
        elif typing.get_origin(inner) in (tuple, list) and isinstance(part, int):
            annotation = arguments[0] if arguments[-1] is ... or len(arguments) <= part else arguments[part]
        else:
            return annotation, depth
    return annotation, len(path)


def _plain(annotation: object) -> Any:  # noqa: ANN401 - any annotation
    """Without its metadata."""
    return _plain(typing.get_args(annotation)[0]) if typing.get_origin(annotation) is Annotated else annotation


def _alternatives(annotation: object) -> list[object]:
    """Members of a union, null left out; of anything else, the one."""
    plain = _plain(annotation)
    members = typing.get_args(plain) if typing.get_origin(plain) in (typing.Union, types.UnionType) else [annotation]
    return [member for member in members if member is not types.NoneType]


def _expected(annotation: object) -> str:
    """Values that a setting takes, in words: `a whole number of at least 1, or two of them`."""
    said, elements = [], set()
    for alternative in _alternatives(annotation):
        inner = _plain(alternative)
        arguments = [part for part in typing.get_args(inner) if part is not ...]
        if typing.get_origin(inner) in (tuple, list):
            each = " and ".join(dict.fromkeys(map(_expected, arguments)))
            count = "some" if len(arguments) < len(typing.get_args(inner)) else _COUNTS.get(len(arguments), "several")
            said.append(f"{count} of them" if each in elements else f"a list of {count}, each {each}")
        else:
            each = _WORDS.get(inner) or " or ".join(map(repr, arguments)) or "a mapping"
            each += " and".join(_bounds(alternative, inner is int))
            said.append(each)
        elements.add(each)
    return ", or ".join(said)


_WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
_COUNTS = {1: "one", 2: "two", 3: "three", 4: "four"}


def _bounds(annotation: object, whole: bool) -> list[str]:
    if typing.get_origin(annotation) is not Annotated:
        return []
    found = []
    for part in typing.get_args(annotation)[1:]:
        for bound in getattr(part, "metadata", [part]):
            for key, word in (
                ("gt", "above"),
                ("ge", "of at least"),
                ("lt", "below"),
                ("le", "of at most"),
                ("multiple_of", "in steps of"),
            ):
                if (value := getattr(bound, key, None)) is not None:
                    if whole and key in ("gt", "lt"):
                        value, word = (value + 1, "of at least") if key == "gt" else (value - 1, "of at most")
                    found.append(f" {word} {value}")
    return found


def problems_of(error: ValidationError) -> list[str]:
    """A line for each problem, beginning with its key path."""
    return [_problem(detail) for detail in error.errors()]


def _problem(detail: ErrorDetails) -> str:
    message, context = detail["msg"], detail.get("ctx", {})
    if detail["type"] == "missing":
        message = "required, and not given"
    elif detail["type"] in ("value_error", "assertion_error"):
        message = message.partition(", ")[2]
    elif "message" not in context:  # pydantic's own
        message = f"{message[0].lower()}{message[1:]}".replace("input should", "should")
        message = f"{message}, not {detail['input']!r}"
    path = [*detail["loc"], *([context["at"]] if "at" in context else [])]
    return f"{'.'.join(map(str, path))}: {message}" if path else message


def one_of(name: str, other: str) -> Any:  # noqa: ANN401 - pydantic's
    """Validator of a setting `name: X | None` that is needed unless `other`, declared before it, is given.

    The field has `validate_default=True`.
    """

    def check(cls: type[BaseModel], value: object, info: ValidationInfo) -> object:
        given = info.data.get(other)
        if value is None and given is None and other in info.data:
            raise PydanticCustomError("missing", "required")
        if value is not None and given is not None:
            raise ValueError(f"{name} and {other}: one of the two")
        return value

    return field_validator(name, mode="after")(check)


def every_setting(config: BaseModel) -> dict[str, Any]:
    """Plain data of all settings, those included that a dump leaves out because others imply them."""

    def plain(value: Any) -> Any:  # noqa: ANN401 - any setting
        if isinstance(value, BaseModel):
            return every_setting(value)
        if isinstance(value, dict):
            return {key: plain(part) for key, part in value.items()}
        return [plain(part) for part in value] if isinstance(value, list | tuple) else value

    return {name: plain(getattr(config, name)) for name in type(config).model_fields}


class ChosenByName:
    """Marks a setting that names a component: `masker: Annotated[Component.Config, ChosenByName("masker")]`.

    In YAML it is a block `{name: random, mask_ratio: 0.9}`, or just the name. Its value is the Config of the
    component that has that name.

    Args:
        kind: of component.
        default: the name where a block gives none.
    """

    def __init__(self, kind: str, default: str | None = None) -> None:
        self.kind, self.default = kind, default

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self._validate,
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda config: config.model_dump(mode="json")
            ),
        )

    def _validate(self, value: object) -> Component.Config:
        if isinstance(value, Component.Config):
            value = value.model_dump(mode="json")
        if isinstance(value, str):
            value = {"name": value}
        if isinstance(value, dict) and self.default is not None:
            value = {"name": self.default} | value
        known = ", ".join(entry.name for entry in components().registry(self.kind))
        if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
            message = f"expected the name of a {self.kind} and its settings, as {{name: ..., ...}}. Known: {known}."
            raise PydanticCustomError("no_name", "{message}", {"message": message})
        try:
            component_class = components().get(self.kind, value["name"])
        except MmmaskError as error:
            # `at` moves the error from the block to its key `name`
            raise PydanticCustomError("unknown_name", "{message}", {"message": str(error), "at": "name"}) from None
        return validate_strictly(component_class.Config, value)


def chosen_kind(field: FieldInfo) -> str | None:
    """The kind of component that a setting names, or None for a plain setting."""
    alternatives = [field, *(typing.get_args(field.annotation))]
    for alternative in alternatives:
        for part in getattr(alternative, "metadata", None) or getattr(alternative, "__metadata__", ()):
            if isinstance(part, ChosenByName):
                return part.kind
    return None


def build(kind: str, config: Component.Config, **context: object) -> Any:  # noqa: ANN401 - the kind's interface
    """Makes the component that a Config was validated for, with what it needs beyond its settings.

    Raises:
        BrokenComponent: its constructor does not take what the interface gives, by keyword.
    """
    component = components().get(kind, config.name)
    try:
        inspect.signature(component).bind(config, **context)
    except TypeError as error:
        call = ", ".join(["config", *(f"{name}=..." for name in context)])
        where = f"{component.__module__}.{component.__qualname__}"
        message = f"{kind} {config.name!r}: {where} is called as {component.__name__}({call}), which fails: {error}"
        raise BrokenComponent(message) from None
    return component(config, **context)
