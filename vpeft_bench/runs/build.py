"""From a configuration to the parts of a run: backbone, method and task; the head's own state."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vpeft_bench.attaching.attachment import Attached, attach_method
from vpeft_bench.backbones.block_map import Backbone
from vpeft_bench.backbones.checkpoint_files import not_finite
from vpeft_bench.backbones.load import load_backbone
from vpeft_bench.config.schema import RunConfig
from vpeft_bench.config.sections import HardwareConfig, Precision, TrainConfig
from vpeft_bench.data.dataset import Dataset
from vpeft_bench.errors import VpeftBenchError
from vpeft_bench.methods.registry import build_method
from vpeft_bench.tasks.base import Model, Task, Training
from vpeft_bench.tasks.names import kind_of
from vpeft_bench.tasks.optim import Trained

COMPILED = "~/.cache/vpeft_bench/inductor"


def build_model(config: RunConfig, dataset: Dataset) -> Model:
    """Load the backbone and attach the method.

    Raises:
        WeightsMismatchError, MissingWeightsError, UnsupportedBackboneError.
    """
    kind = kind_of(config)
    loaded = load_backbone(
        config.backbone.model,
        config.backbone.weights,
        kind.outputs(config, dataset),
        config.backbone.image_size,
        any_size=kind.any_size,
        drop_path_rate=config.backbone.drop_path,
        **config.backbone.model_args,
    )
    if config.hardware.gradient_checkpointing:
        loaded.model.set_grad_checkpointing(True)  # type: ignore[operator]  # timm's
    options = dict(config.method)
    attached = attach_method(loaded.model, build_method(options.pop("name"), options))
    kind.change_classifier(config, loaded.model)
    if not config.hardware.fused_attention:
        unfuse_attention(loaded.model)
    return Model(loaded, attached, kind.preprocessing(config, loaded))


def unfuse_attention(model: nn.Module) -> None:
    """Compute attention in single steps: scores, softmax, values."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # type: ignore[assignment]  # timm's own flag


AUTOCAST = {Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}


def autocast(precision: Precision, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """The arithmetic of forward and backward, as Lightning has it in training."""
    if precision not in AUTOCAST:
        return contextlib.nullcontext()
    return torch.autocast(device.type, AUTOCAST[precision], cache_enabled=False)


def own_gpu(hardware: HardwareConfig) -> int | None:
    """Which GPU a run of one device takes; None where it runs on a CPU.

    Jobs of a sweep that run at the same time take turns; one after another they stay where the
    first one was.
    """
    if hardware.accelerator == "cpu" or not torch.cuda.is_available():
        return None
    if hardware.device is not None or hardware.devices > 1:
        return hardware.device or 0
    if not HydraConfig.initialized() or HydraConfig.get().mode is not RunMode.MULTIRUN:
        return 0
    job = HydraConfig.get()
    together = not str(job.launcher["_target_"]).endswith("BasicLauncher")
    return int(job.job.num) % torch.cuda.device_count() if together else 0


def device_of(accelerator: str) -> torch.device:
    """Where Lightning will train."""
    cuda = accelerator != "cpu" and torch.cuda.is_available()
    return torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")


def build_task(
    config: RunConfig,
    dataset: Dataset,
    model: Model,
    steps_per_epoch: int | None = None,
    share: Callable[[int], float] = lambda _: 1.0,
) -> Task:
    """The task on top of a model whose method is placed.

    Args:
        steps_per_epoch: batches per epoch; None where nothing is to be trained.
        share: see :class:`vpeft_bench.tasks.base.Training`.
    """
    kind = kind_of(config)
    network = kind.network(config, dataset, model)
    if config.hardware.channels_last:
        network.to(memory_format=torch.channels_last)
    training = None
    if steps_per_epoch is not None:
        trained = trained_parameters(model.attached, network, config.train)
        penalty = model.attached.penalty
        fused = config.hardware.fused_optimizer
        training = Training(config.train, trained, steps_per_epoch, penalty, fused, share)
    return kind.module(config, dataset, model, network, training)


def head_state(attached: Attached, network: nn.Module) -> dict[str, Tensor]:
    """Tensors of the head: a dense one is all that is not the backbone."""
    if network is attached.model:
        return attached.backbone.head.state_dict(keep_vars=True)
    own = set(attached.model.state_dict(keep_vars=True).values())
    state = network.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in state.items() if tensor not in own}


