"""Device side: its part of a network, the gate, and the client of the server. Needs neither torch nor Ray."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hsee_ray.edge.edge_client import EdgeClient, Prediction

__all__ = ["EdgeClient", "Prediction"]


def __getattr__(name: str) -> Any:
    """Imports onnxruntime only for those who ask for a client: the training side reads codecs and gates here, too."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from hsee_ray.edge import edge_client

    return getattr(edge_client, name)
