"""The training step of Hetero-SplitEE on both sides of the cut: nothing flows back over it.

The exit at the cut separates the backward passes (Sepehri et al. 2024, arXiv:2303.02384), so a client never waits
for a server. Legend: B batch, K classes; h is the features at the cut, x the normalised images, y the labels.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from hsee_ray.config import OptimizerConfig


def client_step(
    network: nn.Module,
    exit_head: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    x_BCHW: torch.Tensor,
    y_B: torch.Tensor,
) -> tuple[torch.Tensor, float]:
    """One step on f^c and f^o: loss = CE(f^o(f^c(x)), y). Returns (h, loss in nats), h detached, from before the step.

    Without an exit head (cut L) the network's own output is the logits.
    """
    h = network(x_BCHW)
    loss = functional.cross_entropy(h if exit_head is None else exit_head(h), y_B)
    return h.detach(), _descend(optimizer, loss)


def server_step(network: nn.Module, optimizer: torch.optim.Optimizer, h: torch.Tensor, y_B: torch.Tensor) -> float:
    """One step on f^s: loss = CE(f^s(h), y) in nats, returned. Its gradient stops at h."""
    return _descend(optimizer, functional.cross_entropy(network(h), y_B))


def _descend(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> float:
    # Gradients are dropped, not zeroed: a unit that the batch did not pass gets no update, not even weight decay.
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.item()


def build_optimizer(network: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Optimiser over all parameters of the network; its rate is set at every round."""
    parameters = list(network.parameters())
    if config.name == "adamw":
        return torch.optim.AdamW(parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)
    return torch.optim.SGD(parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
