"""Backbones: timm models, their weights, and the block map of each family."""

from vpeft_bench.backbones.block_map import Backbone, Block
from vpeft_bench.backbones.families import block_map

__all__ = ["Backbone", "Block", "block_map"]
