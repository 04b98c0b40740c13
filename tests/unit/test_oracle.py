"""Every strategy of the reference against a second implementation, and what never crosses the cut.

`tests/oracle.py` is plain PyTorch written from docs/method.md; here both train the same configurations.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hsee_ray.config.files import load_config
from hsee_ray.config.schema import Config
from hsee_ray.method.reports import RoundReport
from hsee_ray.method.setup import Setup, prepare_run
from hsee_ray.reference import Reference
from tests.oracle import Oracle, RoundLosses

RTOL, ATOL = 1e-4, 1e-5
SEED = 354
"""It draws clients 2 and 3, then 1 and 3, then 0 and 2, where half take part; 3, 3 and 0 where a quarter does."""


class Level(nn.Module):
    """Divides by a running mean of magnitudes: buffers which are no batch-norm statistics, and so are shared."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("level", torch.ones(()))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def forward(self, h_BCHW: Tensor) -> Tensor:
        if self.training:
            self.level.lerp_(h_BCHW.detach().abs().mean(), 0.2)
            self.batches.add_(1)
        return h_BCHW / self.level


def small_network(image_shape: tuple[int, int, int], n_classes: int) -> dict[str, nn.Module]:
    """Five units: quicker than a ResNet, and with a unit that has buffers of another kind."""

    def convolution(channels: int, out_channels: int, stride: int = 1) -> nn.Module:
        layer = nn.Conv2d(channels, out_channels, 3, stride, padding=1)
        return nn.Sequential(layer, nn.BatchNorm2d(out_channels), nn.ReLU())

    return {
        "stem": convolution(image_shape[2], 4),
        "block1": convolution(4, 6, stride=2),
        "block2": nn.Sequential(convolution(6, 6), Level()),
        "block3": convolution(6, 8, stride=2),
        "head": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, n_classes)),
    }


NETWORKS = {"small": {"name": f"{__name__}:small_network"}, "resnet": {"name": "resnet18", "width": 4}}
CUTS = {
    ("small", "whole"): ("stem", "stem", "block2", "head"),
    ("small", "split"): ("stem", "block1", "block1", "block1"),
    ("resnet", "whole"): ("layer1", "layer1", "layer2.0", "head"),
    ("resnet", "split"): ("stem", "layer2", "layer2", "layer2"),
}
"""Of every client. In `whole` the last one holds the whole network."""

PASSES = {"1_pass": {}, "2_passes": {"local_epochs": 2}, "5_steps": {"local_steps": 5}}
OPTIMIZERS = {
    "sgd": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.01},
    "adamw": {"name": "adamw", "lr": 0.005, "betas": [0.8, 0.95], "weight_decay": 0.1},
}
# Every value of a column meets every value of every other column. The last row is a case of its own: an only copy
# that trained is left as it is, and so is its optimiser (averaging); a shared server misses an average (sequential).
AVERAGING = """
aggregate  every  weights  state    norm        share  optimizer  schedule  passes    fleet  network
all        1      uniform  local    per_client  1      sgd        constant  1_pass    whole  small
all        2      samples  average  shared      0.5    adamw      cosine    2_passes  split  resnet
both       2      uniform  reset    shared      0.5    adamw      constant  5_steps   whole  small
server     1      samples  reset    per_client  1      sgd        cosine    5_steps   split  resnet
server     1      uniform  average  per_client  1      adamw      cosine    2_passes  whole  small
server     2      samples  local    shared      0.5    sgd        constant  1_pass    split  resnet
both       1      samples  average  per_client  0.5    sgd        cosine    1_pass    split  small
both       1      uniform  local    shared      1      sgd        constant  2_passes  whole  resnet
all        2      samples  local    per_client  1      adamw      cosine    5_steps   whole  small
all        1      uniform  reset    per_client  1      adamw      constant  1_pass    split  small
all        1      uniform  average  per_client  1      sgd        constant  5_steps   whole  small
all        1      uniform  reset    per_client  1      sgd        constant  2_passes  whole  small
both       1      uniform  reset    per_client  0.25   sgd        constant  1_pass    split  small
"""
SEQUENTIAL = """
turn    order     aggregate  every  weights  state    norm        share  optimizer  schedule  passes    fleet  network
client  listed    all        1      uniform  local    per_client  1      sgd        constant  1_pass    whole  small
batch   shuffled  all        2      samples  average  shared      0.5    adamw      cosine    2_passes  split  resnet
client  listed    both       2      samples  reset    per_client  1      adamw      cosine    5_steps   whole  resnet
batch   shuffled  server     1      uniform  reset    shared      0.5    sgd        constant  2_passes  split  small
client  shuffled  both       2      uniform  average  shared      1      sgd        constant  5_steps   split  small
batch   shuffled  server     1      samples  local    per_client  0.5    adamw      cosine    1_pass    whole  resnet
batch   listed    both       1      samples  local    shared      0.5    adamw      constant  5_steps   split  small
client  listed    server     2      uniform  average  per_client  1      sgd        cosine    2_passes  whole  resnet
client  listed    all        2      samples  reset    per_client  0.5    sgd        constant  1_pass    split  resnet
batch   listed    both       1      uniform  average  shared      1      adamw      cosine    1_pass    whole  small
client  listed    both       2      uniform  local    per_client  1      sgd        constant  2_passes  whole  small
client  listed    all        1      uniform  local    per_client  1      sgd        constant  5_steps   whole  small
client  listed    server     1      uniform  local    per_client  1      sgd        constant  5_steps   whole  small
client  listed    all        1      uniform  average  per_client  0.5    sgd        constant  1_pass    whole  small
"""
ALONE = """
strategy     share  optimizer  schedule  passes    fleet  network
distributed  1      sgd        cosine    1_pass    whole  resnet
distributed  0.5    adamw      constant  2_passes  split  small
centralized  1      sgd        cosine    2_passes  whole  resnet
centralized  1      adamw      constant  5_steps   split  small
"""
OPTIONS = {
    "strategy": "strategy",
    "turn": "interleave",
    "order": "order",
    "aggregate": "aggregate",
    "every": "aggregate_every",
    "weights": "aggregate_weights",
    "state": "optimizer_state",
    "norm": "norm_statistics",
    "share": "clients_per_round",
}
"""Column -> key of the configuration that takes the value as it stands."""


