"""The aggregator actor: averages copies of units that arrive by reference. Needs numpy only, so it starts at once."""

from __future__ import annotations

from actors.sealed import Sealed, seal
from hsee_ray.aggregation import Copy, ModelId, average_units
from hsee_ray.config import TrainingConfig
from hsee_ray.state import ModelState, UnitState


class Aggregator:
    """Holds nothing between calls."""

    def __init__(self, training: TrainingConfig) -> None:
        self.statistics = training.norm_statistics == "shared"
        self.optimizer = training.optimizer_state == "average"

    def average(
        self, groups: tuple[tuple[Copy, ...], ...], sources: tuple[ModelId, ...], *states: Sealed[ModelState]
    ) -> list[Sealed[UnitState]] | Sealed[UnitState]:
        """One average for every group of copies, as Ray wants it: a single one is no list.

        `states` are those of `sources`.
        """
        by_model = {model: state.payload for model, state in zip(sources, states, strict=True)}
        averages = [
            seal(
                average_units(
                    [by_model[copy.model][copy.unit] for copy in copies],
                    [copy.weight for copy in copies],
                    statistics=self.statistics,
                    optimizer=self.optimizer,
                )
            )
            for copies in groups
        ]
        return averages[0] if len(averages) == 1 else averages
