"""How an actor's process computes: on which device, with how many threads."""

from __future__ import annotations

import os

import torch

from actors.workers.actor_location import location_here
from actors.workers.origin import Origin
from hsee_ray.config.schema import ResourcesConfig, TrainingConfig
from hsee_ray.errors import RunError
from hsee_ray.process import keep_freed_memory


def prepare_process(training: TrainingConfig, resources: ResourcesConfig, origin: Origin | None) -> torch.device:
    """Sets torch's threads, which are part of the result, and chooses the device.

    Raises RunError when this node is not what the driver needs.
    """
    if origin is not None:
        origin.check(location_here("").node)
    torch.set_num_threads(training.threads)
    keep_freed_memory()
    if resources.num_gpus == 0 and training.device != "cuda":
        # Ray shows every GPU to an actor that asked for none. torch looks for them when it first needs one.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
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
    """`auto` computes on CUDA where the actor was given a GPU and torch can use it. Raises RunError without CUDA."""
    if wanted == "auto":
        return torch.device("cuda" if num_gpus > 0 and cuda_available else "cpu")
    if wanted == "cuda" and not cuda_available:
        raise RunError("training.device is cuda, and torch finds no CUDA on this node; use auto, or a node with a GPU")
    return torch.device(wanted)
