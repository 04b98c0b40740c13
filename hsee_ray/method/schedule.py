"""Decisions that depend on the configuration and the round alone: who trains, in which order, how fast.

Nothing here is stored: after a resume the same functions give the same answers. Rounds count from 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from hsee_ray.config.fleet import Fleet
from hsee_ray.config.schema import Config, CosineSchedule, PipelineConfig, StepSchedule, TrainingConfig
from hsee_ray.rng import generator

MESSAGE_BYTES = 256 << 10
"""Batches travel together until a message is about this large, so that small ones do not pay for each call."""
LARGE_MESSAGE_BYTES = 16 << 20
"""And up to this size while a client's round still makes MESSAGES of them: a message costs Ray some milliseconds."""
MESSAGES = 4
EVALUATION_WINDOW = 2
"""Evaluation batches are large: two in flight keep client and server busy."""


@dataclass(frozen=True)
class BatchSlice:
    """One step of a round: samples `start` to `stop` of the client's order in this local epoch."""

    step: int
    epoch: int
    start: int
    stop: int


def participants(config: Config, fleet: Fleet, round_number: int) -> tuple[int, ...]:
    """Numbers of the clients that train in this round, ascending; at least one."""
    everyone = len(fleet.clients)
    wanted = max(1, round(config.training.clients_per_round * everyone))
    if wanted >= everyone:
        return tuple(range(everyone))
    rng = generator(config.seed, "participants", round_number)
    return tuple(sorted(int(client_id) for client_id in rng.permutation(everyone)[:wanted]))


def queue_order(config: Config, fleet: Fleet, round_number: int) -> tuple[int, ...]:
    """The round's participants in the order in which the shared server of Sequential serves them."""
    queue = participants(config, fleet, round_number)
    if config.training.order == "listed":
        return queue
    shuffled = generator(config.seed, "queue", round_number).permutation(len(queue))
    return tuple(queue[index] for index in shuffled)


def evaluates_after(config: Config, round_number: int) -> bool:
    """Whether the models are evaluated at the end of this round; the last round always is."""
    return round_number % config.evaluation.every == 0 or round_number == config.training.rounds


def learning_rate(training: TrainingConfig, round_number: int) -> float:
    """Learning rate of a round, the same for clients and servers; past the horizon, the last one.

    In the W rounds of a warm-up the schedule's rate is multiplied by r / (W + 1) (Goyal et al. 2017, arXiv:1706.02677).
    """
    schedule, lr = training.lr_schedule, training.optimizer.lr
    lr *= min(1.0, round_number / (training.warmup_rounds + 1))
    done = round_number - 1
    if isinstance(schedule, CosineSchedule):
        horizon = schedule.horizon_rounds or training.rounds
        return lr * 0.5 * (1.0 + math.cos(math.pi * min(done, horizon - 1) / horizon))
    if isinstance(schedule, StepSchedule):
        return lr * schedule.factor ** (done // schedule.every)
    return lr


def batch_bounds(n_samples: int, batch_size: int) -> list[tuple[int, int]]:
    """Bounds of the batches of one pass; a last batch of one sample joins the batch before it (batch norm)."""
    starts = list(range(0, n_samples, batch_size))
    if len(starts) > 1 and n_samples - starts[-1] == 1:
        starts.pop()
    return [(start, starts[i + 1] if i + 1 < len(starts) else n_samples) for i, start in enumerate(starts)]


def round_batches(training: TrainingConfig, n_samples: int, batch_size: int) -> tuple[BatchSlice, ...]:
    """The steps of one client in one round: `local_epochs` passes, or exactly `local_steps` steps."""
    bounds = batch_bounds(n_samples, batch_size)
    steps = training.local_steps or training.local_epochs * len(bounds)
    return tuple(BatchSlice(step, step // len(bounds), *bounds[step % len(bounds)]) for step in range(steps))


def ordered_steps(
    queue: Sequence[int], n_steps: Mapping[int, int], interleave: Literal["client", "batch"]
) -> list[tuple[int, int]]:
    """(client, step) in the order in which a shared server sees a round: whole turns, or round robin by batch."""
    if interleave == "client":
        return [(client_id, step) for client_id in queue for step in range(n_steps[client_id])]
    longest = max((n_steps[client_id] for client_id in queue), default=0)
    return [(client_id, step) for step in range(longest) for client_id in queue if step < n_steps[client_id]]


def window_batches(pipeline: PipelineConfig, batch_bytes: int) -> int:
    """How many batches of features a client may be ahead of its server, at least one."""
    return max(1, min(pipeline.max_in_flight, (pipeline.max_in_flight_mib << 20) // max(1, batch_bytes)))


def batches_per_message(pipeline: PipelineConfig, batch_bytes: int, n_batches: int) -> int:
    """How many of a client's batches in a round travel together, at least one; at most half of a window."""
    size = max(1, batch_bytes)
    least, most = -(-MESSAGE_BYTES // size), LARGE_MESSAGE_BYTES // size
    wanted = max(least, min(most, n_batches // MESSAGES))
    return max(1, min(wanted, window_batches(pipeline, batch_bytes) // 2))


def evaluation_window(pipeline: PipelineConfig, batch_bytes: int) -> int:
    """How many batches of an evaluation a client may be ahead of its server."""
    return min(EVALUATION_WINDOW, window_batches(pipeline, batch_bytes))
