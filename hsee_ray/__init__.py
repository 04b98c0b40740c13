"""hsee-ray: split learning with early exits for devices of unequal power (Hetero-SplitEE), on Ray."""

from hsee_ray.config_files import load_config
from hsee_ray.run import Run, load_run

__all__ = ["Run", "load_config", "load_run"]
