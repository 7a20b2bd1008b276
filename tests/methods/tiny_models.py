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
FURTHER: dict[str, tuple[str, dict[str, Any]]] = {
    "deit": ("deit_tiny_distilled_patch16_224", VIT),
    # biases by position in each block, LayerScale, query and value biases beside the qkv linear
    "beit": ("beit_base_patch16_224", VIT | {"init_values": 0.5}),
    # as DINOv3: rotary positions, registers, LayerScale, no biases of qkv
    "dinov3": ("vit_small_patch16_dinov3", VIT | {"init_values": 0.5, "dynamic_img_size": False}),
    # as EVA-02 small: rotary and learned positions, a packed gate, query and value biases
    "eva02": ("eva02_tiny_patch14_224", VIT | {"ref_feat_shape": (4, 4)}),
    # as EVA-02 base: query, key, value, and gate and MLP, in linears of their own
    "eva02_split": (
        "eva02_base_patch14_448",
        VIT | {"ref_feat_shape": (4, 4)},
    ),
    # norms after the branches, cosine attention, biases by position through an MLP
    "swinv2": (
        "swinv2_tiny_window8_256",
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
"""Kinds of the further families."""


def build(kind: str, seed: int = 0) -> Any:
    """A fresh timm model in eval mode; the same ``seed`` gives the same weights.

    No weight is left at a start value that hides mistakes, such as a norm's ones and zeros.
    """
    name, overrides = (MODELS | FURTHER)[kind]
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
