"""The end of a process whose own Ray has lost a daemon, with a stand-in for the daemon."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import subprocess, sys, time
from actors.cluster.daemons import DaemonWatch

daemon = subprocess.Popen(["sleep", "600"])
try:
    with DaemonWatch({"raylet": daemon}, lambda: print("ended", flush=True)) as watch:
        watch.last_words = lambda reason: f"{reason}; last words"
        {BLOCK}
finally:
    daemon.kill()
print("after", flush=True)
"""
DIED = "error: raylet, a daemon of the local Ray, has died (SIGKILL, as the system sends it when memory is short); "


def ended(block: str) -> subprocess.CompletedProcess[str]:
    script = SCRIPT.replace("{BLOCK}", block)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "block",
    [
        "daemon.kill(); time.sleep(30)",
        "daemon.kill(); daemon.wait(); raise ValueError('an error that only the death explains')",
        "daemon.kill(); daemon.wait(); sys.exit(3)",
    ],
)
def test_a_death_ends_the_process_with_one_line(block: str) -> None:
    process = ended(block)
    assert (process.returncode, process.stdout) == (1, "ended\n")
    assert process.stderr == f"{DIED}last words\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("watch.last_words = lambda reason: time.sleep(30)", ""),
        ("watch.last_words = lambda reason: open('/nowhere').read()", "No such file"),
    ],
)
def test_last_words_that_fail_hold_nothing_up(words: str, said: str) -> None:
    short = "import actors.cluster.daemons as daemons; daemons.LAST_WORDS_S = 0.5"
    process = ended(f"{short}; {words}; daemon.kill(); time.sleep(30)")
    assert (process.returncode, process.stdout) == (1, "ended\n")
    assert said in process.stderr


def test_nothing_happens_while_daemons_live() -> None:
    process = ended("time.sleep(0.5)")
    assert (process.returncode, process.stdout, process.stderr) == (0, "after\n", "")
    process = ended("raise ValueError('its own')")
    assert process.returncode == 1 and process.stderr.endswith("ValueError: its own\n")
