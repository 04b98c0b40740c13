"""The task that a configuration names: what is right, how sure, and what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hsee_ray.config.files import load_config
from hsee_ray.deploy.export import export
from hsee_ray.edge import EdgeClient
from hsee_ray.edge.bundle import BUNDLE_FILE, load_bundle
from hsee_ray.edge.gate import NEVER_SENDS, Gate
from hsee_ray.edge.task import Array, Classification, Confidence, Task
from hsee_ray.errors import ConfigError, DataError
from hsee_ray.method.objective import CrossEntropy
from hsee_ray.method.setup import build_client, mapped_client_data, prepare_run
from hsee_ray.method.task import task_of
from tests.extensions.grades import Grades
from tests.run_directories import train_run

HERE = "tests.unit.method.test_task"
GRADES = {"name": "tests.extensions.grades:Grades", "options": {"within": 1}}


def content(cache: Path, task: Any = "classification", **values: Any) -> dict[str, Any]:
    data = {"name": "synthetic", "image_size": 8, "classes": 5, "train_samples": 60, "test_samples": 24}
    return {
        "task": task,
        "model": {"name": "tests.networks:conv_units"},
        "data": {**data, "cache": str(cache)},
        "tiers": [{"name": "a", "clients": 1, "cut": "body.0"}],
        "training": {"rounds": 1, "batch_size": 8},
        **values,
    }


def test_grades_by_hand() -> None:
    """p = (0.4, 0.05, 0.1, 0.1, 0.35): the median is grade 2, and 0.25 is the chance of 1 to 3."""
    logits = np.log(np.array([[0.4, 0.05, 0.1, 0.1, 0.35]], np.float32))
    task = Grades(within=1)
    assert task.predict(logits).tolist() == [2]
    assert task.confidence(logits, "entropy") == pytest.approx([0.25])
    assert [bool(task.right(np.array([answer]), np.array([3]))) for answer in (-1, 1, 2, 4)] == [0, 0, 1, 1]


def test_what_is_right_and_how_sure_is_the_tasks_to_say(tmp_path: Path) -> None:
    setup = prepare_run(load_config(content(tmp_path, GRADES)))
    client = build_client(setup, 0, mapped_client_data(setup, 0), torch.device("cpu"))
    _, exits = client.answer("test", 0, 24, Gate("entropy", NEVER_SENDS))
    (message,), _ = client.evaluate("test", 0, 24)
    assert message.prediction_B is not None and message.confidence_B is not None
    assert message.prediction_B.tolist() == Grades(1).predict(exits.logits_BK).tolist()
    assert message.confidence_B.tolist() == Grades(1).confidence(exits.logits_BK, "entropy").tolist()
    assert message.prediction_B.tolist() != exits.logits_BK.argmax(axis=1).tolist(), "the case tells them apart"


def test_a_task_has_an_objective_unless_the_configuration_names_one(tmp_path: Path) -> None:
    for task, own, wanted in (("classification", None, CrossEntropy), (f"{HERE}:Halved", None, Half)):
        config = load_config(content(tmp_path, task), [] if own is None else [f"training.objective={own}"])
        setup = prepare_run(config)
        client = build_client(setup, 0, mapped_client_data(setup, 0), torch.device("cpu"))
        assert type(client.objective) is wanted


def test_a_device_reads_its_exit_as_the_run_does(tmp_path: Path) -> None:
    run = train_run(tmp_path / "run", content(tmp_path, GRADES))
    export(run, tmp_path / "out", tau=0.5)
    directory = tmp_path / "out" / "client-000"
    assert json.loads((directory / BUNDLE_FILE).read_text(encoding="utf-8"))["task"] == GRADES
    setup = prepare_run(run.config)
    images = mapped_client_data(setup, 0).test.images_NHWC[:24]
    with EdgeClient(directory) as device:
        answers = device.predict(images)
        logits_BK, *_ = device._session.run(None, {"images": images})
    assert [answer.label for answer in answers] == Grades(1).predict(logits_BK).tolist()
    assert [answer.confidence for answer in answers] == Grades(1).confidence(logits_BK, "entropy").tolist()


def test_a_device_without_the_task_says_so(tmp_path: Path) -> None:
    run = train_run(tmp_path / "run", content(tmp_path, GRADES))
    export(run, tmp_path / "out", tau=0.5)
    file = tmp_path / "out" / "client-000" / BUNDLE_FILE
    file.write_text(file.read_text(encoding="utf-8").replace("tests.extensions.grades", "not_installed"))
    with pytest.raises(DataError, match=re.escape("not_installed:Grades cannot be loaded (No module named")) as raised:
        EdgeClient(file.parent)
    assert "\n" not in str(raised.value)
    assert load_bundle(file.parent).task.options == {"within": 1}


class Half(CrossEntropy):
    def forward(self, logits_BK: torch.Tensor, y_B: torch.Tensor) -> torch.Tensor:
        return 0.5 * super().forward(logits_BK, y_B)


@dataclass(frozen=True)
class Halved(Classification):
    objective = f"{HERE}:Half"


@dataclass(frozen=True)
class TooSure(Classification):
    def confidence(self, logits_BK: Array, kind: Confidence, temperature: float = 1.0) -> Array:
        return logits_BK.max(axis=1) + 9


@dataclass(frozen=True)
class Columns(Classification):
    def predict(self, logits_BK: Array) -> Array:
        return np.asarray(logits_BK.argmax(axis=0))


@dataclass(frozen=True)
class Unfinished(Task):
    def predict(self, logits_BK: Array) -> Array:
        return logits_BK


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("regression", "there is no task 'regression'; use classification, or package.module:name for your own"),
        ("no.such:Task", "task is 'no.such:Task': no.such:Task cannot be loaded (No module named 'no'); install it"),
        ("os:system", "task is 'os:system': os:system is no subclass of hsee_ray.edge.task:Task"),
        ({**GRADES, "options": {"about": 1}}, "cannot be made with its options (Grades.__init__() got an unexpected"),
        ({**GRADES, "options": {"within": -1}}, "cannot be made with its options (within is -1; it is 0 or more)"),
        (f"{HERE}:Unfinished", "Can't instantiate abstract class Unfinished"),
        (f"{HERE}:TooSure", "confidence gives float32 (4,) for 4 samples; it must give 4 numbers from 0 to 1"),
        (f"{HERE}:Columns", "fails on logits of shape (4, 5): ValueError("),
    ],
)
def test_a_wrong_task_is_one_line(task: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as raised:
        prepare_run(load_config(content(tmp_path, task)))
    assert "\n" not in str(raised.value)


def test_the_default_is_classification(tmp_path: Path) -> None:
    assert task_of(load_config({key: value for key, value in content(tmp_path).items() if key != "task"})) == (
        Classification()
    )
