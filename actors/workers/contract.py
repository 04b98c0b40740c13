"""What driver and worker actors agree on."""

from __future__ import annotations

from collections.abc import Mapping

Takes = Mapping[str, tuple[int, str]]
"""By unit: which of the objects beside it holds the unit's average, and under which key."""
