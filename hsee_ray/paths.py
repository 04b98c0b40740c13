"""Paths as people write them. Needs the standard library only."""

from __future__ import annotations

import os
import re

_VARIABLE = re.compile(r"\$(?:(\w+)|\{([^}]*)\})")


def expanded(text: str) -> str:
    """The path with `~`, `$VAR` and `${VAR}` expanded. Raises ValueError for a variable or a user that is not there."""

    def value(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        if name not in os.environ:
            raise ValueError(f"{text!r}: the environment variable {name} is not set; set it, or write the path out")
        return os.environ[name]

    path = os.path.expanduser(_VARIABLE.sub(value, text))
    if path.startswith("~"):
        raise ValueError(f"{text!r}: no home directory is known for {path.split('/')[0]}; write the path out")
    return path
