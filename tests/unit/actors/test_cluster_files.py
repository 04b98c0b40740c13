"""The files that describe clusters: Ray takes them, they offer the same, and every shipped config fits into them."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from actors.cluster.capacity import assess
from actors.cluster.node_types import read_growth
from actors.cluster.requests import requests
from actors.cluster.resources import Growth, Node, NodeType
from actors.cluster.slots import plan_slots
from hsee_ray.backbones.build import build_backbone
from hsee_ray.config.files import load_config
from hsee_ray.errors import ConfigError
from hsee_ray.method.strategies import build_fleet

ROOT = Path(__file__).parents[3]
LAUNCHER = ROOT / "cluster.yaml"
RAYJOB = ROOT / "deploy" / "rayjob.yaml"
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
IN_IMAGE = "/home/ray/hsee-ray/"
GROUPS = ["sensor", "hub", "gateway", "server"]
ON_CLUSTERS = [
    path for path in sorted((ROOT / "jobs" / "configs").glob("*.yaml")) if load_config(path).cluster.node_types
]
HEAD = Node(total={"memory": 1e10}, free={"memory": 1e10})
"""A head as Ray shows it: it has no CPU."""

both_files = pytest.mark.parametrize("path", [LAUNCHER, RAYJOB], ids=lambda path: path.name)


def launcher() -> dict[str, Any]:
    """`cluster.yaml` as `ray up` prepares it, before it asks AWS."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared: dict[str, Any] = prepare_config(yaml.safe_load(LAUNCHER.read_text()))
    validate_config(prepared)
    return prepared


def rayjob() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(RAYJOB.read_text())
    return loaded


def groups() -> dict[str, dict[str, Any]]:
    return {group["groupName"]: group for group in rayjob()["spec"]["rayClusterSpec"]["workerGroupSpecs"]}


def pods() -> list[dict[str, Any]]:
    """The head's pod and those of the workers."""
    head = rayjob()["spec"]["rayClusterSpec"]["headGroupSpec"]
    return [group["template"]["spec"] for group in [head, *groups().values()]]


def written(folder: Path, text: str) -> Path:
    path = folder / "nodes.yaml"
    path.write_text(text)
    return path


# cluster.yaml


def test_the_launcher_takes_cluster_yaml() -> None:
    prepared = launcher()
    types = prepared["available_node_types"]
    assert list(types) == ["head", *GROUPS]
    assert {name: node_type["min_workers"] for name, node_type in types.items()} == dict.fromkeys(types, 0)
    assert sum(node_type["max_workers"] for node_type in types.values()) == prepared["max_workers"]


def test_only_the_head_is_on_demand() -> None:
    types = launcher()["available_node_types"]
    spot = [name for name, node_type in types.items() if "InstanceMarketOptions" in node_type["node_config"]]
    assert spot == GROUPS
    assert all(node_type["node_config"]["IamInstanceProfile"]["Name"] for node_type in types.values())


