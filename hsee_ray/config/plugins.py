"""Parts that a name picks: those that come with the project, and the user's own as `package.module:name`.

Every kind of part is a subclass of `Pluggable`. A configuration names one with its options, which the part's own
`Options` validates; a mistake is one line that names the key.
"""

from __future__ import annotations

import importlib
from abc import ABC
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, model_serializer, model_validator

from hsee_ray.config.problems import in_one_line, storable
from hsee_ray.errors import ConfigError

BUILT_IN: Mapping[str, Mapping[str, str]] = {
    "strategy": {
        name: f"hsee_ray.method.strategies:{name.capitalize()}"
        for name in ("averaging", "sequential", "distributed", "centralized")
    }
    | {
        "fedavg": "hsee_ray.method.without_servers:FedAvg",
        "smallest": "hsee_ray.method.without_servers:Smallest",
        "per_tier": "hsee_ray.method.without_servers:PerTier",
        "depthfl": "hsee_ray.method.without_servers:DepthFL",
    },
    "task": {"classification": "hsee_ray.edge.task:Classification"},
    "objective": {
        "cross_entropy": "hsee_ray.method.objective:CrossEntropy",
        "proximal": "hsee_ray.method.objective:Proximal",
    },
    "figure": {},
    "exit": {name: f"hsee_ray.models.exits:{name.capitalize()}" for name in ("pool", "conv", "mlp")},
    "stage": {"fp16": "hsee_ray.features.stages:Half", "int8": "hsee_ray.features.stages:Int8"},
}
"""Built-in parts by kind. A part of the project is registered here, and nowhere else."""


class PlugIn(BaseModel):
    """A part by its name, with its options. Written as the name alone, or as {name, options}."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    options: Annotated[dict[str, Any], AfterValidator(storable)] = {}

    @model_validator(mode="before")
    @classmethod
    def _by_its_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_serializer
    def _as_written(self) -> str | dict[str, Any]:
        return {"name": self.name, "options": self.options} if self.options else self.name

    def __str__(self) -> str:
        return self.name


def known(kind: str) -> AfterValidator:
    """Validator of a PlugIn field: a part of the project's, or a path to the user's own."""

    def check(plugin: PlugIn) -> PlugIn:
        if plugin.name not in BUILT_IN[kind] and ":" not in plugin.name:
            names = "".join(f"{name}, " for name in BUILT_IN[kind])
            own = f"{'or ' if names else ''}package.module:name for your own"
            raise ValueError(f"there is no {kind} {plugin.name!r}; use {names}{own}")
        return plugin

    return AfterValidator(check)


TaskPlugIn = Annotated[PlugIn, known("task")]
StrategyPlugIn = Annotated[PlugIn, known("strategy")]
FigurePlugIn = Annotated[PlugIn, known("figure")]
ObjectivePlugIn = Annotated[PlugIn, known("objective")]
ExitPlugIn = Annotated[PlugIn, known("exit")]
StagePlugIn = Annotated[PlugIn, known("stage")]


class Pluggable(ABC):  # noqa: B024 (each kind of part has its own abstract methods)
    """Base of every part that a configuration picks by name."""

    class Options(BaseModel):
        """Options of the part; a subclass declares its own."""

        model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def __init__(self, options: Any) -> None:
        """`options` is an instance of the class's own Options."""
        self.options = options


P = TypeVar("P", bound=Pluggable)


def create(kind: str, key: str, plugin: PlugIn, base: type[P], *given: Any) -> P:
    """The part that a configuration names under `key`, an instance of `base`, made of its options and what is given.

    Raises ConfigError, in one line, when it cannot be imported, is no such part, lacks a method, or refuses an option.
    """
    found = imported(key, BUILT_IN[kind].get(plugin.name, plugin.name))
    wanted = f"{base.__module__}:{base.__qualname__}"
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ConfigError(f"{key} is {plugin.name!r}: that is no subclass of {wanted}; derive the class from it")
    if missing := sorted(found.__abstractmethods__):
        raise ConfigError(f"{key} is {plugin.name!r}: the class has no {', '.join(missing)}; {wanted} says what it is")
    known_here = ", ".join(found.Options.model_fields) or "none"
    with in_one_line(found.Options, f"{key}.options.", f"options of {plugin.name}: {known_here}"):
        options = found.Options.model_validate(plugin.options)
    return found(options, *given)


def imported(key: str, path: str) -> Callable[..., Any]:
    """The function or class at `package.module:name`, as the configuration has it under `key`. Raises ConfigError."""
    module_name, _, name = path.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), name)):
        raise ConfigError(f"{key} is {path!r}: write package.module:name")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, SyntaxError) as error:
        raise ConfigError(
            f"{key} is {path!r}: the module {module_name} cannot be imported: {error}; install it on every "
            "node, or send it along with the job's working directory"
        ) from error
    found = getattr(module, name, None)
    if not callable(found):
        raise ConfigError(f"{key} is {path!r}: the module {module_name} has no function or class {name}")
    return found  # type: ignore[no-any-return]
