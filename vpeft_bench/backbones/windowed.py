"""What hierarchical transformers share: stages of blocks on maps, attention within windows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

from timm.models._features import feature_take_indices
from torch import Tensor, nn

from vpeft_bench.backbones import operations
from vpeft_bench.backbones.block_map import Backbone, Block, OpenedClasses
from vpeft_bench.backbones.family import Family
from vpeft_bench.backbones.joined import joined_qkv
from vpeft_bench.backbones.trunk import OpenedModel, Stage
from vpeft_bench.traits import Trait


class OpenedWindowed(OpenedModel):
    """A timm model of several stages with something placed around its trunk."""

    def embed(self, images: Tensor) -> Tensor:
        """Patches, ``(B, H, W, D)``."""
        model: Any = self
        return cast(Tensor, model.patch_embed(images))

    def stages(self) -> list[Stage]:
        """One stage per resolution, each with the patch merging before it."""
        layers: Any = self.layers
        return [Stage(stage.downsample, list(stage.blocks)) for stage in layers]

    def pooled(self, stream: Tensor) -> Tensor:
        """Final norm and pooling, ``(B, D)``."""
        model: Any = self
        return cast(Tensor, model.head.global_pool(model.norm(self.of_image(stream))))

    def classify(self, features: Tensor) -> Tensor:
        """Dropout and the linear head."""
        model: Any = self
        return cast(Tensor, model.head.fc(model.head.drop(features)))

    def intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """As timm's; ``stop_early`` saves nothing, since the last stream may depend on all."""
        model: Any = self
        streams = self.around(x).streams
        last_of_stage = itertools.accumulate(len(stage.blocks) for stage in self.stages())
        outputs = [self.of_image(streams[blocks - 1]) for blocks in last_of_stage]
        last = outputs[-1] if intermediates_only and not norm else model.norm(outputs[-1])
        if norm:
            outputs[-1] = last
        taken, _ = feature_take_indices(len(outputs), indices)
        maps = [outputs[i].permute(0, 3, 1, 2).contiguous() for i in taken]
        return maps if intermediates_only else (last, maps)


class Windowed(Family):
    """Families whose models are stages of blocks with windows.

    Class attributes:
        opened: the opened classes.
    """

    traits = frozenset({Trait.PATCH_MERGING})
    # Attention masks are made for the size at hand, and windows keep their size on maps that are
    # smaller.
    any_size: ClassVar[Mapping[str, Any]] = {"strict_img_size": False, "always_partition": True}
    stream_is_map = True
    opened: ClassVar[OpenedClasses]

    def map(self, model: Any) -> Backbone:
        """Block map of the model; blocks are counted over all stages."""
        merges = [stage.downsample for stage in model.layers]
        patch_embed = model.patch_embed
        patch_leaves = [patch_embed.proj]
        if not isinstance(patch_embed.norm, nn.Identity):
            patch_leaves.append(patch_embed.norm)
        backbone = Backbone(
            model,
            family=self,
            opened=self.opened,
            patch_leaves=patch_leaves,
            final_norm=model.norm,
            merge_norms=[merge.norm for merge in merges if not isinstance(merge, nn.Identity)],
            prefix_tokens=0,
        )
        for s, stage in enumerate(model.layers):
            for b, block in enumerate(stage.blocks):
                leaves = {
                    "norm1": block.norm1,
                    "qkv": joined_qkv(block.attn, key_bias_counts=True),
                    "proj": block.attn.proj,
                    "norm2": block.norm2,
                    "fc1": block.mlp.fc1,
                    "fc2": block.mlp.fc2,
                }
                backbone.add_block(f"layers.{s}.blocks.{b}", leaves, s)
        return backbone

    def levels(self, model: Any) -> Sequence[Mapping[str, Any]]:
        """One map for each stage."""
        return list(model.feature_info)

    def attended_tokens(self, backbone: Backbone, block: Block) -> int:
        """Those of a window."""
        height, width = cast(Any, block.module).window_size
        return int(height * width)

    def flops(self, backbone: Backbone, image_size: tuple[int, int]) -> int:
        """Patches, patch merging, blocks on padded maps, and the head."""
        model: Any = backbone.model
        height, width = model.patch_embed.dynamic_feat_size(image_size)
        total = operations.patches(backbone, height * width) + operations.heads(backbone)
        for index, stage in enumerate(model.layers):
            if not isinstance(stage.downsample, nn.Identity):  # the map is padded to an even size
                height, width = math.ceil(height / 2), math.ceil(width / 2)
                total += operations.linear(stage.downsample.reduction, height * width)
            for block in (block for block in backbone.blocks if block.stage == index):
                # the map is padded to whole windows
                window_height, window_width = cast(Any, block.module).window_size
                padded_height = math.ceil(height / window_height) * window_height
                padded_width = math.ceil(width / window_width) * window_width
                window = window_height * window_width
                padded = padded_height * padded_width
                total += operations.block(block, height * width, padded, window)
        return total
