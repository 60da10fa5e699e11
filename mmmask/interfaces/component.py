"""Component: a class with a strict, nested Config, chosen by name in an experiment."""

from __future__ import annotations

import inspect
import json
import typing
from abc import ABC
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError
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
        lines = [_naming_known_keys(model, detail) for detail in error.errors()]
    raise ValidationError.from_exception_data(model.__name__, lines, "json")


def _naming_known_keys(model: type[BaseModel], detail: ErrorDetails) -> InitErrorDetails:
    """The same error; inside the block of a component, the component's own validation has said it already."""
    path, context = detail["loc"], detail.get("ctx", {})
    if "url" not in detail:  # no error of pydantic's own
        error = PydanticCustomError(detail["type"], "{message}", {**context, "message": detail["msg"]})  # pyright: ignore[reportArgumentType]
    elif detail["type"] == "extra_forbidden":
        for part in path[:-1]:
            if part in model.model_fields:
                annotation = model.model_fields[part].annotation
                inner = [annotation, *typing.get_args(annotation)]
                model = next(
                    (type_ for type_ in inner if inspect.isclass(type_) and issubclass(type_, BaseModel)), model
                )
        known = list(model.model_fields)
        hint = did_you_mean(str(path[-1]), known)
        message = f"unknown key.{hint} Known: {', '.join(known) or 'none'}"
        error = PydanticCustomError("unknown_key", "{message}", {"message": message})
    else:
        error = detail["type"]
    return InitErrorDetails(type=error, loc=path, input=detail["input"], ctx=context)


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
