"""Event files written for a small run and read back with TensorBoard's own reader."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.util.tensor_util import make_ndarray

from hsee_ray.config.files import load_config
from hsee_ray.config.schema import Config
from hsee_ray.method.reports import CONFIDENCE_BINS, EvaluationReport, RoundReport, TrainReport
from hsee_ray.method.strategies import build_fleet
from hsee_ray.pictures import tier_colors
from hsee_ray.rundir.summary import SimulatedTotals
from hsee_ray.rundir.tensorboard import (
    MOST_LABELS,
    RunBoard,
    class_counts_figure,
    hyperparameters,
)
from hsee_ray.simulation.prediction import ClientCost, RoundCost

UNITS = ("stem", "layer1", "head")
PNG = b"\x89PNG"


def config_of(sensors: int) -> Config:
    tiers = [
        {"name": "sensor", "clients": sensors, "cut": "stem"},
        {"name": "phone", "clients": 1, "cut": "head"},
    ]
    return load_config({"seed": 7, "tiers": tiers, "exits": {"taus": [0.5]}})


def evaluation(client_correct: int, server_correct: int | None) -> EvaluationReport:
    return EvaluationReport(
        samples=10,
        client_correct=client_correct,
        server_correct=server_correct,
        gated_correct=(client_correct,),
        offloaded=(5,),
        sent_bytes=1000,
        label_counts=(4, 6),
        confidence_counts=(3,) + (0,) * (CONFIDENCE_BINS - 2) + (7,),
    )


def round_report(number: int, sensors: int, evaluated: bool) -> RoundReport:
    phone = sensors
    training = {client: TrainReport(10, (float(client),), 100) for client in range(sensors)}
    evaluations = {client: evaluation(client + 1, client + 3) for client in range(sensors)}
    return RoundReport(
        round_number=number,
        learning_rate=0.05,
        wall_s=5.0,
        train_s=4.0,
        client_training={**training, phone: TrainReport(10, (6.0,))},
        server_training={client: TrainReport(10, (4.0,)) for client in range(sensors)},
        evaluation={**evaluations, phone: evaluation(9, None)} if evaluated else {},
    )


def board_of(log_dir: Path, sensors: int) -> RunBoard:
    config = config_of(sensors)
    return RunBoard(log_dir, config, build_fleet(config, UNITS))


def read_events(log_dir: Path) -> Any:
    events = EventAccumulator(str(log_dir))
    events.Reload()
    return events


def scalar(events: Any, tag: str) -> list[tuple[int, float]]:
    return [(event.step, pytest.approx(event.value)) for event in events.Scalars(tag)]


def test_scalars_by_tier_overall_and_client(tmp_path: Path) -> None:
    board = board_of(tmp_path, sensors=2)
    board.round(round_report(1, 2, evaluated=False))
    board.round(round_report(2, 2, evaluated=True))
    events = read_events(tmp_path)
    assert scalar(events, "client_loss/sensor") == [(1, 0.5), (2, 0.5)]
    assert scalar(events, "client_loss/overall") == [(1, 7 / 3), (2, 7 / 3)]
    assert scalar(events, "server_loss/overall") == [(1, 4.0), (2, 4.0)]
    assert scalar(events, "client_accuracy/sensor") == [(2, 0.15)]
    assert scalar(events, "client_accuracy/phone") == [(2, 0.9)]
    assert scalar(events, "server_accuracy/overall") == [(2, 0.35)]
    assert scalar(events, "gated_accuracy/tau=0.5/overall") == [(2, 0.4)]
    assert scalar(events, "offload_ratio/tau=0.5/sensor") == [(2, 0.5)]
    assert scalar(events, "details/train_sent_bytes/sensor") == [(1, 100.0), (2, 100.0)]
    assert scalar(events, "round/learning_rate") == [(1, 0.05), (2, 0.05)]
    assert scalar(events, "round/samples_per_s") == [(1, 7.5), (2, 7.5)]
    assert scalar(events, "details/client_accuracy_per_client/001") == [(2, 0.2)]
    assert scalar(events, "details/gated_accuracy_per_client/tau=0.5/002") == [(2, 0.9)]
    assert "server_accuracy/phone" not in events.Tags()["scalars"]
    board.close()


def test_accuracies_stand_against_simulated_seconds_and_sent_bytes_too(tmp_path: Path) -> None:
    """40.4 s and 2.5 MiB of the sensors by the first evaluation, 90 s and 5 MiB by the second: whole numbers."""
    board = board_of(tmp_path, sensors=2)
    fleet = build_fleet(config_of(2), UNITS)
    spent = {0: ClientCost(sent_bytes=10, joules=2.0), 1: ClientCost(sent_bytes=10, joules=3.0)}
    cost = RoundCost(3.0, 1.0, 2.0, fleet, spent)
    sent = {"sensor": 5 * 2**19, "phone": 0}
    for number, totals in ((1, SimulatedTotals(30.0, 10.4, 500.0, sent_bytes=sent)),
                           (2, SimulatedTotals(80.0, 10.0, 900.0, sent_bytes={"sensor": 5 * 2**20}))):  # fmt: skip
        board.round(round_report(number, 2, evaluated=True), cost, totals)
    board.close()
    events = read_events(tmp_path)
    assert scalar(events, "details/by_simulated_second/client_accuracy/sensor") == [(40, 0.15), (90, 0.15)]
    assert scalar(events, "details/by_sent_mib/server_accuracy/overall") == [(2, 0.35), (5, 0.35)]
    assert scalar(events, "details/by_sent_mib/gated_accuracy/tau=0.5/sensor") == [(2, 0.15), (5, 0.15)]
    assert scalar(events, "round/simulated_train_s") == [(1, 3.0), (2, 3.0)]
    assert scalar(events, "details/simulated_joules/sensor") == [(1, 5.0), (2, 5.0)]
    others = [tag for tag in events.Tags()["scalars"] if tag.startswith("details/by_") and "accuracy/" not in tag]
    assert others == []


def test_large_fleets_have_no_curves_per_client(tmp_path: Path) -> None:
    board = board_of(tmp_path, sensors=MOST_LABELS)
    board.round(round_report(1, MOST_LABELS, evaluated=True))
    board.close()
    tags = read_events(tmp_path).Tags()["scalars"]
    assert "client_accuracy/sensor" in tags
    assert not [tag for tag in tags if "per_client" in tag]


def test_confidences_are_a_histogram_per_tier(tmp_path: Path) -> None:
    board = board_of(tmp_path, sensors=2)
    board.round(round_report(1, 2, evaluated=True))
    board.close()
    events = read_events(tmp_path)
    (event,) = events.Histograms("confidence/sensor")
    histogram = event.histogram_value
    assert (event.step, histogram.min, histogram.max, histogram.num) == (1, 0.0, 1.0, 20.0)
    assert histogram.sum == pytest.approx(6 * 0.025 + 14 * 0.975)
    counts = dict(zip(histogram.bucket_limit, histogram.bucket, strict=True))
    assert {round(limit, 6): count for limit, count in counts.items() if count} == {0.05: 6.0, 1.0: 14.0}
    assert sorted(events.Tags()["histograms"]) == ["confidence/phone", "confidence/sensor"]


def test_finish_writes_hyperparameters_into_the_same_run(tmp_path: Path) -> None:
    board = board_of(tmp_path, sensors=2)
    means = {"client_accuracy": 0.4, "gated": [{"tau": 0.5, "accuracy": 0.6, "offload_ratio": 0.3}]}
    board.finish(
        {
            "rounds": 2,
            "samples_per_s": 12.0,
            "tiers": [
                {"name": "sensor", "server_accuracy": 0.7, **means},
                {"name": "phone", "server_accuracy": None, **means},
            ],
            "overall": {"server_accuracy": 0.7, **means},
        }
    )
    board.close()
    assert len(list(tmp_path.iterdir())) == 1
    events = read_events(tmp_path)
    content = HParamsPluginData.FromString(events.PluginTagToContent("hparams")["_hparams_/session_start_info"])
    found = content.session_start_info.hparams
    assert found["seed"].number_value == 7
    assert found["training.strategy"].string_value == "averaging"
    assert found["tiers.sensor"].string_value == "2 x stem"
    assert scalar(events, "final/client_accuracy") == [(2, 0.4)]
    assert scalar(events, "details/final/server_accuracy/sensor") == [(2, 0.7)]
    assert scalar(events, "final/gated_accuracy/tau=0.5") == [(2, 0.6)]
    assert "details/final/server_accuracy/phone" not in events.Tags()["scalars"]


def test_hyperparameters_are_flat_and_leave_out_what_is_not_set() -> None:
    found = hyperparameters(config_of(2))
    assert found["training.optimizer.lr"] == 0.05
    assert found["training.optimizer.betas"] == "0.9, 0.999"
    assert found["data.partition.kind"] == "iid"
    assert "data.root" not in found
    assert not [key for key in found if key.startswith("cluster")]


def test_class_counts_are_a_picture(tmp_path: Path) -> None:
    board = board_of(tmp_path, sensors=2)
    board.class_counts(np.array([[5, 1], [0, 4], [2, 2]]), ["zero", "one"], tmp_path / "class_counts.png")
    board.close()
    assert (tmp_path / "class_counts.png").read_bytes().startswith(PNG)
    (image,) = read_events(tmp_path).Images("data/class_counts")
    assert image.encoded_image_string.startswith(PNG)
    assert image.width > 300
    assert image.height > 200


@pytest.mark.parametrize(("clients", "classes"), [(2, 2), (101, 200)])
def test_class_counts_of_any_size_are_saved(tmp_path: Path, clients: int, classes: int) -> None:
    path = tmp_path / "class_counts.png"
    counts = np.arange(clients * classes).reshape(clients, classes)
    board_of(tmp_path, sensors=clients - 1).class_counts(counts, [f"class {k}" for k in range(classes)], path)
    assert path.read_bytes().startswith(PNG)


def test_class_counts_name_tiers_and_have_numbers_in_their_cells() -> None:
    fleet = build_fleet(config_of(2), UNITS)
    axes = class_counts_figure(np.array([[5, 1], [0, 4], [2, 2]]), ["zero", "one"], fleet.clients).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["sensor 000", "sensor 001", "phone 002"]
    assert [text.get_text() for text in axes.texts] == ["5", "1", "0", "4", "2", "2"]
    colors = [label.get_color() for label in axes.get_yticklabels()]
    assert colors == [tier_colors(["sensor", "phone"])[tier] for tier in ("sensor", "sensor", "phone")]


def test_the_quickstart_shows_at_most_forty_scalars_first_and_the_rest_in_one_group(tmp_path: Path) -> None:
    """Every metric that there is, in the quickstart's fleet; also what devices spend."""
    config = load_config("jobs/configs/quickstart.yaml")
    fleet = build_fleet(config, ("layer1.1", "layer2.1", "layer3.1", "head"))
    board = RunBoard(tmp_path, config, fleet)
    answers = EvaluationReport(10, 5, 6, (5,) * 5, (5,) * 5, 1000, (4, 6), (0,) * CONFIDENCE_BINS)
    numbers = [client.client_id for client in fleet.clients]
    training = {number: TrainReport(10, (1.0,), 100) for number in numbers}
    report = RoundReport(1, 0.05, 5.0, 4.0, training, training, dict.fromkeys(numbers, answers))
    cost = RoundCost(3.0, 1.0, 2.0, fleet, {number: ClientCost(sent_bytes=10, joules=2.0) for number in numbers})
    board.round(report, cost, SimulatedTotals(30.0, 10.4, 500.0, sent_bytes={"sensor": 2**20}))
    gates = [{"tau": tau, "accuracy": 0.5, "offload_ratio": 0.5} for tau in config.exits.taus]
    means = {"client_accuracy": 0.4, "server_accuracy": 0.7, "gated": gates}
    tiers = [{"name": tier, **means} for tier in fleet.tiers]
    board.finish({"rounds": 1, "samples_per_s": 1.0, "tiers": tiers, "overall": means})
    board.close()
    tags = read_events(tmp_path).Tags()["scalars"]
    first = [tag for tag in tags if not tag.startswith("details/")]
    assert 25 < len(first) <= 40
    assert len(tags) - len(first) > 80
    assert "gated_accuracy/tau=0.5/hub" in first and "details/gated_accuracy/tau=0.9/hub" in tags


