"""A cluster of a head and one node that lives until it is terminated. `other`: the node seems to have another numpy."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster


def main(folder: Path, other: bool) -> None:
    cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    environment = {}
    if other:
        fake = folder / "other" / "numpy-9.9.9.dist-info"
        fake.mkdir(parents=True)
        (fake / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 9.9.9\n")
        environment["PYTHONPATH"] = str(fake.parent)
    cluster.add_node(num_cpus=4, labels={"zone": "b"}, env_vars=environment)
    cluster.wait_for_nodes()
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    print(f"ready at {cluster.address}", flush=True)
    ended.wait()
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), "other" in sys.argv[2:])
