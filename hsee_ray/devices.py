"""Device profiles: what a device computes, holds, sends and draws. Presets lie in `devices.yaml`.

Figures are of one core where a device computes several models side by side.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class DeviceProfile(BaseModel):
    """One kind of device."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    compute_gflops: float = Field(gt=0)
    """Sustained in training, float32, of one core; a multiply-add is two operations."""
    memory_mib: float = Field(gt=0)
    uplink_mbit_s: float = Field(gt=0)
    downlink_mbit_s: float = Field(gt=0)
    latency_ms: float = Field(0.0, ge=0)
    """One way, for each message."""
    active_w: float = Field(ge=0)
    """Drawn while it computes."""
    radio_w: float = Field(ge=0)
    """Drawn while it sends or receives."""
    cores: int = Field(1, ge=1)
    """Models that compute side by side."""
    memory_gib_s: float | None = Field(None, gt=0)
    """Bandwidth of its memory, of one core; None: not known, and not reckoned with."""
    operator_us: float = Field(0.0, ge=0)
    """Microseconds that each operator takes beside its arithmetic."""
    source: str = Field(min_length=1)
    """Where the figures come from."""
