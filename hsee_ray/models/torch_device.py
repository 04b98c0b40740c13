"""Between the CPU's memory and a device's, and in which precision a step computes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

PRECISIONS = {"bfloat16": torch.bfloat16}


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on a device. To CUDA through pinned memory: the copy runs while the next batch is prepared."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def mixed_precision(autocast: str | None, device: torch.device) -> AbstractContextManager[object]:
    """The block's forward passes compute in the precision where that is safe; None: in float32."""
    return nullcontext() if autocast is None else torch.autocast(device.type, PRECISIONS[autocast])
