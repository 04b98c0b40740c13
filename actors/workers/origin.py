"""Requirements on an actor's node: the driver's software versions, and access to the run's location."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from hsee_ray.errors import RunError
from hsee_ray.rundir.location import OWNER_FILE
from hsee_ray.storage import Storage

REMEDY = (
    "keep runs where every node can reach them: storage.uri=s3://... or a directory that all nodes share; a run that "
    "is elsewhere is copied there and resumed"
)
TRIES, PAUSE_S = 3, 1.0
"""A store that does not answer is asked again."""
PACKAGES = ("ray", "torch", "numpy", "hsee-ray")
"""Packages that decide the bits of a run, apart from Python."""


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
    location: str | None
    """None when nothing is written there."""
    token: str = ""

    def check(self, node: str) -> None:
        """Raises RunError when the node that this runs on has other software, or does not see the run."""
        other = difference(self.versions, versions())
        if other is not None:
            raise RunError(f"node {node} has {other}; install on it what the driver has")
        if self.location is not None and (why := self._why_unseen(Storage.at(self.location))) is not None:
            raise RunError(f"node {node} does not see {self.location} ({why}); {REMEDY}")

    def _why_unseen(self, storage: Storage) -> str | None:
        """Why the run's owner cannot be read here as this driver; None when it can be."""
        for left in reversed(range(TRIES)):
            try:
                found = storage.read(OWNER_FILE).decode()
                return None if found == self.token else "another run is there"
            except FileNotFoundError:
                return "nothing is there"
            except OSError as error:
                if not left:
                    return str(error).splitlines()[0]
                time.sleep(PAUSE_S)
        return None
