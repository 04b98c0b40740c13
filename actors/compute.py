"""How an actor's process computes: on which device, with how many threads."""

from __future__ import annotations

import torch

from hsee_ray.config import ResourcesConfig, TrainingConfig


def prepare_process(training: TrainingConfig, resources: ResourcesConfig) -> torch.device:
    """Sets torch's threads, which are part of the result, and chooses the device."""
    torch.set_num_threads(training.threads)
    return choose_device(training.device, resources.num_gpus, torch.cuda.is_available())


def choose_device(wanted: str, num_gpus: float, cuda_available: bool) -> torch.device:
    """`auto` computes on CUDA where the actor was given a GPU and torch can use it.

    Ray shows every GPU to an actor that asked for none, so seeing one is not enough.
    """
    if wanted == "auto":
        return torch.device("cuda" if num_gpus > 0 and cuda_available else "cpu")
    return torch.device(wanted)
