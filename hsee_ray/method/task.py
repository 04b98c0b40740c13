"""The task that a configuration names."""

from __future__ import annotations

import numpy as np

from hsee_ray.config.plugins import BUILT_IN
from hsee_ray.config.schema import Config
from hsee_ray.edge.named import NamedPart
from hsee_ray.edge.task import Task
from hsee_ray.errors import ConfigError, DataError
from hsee_ray.rng import generator


def named_task(config: Config) -> NamedPart:
    """The task as a bundle names it."""
    return NamedPart(BUILT_IN["task"].get(config.task.name, config.task.name), config.task.options)


def task_of(config: Config) -> Task:
    """Raises ConfigError when the task cannot be had."""
    try:
        task: Task = named_task(config).load(Task)
        return task
    except DataError as error:
        raise ConfigError(f"task is {config.task.name!r}: {error}") from None


def check_task(config: Config, n_classes: int) -> None:
    """Tries the task on four samples. Raises ConfigError unless its answers have the shapes and ranges they must."""
    task, rng = task_of(config), generator(0, "task")
    logits_BK, labels_B = rng.standard_normal((4, n_classes), "float32"), rng.integers(0, n_classes, 4)
    where = f"task is {config.task.name!r}"
    try:
        prediction_B = np.asarray(task.predict(logits_BK))
        right_B = np.asarray(task.right(prediction_B, labels_B))
        confidence_B = np.asarray(task.confidence(logits_BK, config.exits.confidence))
        log_likelihood_B = np.asarray(task.log_likelihood(logits_BK, labels_B, 1.0))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ConfigError(f"{where}: fails on logits of shape (4, {n_classes}): {error!r}") from error
    wanted = {
        "predict": (prediction_B, prediction_B.dtype == np.int64, "int64 labels"),
        "right": (right_B, right_B.dtype == bool, "bools"),
        "confidence": (confidence_B, bool(((confidence_B >= 0) & (confidence_B <= 1)).all()), "numbers from 0 to 1"),
        "log_likelihood": (log_likelihood_B, bool(np.isfinite(log_likelihood_B).all()), "finite numbers"),
    }
    for method, (value, holds, what) in wanted.items():
        if value.shape != (4,) or not holds:
            raise ConfigError(
                f"{where}: {method} gives {value.dtype} {value.shape} for 4 samples; it must give 4 {what}"
            )
