"""SynQT's side network: queries made for every block, and a head over what they read."""

from __future__ import annotations

import copy
from typing import Any

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn

from vpeft_bench.backbones.block_map import Backbone
from vpeft_bench.backbones.trunk import OpenedModel, SideNetwork, TrunkOutput


class Bottleneck(nn.Module):
    """Ad_h(x) = x + dropout(W_2 dropout(gelu(W_1 x)))."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., D)``."""
        hidden = self.dropout(nn.functional.gelu(self.down(x)))
        branch: Tensor = self.dropout(self.up(hidden))
        return x + branch


class QueryAttention(nn.Module):
    """One head over the queries themselves; its four projections are bottlenecks near identity."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.q_norm, self.kv_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.proj = (Bottleneck(width, hidden, 0.0) for _ in range(4))
        self.dropout = nn.Dropout(dropout)

    def forward(self, p: Tensor) -> Tensor:
        """``(B, T, D)``."""
        source = self.kv_norm(p)
        q, k, v = self.q(self.q_norm(p)), self.k(source), self.v(source)
        scores = q @ k.transpose(1, 2) * p.shape[2] ** -0.5
        read = self.dropout(scores.softmax(dim=-1)) @ v
        out: Tensor = self.dropout(self.proj(read))
        return out


class Synthesis(nn.Module):
    """The queries of one block, from its own tokens and what the block before was asked.

    p = Ad(q + previous); p <- p + s_a Attn(LN p); p <- p + s_f Ad(LN p).
    """

    def __init__(
        self,
        width: int,
        count: int,
        bottleneck: int,
        attn_bottleneck: int,
        attn_scale: float,
        ffn_scale: float,
        dropout: float,
    ) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.empty(count, width).uniform_(-1, 1))
        self.entry = Bottleneck(width, bottleneck, dropout)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = QueryAttention(width, attn_bottleneck, dropout)
        self.ffn = Bottleneck(width, bottleneck, dropout)
        self.attn_scale = nn.Parameter(torch.tensor([attn_scale]))
        self.ffn_scale = nn.Parameter(torch.tensor([ffn_scale]))
        self.dropout = nn.Dropout(dropout)

    def forward(self, previous: Tensor) -> Tensor:
        """previous ``(B, 1, D)`` to queries ``(B, T, D)``."""
        p = self.entry(self.queries + previous)
        p = p + self.attn_scale * self.attn(self.norm1(p))
        p = p + self.ffn_scale * self.ffn(self.norm2(p))
        out: Tensor = self.dropout(p)
        return out


class WeightedRows(nn.Module):
    """y = mean_j w_j r_j, with r_j = drop_path(f_j + Ad(LN f_j)) and weights from the first row.

    w = [1, tanh(dropout(gelu(Linear(r_1))))]; the first row is never dropped.
    """

    def __init__(
        self, width: int, rows: int, bottleneck: int, dropout: float, drop_path: float
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.adapter = Bottleneck(width, bottleneck, dropout)
        self.weights = nn.Linear(width, rows - 1)
        self.dropout = nn.Dropout(dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, rows: Tensor) -> Tensor:
        """``(B, J, D)`` to ``(B, D)``."""
        rows = rows + self.adapter(self.norm(rows))
        first, others = rows[:, :1], rows[:, 1:]
        # Every row of every picture is dropped by itself.
        others = self.drop_path(others.flatten(0, 1)).view_as(others)
        weights = torch.tanh(self.dropout(nn.functional.gelu(self.weights(first))))
        weighted = others * weights.transpose(1, 2)
        return torch.cat([first, weighted], dim=1).mean(dim=1)


class QuerySide(SideNetwork):
    """Queries pass through the frozen blocks and read the image's tokens, which stay as they are.

    Gradients pass through frozen weights, but only for the queries. The norm in front of the head
    starts as a copy of the backbone's final norm.

    Args:
        head_norm_eps: eps of that norm; None: the backbone's.
    """

    def __init__(
        self,
        backbone: Backbone,
        synthesis: list[Synthesis],
        feat_scale: float,
        head: WeightedRows,
        head_norm_eps: float | None,
    ) -> None:
        depth = len(backbone.blocks)
        super().__init__([f"tokens.{i}" for i in range(depth)], frozen_blocks=depth)
        self.synthesis = nn.ModuleList(synthesis)
        self.feat_scale = nn.Parameter(torch.tensor([feat_scale]))
        self.head = head
        norm: Any = copy.deepcopy(backbone.final_norm).requires_grad_(True)
        if head_norm_eps is not None and not isinstance(norm, nn.Identity):
            norm.eps = head_norm_eps
        self.norm = norm

    def side(self, features: dict[str, Tensor], model: OpenedModel) -> TrunkOutput:
        """The features: the rows of all blocks, weighted and normed."""
        outputs: list[Tensor] = []
        attns: list[Tensor] = []
        mlps: list[Tensor] = []
        steps = zip(self.reads, self.synthesis, model.steps(), strict=True)
        for name, synthesis, (_, block) in steps:
            x = features[name]
            previous = self.feat_scale * outputs[-1] if outputs else torch.zeros_like(x[:, :1])
            attn, mlp, output = query_block(block, synthesis(previous), x)
            for found, tokens in ((outputs, output), (attns, attn), (mlps, mlp)):
                found.append(tokens.mean(dim=1, keepdim=True))
        rows = torch.cat([outputs[-1], *outputs, *attns, *mlps], dim=1)
        return TrunkOutput([], self.norm(self.head(rows)))


def query_block(block: Any, p: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries p through a frozen block: attention branch, MLP branch, and what leaves the block."""
    attn = block.queried(p, x)
    p = p + attn
    mlp = block.drop_path2(block.mlp_branch(block.norm2(p)))
    return attn, mlp, p + mlp
