"""Parts that a device loads by name, as its bundle says. Needs numpy only.

`bundle.json` says which installed module is imported, and nothing else signs it: take bundles only from whom you would
let run code on the device. No other class than a subclass of what is asked for is ever called.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hsee_ray.errors import DataError


@dataclass(frozen=True)
class NamedPart:
    """A part by its name, with its options."""

    name: str
    """`package.module:Name`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """As JSON holds them; the class takes them by keyword."""

    def load(self, base: type) -> Any:
        """An instance of a subclass of `base`. Raises DataError, in one line, when this machine has no such class."""
        module_name, _, name = self.name.partition(":")
        try:
            found = getattr(importlib.import_module(module_name), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise DataError(f"{self.name} cannot be loaded ({error}); install it on this machine") from None
        if not (isinstance(found, type) and issubclass(found, base)):
            raise DataError(f"{self.name} is no subclass of {base.__module__}:{base.__name__}")
        try:
            return found(**self.options)
        except (TypeError, ValueError) as error:
            raise DataError(f"{self.name} cannot be made with its options ({error})") from None
