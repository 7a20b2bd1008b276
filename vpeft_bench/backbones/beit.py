"""BEiT and BEiT v2: timm's ``Beit``, with biases of attention by relative position."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from timm.models.beit import Attention as TimmAttention
from timm.models.beit import Beit, checkpoint_filter_fn
from timm.models.beit import Block as TimmBlock
from torch import Tensor, nn

from vpeft_bench.backbones.block_map import Backbone, OpenedClasses
from vpeft_bench.backbones.one_stage import (
    OneStage,
    OpenedOneStage,
    OpenedScaledBlock,
    kind_of,
    leaves_of,
)
from vpeft_bench.backbones.sites import OpenedJoinedAttention
from vpeft_bench.backbones.trunk import BoundBlock, Stage
from vpeft_bench.errors import UnsupportedBackboneError


class OpenedBeitBlock(OpenedScaledBlock, TimmBlock):
    """timm's BEiT block with its places open."""


class OpenedBeitAttention(OpenedJoinedAttention, TimmAttention):
    """timm's attention with q, k, v within reach; the kernel stays fused."""

    def forward(self, x: Tensor, shared_rel_pos_bias: Tensor | None = None) -> Tensor:
        """Tokens ``(B, N, D)``; further ones after the class token have no positions."""
        q, k, v = self.split_heads(self.projected(x), 3)
        found = [] if self.relative_position_bias_table is None else [self._get_rel_pos_bias()]
        if shared_rel_pos_bias is not None:
            found.append(shared_rel_pos_bias)
        biases = [_spread(bias, x.shape[1]) for bias in found]
        out = self.attend(q, k, v, biases).transpose(1, 2).flatten(2)
        return cast(Tensor, self.proj_drop(self.proj(out)))


def _spread(bias: Tensor, tokens: int) -> Tensor:
    """The bias ``(..., N, N)`` for ``N`` tokens: those after the first have none."""
    if (further := tokens - bias.shape[-1]) == 0:
        return bias
    padded = nn.functional.pad(bias, (further, 0, further, 0))
    order = [further, *range(further), *range(further + 1, tokens)]
    return padded[..., order, :][..., order]


class OpenedBeit(OpenedOneStage, Beit):  # type: ignore[misc]  # takes no mask
    """timm's BEiT with something placed around its trunk."""

    def embed(self, images: Tensor) -> Tensor:
        """Class token and patches, ``(B, N, D)``."""
        x = self.patch_embed(images)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        if self.pos_embed is not None:
            x = x + self.pos_embed
        return cast(Tensor, self.pos_drop(x))

    def stages(self) -> list[Stage]:
        """One stage; its blocks may share biases by position."""
        blocks: Any = self.blocks
        shared = self.rel_pos_bias

        def arguments(_: Tensor) -> dict[str, Tensor]:
            return {} if shared is None else {"shared_rel_pos_bias": shared()}

        return [Stage(nn.Identity(), [BoundBlock(block, arguments) for block in blocks])]

    def pooled(self, stream: Tensor) -> Tensor:
        """Final norm, pooling, norm after the pooling, ``(B, D)``."""
        x = self.norm(stream)
        if self.global_pool:
            average = self.global_pool == "avg"
            x = x[:, self.num_prefix_tokens :].mean(dim=1) if average else x[:, 0]
        return cast(Tensor, self.fc_norm(x))


class BEiT(OneStage):
    """BEiT."""

    name = "beit"
    title = "BEiT, BEiT v2"
    models = (Beit,)
    modules = ("beit",)
    attention_knows_positions = True
    opened: ClassVar = OpenedClasses(OpenedBeit, OpenedBeitBlock, OpenedBeitAttention)

    def map(self, model: Any) -> Backbone:
        """Block map of a timm ``Beit``."""
        backbone = self.without_blocks(model, self.opened)
        for index, block in enumerate(model.blocks):
            leaves = leaves_of(block)
            if leaves is None:
                raise UnsupportedBackboneError(
                    f"blocks.{index} is {kind_of(block)}; the block map of BEiT covers linears only"
                )
            backbone.add_block(f"blocks.{index}", leaves)
        return backbone

    def to_timm(self, state: Mapping[str, Tensor], model: Any, **options: Any) -> Mapping[str, Any]:
        """The original checkpoints, and other sizes."""
        return checkpoint_filter_fn(dict(state), model, **options)  # type: ignore[no-any-return]


FAMILY = BEiT()
