"""What the README shows runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

from hsee_ray.config.files import load_config
from hsee_ray.training.begin import run
from hsee_ray.training.in_process import in_process

README = Path(__file__).parents[2] / "README.md"


def test_the_first_config_trains_as_pasted_offline(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    path = tmp_path / "my.yaml"
    path.write_text(text, encoding="utf-8")
    config = load_config(path, ["training.rounds=1", f"data.cache={tmp_path / 'cache'}"])
    assert run(config, tmp_path / "run", in_process).summary["rounds"] == 1


def test_it_has_at_most_two_hundred_lines() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 200
