"""The optimizer and the learning-rate schedules shared by the tasks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import nn

from vpeft_bench.config.sections import Optimizer, Schedule, TrainConfig


class Trained(NamedTuple):
    """A trained parameter.

    Attributes:
        parameter: the tensor.
        lr_factor: its learning rate over the peak.
        decays: whether weight decay applies to it, if it has two or more dimensions.
    """

    parameter: nn.Parameter
    lr_factor: float = 1.0
    decays: bool = True


def build_optimizer(
    trained: Iterable[Trained], train: TrainConfig, *, fused: bool = True
) -> torch.optim.Optimizer:
    """Tensors of fewer than two dimensions are not decayed unless ``train.decay_all``.

    Args:
        fused: update all tensors in one kernel.
    """
    peak = train.peak_lr
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter, lr_factor, decays in trained:
        if parameter.requires_grad:
            decayed = train.decay_all or (decays and parameter.ndim >= 2)
            groups.setdefault((lr_factor, decayed), []).append(parameter)
    described = [
        {
            "params": parameters,
            "lr": peak * lr_factor,
            "lr_factor": lr_factor,
            "weight_decay": train.weight_decay if decayed else 0.0,
        }
        for (lr_factor, decayed), parameters in groups.items()
    ]
    if train.optimizer is Optimizer.sgd:
        return torch.optim.SGD(described, lr=peak, momentum=train.momentum, fused=fused)
    return torch.optim.AdamW(described, lr=peak, fused=fused)


def schedule(
    optimizer: torch.optim.Optimizer, train: TrainConfig, steps_per_epoch: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear from ``warmup_lr`` to the peak rate, then ``train.schedule``, per step.

    A warm-up longer than the training is cut to half of it.
    """
    peak = train.peak_lr
    total = train.epochs * steps_per_epoch
    warmup = min(round(train.warmup_epochs * steps_per_epoch), total // 2)
    after = _AFTER_WARMUP[train.schedule]

    def factor(step: int) -> float:
        if step < warmup:
            return (train.warmup_lr + (peak - train.warmup_lr) * step / warmup) / peak
        progress = min((step - warmup) / max(1, total - warmup - 1), 1.0)
        return after(train, progress, step / steps_per_epoch) / peak

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _cosine(train: TrainConfig, progress: float, epoch: float) -> float:
    cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
    return train.min_lr + (train.peak_lr - train.min_lr) * cosine


def _poly(train: TrainConfig, progress: float, epoch: float) -> float:
    return train.min_lr + (train.peak_lr - train.min_lr) * (1.0 - progress)


def _step(train: TrainConfig, progress: float, epoch: float) -> float:
    passed = sum(epoch >= milestone for milestone in train.milestones)
    return float(train.peak_lr * 0.1**passed)


_AFTER_WARMUP: dict[Schedule, Callable[[TrainConfig, float, float], float]] = {
    Schedule.cosine: _cosine,
    Schedule.poly: _poly,
    Schedule.step: _step,
}
