"""Imports run one way, and light doors stay light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


PACKAGES = ("hsee_ray", "actors", "jobs")

ORDER = (
    "hsee_ray.errors",
    "hsee_ray.paths",
    "hsee_ray.process",
    "hsee_ray.pictures",
    "hsee_ray.rng",
    "hsee_ray.storage",
    "hsee_ray.edge",
    "hsee_ray.config",
    "hsee_ray.data",
    "hsee_ray.backbones",
    "hsee_ray.models",
    "hsee_ray.features",
    "hsee_ray.method",
    "hsee_ray.reference",
    "hsee_ray.devices",
    "hsee_ray.simulation",
    "hsee_ray.rundir",
    "hsee_ray.evaluation",
    "hsee_ray.planning",
    "hsee_ray.training",
    "hsee_ray.deploy",
    "hsee_ray",
    "actors.workers",
    "actors.cluster",
    "actors.run",
    "actors.inference",
    "actors.serving",
    "actors",
    "jobs.options",
    "jobs.outcome",
    "jobs.token_file",
    "jobs.progress",
    "jobs.train",
    "jobs.benches",
    "jobs",
)
"""Packages from the ground up, as docs/architecture.md lists them: each imports only what stands before it.

A module belongs to the longest name here that its own begins with: `jobs` are the doors that have no line of their own.
"""


def modules() -> dict[str, Path]:
    """Every module of the house by its dotted name."""
    found: dict[str, Path] = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path) -> set[str]:
    """Dotted names that a file imports anywhere: in functions and for type checkers too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def arrows() -> dict[str, set[str]]:
    """By module, the modules of the house that it imports."""
    known = modules()
    drawn: dict[str, set[str]] = {}
    for name, path in known.items():
        # `from package import module` and `from module import name` look alike.
        found = {each if each in known else each.rpartition(".")[0] for each in imported(path)}
        drawn[name] = (found & known.keys()) - {name}
    return drawn


def place(module: str) -> int:
    """Where a module's package stands in the order."""
    return ORDER.index(max((name for name in ORDER if f"{module}.".startswith(f"{name}.")), key=len))


def circles(drawn: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of modules that reach one another."""
    reached: dict[str, set[str]] = {}
    for start in drawn:
        seen: set[str] = set()
        ahead = [start]
        while ahead:
            fresh = drawn[ahead.pop()] - seen
            seen |= fresh
            ahead += fresh
        reached[start] = seen
    groups = {tuple(sorted(b for b in reached[a] if a in reached[b])) for a in drawn if a in reached[a]}
    return [list(group) for group in sorted(groups)]


def test_imports_run_one_way_between_packages() -> None:
    upward = [(a, b) for a, found in arrows().items() for b in found if place(b) > place(a)]
    assert upward == []


def test_imports_run_one_way_between_files() -> None:
    drawn = arrows()
    assert len(drawn) > 100 and "hsee_ray.errors" in drawn["hsee_ray.config.files"], "arrows are found"
    assert circles(drawn) == []


def test_circles_and_upward_arrows_would_be_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == [["b", "c"]]
    assert place("hsee_ray.edge.gate") < place("hsee_ray.config.schema") < place("hsee_ray") < place("actors.run.team")
    assert place("jobs.benches.serve") < place("jobs.bench")


def test_the_page_about_the_house_lists_the_packages_in_the_same_order() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    _, _, listed = text.partition("## Packages, from the ground up\n")
    names = re.findall(r"^    (hsee_ray|actors|jobs)(\.\w+)? ", listed.partition("\n## ")[0], re.MULTILINE)
    assert tuple("".join(name) for name in names) == ORDER


def test_only_actors_and_jobs_know_ray() -> None:
    forbidden = {"hsee_ray": {"ray", "actors", "jobs", "tests"}, "actors": {"jobs", "tests"}, "jobs": {"tests"}}
    for name, path in modules().items():
        found = {module.partition(".")[0] for module in imported(path)}
        assert found & forbidden[name.partition(".")[0]] == set(), name


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
