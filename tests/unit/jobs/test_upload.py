"""What `ray job submit --working-dir .` takes along: all of the code, and little else."""

from __future__ import annotations

import zipfile
from inspect import signature
from pathlib import Path

from ray._private.runtime_env.packaging import create_package

ROOT = Path(__file__).parents[3]
MOST_BYTES = 2 << 20


def test_a_job_takes_the_code_along_and_little_else(tmp_path: Path) -> None:
    package = tmp_path / "package.zip"
    newer = {"include_gitignore": True} if "include_gitignore" in signature(create_package).parameters else {}
    create_package(str(ROOT), package, **newer)
    names = set(zipfile.ZipFile(package).namelist())
    code = {
        str(path.relative_to(ROOT))
        for folder in ("hsee_ray", "actors", "jobs")
        for path in (ROOT / folder).rglob("*.py")
    }
    assert code <= names
    assert {"cluster.yaml", "pyproject.toml", "jobs/configs/cluster_cifar10.yaml"} <= names
    assert not [name for name in names if name.startswith((".git/", ".venv/", "tests/", "docs/", "runs/", "data/"))]
    assert package.stat().st_size < MOST_BYTES
