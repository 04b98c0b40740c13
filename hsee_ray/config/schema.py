"""The configuration of a run: frozen models that reject what they do not know.

`jobs/configs/reference.yaml` explains every key. Reading files and `--set` overrides is in `files.py`.
"""

from __future__ import annotations

import os
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from hsee_ray.config.plugins import (
    ExitPlugIn,
    FigurePlugIn,
    ObjectivePlugIn,
    PlugIn,
    StagePlugIn,
    StrategyPlugIn,
    TaskPlugIn,
)
from hsee_ray.config.problems import Strict as _Model
from hsee_ray.config.problems import storable
from hsee_ray.paths import expanded

_LABEL_WORD = r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_LABEL_KEY = re.compile(rf"([a-z0-9.-]+/)?{_LABEL_WORD}")
_LABEL_SELECTOR = re.compile(rf"!?({_LABEL_WORD}|in\({_LABEL_WORD}(, *{_LABEL_WORD})*\))")


UserPath = Annotated[str, AfterValidator(lambda text: os.path.abspath(expanded(text)))]
"""A path on this machine, absolute once it is read, so that it means the same after a change of directory."""


class ModelConfig(_Model):
    """The base network that every device shares."""

    name: str = "resnet18"
    stem: Literal["cifar", "imagenet"] = "cifar"
    width: int = Field(64, ge=1)
    norm: Literal["batch", "group"] = "batch"
    init: Literal["kaiming", "torch"] = "kaiming"
    options: Annotated[dict[str, Any], AfterValidator(storable)] = Field({})
    weights: UserPath | None = None


class IidPartition(_Model):
    kind: Literal["iid"] = "iid"


class DirichletPartition(_Model):
    kind: Literal["dirichlet"]
    alpha: float = Field(0.5, gt=0)
    min_samples: int = Field(10, ge=2)


class ShardsPartition(_Model):
    kind: Literal["shards"]
    shards_per_client: int = Field(2, ge=1)


PartitionConfig = Annotated[IidPartition | DirichletPartition | ShardsPartition, Field(discriminator="kind")]


class AugmentConfig(_Model):
    """How training images are changed at random. `true` and `false` are the two ways that there were at first."""

    flip: bool = False
    shift: float = Field(0.0, ge=0, le=0.5)
    border: Literal["black", "mean", "reflect"] = "black"
    transforms: tuple[PlugIn, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _by_its_name(cls, value: Any) -> Any:
        return {"flip": value, "shift": 0.125 if value else 0.0} if isinstance(value, bool) else value

    @model_validator(mode="after")
    def _border_that_is_seen(self) -> AugmentConfig:
        if self.border != "black" and not self.shift:
            raise ValueError(
                f"border is {self.border!r}, and only a shift shows a border: set data.augment.shift, such as 0.125"
            )
        return self

    @property
    def on(self) -> bool:
        return self.flip or self.shift > 0 or bool(self.transforms)


class DataConfig(_Model):
    """Which images, how many of them, and how they are dealt out to the clients."""

    name: Literal["digits", "cifar10", "cifar100", "stl10", "parquet", "folder", "synthetic"] = "digits"
    root: UserPath | None = None
    cache: UserPath | None = None
    train_samples: int | None = Field(None, ge=2)
    test_samples: int | None = Field(None, ge=1)
    image_column: str | None = None
    label_column: str | None = None
    image_size: int | None = Field(None, ge=4, le=1 << 16)
    channels: Literal[1, 3] | None = None
    bits: int | None = Field(None, ge=9, le=32)
    classes: int | None = Field(None, ge=2)
    augment: AugmentConfig = AugmentConfig()
    calibration_fraction: float = Field(0.05, ge=0, lt=1)
    validation_fraction: float = Field(0.0, ge=0, lt=1)
    partition: PartitionConfig = IidPartition()

    @model_validator(mode="after")
    def _root_where_needed(self) -> DataConfig:
        if self.name in ("parquet", "folder") and self.root is None:
            raise ValueError(f"root is missing: say where the {self.name} data set lies (--set data.root=DIR)")
        if self.name in ("digits", "synthetic") and self.root is not None:
            raise ValueError(
                f"root is {self.root!r}, and name is {self.name}, which reads no files; remove one of them"
            )
        return self


class ResourcesConfig(_Model):
    """Resource request of an actor: Ray places actors by it, and limits nothing."""

    num_cpus: float = Field(1.0, ge=0)
    num_gpus: float = Field(0.0, ge=0)
    memory: int | None = Field(None, ge=1)
    custom: dict[str, Annotated[float, Field(gt=0)]] = Field({})
    label_selector: dict[str, str] = Field({})
    accelerator_type: str | None = None

    @model_validator(mode="after")
    def _whole_gpus_above_one(self) -> ResourcesConfig:
        if self.num_gpus > 1 and self.num_gpus != int(self.num_gpus):
            raise ValueError(f"num_gpus is {self.num_gpus}: Ray takes a fraction up to 1, or a whole number")
        return self

    @model_validator(mode="after")
    def _labels_that_ray_reads(self) -> ResourcesConfig:
        for key, wanted in self.label_selector.items():
            if not _LABEL_KEY.fullmatch(key) or not _LABEL_SELECTOR.fullmatch(wanted):
                raise ValueError(
                    f"label_selector has {key}: {wanted!r}; a key is letters, digits, -, _ and ., perhaps after a "
                    "prefix and /, and a value such a word, !word, in(word,word) or !in(word,word)"
                )
        return self

    @model_validator(mode="after")
    def _custom_is_custom(self) -> ResourcesConfig:
        own = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}
        for name in self.custom:
            if name in own:
                raise ValueError(f"custom.{name} is none of your own resources; say {own[name]} instead")
        return self


