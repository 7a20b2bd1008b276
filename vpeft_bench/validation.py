"""Everything wrong with a configuration, found before any weight is loaded."""

from __future__ import annotations

import math
from collections.abc import Iterator

from vpeft_bench.config import RunConfig
from vpeft_bench.errors import (
    ConfigError,
    MethodOptionError,
    Problem,
    UnsupportedBackboneError,
    unknown_name,
)

# Inclusive bounds; None is open.
RANGES: dict[str, tuple[float | None, float | None]] = {
    "backbone.image_size": (1, None),
    "backbone.drop_path": (0, 0.99),
    "train.epochs": (1, None),
    "train.batch_size": (1, None),
    "train.lr": (1e-12, None),
    "train.weight_decay": (0, None),
    "train.warmup_epochs": (0, None),
    "train.warmup_lr": (0, None),
    "train.min_lr": (0, None),
    "train.label_smoothing": (0, 0.99),
    "train.clip_norm": (1e-12, None),
    "hardware.threads": (1, None),
    "hardware.workers": (0, None),
    "hardware.eval_batch_size": (1, None),
    "data.num_classes": (2, None),
    "data.cache_gib": (0, None),
    "seed": (0, 2**31 - 1),
}
CHOICES = {
    "hardware.accelerator": ("auto", "cpu", "cuda"),
    "task.name": ("classification",),
    "data.final_train": ("trainval", "train"),
}


def check(config: RunConfig) -> None:
    """Raise every problem at once.

    Raises:
        ConfigError: with all of them.
    """
    if found := list(problems(config)):
        raise ConfigError(found)


def problems(config: RunConfig) -> Iterator[Problem]:
    """Each problem of ``config``, cheap checks first; torch is imported only for the method's."""
    yield from _values(config)
    yield from _data(config)
    yield from _method_and_backbone(config)


def _value(config: RunConfig, key: str) -> object:
    node: object = config
    for part in key.split("."):
        node = getattr(node, part)
    return node


def _values(config: RunConfig) -> Iterator[Problem]:
    for key, (low, high) in RANGES.items():
        value = _value(config, key)
        if not isinstance(value, int | float):
            continue
        if not math.isfinite(value):
            yield Problem(f"{key}={value}", "is not a finite number", f"type a number for {key}")
        elif (low is not None and value < low) or (high is not None and value > high):
            bounds = f"at least {low:g}" if high is None else f"between {low} and {high}"
            yield Problem(f"{key}={value}", "out of range", f"{key} must be {bounds}")
    for key, valid in CHOICES.items():
        value = _value(config, key)
        if value not in valid:
            yield unknown_name(key, str(value), valid)
    if config.train.min_lr > config.train.lr:
        yield Problem(
            f"train.min_lr={config.train.min_lr:g}",
            f"is larger than the peak, train.lr={config.train.lr:g}",
            "lower train.min_lr",
        )
    if config.hardware.accelerator == "cuda":
        import torch

        if not torch.cuda.is_available():
            yield Problem(
                f"hardware={config.hardware.name}",
                "this machine has no CUDA device",
                "hardware=cpu",
            )


def _data(config: RunConfig) -> Iterator[Problem]:
    from vpeft_bench.data.dataset import check as check_data

    yield from check_data(config.data)


def _method_and_backbone(config: RunConfig) -> Iterator[Problem]:
    from vpeft_bench.backbones.load import check_model, outline
    from vpeft_bench.backbones.weights import check_weights
    from vpeft_bench.methods.registry import build_method

    method = None
    options = dict(config.method)
    name = options.pop("name")
    try:
        method = build_method(name, options)
    except MethodOptionError as error:
        yield from error.problems

    backbone = config.backbone
    unbuildable = check_model(backbone.model)
    yield from unbuildable
    if unbuildable:
        return
    try:
        outlined = outline(backbone.model, backbone.image_size, **backbone.model_args)
        if method is not None:
            method.check(outlined)
    except UnsupportedBackboneError as error:
        yield Problem(f"method={name} backbone={backbone.name}", str(error))
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        yield Problem(f"backbone={backbone.name}", f"timm cannot build {backbone.model}: {error}")
    yield from check_weights(backbone.weights, backbone.model)
