"""Run directories as a finished training leaves them, trained in this process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hsee_ray.config.files import dump_config, load_config
from hsee_ray.method.setup import prepare_run
from hsee_ray.models.weights import digest_lines, read_model, weights_sha256, write_model
from hsee_ray.reference import Reference
from hsee_ray.rundir.run import CONFIG_FILE, MODELS_DIR, SUMMARY_FILE, Run, load_run
from hsee_ray.rundir.summary import write_summary


def train_run(path: Path, content: Mapping[str, Any]) -> Run:
    """Trains a configuration with the reference; the summary holds what is needed to use the models."""
    config = load_config({**content, "data": {"cache": str(path.parent / "cache"), **content["data"]}})
    setup = prepare_run(config)
    reference = Reference(setup)
    for _ in reference.run():
        pass
    path.mkdir()
    (path / CONFIG_FILE).write_text(dump_config(config), encoding="utf-8")
    for stem, tensors in reference.files().items():
        write_model(str(path / MODELS_DIR), stem, tensors)
    data = {
        "name": setup.files.name,
        "image_shape": setup.files.image_shape,
        "class_names": setup.files.class_names,
        "mean": setup.mean_C,
        "std": setup.std_C,
    }
    summary = {
        "data": data,
        "model_units": setup.fleet.unit_names,
        "weights_sha256": reference.digest(),
        "clients": [{"id": spec.client_id, "trained_rounds": 1} for spec in setup.fleet.clients],
    }
    write_summary(path / SUMMARY_FILE, summary)
    return load_run(path)


def without_client(run: Run, number: int) -> Run:
    """The run as if this client had never had a place on the cluster: no model, and a digest without it."""
    (run.path / MODELS_DIR / f"{run.fleet.clients[number].client_file}.safetensors").unlink()
    files = sorted((run.path / MODELS_DIR).glob("*.safetensors"))
    lines = [line for file in files for line in digest_lines(file.stem, read_model(file))]
    write_summary(run.path / SUMMARY_FILE, {**run.summary, "weights_sha256": weights_sha256(lines)})
    return load_run(run.path)
