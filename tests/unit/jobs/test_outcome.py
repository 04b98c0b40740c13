"""Exit codes, and output whose reader goes away."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hsee_ray.errors import Interrupted, RunError, UserError
from jobs.outcome import exit_code

PRINTS = """
import sys, time
from pathlib import Path
from jobs.outcome import exit_code

def job():
    for number in range(2000):
        print("x" * 100, number, flush=True)
        print("y", file=sys.stderr, flush=True)
    Path(sys.argv[1]).write_text(str(sys.stdout.isatty()))
    return 7

sys.exit(exit_code(job))
"""


MORE = (
    "end other programs, raise the limit (the container's, or ulimit -v), or take smaller batches, images or networks"
)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("this\nthat"), 2, "error: this\\nthat\n"),
        (RunError("it failed"), 1, "error: it failed\n"),
        (OSError("no space"), 1, "error: no space\n"),
        (TimeoutError(), 1, "error: TimeoutError\n"),
        (Interrupted("stopped", 15), 143, "stopped\n"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (MemoryError(), 1, f"error: too little memory (MemoryError); {MORE}\n"),
        (
            RuntimeError("CUDA out of memory. Tried"),
            1,
            f"error: too little memory (CUDA out of memory. Tried); {MORE}\n",
        ),
        (ImportError("failed to map segment"), 1, f"error: too little memory (failed to map segment); {MORE}\n"),
    ],
)
def test_an_error_is_one_line_and_a_code(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def job() -> int:
        raise error

    assert exit_code(job) == code
    assert capsys.readouterr().err == said


def test_a_bug_keeps_its_traceback() -> None:
    def job() -> int:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        exit_code(job)


def test_a_limit_on_memory_is_one_line(tmp_path: Path) -> None:
    """Pictures of 14 GiB, in a process that may have six; numpy raises a kind of MemoryError."""
    config = tmp_path / "large.yaml"
    config.write_text(
        "model: {name: tests.networks:conv_units}\ntiers: [{name: a, clients: 1, cut: stem}]\n"
        f"data: {{name: synthetic, image_size: 224, train_samples: 100000, cache: {tmp_path}}}\n"
    )
    limited = f"ulimit -v 6000000; exec {sys.executable} -m jobs.data --config {config}"
    ended = subprocess.run(["bash", "-c", limited], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, len(ended.stderr.splitlines())) == (1, 1), ended.stderr
    assert ended.stderr.startswith("error: too little memory (Unable to allocate 14.0 GiB")


def test_a_reader_that_leaves_ends_no_job(tmp_path: Path) -> None:
    done = tmp_path / "done"
    for redirection in ("| head -n 1 >/dev/null", ">&- 2>&-", "2>&1 | head -c 1 >/dev/null"):
        command = f"{sys.executable} -c '{PRINTS}' {done} {redirection}; exit ${{PIPESTATUS[0]}}"
        ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
        assert ended.returncode == 7, (redirection, ended.stderr)
        assert "Error" not in ended.stderr and "Exception" not in ended.stderr
        assert done.read_text() == "False"
        done.unlink()


def test_a_terminal_that_lacks_a_character_shows_another(tmp_path: Path) -> None:
    script = "from jobs.outcome import exit_code; exit(exit_code(lambda: print(chr(0xDCE9), chr(0x732B)) or 0))"
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, timeout=60, env={"PYTHONIOENCODING": "ascii", "PATH": ""}
    )
    assert (ended.returncode, ended.stdout) == (0, b"\\udce9 \\u732b\n")


def test_a_full_disk_is_one_line_for_tensorboard_too(tmp_path: Path) -> None:
    """Its writer's thread would print a traceback of its own."""
    config = tmp_path / "small.yaml"
    config.write_text(
        "model: {name: tests.networks:conv_units}\ntiers: [{name: a, clients: 2, cut: stem}]\n"
        f"data: {{name: synthetic, image_size: 8, train_samples: 40, test_samples: 8, cache: {tmp_path}}}\n"
    )
    command = f"-m jobs.train --config {config} --run-dir {tmp_path / 'run'} --in-process"
    assert subprocess.run(["bash", "-c", f"{sys.executable} {command} --dry-run"], timeout=120).returncode == 0
    limited = f"ulimit -f 16; exec {sys.executable} {command}"  # KiB of each file; the images are in the cache
    ended = subprocess.run(["bash", "-c", limited], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1 and "Traceback" not in ended.stderr, ended.stderr
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("error: OSError: [Errno 27] File too large; no round is in a checkpoint yet"), ended.stderr
