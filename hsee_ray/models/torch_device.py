"""Between the CPU's memory and a device's, and in which precision a step computes."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext

import torch

from hsee_ray.config.schema import ResourcesConfig, TrainingConfig
from hsee_ray.errors import RunError

PRECISIONS = {"bfloat16": torch.bfloat16}


def computing_device(training: TrainingConfig, resources: ResourcesConfig) -> torch.device:
    """The device of a model that was given these resources, made ready for what the configuration asks of it.

    Raises RunError as `choose_device` does.
    """
    device = choose_device(training.device, resources.num_gpus, torch.cuda.is_available())
    if device.type == "cuda" and training.deterministic:
        # Another algorithm, or TF32, gives other bits; cuBLAS needs its workspace fixed before it is first used.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    elif device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    return device


def choose_device(wanted: str, num_gpus: float, cuda_available: bool) -> torch.device:
    """`auto` computes on CUDA where the model was given a GPU and torch can use it. Raises RunError without CUDA."""
    if wanted == "auto":
        return torch.device("cuda" if num_gpus > 0 and cuda_available else "cpu")
    if wanted == "cuda" and not cuda_available:
        raise RunError("training.device is cuda, and torch finds no CUDA on this node; use auto, or a node with a GPU")
    return torch.device(wanted)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on a device. To CUDA through pinned memory: the copy runs while the next batch is prepared."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def mixed_precision(autocast: str | None, device: torch.device) -> AbstractContextManager[object]:
    """The block's forward passes compute in the precision where that is safe; None: in float32."""
    return nullcontext() if autocast is None else torch.autocast(device.type, PRECISIONS[autocast])
