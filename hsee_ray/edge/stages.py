"""What a device does to its features before they are coded: stages that its bundle names. Needs numpy only.

`bundle.json` says which installed module is imported, and nothing else signs it: take bundles only from whom you would
let run code on the device. No other class than a subclass of DeviceStage is ever called.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hsee_ray.errors import DataError

Array = np.ndarray[Any, Any]


class DeviceStage(ABC):
    """Does on a device what a stage of the configuration does in inference; its options come by keyword."""

    @abstractmethod
    def __call__(self, features: Array) -> Array:
        """float32 features in the shape of those that are given, (B, C, H, W) or (B, ...), which stay as they are."""


@dataclass(frozen=True)
class NamedStage:
    """A DeviceStage as a bundle names it."""

    name: str
    """`package.module:Name`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """As JSON holds them."""

    def load(self) -> DeviceStage:
        """Raises DataError, in one line, when this device does not have the stage."""
        module_name, _, name = self.name.partition(":")
        try:
            found = getattr(importlib.import_module(module_name), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise DataError(f"the bundle needs the stage {self.name} ({error}); install it on this device") from None
        if not (isinstance(found, type) and issubclass(found, DeviceStage)):
            raise DataError(f"the bundle names {self.name}, which is no DeviceStage: export it again")
        try:
            return found(**self.options)
        except (TypeError, ValueError) as error:
            raise DataError(f"the stage {self.name} refuses the bundle's options ({error}); export it again") from None
