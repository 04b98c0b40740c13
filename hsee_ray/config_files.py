"""Reading and writing configurations: YAML files, `--set a.b.c=value` overrides, errors in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from hsee_ray.config import Config
from hsee_ray.errors import ConfigError


def load_config(source: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> Config:
    """Configuration from a YAML file or a mapping, with `a.b.c=value` overrides applied in order.

    Raises ConfigError, in one line, when the file cannot be read or a value is unknown, missing or out of range.
    """
    if isinstance(source, Mapping):
        values, where = _plain_copy(source), "config"
    else:
        values, where = _read_yaml(Path(source)), str(source)
    for override in overrides:
        _apply_override(values, override)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_one_line(error, values)}") from None


def dump_config(config: Config) -> str:
    """YAML text of the configuration with every default spelled out; `load_config` reads it back unchanged."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=110)


def _plain_copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain_copy(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_copy(item) for item in value]
    return value


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give a YAML file with --config") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not a text file; give a YAML file with --config") from None
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds no keys; see jobs/configs/reference.yaml for what a config looks like")
    return values


def _apply_override(values: dict[str, Any], override: str) -> None:
    """Sets one dotted key in place: `tiers.0.clients=4`, `training.lr_schedule={name: constant}`."""
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"--set {override}: write it as a.b.c=value, for instance --set training.rounds=5")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
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


def _one_line(error: ValidationError, values: dict[str, Any]) -> str:
    # A list item that fails is also missing from its list: the second error only repeats the first.
    errors = [item for item in error.errors() if item["type"] != "too_short"] or error.errors()
    first, more = errors[0], len(errors) - 1
    location = [part for part in first["loc"] if not _is_union_tag(part, values, first["loc"])]
    name = ".".join(str(part) for part in location)
    if first["type"] == "extra_forbidden":
        text = f"{name}: unknown key{_suggestion(str(location[-1]), location[:-1])}"
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


def _is_union_tag(part: Any, values: Any, location: tuple[Any, ...]) -> bool:
    """pydantic puts the tag of a tagged union (`dirichlet`) into the path; the user wrote no such key."""
    index = location.index(part)
    node = values
    for key in location[:index]:
        if (isinstance(node, dict) and key in node) or (isinstance(node, list) and isinstance(key, int)):
            node = node[key]
    return isinstance(node, dict) and part not in node and part in (node.get("kind"), node.get("name"))


def _suggestion(key: str, above: list[Any]) -> str:
    known = _known_keys(above)
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{hint} (known here: {', '.join(known)})" if known else hint


def _known_keys(path: list[Any]) -> list[str]:
    """Keys of the model at a path of the configuration; of every variant where there are several."""
    models: list[Any] = [Config]
    for part in path:
        if isinstance(part, int):
            continue
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        models = [found for field in fields for found in _models_in(field.annotation)]
    return sorted({key for model in models for key in model.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]
