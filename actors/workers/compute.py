"""How an actor's process computes: on which device, with how many threads."""

from __future__ import annotations

import os

import torch

from actors.workers.actor_location import location_here
from actors.workers.origin import Origin
from hsee_ray.config.schema import ResourcesConfig, TrainingConfig
from hsee_ray.models.torch_device import computing_device
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
    return computing_device(training, resources)
