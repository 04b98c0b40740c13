"""Reading and writing configurations: YAML files, and `--set a.b.c=value` overrides."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from hsee_ray.config.problems import in_one_line, read_text
from hsee_ray.config.schema import Config
from hsee_ray.config.yaml_text import read_value, read_yaml
from hsee_ray.errors import ConfigError
from hsee_ray.paths import refuse_credentials

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
    with in_one_line(Config, f"{where}: ", "see jobs/configs/reference.yaml"):
        config = Config.model_validate(values)
    refuse_credentials(config.storage.uri)
    return config


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


def _read_yaml(path: Path) -> dict[str, Any]:
    values = read_yaml(read_text(path, "give a YAML file with --config"), path)
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
    value = read_value(text, f"--set {override}")
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
    if key.isascii() and key.isdecimal() and int(key) < len(items):
        return int(key)
    raise ConfigError(f"--set {override}: {key} is no index of a list of {len(items)} (0 to {len(items) - 1})")