class TierConfig(_Model):
    """Clients of equal power: their cut, their batch size, what they send, and their resources."""

    name: str = Field(min_length=1)
    clients: int = Field(ge=1)
    cut: Annotated[str | int, Field(union_mode="left_to_right")]
    batch_size: int | None = Field(None, ge=2)
    stages: tuple[StagePlugIn, ...] = ()
    codec: Literal["none", "fp16", "int8"] = "none"
    device: str | None = None
    slots: int | None = Field(None, ge=1)
    resources: ResourcesConfig = ResourcesConfig()


class ServerConfig(_Model):
    slots: int | None = Field(None, ge=1)
    resources: ResourcesConfig = ResourcesConfig()


class OptimizerConfig(_Model):
    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(0.05, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    weight_decay: float = Field(5.0e-4, ge=0)
    clip_norm: float | None = Field(None, gt=0)


class ConstantSchedule(_Model):
    name: Literal["constant"] = "constant"


class StepSchedule(_Model):
    name: Literal["step"]
    every: int = Field(ge=1)
    factor: float = Field(0.1, gt=0, le=1)


class CosineSchedule(_Model):
    name: Literal["cosine"]
    horizon_rounds: int | None = Field(None, ge=1)


ScheduleConfig = Annotated[ConstantSchedule | StepSchedule | CosineSchedule, Field(discriminator="name")]


class LookAheadConfig(_Model):
    """Units behind the cut through which a client's own units are trained, too; on the client in training only."""

    units: int = Field(ge=1)
    copies: Literal["peers", "network"] = "peers"


class NoFeedback(_Model):
    name: Literal["none"] = "none"


class SoftLabelFeedback(_Model):
    name: Literal["soft_labels"]
    weight: float = Field(1.0, gt=0)
    temperature: float = Field(3.0, gt=0)


class GradientFeedback(_Model):
    name: Literal["gradients"]


def _by_its_name(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


FeedbackConfig = Annotated[
    NoFeedback | SoftLabelFeedback | GradientFeedback, Field(discriminator="name"), BeforeValidator(_by_its_name)
]


class MeanStep(_Model):
    name: Literal["mean"] = "mean"


class MomentumStep(_Model):
    name: Literal["momentum"]
    lr: float = Field(1.0, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)


class AdamStep(_Model):
    name: Literal["adam"]
    lr: float = Field(0.01, gt=0)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.99)
    eps: float = Field(1.0e-3, gt=0)


AverageStepConfig = Annotated[
    MeanStep | MomentumStep | AdamStep, Field(discriminator="name"), BeforeValidator(_by_its_name)
]


class TrainingConfig(_Model):
    """The method and its options (docs/method.md)."""

    strategy: StrategyPlugIn = PlugIn(name="averaging")
    objective: ObjectivePlugIn | None = None
    exit_weight: float = Field(1.0, ge=0, le=1)
    look_ahead: LookAheadConfig | None = None
    feedback: FeedbackConfig = NoFeedback()
    server_epochs: int = Field(1, ge=1)
    server_memory_mib: int = Field(512, ge=1)
    rounds: int = Field(10, ge=1)
    keep: Literal["last", "best"] = "last"
    patience: int | None = Field(None, ge=1)
    local_epochs: int = Field(1, ge=1)
    local_steps: int | None = Field(None, ge=1)
    batch_size: int = Field(64, ge=2)
    clients_per_round: float = Field(1.0, gt=0, le=1)
    aggregate: Literal["all", "both", "server"] = "all"
    aggregate_every: int = Field(1, ge=1)
    aggregate_weights: Literal["uniform", "samples", "depth"] = "uniform"
    server_weight: float = Field(1.0, gt=0)
    average_step: AverageStepConfig = MeanStep()
    optimizer_state: Literal["local", "average", "reset"] = "local"
    norm_statistics: Literal["per_client", "shared"] = "per_client"
    order: Literal["listed", "shuffled"] = "listed"
    interleave: Literal["client", "batch"] = "client"
    threads: int = Field(1, ge=1, le=1024)
    memory_format: Literal["channels_last", "contiguous"] = "channels_last"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    autocast: Literal["bfloat16"] | None = None
    deterministic: bool = True
    optimizer: OptimizerConfig = OptimizerConfig()
    lr_schedule: ScheduleConfig = ConstantSchedule()
    warmup_rounds: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _units_that_learn(self) -> TrainingConfig:
        if self.look_ahead is not None and isinstance(self.feedback, GradientFeedback):
            raise ValueError(
                "look_ahead stands in for the server's gradient, and feedback is 'gradients': leave out one of them"
            )
        if self.exit_weight == 0 and self.look_ahead is None and not isinstance(self.feedback, GradientFeedback):
            raise ValueError(
                "exit_weight is 0: a client's units would learn from nothing; raise it, or set training.look_ahead or "
                "training.feedback=gradients"
            )
        if self.look_ahead is not None and self.look_ahead.copies == "network" and self.aggregate != "all":
            raise ValueError(
                f"look_ahead.copies is 'network', and aggregate is {self.aggregate!r}: only aggregate=all makes one "
                "network of both sides; use it, or copies=peers"
            )
        return self


class EvaluationConfig(_Model):
    every: int = Field(1, ge=1)
    batch_size: int = Field(256, ge=1)
    figures: tuple[FigurePlugIn, ...] = ()


def _ascending(taus: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(sorted(set(taus)))


Tau = Annotated[float, Field(ge=0, le=1)]


class ExitsConfig(_Model):
    """The exit head of every client, and the gate that decides who answers."""

    head: ExitPlugIn = PlugIn(name="pool")
    hidden: int | None = Field(None, ge=1)
    confidence: Literal["entropy", "max_prob", "margin"] = "entropy"
    taus: Annotated[tuple[Tau, ...], Field(min_length=1), AfterValidator(_ascending)] = (
        0.1,
        0.3,
        0.5,
        0.7,
        0.9,
    )


class PipelineConfig(_Model):
    """How far a client may run ahead of its server."""

    max_in_flight: int = Field(32, ge=1)
    max_in_flight_mib: int = Field(256, ge=1)


class ClusterConfig(_Model):
    """Which Ray cluster the run is on, and where in it actors go."""

    address: str | None = None
    node_types: UserPath | None = None
    concurrent: int | None = Field(None, ge=1)
    placement: Literal["pack", "spread", "colocate"] = "pack"
    placement_timeout_s: float = Field(300.0, gt=0)


class SimulationConfig(_Model):
    """Simulated time and energy of the devices that the tiers stand for. Changes no result."""

    profiles: UserPath | None = None
    server: str | None = None
    one_machine: bool = False
    dropout_probability: float = Field(0.0, ge=0, lt=1)
    dropout_s: float = Field(60.0, ge=0)
    timeline_rounds: int = Field(2, ge=0)


class StorageConfig(_Model):
    """Shared location of runs, reachable from every node."""

    uri: str | None = None


class CheckpointConfig(_Model):
    """How often the state of the whole run is written down."""

    every: int = Field(5, ge=1)
    keep: int = Field(2, ge=1)
    grace_s: float = Field(30.0, ge=0)


class FailuresConfig(_Model):
    """When an actor counts as lost, and what is done about it."""

    max_per_actor: int = Field(3, ge=0)
    max_total: int = Field(20, ge=0)
    step_timeout_s: float = Field(300.0, gt=0)
    on_lost_client: Literal["wait", "drop"] = "wait"
    on_nonfinite: Literal["stop", "skip_batch"] = "stop"


class Config(_Model):
    """Everything that decides a run."""

    seed: int = Field(0, ge=0)
    task: TaskPlugIn = PlugIn(name="classification")
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    tiers: Annotated[tuple[TierConfig, ...], Field(min_length=1)]
    server: ServerConfig = ServerConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    exits: ExitsConfig = ExitsConfig()
    pipeline: PipelineConfig = PipelineConfig()
    cluster: ClusterConfig = ClusterConfig()
    simulation: SimulationConfig = SimulationConfig()
    storage: StorageConfig = StorageConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    failures: FailuresConfig = FailuresConfig()

    @model_validator(mode="after")
    def _tier_names(self) -> Config:
        names = [tier.name for tier in self.tiers]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"tiers: {', '.join(twice)} is given more than once; give each tier a name of its own")
        if "overall" in names:
            raise ValueError("tiers: `overall` is the name of the mean over all clients; call the tier something else")
        for name in {"servers", "aggregator"}.intersection(names):
            raise ValueError(f"tiers: `{name}` is what the run itself calls actors; call the tier something else")
        return self

    @model_validator(mode="after")
    def _every_device_or_none(self) -> Config:
        devices = {f"tiers.{index}.device": tier.device for index, tier in enumerate(self.tiers)}
        devices["simulation.server"] = self.simulation.server
        missing = [key for key, device in devices.items() if device is None]
        if missing and len(missing) < len(devices):
            raise ValueError(
                f"{', '.join(missing)}: missing, and simulated time needs a device profile for every tier and for the "
                "server; name them all, or none"
            )
        automatic = [f"tiers.{index}.cut" for index, tier in enumerate(self.tiers) if tier.cut == "auto"]
        if automatic and missing:
            raise ValueError(
                f"{', '.join(automatic)}: `auto` needs to know the devices; set {', '.join(missing)} (docs/planning.md)"
            )
        return self

    @model_validator(mode="after")
    def _validation_where_needed(self) -> Config:
        if self.training.keep == "best" and self.data.validation_fraction == 0:
            raise ValueError(
                "training.keep is 'best', and no images are set aside to find the best round with: set "
                "data.validation_fraction above 0 (0.1, say)"
            )
        if self.training.patience is not None and self.training.keep != "best":
            raise ValueError("training.patience waits for a better round, and training.keep is 'last': set it to best")
        return self

    @property
    def simulates(self) -> bool:
        """Whether all devices are known, so that the run has a simulated time."""
        return self.simulation.server is not None

    @model_validator(mode="after")
    def _pairs_to_colocate(self) -> Config:
        if self.cluster.placement == "colocate" and (
            self.server.slots is not None or any(tier.slots is not None for tier in self.tiers)
        ):
            raise ValueError(
                "cluster.placement is 'colocate', which keeps every client beside its own server, and in slots they "
                "share actors: leave slots out, or use pack or spread"
            )
        if self.failures.on_lost_client == "drop" and any(tier.slots is not None for tier in self.tiers):
            raise ValueError(
                "failures.on_lost_client is 'drop', and clients that share a slot would be lost together with "
                "one: leave tiers.*.slots out, or use wait"
            )
        if self.cluster.placement == "colocate" and self.failures.on_lost_client == "drop":
            raise ValueError(
                "failures.on_lost_client is 'drop', and with placement=colocate a client without a place leaves "
                "its server without one: use wait, or another placement"
            )
        return self

    @model_validator(mode="after")
    def _resolve_horizon(self) -> Config:
        """The cosine's horizon is fixed at the first start: more rounds later must not bend what was trained."""
        schedule = self.training.lr_schedule
        if isinstance(schedule, CosineSchedule) and schedule.horizon_rounds is None:
            resolved = schedule.model_copy(update={"horizon_rounds": self.training.rounds})
            training = self.training.model_copy(update={"lr_schedule": resolved})
            object.__setattr__(self, "training", training)
        return self

    @property
    def n_clients(self) -> int:
        return sum(tier.clients for tier in self.tiers)
