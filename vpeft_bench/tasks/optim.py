"""The optimizer and learning-rate schedule shared by the tasks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from vpeft_bench.config import TrainConfig


def adamw(parameters: Iterable[nn.Parameter], train: TrainConfig) -> torch.optim.AdamW:
    """AdamW; tensors of fewer than two dimensions are not decayed unless ``train.decay_all``."""
    trained = [p for p in parameters if p.requires_grad]
    decayed = [p for p in trained if p.ndim >= 2 or train.decay_all]
    kept = [p for p in trained if p.ndim < 2 and not train.decay_all]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": train.weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=train.lr)


def warmup_cosine(
    optimizer: torch.optim.Optimizer, train: TrainConfig, steps_per_epoch: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear from ``warmup_lr`` to ``lr``, then half a cosine down to ``min_lr``, per step.

    A warm-up longer than the training is cut to half of it.
    """
    total = train.epochs * steps_per_epoch
    warmup = min(round(train.warmup_epochs * steps_per_epoch), total // 2)

    def factor(step: int) -> float:
        if step < warmup:
            lr = train.warmup_lr + (train.lr - train.warmup_lr) * step / warmup
        else:
            progress = min((step - warmup) / max(1, total - warmup - 1), 1.0)
            cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
            lr = train.min_lr + (train.lr - train.min_lr) * cosine
        return lr / train.lr

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
