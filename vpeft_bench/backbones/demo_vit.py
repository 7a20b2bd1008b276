"""The embedded demo backbone: a small vision transformer that ships with its weights.

Importing this module registers ``vpeft_demo_vit`` with timm, so that
``timm.create_model("vpeft_demo_vit", pretrained=True, num_classes=10)`` works with no network.
The weights come from ``scripts/pretrain_demo_backbone.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

WEIGHTS_FILE = Path(__file__).resolve().with_name("demo_vit.safetensors")

default_cfgs = generate_default_cfgs(
    {
        "vpeft_demo_vit": {
            "file": str(WEIGHTS_FILE),
            "num_classes": 0,
            "input_size": (3, 32, 32),
            "fixed_input_size": True,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "license": "apache-2.0",
        }
    }
)


@register_model
def vpeft_demo_vit(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """Build the demo backbone: 32 px, patch 4, width 128, depth 6, no class token."""
    architecture: dict[str, Any] = {
        "img_size": 32,
        "patch_size": 4,
        "embed_dim": 128,
        "depth": 6,
        "num_heads": 4,
        "class_token": False,
        "global_pool": "avg",
        # timm would otherwise move the norm after the pooling, under another name: the weights
        # would no longer be the same for every way of using the model.
        "fc_norm": False,
    }
    model: VisionTransformer = build_model_with_cfg(
        VisionTransformer,
        "vpeft_demo_vit",
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},
        **(architecture | kwargs),
    )
    if not pretrained and model.pos_embed is not None:
        # A fresh model starts, as pretraining does, from a position code that knows the 2-D grid.
        with torch.no_grad():
            code = build_sincos2d_pos_embed(model.patch_embed.grid_size, model.embed_dim)
            model.pos_embed.copy_(code)
    return model
