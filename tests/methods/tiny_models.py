"""Small but real timm models, one for each kind of backbone a method can meet."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor

torch.set_num_threads(1)  # tiny tensors: threads only get in each other's way

CLASSES = 5
SIZE = 32

VIT: dict[str, Any] = {
    "img_size": SIZE,
    "patch_size": 8,
    "embed_dim": 32,
    "depth": 3,
    "num_heads": 2,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", VIT),
    # as DINOv2 with registers: LayerScale, pooled over the patches, prefix tokens left out
    "vit_avg_reg": (
        "vit_tiny_patch16_224",
        VIT | {"reg_tokens": 2, "init_values": 0.5, "global_pool": "avg", "no_embed_class": True},
    ),
    # two stages of two blocks, the second of each with shifted windows
    "swin": (
        "swin_tiny_patch4_window7_224",
        {
            "img_size": SIZE,
            "patch_size": 2,
            "window_size": 4,
            "embed_dim": 16,
            "depths": (2, 2),
            "num_heads": (2, 4),
        },
    ),
}


def build(kind: str, seed: int = 0) -> Any:
    """A fresh timm model in eval mode; the same ``seed`` gives the same weights.

    No weight is left at a start value that hides mistakes, such as a norm's ones and zeros.
    """
    name, overrides = MODELS[kind]
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        # Swin's default drop-path would make every training pass another one.
        model = timm.create_model(name, num_classes=CLASSES, drop_path_rate=0.0, **overrides)
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def images(count: int = 2, seed: int = 1) -> Tensor:
    """A batch of random pictures."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, SIZE, SIZE, generator=generator)


def targets(count: int = 2) -> Tensor:
    """A class for each picture of :func:`images`."""
    return torch.arange(count) % CLASSES
