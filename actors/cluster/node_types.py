"""Node types of an autoscaling cluster, read from the file that describes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from actors.cluster.resources import Growth, Node, NodeType
from hsee_ray.config.problems import in_one_line, read_text
from hsee_ray.config.yaml_text import read_documents
from hsee_ray.errors import ConfigError

REMEDY = "give cluster.node_types the cluster.yaml of `ray up`, or a KubeRay RayJob or RayCluster"


class _NodeType(BaseModel):
    resources: dict[str, float]
    labels: dict[str, str] = {}
    max_workers: int | None = Field(None, ge=0)


class _Cluster(BaseModel):
    """Relevant part of a cluster launcher's file; KubeRay's autoscaler derives the same from a RayCluster."""

    head_node_type: str
    available_node_types: dict[str, _NodeType]
    max_workers: int = Field(ge=0)


def read_growth(path: Path) -> Growth:
    """Nodes that the autoscaler can add, from a file: `cluster.yaml` of `ray up`, a RayJob or a RayCluster.

    The head is no type: it is there already. Raises ConfigError when the file cannot be read, or is neither kind.
    """
    for document in _documents(path):
        if document.get("kind") in ("RayJob", "RayCluster"):
            return _growth(path, _of_kuberay(path, document))
        if "available_node_types" in document:
            return _growth(path, document)
    raise ConfigError(f"{path}: describes no cluster with node types; {REMEDY}")


def _documents(path: Path) -> list[dict[str, Any]]:
    documents = read_documents(read_text(path, REMEDY), path)
    return [document for document in documents if isinstance(document, dict)]


def _of_kuberay(path: Path, document: dict[str, Any]) -> dict[str, Any]:
    """The cluster of a RayJob or a RayCluster, in the launcher's words."""
    kind, spec = document["kind"], document.get("spec") or {}
    where = "spec"
    if kind == "RayJob":
        spec, where = spec.get("rayClusterSpec") or {}, "spec.rayClusterSpec"
    if spec.get("enableInTreeAutoscaling") is not True:
        raise ConfigError(
            f"{path}: its {kind} does not grow; set {where}.enableInTreeAutoscaling, or leave cluster.node_types out"
        )
    try:
        return _derive(spec)
    except Exception as error:  # Ray checks by asserting, by looking things up, by jsonschema, ...
        reason = next(iter(str(error).splitlines()), "")
        raise ConfigError(f"{path}: Ray cannot read its {kind} ({type(error).__name__}: {reason}); {REMEDY}") from error


def _derive(spec: dict[str, Any]) -> dict[str, Any]:
    """A RayCluster as Ray's own autoscaler understands it; asks no Kubernetes."""
    # Private to Ray, and slow to import.
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    config: dict[str, Any] = _derive_autoscaling_config_from_ray_cr(
        {"metadata": {"name": "cluster", "namespace": "default"}, "spec": spec}
    )
    return config


def _growth(path: Path, document: dict[str, Any]) -> Growth:
    with in_one_line(_Cluster, f"{path}: ", REMEDY):
        cluster = _Cluster.model_validate(document)
    types = []
    head: Node | None = None
    for name, node_type in cluster.available_node_types.items():
        if name == cluster.head_node_type:
            head = Node(node_type.resources, node_type.resources, node_type.labels)
            continue
        if "CPU" not in node_type.resources:
            # The launcher would ask the cloud how many there are; who reads the file cannot know.
            raise ConfigError(
                f"{path}: available_node_types.{name}.resources has no CPU; write down how many there are"
            )
        most = cluster.max_workers if node_type.max_workers is None else node_type.max_workers
        types.append(NodeType(name, node_type.resources, node_type.labels, most))
    return Growth(tuple(types), cluster.max_workers, head)
