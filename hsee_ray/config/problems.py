"""Errors of everything that is read from users and from files, in one line that names the remedy."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator

from hsee_ray.errors import NO_TEXT, ConfigError, DataError, is_text

Stored = TypeVar("Stored")
_MOST_SHOWN = 200
"""Letters of a wrong value in a message."""


class Strict(BaseModel):
    """A frozen model that refuses keys that it does not know, numbers that are none, and yes for 1."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _numbers_that_are_none(cls, values: Any) -> Any:
        """pydantic takes true for 1, and integers of any length."""
        for name, field in cls.model_fields.items():
            if isinstance(values, dict) and name in values:
                allowed = _kinds_in(field.annotation)
                for value in _leaves(values[name]):
                    if isinstance(value, bool) and not allowed & {bool, Any}:
                        raise ValueError(f"{name} is {value}: YAML reads yes, no, on and off so; quote a word")
                    if isinstance(value, int) and abs(value) >= 1 << 63:
                        raise ValueError(f"{name} has {len(str(abs(value)))} digits: give a number below 2^63")
                    if isinstance(value, str) and not is_text(value):
                        raise ValueError(f"{name} is {value!a}: {NO_TEXT}; give it another name")
        return values


def storable(options: dict[str, Any]) -> dict[str, Any]:
    """Options as they are. Raises ValueError for what a run's files would give back as another value."""
    try:
        json.dumps(options, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{error}; give text, finite numbers, lists and mappings") from None
    return options


def _leaves(value: Any) -> Iterator[Any]:
    """Values in nested lists and mappings."""
    if isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _leaves(item)
    else:
        yield value


def _kinds_in(annotation: Any) -> set[Any]:
    """Types that a value of a field, or of what it contains, may have; Any where a model of its own looks at it."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {Any}
    return {annotation}.union(*map(_kinds_in, get_args(annotation))) if get_args(annotation) else {annotation}


def read_text(path: Path, remedy: str) -> str:
    """Content of a text file. Raises ConfigError, which ends in the remedy, when it cannot be read or is none."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); {remedy}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not a text file; {remedy}") from None


def read_stored(path: Path, kind: type[Stored], remedy: str) -> Stored:
    """Reads JSON stored by an earlier command. Raises DataError, which ends in the remedy, when it is damaged."""
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes(), strict=True)
    except ValidationError as error:
        raise DataError(f"{path}: is damaged ({first_problem(error)}); {remedy}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: is damaged ({str(error).splitlines()[0]}); {remedy}") from None


def first_problem(error: ValidationError) -> str:
    """Where it lies and what it is, of a file that no person has written."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first["loc"] else "it has another content"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean rounds?` where a known name is near, else nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


@contextmanager
def in_one_line(model: type[BaseModel], prefix: str, see: str) -> Iterator[None]:
    """Turns the ValidationError of the block into a ConfigError: `prefix`, the key, and what is wrong with it.

    `see`: where a missing key is explained.
    """
    try:
        yield
    except ValidationError as error:
        raise ConfigError(f"{prefix}{_one_line(error, model, see)}") from None


def _one_line(error: ValidationError, model: type[BaseModel], see: str) -> str:
    # A list item that fails is also missing from its list: the second error only repeats the first.
    errors = [item for item in error.errors() if item["type"] != "too_short"] or error.errors()
    first = errors[0]
    path, models = _follow(first["loc"][:-1], model)
    unknown = first["type"] == "extra_forbidden"  # then the last part is a key that the user wrote
    path += [part for part in first["loc"][-1:] if unknown or part not in ("str", "int")]
    name = ".".join(str(part) for part in path)
    more = len({tuple(_follow(item["loc"], model)[0]) for item in errors}) - 1
    if unknown:
        known = sorted({name for each in models for name in each.model_fields})
        listed = f" (known here: {', '.join(known)})" if known else ""
        text = f"{name}: unknown key{did_you_mean(str(path[-1]), known)}{listed}"
    elif first["type"] == "too_short":
        text = f"{name} is empty: give at least one"
    elif first["type"] == "union_tag_not_found":
        text = f"{name}: say which with the key {first['ctx']['discriminator']}"
    elif first["type"] == "missing":
        text = f"{name}: is missing; {see}"
    else:
        message = first["msg"].removeprefix("Value error, ").replace("Input should be", "should be")
        shown = ":" if isinstance(first["input"], dict | BaseModel) else f" is {_shortened(repr(first['input']))}:"
        text = f"{name}{shown} {message}" if name else message
    return f"{text} (and {more} more)" if more else text


def _shortened(text: str) -> str:
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def _follow(location: tuple[Any, ...], root: type[BaseModel]) -> tuple[list[Any], list[type[BaseModel]]]:
    """Translates pydantic's location: the keys that the user wrote, and the models that may stand there.

    pydantic puts the variant of a union (`dirichlet`, or `str`) into its path; the user wrote no such key.
    """
    path: list[Any] = []
    models = [root]
    for part in location:
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        if fields:
            path.append(part)
            models = [found for field in fields for found in _models_in(field.annotation)]
        elif variants := [model for model in models if _tag(model) == part]:
            models = variants
        elif part not in ("str", "int"):
            path.append(part)
    return path, models


def _tag(model: type[BaseModel]) -> Any:
    """The one value that the variant's `kind` or `name` can have."""
    for key in ("kind", "name"):
        if key in model.model_fields:
            values = get_args(model.model_fields[key].annotation)
            return values[0] if len(values) == 1 else None
    return None


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]
