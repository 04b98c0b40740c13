"""Imports run one way, and light doors stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def imported(path: Path) -> set[str]:
    """Top-level packages that a file imports anywhere, in functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # Relative imports stay in the package; the house writes them out.
            assert node.level == 0, f"{path} has a relative import"
            found.add(str(node.module).partition(".")[0])
    return found


@pytest.mark.parametrize(
    ("package", "forbidden"), [("hsee_ray", {"ray", "actors", "jobs", "tests"}), ("actors", {"jobs", "tests"})]
)
def test_imports_run_one_way(package: str, forbidden: set[str]) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert len(files) > 5
    wrong = {str(path.relative_to(ROOT)): found for path in files if (found := imported(path) & forbidden)}
    assert wrong == {}


@pytest.mark.parametrize("module", ["hsee_ray.method.aggregation", "hsee_ray.config.files"])
def test_an_aggregator_and_a_wrong_key_do_not_wait_for_torch(module: str) -> None:
    script = f"import sys, {module}; print([name for name in ('torch', 'torchvision', 'ray') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    "module",
    [
        "edge",
        "edge.bundle",
        "edge.codecs",
        "edge.edge_client",
        "edge.gate",
        "edge.images",
        "edge.protocol",
        "edge.stages",
        "errors",
    ],
)
def test_what_a_device_runs_needs_only_what_a_device_has(module: str) -> None:
    script = (
        f"import sys, hsee_ray.{module}; "
        "print({name.partition('.')[0] for name in sys.modules} & "
        "{'torch', 'ray', 'pydantic', 'yaml', 'pyarrow', 'safetensors', 'scipy', 'onnx'})"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_help_of_the_train_job_loads_neither_torch_nor_ray() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "jobs.train", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "exit codes" in done.stdout
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "argparse" in loaded, "the list of imports is read"
    assert loaded & {"torch", "ray", "numpy"} == set()
