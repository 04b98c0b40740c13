"""What is set while a local Ray is started, and set back. `tests/e2e/test_own_ray.py` starts one."""

from __future__ import annotations

import os

import pytest
from ray._private import ray_constants
from ray._private.authentication.authentication_utils import is_token_auth_enabled

from actors.cluster.ray_internals import loopback_only, temp_dir, token_of_its_own


@pytest.mark.parametrize("mode", [None, "disabled"])
def test_a_token_is_random_and_goes_with_the_block(mode: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    if mode is not None:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of another cluster")
    tokens = set()
    for _ in range(2):
        with token_of_its_own():
            assert is_token_auth_enabled()
            assert os.environ["RAY_AUTH_MODE"] == "token"
            tokens.add(os.environ["RAY_AUTH_TOKEN"])
        assert not is_token_auth_enabled()
        assert (os.environ.get("RAY_AUTH_MODE"), os.environ["RAY_AUTH_TOKEN"]) == (mode, "of another cluster")
    assert {len(token) for token in tokens - {"of another cluster"}} == {64} and len(tokens) == 2


def test_clusters_are_possible_again_after_the_block() -> None:
    with loopback_only():
        assert not ray_constants.ENABLE_RAY_CLUSTER
    assert ray_constants.ENABLE_RAY_CLUSTER


def test_a_relative_directory_is_made_absolute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "here")
    assert temp_dir() == os.path.join(os.getcwd(), "here", "ray")
