"""The typed configuration of a run, its place on disk, and the identity derived from it.

Importing this module does not import torch: the command line starts without it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from vpeft_bench.data.schema import DataConfig


@dataclass
class BackboneConfig:
    """One backbone, as chosen by ``backbone=NAME``.

    Attributes:
        name: as it appears in records and tables.
        model: timm name with tag; the weights' own preprocessing comes with it.
        weights: ``hub``, ``none`` (random) or the path of a .safetensors, .npz or .pth file.
        image_size: input height and width, pixels; null for the weights' own.
        drop_path: stochastic depth of the trunk, frozen parts included, while training.
        model_args: further arguments of the timm model.
    """

    name: str = MISSING
    model: str = MISSING
    weights: str = "hub"
    image_size: int | None = None
    drop_path: float = 0.0
    model_args: dict[str, Any] = field(default_factory=dict)


@dataclass
class TaskConfig:
    """The kind of prediction; chosen by the data set."""

    name: str = "classification"


class Protocol(Enum):
    """What is trained on and what is scored; nothing can be selected on the test split."""

    final = "final"
    """Train on everything but the test split, score the last epoch on the test split, once."""
    select = "select"
    """Train on train, score val after every epoch; the test split is not touched."""


@dataclass
class ProtocolConfig:
    """Which splits are used."""

    name: Protocol = Protocol.final


@dataclass
class TrainConfig:
    """The optimisation: AdamW, linear warm-up, then cosine, stepped every batch.

    Attributes:
        epochs: passes over the training split.
        batch_size: images per step.
        lr: peak learning rate; by default looked up in ``learning_rates``.
        learning_rates: peak learning rate by method, for this backbone.
        weight_decay: decoupled, on every trained tensor with two or more dimensions unless
            ``decay_all``.
        decay_all: also decay biases, norms and scales, as V-PETL Bench does.
        warmup_epochs: length of the warm-up from ``warmup_lr``; need not be whole.
        warmup_lr: learning rate of the first step.
        min_lr: learning rate of the last step.
        label_smoothing: of the cross entropy.
        clip_norm: largest gradient norm; null for no clipping.
    """

    epochs: int = 100
    batch_size: int = 64
    lr: float = 1e-3
    learning_rates: dict[str, float] = field(default_factory=dict)
    weight_decay: float = 1e-4
    decay_all: bool = False
    warmup_epochs: float = 10.0
    warmup_lr: float = 1e-6
    min_lr: float = 1e-5
    label_smoothing: float = 0.0
    clip_norm: float | None = None


class Precision(Enum):
    """Arithmetic of forward and backward; weights stay float32."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


@dataclass
class HardwareConfig:
    """Where and how fast; nothing here but ``precision`` belongs to a run's identity.

    Attributes:
        accelerator: ``auto``, ``cpu`` or ``cuda``.
        precision: see :class:`Precision`.
        threads: CPU threads of torch; null for torch's own choice.
        workers: processes that decode images which do not fit in memory.
        eval_batch_size: images per evaluation step.
        compile: compile the model with ``torch.compile``.
    """

    name: str = "auto"
    accelerator: str = "auto"
    precision: Precision = Precision.fp32
    threads: int | None = None
    workers: int = 2
    eval_batch_size: int = 256
    compile: bool = False


class WandbMode(Enum):
    """Weights & Biases never touches the network unless asked to."""

    offline = "offline"
    online = "online"


@dataclass
class LoggerConfig:
    """Where learning curves go besides the run directory's own CSV.

    Attributes:
        tensorboard: write TensorBoard event files into the run directory.
        wandb: log to Weights & Biases.
        wandb_mode: ``offline`` unless asked.
        wandb_project: project name there.
    """

    name: str = "csv"
    tensorboard: bool = False
    wandb: bool = False
    wandb_mode: WandbMode = WandbMode.offline
    wandb_project: str = "vpeft_bench"


@dataclass
class RunConfig:
    """A whole run.

    Attributes:
        method: ``name`` and the method's own hyper-parameters.
        results_dir: records lie below it.
        rerun: run again although a finished record exists, and replace it.
    """

    data: DataConfig = field(default_factory=DataConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    method: dict[str, Any] = field(default_factory=dict)
    task: TaskConfig = field(default_factory=TaskConfig)
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    seed: int = 0
    results_dir: str = "results/runs"
    rerun: bool = False


# Keys that say where and how conveniently, not what: the same experiment on another machine keeps
# its identity. The seed has a directory of its own; data and weights enter by content, not by path.
NOT_SCIENTIFIC = (
    "seed",
    "results_dir",
    "rerun",
    "logger",
    "train.learning_rates",
    "hardware.name",
    "hardware.accelerator",
    "hardware.threads",
    "hardware.workers",
    "hardware.eval_batch_size",
    "hardware.compile",
    "backbone.weights",
    "data.root",
    "data.title",
    "data.folders",
    "data.train_size",
    "data.val_size",
    "data.test_size",
    "data.cache_gib",
    "data.licence",
    "data.source",
)


def register_schema() -> None:
    """Make the schema known to Hydra; ``config.yaml`` names it first in its defaults."""
    ConfigStore.instance().store(name="run_schema", node=RunConfig)


def typed(config: DictConfig) -> RunConfig:
    """The composed config as dataclasses, types checked.

    Raises:
        omegaconf.errors.OmegaConfBaseException: a value does not fit its type.
    """
    merged = OmegaConf.merge(OmegaConf.structured(RunConfig), config)
    run_config = OmegaConf.to_object(merged)
    assert isinstance(run_config, RunConfig)
    return run_config


def plain(config: RunConfig) -> dict[str, Any]:
    """The config as JSON-ready values, as recorded."""
    container = OmegaConf.to_container(OmegaConf.structured(config), resolve=True, enum_to_str=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def config_hash(config: RunConfig, data_fingerprint: str, weights_identity: str) -> str:
    """Ten hex digits naming the experiment: all that is scientific, data and weights by content."""
    scientific = plain(config)
    for key in NOT_SCIENTIFIC:
        *parents, last = key.split(".")
        node = scientific
        for parent in parents:
            node = node[parent]
        del node[last]
    identity = {"config": scientific, "data": data_fingerprint, "weights": weights_identity}
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:10]
