"""Reading and writing configurations: YAML files, `--set a.b.c=value` overrides, errors in one line."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from hsee_ray.config.schema import Config
from hsee_ray.errors import ConfigError

RENAMED = {r"(tiers\.\d+|server)\.seats": "slots", r"training\.turn": "interleave"}
"""Keys of 0.1 and their names today. 0.2 still reads the old ones."""


def load_config(source: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> Config:
    """Configuration from a YAML file or a mapping, with `a.b.c=value` overrides applied in order.

    Raises ConfigError, in one line, when the file cannot be read or a value is unknown, missing or out of range.
    """
    if isinstance(source, Mapping):
        values, where = _plain_copy(source), "config"
    else:
        values, where = _read_yaml(Path(source)), str(source)
    for told in rename_old_keys(values):
        logging.getLogger("hsee_ray").warning("%s: %s", where, told)
    for override in overrides:
        _apply_override(values, override)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_one_line(error)}") from None


def dump_config(config: Config) -> str:
    """YAML text of the configuration with every default spelled out; `load_config` reads it back unchanged."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=110)


def rename_old_keys(values: Any, path: str = "") -> list[str]:
    """Gives keys of 0.1 their names of today, in place; one line about each."""
    told: list[str] = []
    if isinstance(values, dict):
        for key in list(values):
            where = f"{path}.{key}" if path else str(key)
            today = _name_today(where, key)
            if today != key:
                told.append(f"{where} is called {today} now; the old name is read until 0.3")
                values[today] = values.pop(key)
            told += rename_old_keys(values[today], where)
    elif isinstance(values, list):
        for index, item in enumerate(values):
            told += rename_old_keys(item, f"{path}.{index}")
    return told


def _name_today(path: str, key: Any) -> Any:
    """The key at the end of a dotted path as it is called today."""
    return next((today for old, today in RENAMED.items() if re.fullmatch(old, path)), key)


def _plain_copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain_copy(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_copy(item) for item in value]
    return value


def read_text(path: Path, remedy: str) -> str:
    """Content of a text file. Raises ConfigError, which ends in the remedy, when it cannot be read or is none."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); {remedy}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not a text file; {remedy}") from None


def _read_yaml(path: Path) -> dict[str, Any]:
    text = read_text(path, "give a YAML file with --config")
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds no keys; see jobs/configs/reference.yaml for what a config looks like")
    return values


def _apply_override(values: dict[str, Any], override: str) -> None:
    """Sets one dotted key in place: `tiers.0.clients=4`, `training.lr_schedule={name: constant}`."""
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    keys[-1] = _name_today(".".join(keys), keys[-1])
    if not equals or not all(keys):
        raise ConfigError(f"--set {override}: write it as a.b.c=value, for instance --set training.rounds=5")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        raise ConfigError(f"--set {override}: the value is not valid YAML; quote it") from None
    node: Any = values
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(node, list):
            index = _list_index(node, key, override)
            if last:
                node[index] = value
            else:
                node = node[index]
        elif isinstance(node, dict):
            if last:
                node[key] = value
            else:
                node = node.setdefault(key, {})
        else:
            above = ".".join(keys[:depth])
            raise ConfigError(f"--set {override}: {above} is {node!r}, which has no key {key}")


def _list_index(items: list[Any], key: str, override: str) -> int:
    if key.isdigit() and int(key) < len(items):
        return int(key)
    raise ConfigError(f"--set {override}: {key} is no index of a list of {len(items)} (0 to {len(items) - 1})")


def _one_line(error: ValidationError) -> str:
    # A list item that fails is also missing from its list: the second error only repeats the first.
    errors = [item for item in error.errors() if item["type"] != "too_short"] or error.errors()
    first = errors[0]
    path, models = _follow(first["loc"][:-1])
    last = first["loc"][-1:]
    path += [part for part in last if part not in ("str", "int")]
    name = ".".join(str(part) for part in path)
    more = len({tuple(_follow(item["loc"])[0]) for item in errors}) - 1
    if first["type"] == "extra_forbidden":
        text = f"{name}: unknown key{_suggestion(str(path[-1]), models)}"
    elif first["type"] == "too_short":
        text = f"{name} is empty: give at least one"
    elif first["type"] == "union_tag_not_found":
        text = f"{name}: say which with the key {first['ctx']['discriminator']}"
    elif first["type"] == "missing":
        text = f"{name}: is missing; see jobs/configs/reference.yaml"
    else:
        message = first["msg"].removeprefix("Value error, ").replace("Input should be", "should be")
        shown = ":" if isinstance(first["input"], dict | BaseModel) else f" is {first['input']!r}:"
        text = f"{name}{shown} {message}" if name else message
    return f"{text} (and {more} more)" if more else text


def _follow(location: tuple[Any, ...]) -> tuple[list[Any], list[type[BaseModel]]]:
    """Where pydantic's location leads: the keys that the user wrote, and the models that may stand there.

    pydantic puts the variant of a union (`dirichlet`, or `str`) into its path; the user wrote no such key.
    """
    path: list[Any] = []
    models: list[type[BaseModel]] = [Config]
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


def _suggestion(key: str, models: list[type[BaseModel]]) -> str:
    known = sorted({name for model in models for name in model.model_fields})
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{hint} (known here: {', '.join(known)})" if known else hint


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]