def charts_of(log_dir: Path) -> dict[str, list[str]]:
    """Tags that every chart under Custom Scalars shows, as TensorBoard's plugin finds them."""
    events = read_events(log_dir)
    (event,) = events.Tensors("custom_scalars__config__")
    shown = Layout.FromString(make_ndarray(event.tensor_proto).item())
    return {
        chart.title: [
            tag for tag in events.Tags()["scalars"] if re.match(f"({')|('.join(chart.multiline.tag)})", tag)
        ]
        for page in shown.category
        for chart in page.chart
    }  # fmt: skip


def test_one_chart_has_all_tiers(tmp_path: Path) -> None:
    board = board_of(tmp_path, sensors=2)
    board.round(round_report(1, 2, evaluated=True))
    board.close()
    charts = charts_of(tmp_path)
    of_all = [f"client_accuracy/{tier}" for tier in ("sensor", "overall", "phone")]
    assert sorted(charts["accuracy of exits"]) == sorted(of_all)
    assert sorted(charts["accuracy of servers"]) == ["server_accuracy/overall", "server_accuracy/sensor"]
    assert len(charts["accuracy behind the gate, tau=0.5"]) == 3
    assert charts["sensor"] == ["gated_accuracy/tau=0.5/sensor"]
    assert all(charts.values()), "no chart is empty"
