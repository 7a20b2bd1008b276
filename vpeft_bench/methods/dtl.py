"""DTL and DTL+: a thin low-rank state beside the blocks, added back to the later ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vpeft_bench.backbones.block_map import Backbone, Block
from vpeft_bench.backbones.trunk import OpenedModel, SideNetwork, TrunkOutput
from vpeft_bench.errors import UnsupportedBackboneError
from vpeft_bench.methods.base import Category, Length, Method, option
from vpeft_bench.methods.parts.spatial import TokenGrid, require_grid
from vpeft_bench.methods.registry import register


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
        """Read up to the output of the first injecting block; run the blocks after it."""
        streams: list[Tensor] = []
        x: Any = None  # before the first injection, only what a tap needs is read
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


@register
@dataclass
class DTL(Method):
    """h <- h + x A^T B^T before blocks, x <- Block(x) + swish_beta(h) after the later ones.

    ``fusion_kernel`` > 0 is DTL+. Only the tapped blocks that an injection of their stage can reach
    are tapped by default: in a ViT all of them.
    """

    name = "dtl"
    title = "DTL: Disentangled Transfer Learning for Visual Recognition"
    arxiv = "2312.07856"
    source = "Compact Side Network, DTL and DTL+; as in the authors' code"
    category = Category.SIDE
    idea = (
        "Low-rank taps on the blocks' inputs add up to a thin state beside the frozen backbone. "
        "The later blocks get it added to their outputs, so gradients stay out of the earlier ones."
    )
    deviations = (
        "the official model classifies the mean of the patch tokens, normed after the pooling; "
        "here the backbone keeps its own pooling, and a backbone with global_pool=avg (the norm's "
        "weights in fc_norm) gives the official one and the published rows",
        "Swin, officially: rank=4, taps 4-23, injections 14-23; the default injects in the second "
        "half (12-23), tapped_blocks and injecting_blocks give the official choice",
        "the official Swin allocates a convolution for each of the four stages; stages that never "
        "inject have none here",
        "published DTL+ rows pick fusion_kernel 3, 4 or 5 per task",
        "class and register tokens are not convolved; the official code knows one class token only",
    )
    not_mergeable = "what is added depends on the input through a swish and passes by the blocks"

    rank: int = option(2, "r of every tap (authors: ViT 2, Swin 4)", minimum=1)
    beta: float = option(100.0, "slope of swish_beta(t) = t sigmoid(beta t) (authors: 100)")
    fusion_kernel: int = option(
        0, "k of DTL+'s depthwise convolution; 0: DTL without (authors: 3 to 5)", minimum=0
    )
    tapped_blocks: list[int] | None = option(
        None,
        "blocks whose input is tapped, from 0; null: all that can have an effect (authors)",
        distinct=True,
    )
    injecting_blocks: list[int] | None = option(
        None,
        "blocks after which the state is added; null: the second half (authors, ViT)",
        distinct=True,
    )

    def check(self, backbone: Backbone) -> None:
        """As every method; every tap must reach an injection, and every injection needs a tap."""
        super().check(backbone)
        if self.fusion_kernel:
            require_grid(self.name, backbone)
        depth = len(backbone.blocks)
        for name in ("tapped_blocks", "injecting_blocks"):
            if wrong := [i for i in getattr(self, name) or () if not 0 <= i < depth]:
                raise UnsupportedBackboneError(
                    f"method.{name}: there is no block {wrong[0]} (blocks: 0 to {depth - 1})"
                )
        tapped, injecting = self._tapped(backbone), self._injecting(backbone)
        for block in [*tapped, *injecting]:
            if not any(_reaches(tap, block) for tap in tapped):
                problem = f"injecting_blocks: no block up to {block.index} is tapped"
            elif not any(_reaches(block, injection) for injection in injecting):
                problem = f"tapped_blocks: no block from {block.index} on injects"
            else:
                continue
            raise UnsupportedBackboneError(
                f"method.{problem} in its stage (tapped: {[b.index for b in tapped]}, "
                f"injecting: {[b.index for b in injecting]})"
            )

    def _injecting(self, backbone: Backbone) -> list[Block]:
        if self.injecting_blocks is None:
            return backbone.blocks[len(backbone.blocks) // 2 :]
        return [backbone.blocks[i] for i in sorted(self.injecting_blocks)]

    def _tapped(self, backbone: Backbone) -> list[Block]:
        if self.tapped_blocks is not None:
            return [backbone.blocks[i] for i in sorted(self.tapped_blocks)]
        injecting = self._injecting(backbone)
        return [tap for tap in backbone.blocks if any(_reaches(tap, block) for block in injecting)]

    def place(self, backbone: Backbone) -> None:
        """One network around the trunk."""
        network = CompactSideNetwork(
            self.reads(backbone),
            backbone,
            self._tapped(backbone),
            self._injecting(backbone),
            self.rank,
            self.beta,
            self.fusion_kernel,
        )
        backbone.place_around(network)

    @property
    def lengths_known(self) -> frozenset[Length]:
        """Its state has as many tokens as the stream, and its injections add to it."""
        return frozenset({Length.STREAM})

    def parameter_count(self, backbone: Backbone) -> int:
        """2Dr per tap, and Dk^2 per injecting stage: 36,864 for ViT-B/16; 43,776 at k = 3."""
        fused = {block.stage: block.width for block in self._injecting(backbone)}
        taps = sum(2 * self.rank * block.width for block in self._tapped(backbone))
        return taps + self.fusion_kernel**2 * sum(fused.values())

    def first_changed_block(self, backbone: Backbone) -> int:
        """The one after the first injection, which comes after its block."""
        return self._injecting(backbone)[0].index + 1

    def reads(self, backbone: Backbone) -> tuple[str, ...]:
        """What the taps read up to the first injecting block, and that block's own output."""
        first = self._injecting(backbone)[0]
        taps = [f"tokens.{t.index}" for t in self._tapped(backbone) if t.index <= first.index]
        following = backbone.blocks[first.index + 1 : first.index + 2]
        merged = bool(following) and following[0].stage != first.stage
        return (*taps, f"outputs.{first.index}" if merged else f"tokens.{first.index + 1}")


def _reaches(tap: Block, injecting: Block) -> bool:
    """Whether the state still holds what ``tap`` put in when it is added after ``injecting``."""
    return tap.stage == injecting.stage and tap.index <= injecting.index
