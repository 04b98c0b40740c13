"""How many batches travel together, and how many may be under way."""

import pytest

from hsee_ray.config.schema import PipelineConfig
from hsee_ray.method.schedule import batches_per_message, window_batches

KIB, MIB = 1 << 10, 1 << 20


@pytest.mark.parametrize(
    ("batch_bytes", "n_batches", "together"),
    [
        (16 * KIB, 4, 16),  # a message of 256 KiB at least, though the round has fewer batches
        (4 * MIB, 24, 4),  # up to 16 MiB
        (4 * MIB, 8, 2),  # so that the round has four messages
        (MIB, 130, 16),  # 16 MiB; half of the window is 16 batches too
        (64 * KIB, 1000, 16),  # half of the window
        (32 * MIB, 130, 1),
        (MIB, 3, 1),
        (0, 3, 16),  # nothing is sent
    ],
)
def test_batches_per_message(batch_bytes: int, n_batches: int, together: int) -> None:
    pipeline = PipelineConfig(max_in_flight=32, max_in_flight_mib=256)
    assert batches_per_message(pipeline, batch_bytes, n_batches) == together


def test_a_window_holds_two_messages_where_it_can() -> None:
    narrow = PipelineConfig(max_in_flight=32, max_in_flight_mib=16)
    assert window_batches(narrow, 4 * MIB) == 4
    assert batches_per_message(narrow, 4 * MIB, 100) == 2
    assert batches_per_message(PipelineConfig(max_in_flight=1), 16 * KIB, 100) == 1
