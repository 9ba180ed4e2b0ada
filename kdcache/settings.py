"""Settings: frozen, strict pydantic models; what does not fit becomes an error for a person."""

import difflib
import tomllib
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from kdcache.errors import ConfigError


class Settings(BaseModel):
    """A table of a recipe. Unknown keys and wrong types are refused; nothing changes once made."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True
    )


S = TypeVar("S", bound=Settings)


def parse(kind: type[S], table: Mapping[str, Any], where: str = "") -> S:
    """Make the settings `kind` of a table read from TOML or JSON.

    Args:
        where: the dotted path of the table in its recipe, for the errors.

    Raises:
        ConfigError: a key is unknown, missing or of the wrong kind; it is named with its path.
    """
    try:
        return kind.model_validate(table)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in (where, *first["loc"]) if part != "")
        raise _explain(kind, first, key) from None


def override(tables: dict[str, dict[str, Any]], text: str) -> None:
    """Lay `table.key=value` over tables, the value in TOML's notation or a bare string.

    Raises:
        ConfigError: it is not of that form.
    """
    key, equals, value = text.partition("=")
    table, dot, name = key.strip().partition(".")
    if not equals or not dot or not name:
        raise ConfigError(
            f"`--set {text}` cannot be read", hint="write it as `--set train.epochs=20`"
        )
    tables.setdefault(table, {})[name] = _value(value.strip())


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a bare word is a string: --set run.precision=bf16


def _explain(kind: type[Settings], problem: Any, key: str) -> ConfigError:
    model, name = _model_at(kind, problem["loc"])
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, model.model_fields, n=1)
        known = ", ".join(model.model_fields) or "none"
        hint = f"did you mean `{near[0]}`?" if near else f"known here: {known}"
        return ConfigError(f"unknown key `{key}`", hint=hint)
    if problem["type"] == "missing":
        return ConfigError(f"`{key}` is not set", hint=f"add `{name} = ...` to the recipe")
    field = model.model_fields.get(name)
    about = f"; it is: {field.description}" if field is not None and field.description else ""
    wanted = problem["msg"][0].lower() + problem["msg"][1:]
    return ConfigError(f"`{key}` is {problem['input']!r}", hint=f"{wanted}{about}")


def _model_at(kind: type[Settings], location: tuple[Any, ...]) -> tuple[type[Settings], str]:
    """The model that a pydantic location points into, and the last name of the location."""
    model = kind
    for part in location[:-1]:
        field = model.model_fields.get(str(part))
        inner = field.annotation if field is not None else None
        if isinstance(inner, type) and issubclass(inner, Settings):
            model = inner
    return model, str(location[-1]) if location else ""
