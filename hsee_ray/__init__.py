"""hsee-ray: split learning with early exits for devices of unequal power (Hetero-SplitEE), on Ray."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hsee_ray.config.files import load_config
    from hsee_ray.rundir.run import Run, load_run

__all__ = ["Run", "load_config", "load_run"]

_HOMES = {"Run": "hsee_ray.rundir.run", "load_config": "hsee_ray.config.files", "load_run": "hsee_ray.rundir.run"}


def __getattr__(name: str) -> Any:
    """Imports what is asked for: a device has nothing that a configuration needs."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
