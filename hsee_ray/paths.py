"""Paths and URIs as people write them. Needs the standard library only."""

from __future__ import annotations

import os
import re
from urllib.parse import parse_qsl

from hsee_ray.errors import NO_TEXT, ConfigError, UserError, is_text

_SECRETS = {"access_key", "secret_key", "session_token", "sas_token", "account_key", "password"}
_VARIABLE = re.compile(r"\$(?:(\w+)|\{([^}]*)\})")


def expanded(text: str) -> str:
    """The path with `~`, `$VAR` and `${VAR}` expanded. Raises ValueError for what is no path, and for a
    variable or a user that is not there."""

    def value(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        if not os.environ.get(name):
            state = "is empty" if name in os.environ else "is not set"
            raise ValueError(f"{text!r}: the environment variable {name} {state}; set it, or write the path out")
        return os.environ[name]

    if not text.strip():
        raise ValueError(f"{text!r}: names no place; write a path")
    if not is_text(text):
        raise ValueError(f"{text!r}: {NO_TEXT}; rename it")
    path = os.path.expanduser(_VARIABLE.sub(value, text))
    if path.startswith("~"):
        raise ValueError(
            f"{text!r}: no home directory is known for {path.split('/')[0]}; set HOME, or write the path out"
        )
    return path


def expanded_place(text: str) -> str:
    """The path as `expanded` gives it. Raises UserError where that cannot be done."""
    try:
        return expanded(text)
    except ValueError as error:
        raise UserError(str(error)) from None


def refuse_credentials(place: str | None) -> None:
    """Raises ConfigError, which does not repeat them, for a URI with credentials: it would be written into files."""
    if place is None or "://" not in place:
        return
    scheme, _, rest = place.partition("://")
    address, _, query = rest.partition("?")
    user, at, _ = address.partition("/")[0].rpartition("@")
    if (at and ":" in user) or {name.lower() for name, _ in parse_qsl(query)} & _SECRETS:
        raise ConfigError(
            f"a {scheme}:// URI holds credentials, which would end up in files and logs; leave them out, and give "
            "them by the environment (AWS_ACCESS_KEY_ID, GOOGLE_APPLICATION_CREDENTIALS, ...) or by the node's role"
        )