def rows_of(table: str, **fixed: str) -> list[dict[str, str]]:
    header, *lines = table.strip().splitlines()
    return [{**fixed, **dict(zip(header.split(), line.split(), strict=True))} for line in lines]


CASES = [
    *rows_of(AVERAGING, strategy="averaging"),
    *rows_of(SEQUENTIAL, strategy="sequential"),
    *rows_of(ALONE),
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def make_config(cache: Path, fleet: str, network: str, training: dict[str, object]) -> Config:
    tiers = [{"name": f"tier{n}", "clients": 1, "cut": cut} for n, cut in enumerate(CUTS[network, fleet])]
    # The Dirichlet draw gives shares of 15, 37, 20 and 19, so batches of 6 leave the second client one over.
    tiers[1]["batch_size"] = 6
    data = {"name": "synthetic", "image_size": 8, "train_samples": 96, "test_samples": 40, "classes": 4}
    partition = {"kind": "dirichlet", "alpha": 2.0, "min_samples": 8}
    values = {
        "seed": SEED,
        "model": NETWORKS[network],
        "data": {**data, "cache": str(cache), "partition": partition},
        "tiers": tiers,
        "training": {"rounds": 2, "batch_size": 8, "memory_format": "contiguous", **training},
    }
    return load_config(values)


def config_of(row: dict[str, str], cache: Path) -> Config:
    training: dict[str, object] = {OPTIONS[column]: value for column, value in row.items() if column in OPTIONS}
    training |= PASSES[row["passes"]] | {
        "optimizer": OPTIMIZERS[row["optimizer"]],
        "lr_schedule": {"name": row["schedule"]},
        # A third round, so that clients come back after an aggregation that they missed.
        "rounds": 3 if row.get("every") == "2" or row["share"] != "1" else 2,
    }
    return make_config(cache, row["fleet"], row["network"], training)


@pytest.mark.parametrize("row", CASES, ids=["-".join(row.values()) for row in CASES])
def test_reference_equals_the_oracle(row: dict[str, str], cache: Path) -> None:
    setup = prepare_run(config_of(row, cache))
    reference, oracle = Reference(setup), Oracle(setup)
    reports, losses = list(reference.run()), oracle.run()
    for report, expected in zip(reports, losses, strict=True):
        assert_losses_agree(report, expected)
    assert_tensors_agree(reference, oracle)
    correct = {n: (report.client_correct, report.server_correct) for n, report in reports[-1].evaluation.items()}
    assert correct == oracle.correct()


BASICS = """
strategy    border   transform      smoothing  clip  warmup  init     head  optimizer  schedule  fleet  network
averaging   mean     none           0.1        0.5   1       torch    conv  sgd        cosine    whole  small
averaging   black    RandomErasing  0          2     0       kaiming  mlp   adamw      constant  split  resnet
sequential  reflect  ColorJitter    0.2        0.3   2       torch    conv  sgd        constant  split  resnet
distributed mean     RandomErasing  0.1        1     1       kaiming  pool  sgd        cosine    whole  small
"""
TRANSFORMS = {
    "none": [],
    "RandomErasing": [{"name": "RandomErasing", "options": {"p": 0.7}}],
    "ColorJitter": [{"name": "ColorJitter", "options": {"brightness": 0.4, "contrast": 0.4}}, "RandomGrayscale"],
}


@pytest.mark.parametrize("row", rows_of(BASICS), ids=lambda row: "-".join(row.values()))
def test_the_basics_equal_the_oracles(row: dict[str, str], cache: Path) -> None:
    training = {
        "strategy": row["strategy"],
        "rounds": 3,
        "warmup_rounds": int(row["warmup"]),
        "objective": {"name": "cross_entropy", "options": {"label_smoothing": float(row["smoothing"])}},
        "optimizer": {**OPTIMIZERS[row["optimizer"]], "clip_norm": float(row["clip"])},
        "lr_schedule": {"name": row["schedule"]},
    }
    values = make_config(cache, row["fleet"], row["network"], training).model_dump()
    shift = {"flip": True, "shift": 0.25, "border": row["border"], "transforms": TRANSFORMS[row["transform"]]}
    values["data"]["augment"], values["model"]["init"], values["exits"]["head"] = shift, row["init"], row["head"]
    setup = prepare_run(load_config(values))
    reference, oracle = Reference(setup), Oracle(setup)
    reports, losses = list(reference.run()), oracle.run()
    for report, expected in zip(reports, losses, strict=True):
        assert_losses_agree(report, expected)
    assert_tensors_agree(reference, oracle)
    correct = {n: (report.client_correct, report.server_correct) for n, report in reports[-1].evaluation.items()}
    assert correct == oracle.correct()


WAYS_TO_LEARN = """
strategy    turn    exit  look_ahead  copies   feedback     aggregate  state    share  codec  head  optimizer  fleet  network  again
averaging   client  1     none        none     gradients    all        local    1      none   pool  sgd        whole  small   1
averaging   client  0     none        none     gradients    server     local    0.5    int8   conv  adamw      split  resnet  1
sequential  client  0.5   none        none     gradients    all        average  1      none   conv  sgd        split  small   1
sequential  batch   0     none        none     gradients    both       local    0.5    fp16   pool  sgd        whole  resnet  2
distributed client  0     none        none     gradients    all        local    1      none   pool  adamw      whole  small   1
averaging   client  0.3   2           peers    none         all        average  0.5    none   conv  sgd        whole  small   2
averaging   client  0     1           network  none         all        reset    0.5    none   pool  adamw      split  resnet  1
averaging   client  0     9           peers    soft_labels  server     local    1      int8   pool  sgd        split  small   3
sequential  client  0.3   2           network  soft_labels  all        local    0.5    none   conv  sgd        whole  small   2
sequential  batch   1     1           peers    soft_labels  both       local    0.5    fp16   pool  adamw      split  small   3
averaging   client  1     none        none     soft_labels  all        local    0.5    none   mlp   sgd        whole  resnet  1
"""  # noqa: E501


@pytest.mark.parametrize("row", rows_of(WAYS_TO_LEARN), ids=lambda row: "-".join(row.values()))
def test_ways_for_clients_to_learn_equal_the_oracles(row: dict[str, str], cache: Path) -> None:
    look_ahead = {"units": int(row["look_ahead"]), "copies": row["copies"]} if row["look_ahead"] != "none" else None
    soft_labels = {"name": "soft_labels", "weight": 0.5, "temperature": 2.0}
    training = {
        "strategy": row["strategy"],
        "interleave": row["turn"],
        "exit_weight": float(row["exit"]),
        "server_epochs": int(row["again"]),
        "look_ahead": look_ahead,
        "feedback": soft_labels if row["feedback"] == "soft_labels" else row["feedback"],
        "aggregate": row["aggregate"],
        "optimizer_state": row["state"],
        "clients_per_round": float(row["share"]),
        "optimizer": OPTIMIZERS[row["optimizer"]],
        "rounds": 3,
    }
    values = make_config(cache, row["fleet"], row["network"], training).model_dump()
    values["exits"]["head"] = row["head"]
    for tier in values["tiers"]:
        tier["codec"] = row["codec"] if tier["cut"] != "head" else "none"
    setup = prepare_run(load_config(values))
    reference, oracle = Reference(setup), Oracle(setup)
    reports, losses = list(reference.run()), oracle.run()
    for report, expected in zip(reports, losses, strict=True):
        assert_losses_agree(report, expected)
    assert_tensors_agree(reference, oracle)
    correct = {n: (report.client_correct, report.server_correct) for n, report in reports[-1].evaluation.items()}
    assert correct == oracle.correct()


RIVALS = """
strategy  aggregate  every  weights  state    share  optimizer  network  head
fedavg    all        1      samples  local    1      sgd        small    pool
fedavg    both       2      uniform  reset    0.5    adamw      resnet   pool
smallest  all        1      uniform  average  0.5    sgd        resnet   conv
smallest  both       1      samples  local    1      adamw      small    pool
per_tier  all        1      samples  local    1      sgd        small    conv
per_tier  both       2      uniform  average  0.5    adamw      resnet   pool
depthfl   all        1      samples  local    0.5    sgd        small    conv
depthfl   both       2      uniform  average  1      adamw      resnet   pool
"""


@pytest.mark.parametrize("row", rows_of(RIVALS), ids=lambda row: "-".join(row.values()))
def test_rivals_without_servers_equal_the_oracles(row: dict[str, str], cache: Path) -> None:
    training: dict[str, object] = {OPTIONS[column]: value for column, value in row.items() if column in OPTIONS}
    training |= {"optimizer": OPTIMIZERS[row["optimizer"]], "rounds": 3}
    values = make_config(cache, "whole", row["network"], training).model_dump()
    low, _, high, _ = CUTS[row["network"], "whole"]
    values["tiers"] = [{"name": "low", "clients": 2, "cut": low}, {"name": "high", "clients": 2, "cut": high}]
    values["exits"]["head"] = row["head"]
    setup = prepare_run(load_config(values))
    reference, oracle = Reference(setup), Oracle(setup)
    reports, losses = list(reference.run()), oracle.run()
    for report, expected in zip(reports, losses, strict=True):
        assert_losses_agree(report, expected)
    assert_tensors_agree(reference, oracle)
    assert not reference.servers and all(each.sent_bytes == 0 for each in reports[0].client_training.values())
    correct = {n: (report.client_correct, report.server_correct) for n, report in reports[-1].evaluation.items()}
    assert correct == oracle.correct()


AVERAGES = """
strategy    weights  server  step      state    mu    aggregate  share  look_ahead  fleet  network
averaging   depth    0.5     momentum  local    0     all        0.5    none        whole  small
averaging   uniform  1       adam      average  0.5   both       1      peers       split  small
averaging   samples  2       adam      reset    0     server     0.5    none        split  small
sequential  depth    0.5     momentum  local    0.1   all        0.5    network     split  small
sequential  uniform  3       adam      local    0     all        1      none        whole  small
per_tier    depth    1       momentum  local    1     all        0.5    none        whole  small
"""


@pytest.mark.parametrize("row", rows_of(AVERAGES), ids=lambda row: "-".join(row.values()))
def test_weights_and_steps_of_averages_equal_the_oracles(row: dict[str, str], cache: Path) -> None:
    adam = {"name": "adam", "lr": 0.05, "betas": [0.8, 0.9], "eps": 0.1}
    training = {
        "strategy": row["strategy"],
        "objective": {"name": "proximal", "options": {"mu": float(row["mu"])}} if row["mu"] != "0" else None,
        "look_ahead": {"units": 1, "copies": row["look_ahead"]} if row["look_ahead"] != "none" else None,
        "aggregate_weights": row["weights"],
        "server_weight": float(row["server"]),
        "average_step": adam if row["step"] == "adam" else {"name": "momentum", "lr": 0.7, "momentum": 0.5},
        "optimizer_state": row["state"],
        "aggregate": row["aggregate"],
        "clients_per_round": float(row["share"]),
        "optimizer": OPTIMIZERS["sgd"],
        "rounds": 4,
    }
    setup = prepare_run(make_config(cache, row["fleet"], row["network"], training))
    reference, oracle = Reference(setup), Oracle(setup)
    reports, losses = list(reference.run()), oracle.run()
    for report, expected in zip(reports, losses, strict=True):
        assert_losses_agree(report, expected)
    assert_tensors_agree(reference, oracle)


CODECS = [
    ("averaging", 3, 1.0, ("int8", "fp16", "int8", "none")),
    ("sequential", 3, 1.0, ("fp16", "int8", "int8", "int8")),
    # Clients 2 and 3 are drawn: 0 is evaluated without having trained.
    ("averaging", 1, 0.5, ("int8", "none", "int8", "none")),
]


@pytest.mark.parametrize(("strategy", "rounds", "share", "codecs"), CODECS)
def test_coded_features_equal_the_oracles(
    strategy: str, rounds: int, share: float, codecs: tuple[str, ...], cache: Path
) -> None:
    training = {"strategy": strategy, "rounds": rounds, "clients_per_round": share, "optimizer": OPTIMIZERS["sgd"]}
    config = make_config(cache, "whole", "small", training)
    tiers = [tier.model_copy(update={"codec": codec}) for tier, codec in zip(config.tiers, codecs, strict=True)]
    setup = prepare_run(config.model_copy(update={"tiers": tuple(tiers)}))
    reference, oracle = Reference(setup), Oracle(setup)
    reports, losses = list(reference.run()), oracle.run()
    for report, expected in zip(reports, losses, strict=True):
        assert_losses_agree(report, expected)
    assert_tensors_agree(reference, oracle)
    correct = {n: (report.client_correct, report.server_correct) for n, report in reports[-1].evaluation.items()}
    assert correct == oracle.correct()


def assert_losses_agree(report: RoundReport, expected: RoundLosses) -> None:
    for training, losses in ((report.client_training, expected.client), (report.server_training, expected.server)):
        assert training.keys() == losses.keys()
        for client, own in losses.items():
            assert training[client].losses == pytest.approx(own, rel=RTOL, abs=ATOL)
            assert training[client].mean_loss == pytest.approx(np.mean(own), rel=RTOL, abs=ATOL)


def assert_tensors_agree(reference: Reference, oracle: Oracle) -> None:
    files, expected = reference.files(), oracle.files()
    assert files.keys() == expected.keys()
    for stem, tensors in expected.items():
        assert files[stem].keys() == tensors.keys(), stem
        for name, tensor in tensors.items():
            trained = torch.from_numpy(files[stem][name])
            torch.testing.assert_close(
                trained, tensor, rtol=RTOL, atol=ATOL, msg=lambda text, where=f"{stem}: {name}": f"{where}: {text}"
            )


def train_both(setup: Setup) -> tuple[Reference, Reference]:
    """Two runs that differ in the numbers of every server at the start."""
    plain, changed = Reference(setup), Reference(setup)
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for server in changed.servers.values():
            for unit in server.model.units.values():
                for parameter in unit.parameters():
                    parameter.add_(torch.randn(parameter.shape, generator=noise))
    for reference in (plain, changed):
        list(reference.run())
    return plain, changed


@pytest.mark.parametrize(
    "options",
    [
        {"strategy": "distributed"},
        {"strategy": "averaging", "aggregate": "server"},
        {"strategy": "averaging", "aggregate": "server", "norm_statistics": "shared", "optimizer_state": "average"},
        {"strategy": "sequential", "aggregate": "server"},
    ],
    ids=lambda options: "-".join(options.values()),
)
def test_no_server_reaches_a_client(options: dict[str, object], cache: Path) -> None:
    plain, changed = train_both(prepare_run(make_config(cache, "whole", "small", options)))
    files, other_files = plain.files(), changed.files()
    assert files.keys() == other_files.keys()
    for stem, tensors in files.items():
        same = all(tensor.tobytes() == other_files[stem][name].tobytes() for name, tensor in tensors.items())
        assert same == stem.startswith("client-"), stem


@pytest.mark.parametrize("strategy", ["distributed", "averaging", "sequential"])
def test_a_client_with_the_whole_network_sends_nothing(strategy: str, cache: Path) -> None:
    setup = prepare_run(make_config(cache, "whole", "small", {"strategy": strategy, "rounds": 1}))
    reference = Reference(setup)
    (report,) = reference.run()
    last = len(setup.fleet.clients) - 1
    assert reference.clients[last].train(1, 0, 1)[0] == ()
    assert report.client_training[last].sent_bytes == report.evaluation[last].sent_bytes == 0
    assert report.evaluation[last].server_correct is None
    assert last not in report.server_training and reference.strategy.server_of(setup.fleet.clients[last]) is None
    assert setup.fleet.clients[last].server_file not in reference.files()
    # The others send float32 features, (4, 8, 8) at the stem and (6, 4, 4) at block2, and an int64 label.
    for client, floats in enumerate((4 * 8 * 8, 4 * 8 * 8, 6 * 4 * 4)):
        assert report.client_training[client].sent_bytes == setup.local_samples[client] * (4 * floats + 8)
