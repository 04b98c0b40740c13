"""`hsee edge`, and what a device needs to have installed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.edge import main
from tests.device import SURE, UNSURE, Server, images_of, running_server, write_client

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_client(tmp_path_factory.mktemp("bundles") / "client-003")


@pytest.fixture
def server() -> Iterator[Server]:
    with running_server() as server:
        yield server


HEAVY = ("torch", "torchvision", "ray", "pydantic", "yaml", "pyarrow", "safetensors", "scipy", "sklearn", "matplotlib")
BARE = f"""
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
"""


def bare(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a script where a device's packages are installed, and no others."""
    command = [sys.executable, "-c", BARE + script, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_a_device_needs_neither_torch_nor_ray(bundle: Path, server: Server, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", images_of(SURE, UNSURE))
    Image.fromarray(images_of(SURE)[0, ..., 0]).save(tmp_path / "sure.png")
    predict = """
sys.modules["PIL"] = None
import numpy, hsee_ray
from hsee_ray.edge import EdgeClient
with EdgeClient(sys.argv[1], sys.argv[2]) as client:
    print([prediction.label for prediction in client.predict(numpy.load(sys.argv[3]))])
"""
    done = bare(predict, str(bundle), server.url, str(tmp_path / "images.npy"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "[0, 2]\n", "")
    command = "from jobs.cli import main\nsys.exit(main())"
    files = [str(tmp_path / name) for name in ("images.npy", "sure.png")]
    done = bare(command, "edge", "--bundle", str(bundle), "--server", server.url, "--images", *files)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("3 images: 2 exited, 1 offloaded, 0 degraded\n")


def test_a_command_says_what_it_needs(bundle: Path) -> None:
    command = "from jobs.cli import main\nsys.exit(main())"
    done = bare(command, "train", "--config", "jobs/configs/quickstart.yaml")
    needs = "error: hsee train needs pyyaml, which is not installed: pip install 'hsee-ray[train]'\n"
    assert (done.returncode, done.stderr) == (2, needs)
    done = bare(f"sys.modules['onnxruntime'] = None\n{command}", "edge", "--bundle", str(bundle), "--images", "x.png")
    needs = "error: hsee edge needs onnxruntime, which is not installed: pip install 'hsee-ray[edge]'\n"
    assert (done.returncode, done.stderr) == (2, needs)
    done = bare(f"sys.modules['jobs.train'] = None\n{command}", "train", "--help")
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback"), "a module of this project is no package to install"


def test_the_command(bundle: Path, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "images.npy", images_of(SURE, UNSURE, UNSURE))
    Image.fromarray(images_of(SURE)[0, ..., 0].repeat(3, 0).repeat(5, 1)).convert("RGB").save(tmp_path / "sure.png")
    files = [str(tmp_path / name) for name in ("images.npy", "sure.png")]
    options = ["--bundle", str(bundle), "--images", *files, "--batch-size", "2"]
    assert main([*options, "--server", server.url]) == 0
    said = capsys.readouterr()
    lines = [line.split() for line in said.out.splitlines()]
    assert [line[:2] + line[3:-2] for line in lines[:-1]] == [
        [f"{files[0]}[0]", "ant", "exit"],
        [f"{files[0]}[1]", "cat", "server"],
        [f"{files[0]}[2]", "cat", "server"],
        [files[1], "ant", "exit"],
    ]
    assert all(0.3 < float(line[2]) <= 1 and float(line[-2]) > 0 and line[-1] == "ms" for line in lines[:-1])
    assert said.out.endswith("4 images: 2 exited, 2 offloaded, 0 degraded\n")
    assert server.samples == [1, 1], "a request for each batch with an unsure image"

    assert main(options) == 0
    said = capsys.readouterr()
    assert said.out.count("exit (no server)") == 2
    assert said.out.endswith("4 images: 2 exited, 0 offloaded, 2 degraded\n")

    (tmp_path / "more" / "below").mkdir(parents=True)
    (tmp_path / "sure.png").rename(tmp_path / "more" / "below" / "sure.png")
    assert main(["--bundle", str(bundle), "--images", str(tmp_path / "more")]) == 0
    assert capsys.readouterr().out.endswith("1 images: 1 exited, 0 offloaded, 0 degraded\n")
    (tmp_path / "more" / "below" / "sure.png").rename(tmp_path / "sure.png")

    nowhere = ["--server", "http://127.0.0.1:9", "--timeout-s", "0.2"]
    assert main([*options, *nowhere]) == 0
    assert capsys.readouterr().out.count("exit (server unreachable)") == 2
    assert main([*options, *nowhere, "--on-unreachable", "raise"]) == 1
    assert_one_line(capsys.readouterr().err, "http://127.0.0.1:9/answer: cannot be reached")


def test_bad_input_of_the_command(
    bundle: Path, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contents = {"no.png": b"no image", "no.npy": b"no array", "token": b"\n"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    np.save(tmp_path / "images.npy", images_of(UNSURE))
    np.save(tmp_path / "floats.npy", np.zeros((1, 2, 2, 1)))
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    (tmp_path / "empty").mkdir()
    cases = {
        "no.png does not decode": ["--images", "no.png"],
        "no.npy: is damaged or no .npy file": ["--images", "no.npy"],
        "objects.npy: is damaged or no .npy file": ["--images", "objects.npy"],
        "floats.npy: holds float64 of shape (1, 2, 2, 1); give uint8 and (N, *(2, 2, 1))": ["--images", "floats.npy"],
        "absent.png: there is no such file": ["--images", "absent.png"],
        "empty: has no files": ["--images", "empty"],
        "--token-file": ["--images", "images.npy", "--token-file", "token"],
        "server URL 'here'": ["--images", "images.npy", "--server", "here"],
        "status 404: scripted 404": ["--images", "images.npy", "--server", server.url],
        "bundle.json: cannot be read": ["--images", "images.npy", "--bundle", "."],
    }
    server.script = [404]
    for said, options in cases.items():
        there = [str(tmp_path / option) if (tmp_path / option).exists() else option for option in options]
        assert main(["--bundle", str(bundle), *there]) == 2
        assert_one_line(capsys.readouterr().err, said)
    (tmp_path / "token").write_text("secret\n")
    options = ["--images", str(tmp_path / "images.npy"), "--token-file", str(tmp_path / "token")]
    assert main(["--bundle", str(bundle), *options, "--server", server.url]) == 0
    assert server.tokens[-1] == "Bearer secret"
    for option in (["--batch-size", "0"], ["--timeout-s", "0"], ["--timeout-s", "nan"]):
        with pytest.raises(SystemExit, match="2"):
            main(["--bundle", str(bundle), "--images", "x.png", *option])


def test_answers_before_a_failure_are_printed(
    bundle: Path, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "images.npy", images_of(SURE, UNSURE))
    server.script = [404]
    options = ["--bundle", str(bundle), "--images", str(tmp_path / "images.npy"), "--server", server.url]
    assert main(options) == 2
    said = capsys.readouterr()
    assert [line.split()[3:-2] for line in said.out.splitlines()] == [["exit"], ["exit", "(server", "refused)"]]
    assert_one_line(said.err, "status 404: scripted 404")


def assert_one_line(text: str, said: str) -> None:
    assert said in text
    assert text.startswith("error: ")
    assert text.count("\n") == 1
