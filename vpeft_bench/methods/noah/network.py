"""NOAH's sub-networks: prompts, low-rank updates and adapters of a chosen width in each block.

A supernet is the widest of them; every other one is the leading slices of its tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from vpeft_bench.backbones.block_map import Backbone
from vpeft_bench.backbones.trunk import OpenedModel, TrunkOutput
from vpeft_bench.methods.parts.low_rank import LowRankUpdate

PARTS = ("prompt_length", "rank", "bottleneck")

Widths = tuple[tuple[int, ...], ...]
"""For each of :data:`PARTS` the width in every block; 0 is none."""


def live_parameters(width: int, widths: Widths) -> int:
    """D p + 4 D l + (2 D a + a + D where a > 0), summed over the blocks of width D."""
    prompts, ranks, bottlenecks = widths
    adapters = sum(2 * width * a + a + width for a in bottlenecks if a)
    return width * sum(prompts) + 4 * width * sum(ranks) + adapters


class Prompts(nn.Module):
    """Blocks with prompts of their own see them after all other tokens, and so do later blocks.

    Args:
        widths: prompts of each block. A block without keeps those that passed through the one
            before, as every further token.
        stale: ``replace``: a block's own prompts take the place of all others; ``keep``: of those
            of the block before, which leaves older ones standing if that had none.
    """

    def __init__(self, widths: Sequence[int], width: int, dropout: float, stale: str) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.prompts = nn.ParameterDict(
            {str(i): torch.empty(1, p, width) for i, p in enumerate(widths) if p}
        )
        self.dropout = nn.Dropout(dropout)
        self.stale = stale
        for prompts in self.prompts.values():
            nn.init.xavier_uniform_(prompts)

    def forward(self, images: Tensor, x: Tensor, model: OpenedModel) -> TrunkOutput:
        """The blocks one after another; what they give is the image's own tokens."""
        own, before, streams = x.shape[1], 0, []
        (stage,) = model.stages()
        for index, (block, width) in enumerate(zip(stage.blocks, self.widths, strict=True)):
            if width:
                kept = own if self.stale == "replace" else x.shape[1] - before
                prompts = self.prompts[str(index)][:, :width].expand(x.shape[0], -1, -1)
                x = torch.cat([x[:, :kept], self.dropout(prompts).to(x.dtype)], dim=1)
            before = width
            x = model.run(block, x)
            streams.append(x[:, :own])
        return TrunkOutput(streams)


class SlicedUpdate(LowRankUpdate):
    """y + B[:, :l] A[:l] dropout(x) on q, k and v at once."""

    def __init__(self, leaf: nn.Linear, width: int, dropout: float, init: str) -> None:
        rows = {"qkv": (0, leaf.out_features)}
        super().__init__(leaf.in_features, leaf.out_features, rows, width, 1.0, dropout, init)
        self.width = width

    def down(self) -> Tensor:
        """The rows of A in use."""
        return super().down()[: self.width]

    def up(self) -> Tensor:
        """The columns of B in use."""
        return super().up()[:, : self.width]


class SlicedAdapter(nn.Module):
    """m + W_up[:, :a] dropout(qgelu(W_down[:a] m + b_down[:a])) + b_up; qgelu(t) = t sigm(1.702 t).

    Args:
        init: ``standard`` (Xavier weights, biases of 1e-6) or ``noah`` (truncated normal 0.02,
            biases zero).
    """

    def __init__(self, channels: int, width: int, dropout: float, init: str) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(channels, width), nn.Linear(width, channels)
        self.dropout = nn.Dropout(dropout)
        self.width = width
        for linear in (self.down, self.up):
            if init == "noah":
                nn.init.trunc_normal_(linear.weight, std=0.02)
                nn.init.zeros_(linear.bias)
            else:
                nn.init.xavier_uniform_(linear.weight)
                nn.init.normal_(linear.bias, std=1e-6)

    def forward(self, m: Tensor) -> Tensor:
        """What the MLP adds to the stream, after drop-path."""
        a = self.width
        if a == 0:
            return m
        hidden = nn.functional.linear(m, self.down.weight[:a], self.down.bias[:a])
        hidden = self.dropout(hidden * torch.sigmoid(1.702 * hidden))
        return m + nn.functional.linear(hidden, self.up.weight[:, :a], self.up.bias)


class Subnetwork:
    """What is placed on a backbone, of given widths; it can be made narrower.

    Args:
        init: ``standard`` or ``noah``; ``dropout``: of all three parts; ``stale``: see
            :class:`Prompts`.
    """

    def __init__(
        self, backbone: Backbone, widths: Widths, init: str, dropout: float, stale: str
    ) -> None:
        prompts, ranks, bottlenecks = widths
        self.prompts: Prompts | None = None
        self.updates: dict[int, SlicedUpdate] = {}
        self.adapters: dict[int, SlicedAdapter] = {}
        if any(prompts):
            self.prompts = Prompts(prompts, backbone.blocks[0].width, dropout, stale)
            backbone.place_around(self.prompts)
        low_rank_init = "vpb" if init == "noah" else "standard"
        for block, rank, bottleneck in zip(backbone.blocks, ranks, bottlenecks, strict=True):
            if rank:
                update = SlicedUpdate(block.linear("qkv"), rank, dropout, low_rank_init)
                self.updates[block.index] = update
                block.place("qkv", update)
            if bottleneck:
                adapter = SlicedAdapter(block.width, bottleneck, dropout, init)
                self.adapters[block.index] = adapter
                block.place("mlp_added", adapter)

    def resize(self, widths: Widths) -> None:
        """Use only the first prompts, ranks and hidden units of each block, as many as given."""
        prompts, ranks, bottlenecks = widths
        if self.prompts is not None:
            self.prompts.widths = prompts
        for index, update in self.updates.items():
            update.width = ranks[index]
        for index, adapter in self.adapters.items():
            adapter.width = bottlenecks[index]

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Every learned tensor, at full width."""
        if self.prompts is not None:
            yield from self.prompts.named_parameters()
        for part, modules in (("update", self.updates), ("adapter", self.adapters)):
            for index, module in modules.items():
                yield from module.named_parameters(f"{part}.{index}")