def test_the_launcher_asks_for_a_token_and_shows_no_port_to_the_world() -> None:
    prepared = launcher()
    assert "--env=RAY_AUTH_MODE=token" in prepared["docker"]["run_options"]
    assert prepared["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    (start,) = (command for command in prepared["head_start_ray_commands"] if "ray start" in command)
    assert "--dashboard-host=127.0.0.1" in start
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in start


def test_mounts_are_all_that_installing_takes() -> None:
    mounts = launcher()["file_mounts"]
    mounts.pop("~/.ray/auth_token")
    assert mounts == {f"~/hsee-ray/{name}": name for name in mounts.values()}
    assert all((ROOT / name).exists() for name in mounts.values())
    assert {"pyproject.toml", "README.md", "hsee_ray", "actors", "jobs"} <= set(mounts.values())


def test_commands_are_shell() -> None:
    prepared = launcher()
    commands = [command for key, value in prepared.items() if key.endswith("_commands") for command in value]
    for command in commands:
        subprocess.run(["bash", "-n", "-c", command], check=True)
    assert sum("ulimit -n 65536" in command for command in commands) == 2


def test_workers_install_what_the_head_has() -> None:
    prepared = launcher()
    listed = next(command for command in prepared["head_setup_commands"] if command.startswith("pip list"))
    constraints = shlex.split(listed)[-1]
    assert constraints.startswith("~/hsee-ray/deploy/"), "it lies in a mount, which workers get from the head"
    assert f"--constraint {constraints}" in prepared["worker_setup_commands"][-1]


# rayjob.yaml


def test_the_rayjob_is_one_try_that_ends_its_cluster() -> None:
    job = rayjob()
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    assert spec["jobId"] == job["metadata"]["name"]
    assert (spec["shutdownAfterJobFinishes"], spec["backoffLimit"]) == (True, 0)
    assert spec["ttlSecondsAfterFinished"] > 0
    cluster = spec["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"


def test_the_entrypoint_names_files_of_the_image() -> None:
    words = shlex.split(rayjob()["spec"]["entrypoint"])
    assert words[:3] == ["python", "-m", "jobs.train"]
    named = [word.rpartition("=")[2] for word in words if IN_IMAGE in word]
    copied = re.findall(r"^COPY --chown=ray (\S+) \1$", DOCKERFILE.read_text(), re.MULTILINE)
    for path in (Path(name.removeprefix(IN_IMAGE)) for name in named):
        assert (ROOT / path).is_file()
        assert path.parts[0] in copied
    assert named[-1] == IN_IMAGE + str(RAYJOB.relative_to(ROOT))


def test_every_group_has_what_kuberay_wants() -> None:
    assert list(groups()) == GROUPS
    for group in groups().values():
        assert (group["minReplicas"], group["replicas"]) == (0, 0)
        assert group["maxReplicas"] > 0
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert str(limits.get("nvidia.com/gpu", 0)) == group["rayStartParams"].get("num-gpus", "0")
        assert limits["cpu"] == group["rayStartParams"]["num-cpus"]


@pytest.mark.parametrize("group", GROUPS)
def test_resources_reach_ray_start_as_json(group: str) -> None:
    parameter = groups()[group]["rayStartParams"]["resources"]
    line = f"printf %s --resources={parameter}"
    said = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True).stdout
    resources = json.loads(said.removeprefix("--resources="))
    (offered,) = (node_type for node_type in read_growth(RAYJOB).types if node_type.name == group)
    assert resources.items() <= dict(offered.resources).items()


def test_every_pod_has_shared_memory_and_the_place_of_runs() -> None:
    assert len(pods()) == 5
    for pod in pods():
        (container,) = pod["containers"]
        assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
        assert {"name": "shm", "emptyDir": {"medium": "Memory"}} in pod["volumes"]
        assert {entry["name"] for entry in container["env"]} == {"HSEE_STORAGE", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"}
        assert pod["serviceAccountName"]


# Both


@both_files
def test_the_place_of_runs_is_said_once(path: Path) -> None:
    settings = [line for line in path.read_text().splitlines() if re.search("HSEE_STORAGE.*s3://", line)]
    assert len(settings) == 1


def test_all_files_say_the_same_ray() -> None:
    image = launcher()["docker"]["image"]
    assert f"FROM {image}\n" in DOCKERFILE.read_text()
    assert image.startswith(f"rayproject/ray:{rayjob()['spec']['rayClusterSpec']['rayVersion']}-")


def test_the_heads_take_no_client() -> None:
    assert launcher()["available_node_types"]["head"]["resources"] == {"CPU": 0}
    assert rayjob()["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_both_clusters_offer_the_same() -> None:
    def offered(growth: Growth) -> list[tuple[str, dict[str, float], dict[str, str], int]]:
        return [
            (t.name, {k: v for k, v in t.resources.items() if k != "memory"}, dict(t.labels), t.most)
            for t in growth.types
        ]

    on_aws, on_kubernetes = read_growth(LAUNCHER), read_growth(RAYJOB)
    assert offered(on_aws) == offered(on_kubernetes)
    assert on_aws.most_nodes == on_kubernetes.most_nodes
    assert on_aws.known and on_kubernetes.known


def test_there_are_configs_for_clusters() -> None:
    assert [path.stem for path in ON_CLUSTERS] == ["cluster_cifar10"]


@both_files
@pytest.mark.parametrize("config_path", ON_CLUSTERS, ids=lambda path: path.stem)
def test_every_actor_of_a_shipped_config_finds_a_place(config_path: Path, path: Path) -> None:
    config = load_config(config_path)
    assert config.cluster.node_types is not None
    assert (ROOT / config.cluster.node_types).is_file()
    units = build_backbone(config.model, image_shape=(32, 32, 3), n_classes=10, seed=0).units
    fleet = build_fleet(config, tuple(units))
    asked = requests(config, fleet, plan_slots(config, fleet, None, 1))
    verdicts = assess(asked, [HEAD], read_growth(path))
    assert {verdict.tier: verdict.never for verdict in verdicts if verdict.never} == {}
    assert all(verdict.nodes and not verdict.busy and not verdict.unknown for verdict in verdicts), "the head has none"


# read_growth

CLUSTER = """
cluster_name: small
provider: {type: aws, region: us-west-2}
max_workers: 5
head_node_type: chief
available_node_types:
  chief: {resources: {CPU: 0}, node_config: {}}
  few: {resources: {CPU: 2}, labels: {zone: a}, max_workers: 2, node_config: {}}
  many: {resources: {CPU: 8, GPU: 1}, node_config: {}}
"""
RAYCLUSTER = """
apiVersion: v1
kind: ConfigMap
metadata: {name: other}
---
apiVersion: ray.io/v1
kind: RayCluster
metadata: {name: small}
spec:
  enableInTreeAutoscaling: true
  headGroupSpec:
    rayStartParams: {num-cpus: "0"}
    template: {spec: {containers: [{name: head, image: x}]}}
  workerGroupSpecs:
    - groupName: few
      minReplicas: 0
      maxReplicas: 2
      rayStartParams: {}
      template: {spec: {containers: [{name: worker, image: x, resources: {limits: {cpu: 1500m, memory: 1Gi}}}]}}
"""


def test_a_type_without_a_limit_of_its_own_has_that_of_all(tmp_path: Path) -> None:
    assert read_growth(written(tmp_path, CLUSTER)) == Growth(
        types=(
            NodeType("few", {"CPU": 2}, {"zone": "a"}, most=2),
            NodeType("many", {"CPU": 8, "GPU": 1}, {}, most=5),
        ),
        most_nodes=5,
        head=Node({"CPU": 0}, {"CPU": 0}),
    )


def test_a_raycluster_is_found_among_documents(tmp_path: Path) -> None:
    assert read_growth(written(tmp_path, RAYCLUSTER)) == Growth(
        types=(NodeType("few", {"CPU": 2, "memory": 2**30}, {}, most=2),),
        most_nodes=2,
        head=Node({"CPU": 0}, {"CPU": 0}),
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "is not valid YAML"),
        ("", "describes no cluster"),
        ("- 1", "describes no cluster"),
        ("tiers: []", "describes no cluster"),
        (CLUSTER.replace("max_workers: 5", ""), "max_workers: is missing; give cluster.node_types the cluster.yaml"),
        (
            CLUSTER.replace("{CPU: 2}", "{CPU: two}"),
            "few.resources.CPU is 'two': should be a valid number",
        ),
        (CLUSTER.replace("{CPU: 2}", "{}"), "available_node_types.few.resources has no CPU"),
        (RAYCLUSTER.replace("true", "false"), "set spec.enableInTreeAutoscaling"),
        (RAYCLUSTER.replace("      maxReplicas: 2\n", ""), "Ray cannot read its RayCluster"),
        ("kind: RayJob\nspec: {clusterSelector: {}}", "set spec.rayClusterSpec.enableInTreeAutoscaling"),
    ],
)
def test_a_file_that_is_neither_kind_is_refused_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as raised:
        read_growth(path)
    message = str(raised.value)
    assert message.startswith(f"{path}: ")
    assert said in message
    assert "\n" not in message


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot be read .*give cluster\.node_types"):
        read_growth(tmp_path / "nowhere.yaml")
    path = tmp_path / "nodes.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not a text file"):
        read_growth(path)
