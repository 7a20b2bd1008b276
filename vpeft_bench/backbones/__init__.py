"""Backbones: timm models, their weights, and the block map of each family."""

from vpeft_bench.backbones import swin as _swin  # noqa: F401  registers its block map
from vpeft_bench.backbones import vit as _vit  # noqa: F401  registers its block map
from vpeft_bench.backbones.block_map import Backbone, Block, block_map

__all__ = ["Backbone", "Block", "block_map"]
