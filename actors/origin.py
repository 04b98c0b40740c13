"""What an actor must find on its node: the software that the driver has, and the place where the run lives."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from hsee_ray.errors import RunError
from hsee_ray.home import OWNER_FILE
from hsee_ray.storage import Storage

PACKAGES = ("ray", "torch", "numpy", "hsee-ray")
"""What decides the bits of a run, beside Python."""


@cache
def versions() -> Mapping[str, str]:
    """Versions on this node, by name; what is not installed, but lies in the working directory, has none."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def difference(here: Mapping[str, str], there: Mapping[str, str]) -> str | None:
    """The first difference between two nodes' software, as `torch 2.14.1 and not 2.15.0`.

    What only one of them has installed is none: a job brings this project along in its working directory.
    """
    for name in here.keys() & there.keys():
        if here[name] != there[name]:
            return f"{name} {there[name]} and not {here[name]}"
    return None


@dataclass(frozen=True)
class Origin:
    """The driver's software, and where its run lives."""

    versions: Mapping[str, str]
    home: str | None
    """None when nothing is written there."""
    token: str = ""

    def check(self, node: str) -> None:
        """Raises RunError when the node that this runs on has other software, or does not see the run."""
        other = difference(self.versions, versions())
        if other is not None:
            raise RunError(f"node {node} has {other}; install on it what the driver has")
        if self.home is not None and not self._sees_home():
            raise RunError(
                f"node {node} does not see {self.home}; keep runs where every node can reach them: "
                "--set storage.uri=s3://... or a directory that all nodes share"
            )

    def _sees_home(self) -> bool:
        assert self.home is not None
        try:
            return Storage.at(self.home).read(OWNER_FILE).decode() == self.token
        except OSError:
            return False