def head_parameters(attached: Attached, network: nn.Module) -> list[nn.Parameter]:
    """Parameters of the head."""
    state = head_state(attached, network)
    return [tensor for tensor in state.values() if isinstance(tensor, nn.Parameter)]


def load_head(attached: Attached, network: nn.Module, path: Path) -> None:
    """Fill the head from a run's ``head.safetensors``.

    Raises:
        VpeftBenchError: the file is damaged, belongs to another head, or holds numbers that are
            not finite.
    """
    try:
        stored = load_file(path)
    except (SafetensorError, OSError) as error:
        raise VpeftBenchError(f"{path} cannot be read as a head: {error}") from error
    own = head_state(attached, network)
    if differing := sorted(
        name
        for name in stored.keys() | own.keys()
        if name not in stored or name not in own or stored[name].shape != own[name].shape
    ):
        names = ", ".join(differing[:5])
        raise VpeftBenchError(f"{path} belongs to another head: {names} differ")
    if spoilt := not_finite(stored):
        raise VpeftBenchError(f"{path} is not used: {spoilt[0]}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(stored[name])


def compile_in_place(attached: Attached, *, any_size: bool = False) -> None:
    """Compile every block of the backbone; names in checkpoints stay the same.

    Blocks of one kind are compiled once, and what was compiled is kept for other runs in
    ``~/.cache/vpeft_bench/inductor``, unless ``TORCHINDUCTOR_CACHE_DIR`` names another place.

    Args:
        any_size: pictures of any size will follow, which one compilation serves.
    """
    from torch._dynamo import config as dynamo_config  # takes a second

    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(COMPILED).expanduser()))
    # All blocks share one code object, and each may need its own variants: in training and not, of
    # a whole batch and of a smaller last one. Beyond the limit, 8, blocks run as they are.
    limit = "recompile_limit" if hasattr(dynamo_config, "recompile_limit") else "cache_size_limit"
    most = max(getattr(dynamo_config, limit), 4 * len(attached.backbone.blocks))
    setattr(dynamo_config, limit, most)
    for block in attached.backbone.blocks:
        block.module.compile(dynamic=True if any_size else None)


def trained_parameters(attached: Attached, network: nn.Module, train: TrainConfig) -> list[Trained]:
    """What the optimizer trains: the method's parameters, then the head's, with their rates.

    Under a dense head position tables are not decayed, as in the published recipes for Swin.
    """
    factors = layer_factors(attached.backbone, train.layer_decay)
    tables = set() if network is attached.model else set(attached.backbone.position_tables())
    method = [Trained(p, factors[p], p not in tables) for p in attached.trainable_parameters()]
    head = [Trained(p, train.head_lr_factor) for p in head_parameters(attached, network)]
    return [*method, *head]


def layer_factors(backbone: Backbone, decay: float) -> dict[nn.Parameter, float]:
    """Learning-rate factor of every parameter: ``decay`` to the number of layers above its own.

    What comes after the blocks has the factor 1, and the last block lies one layer below it. What
    stands between two blocks (patch merging) belongs to the second; the embedding is a layer of
    its own.
    """
    layers = {p: block.index for block in backbone.blocks for p in block.module.parameters()}
    depth, layer = len(backbone.blocks), -1
    factors = {}
    for parameter in backbone.model.parameters():
        layer = layers.get(parameter, layer)
        above = layer if parameter in layers or layer < 0 else layer + 1
        factors[parameter] = decay ** (depth - above)
    return factors
