"""DTL's side network: a thin state that blocks put into and later blocks get added."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vpeft_bench.backbones.block_map import Backbone, Block
from vpeft_bench.backbones.trunk import OpenedModel, SideNetwork, TrunkOutput
from vpeft_bench.methods.parts.spatial import TokenGrid


class Tap(nn.Module):
    """x A^T B^T."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, width))
        self.B = nn.Parameter(torch.zeros(width, rank))
        nn.init.kaiming_uniform_(self.A, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """The stream ``(..., D)`` that enters a block."""
        return nn.functional.linear(nn.functional.linear(x, self.A), self.B)


class CompactSideNetwork(SideNetwork):
    """h_i = h_{i-1} + x_i A_i^T B_i^T; x_{i+1} = Block_i(x_i) + G(swish_beta(h_i)) where injected.

    The state h starts at zero in every stage. G, in DTL+ only, is one depthwise convolution per
    stage, over the patch tokens.
    """

    def __init__(
        self,
        reads: Sequence[str],
        backbone: Backbone,
        tapped: Sequence[Block],
        injecting: Sequence[Block],
        rank: int,
        beta: float,
        fusion_kernel: int,
    ) -> None:
        self.first = injecting[0].index
        super().__init__(reads, frozen_blocks=self.first)
        self.injecting = frozenset(block.index for block in injecting)
        self.stages = [block.stage for block in backbone.blocks]
        self.beta = beta
        self.grid = TokenGrid.of(backbone)
        self.taps = nn.ModuleDict({str(b.index): Tap(b.width, rank) for b in tapped})
        self.fusions = nn.ModuleDict()
        if fusion_kernel:
            for stage, width in {block.stage: block.width for block in injecting}.items():
                self.fusions[str(stage)] = nn.Conv2d(
                    width, width, fusion_kernel, padding="same", groups=width, bias=False
                )

    def side(self, features: dict[str, Tensor], model: OpenedModel) -> TrunkOutput:
        """Read up to the output of the first injecting block; run the blocks behind it."""
        streams: list[Tensor] = []
        x: Any = None  # in front of the first injection, only what a tap needs is read
        state: Any = 0
        for index, (merge, block) in enumerate(model.steps()):
            x = features.get(f"tokens.{index}") if index <= self.first else merge(x)
            if index and self.stages[index] != self.stages[index - 1]:
                state = 0
            if str(index) in self.taps:
                state = state + self.taps[str(index)](x)
            if index < self.first:
                continue
            x = features[self.reads[-1]] if index == self.first else model.run(block, x)
            if index in self.injecting:
                x = x + self.fuse(state * torch.sigmoid(self.beta * state), self.stages[index])
            streams.append(x)
        return TrunkOutput(streams)

    def fuse(self, added: Tensor, stage: int) -> Tensor:
        """The stage's convolution over the patches; class and register tokens pass by it."""
        if str(stage) not in self.fusions:
            return added
        prefix, image = self.grid.split(added)
        return self.grid.join(prefix, self.fusions[str(stage)](image))
