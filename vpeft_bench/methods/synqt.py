"""SynQT: synthesised queries read the frozen blocks; a head of its own weighs what they found."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn

from vpeft_bench.backbones.block_map import Backbone
from vpeft_bench.backbones.trunk import OpenedModel, SideNetwork, TrunkOutput
from vpeft_bench.methods.base import Category, Length, Method, option
from vpeft_bench.methods.registry import register
from vpeft_bench.traits import Trait

# ---- queries and head ----------------------------------------------------------------------------


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

    Gradients pass through frozen weights, but only for the queries. The norm before the head
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


# ---- the method ----------------------------------------------------------------------------------


@register
@dataclass
class SynQT(Method):
    """Queries p_i = QSM_i(q_i + s o_{i-1}) attend to the frozen block's tokens; o_i is their mean.

    The head's features are a weighted mean of what all blocks gave the queries: their outputs, and
    the attention and MLP branches.
    """

    name = "synqt"
    title = (
        "Parameter-Efficient and Memory-Efficient Tuning for Vision Transformer: "
        "A Disentangled Approach"
    )
    arxiv = "2407.06964"
    source = "query synthesis and knowledge extraction as in the authors' synqt.py"
    category = Category.SIDE
    idea = (
        "For every frozen block a small network makes a few queries, which read the block's tokens "
        "through its own weights and change nothing. A learned weighting of all that they read is "
        "classified."
    )
    deviations = (
        "the authors' code holds 12 norms (pre_norm) and a vector of 37 weights that nothing uses: "
        "18,469 of its 2,622,866 parameters at one query; they are left out",
        "queries per block and the three scales are chosen per task in the published rows "
        "(1, 4 or 16 queries; scales 0.1 or 1); the scales' defaults are those of the authors' "
        "train.py",
        "with one query (train.py's default) the query attention's softmax has one entry, so its "
        "query and key parts, 331,968 parameters, never get a gradient; the default here is 4",
        "LayerScale and query/key norms, which the authors' backbone lacks, apply to the queries "
        "as to tokens",
        "the norm before the head starts as a copy of the backbone's final norm, with the eps "
        "of the authors' side network, 1e-5; head_norm_eps=null keeps the backbone's own eps",
        "the authors' backbone keeps drop-path 0.1 in training; here it is the backbone's own",
    )
    needs = {
        Trait.GLOBAL_ATTENTION: (
            "its queries read all tokens of a block, which attends within windows"
        ),
        Trait.FREE_TOKENS: "its queries have no positions, and attention asks every token for one",
    }
    not_dense = "its queries give one vector per picture, for a classifier"
    not_mergeable = "the head reads the queries, not the backbone's tokens"

    prompt_length: int = option(
        4, "T, queries per block (authors: 1, 4 or 16)", minimum=1, search=(1, 4, 16)
    )
    bottleneck: int = option(48, "hidden width of the adapters (authors: 48)", minimum=1)
    attn_bottleneck: int = option(
        8, "hidden width of the query attention's projections (authors: 8)", minimum=1
    )
    attn_scale: float = option(1.0, "s_a at the start (authors: 1, or 0.1 per task)")
    ffn_scale: float = option(1.0, "s_f at the start (authors: 1, or 0.1 per task)")
    feat_scale: float = option(
        1.0,
        "scale of the last block's output at the start (authors: 1, or 0.1 per task)",
        search=(0.1, 1.0),
    )
    dropout: float = option(0.1, "within the side network (authors: 0.1)", minimum=0.0, maximum=1.0)
    row_drop_path: float = option(
        0.3, "rate at which the head drops a row (authors: 0.3)", minimum=0.0, maximum=1.0
    )
    head_norm_eps: float | None = option(
        1e-5,
        "eps of the norm before the head (authors: 1e-5); null: the backbone's",
        minimum=1e-12,
        neutral=None,
    )

    def place(self, backbone: Backbone) -> None:
        """One network around the trunk, which asks the blocks' own attention."""
        width = backbone.blocks[0].width
        for block in backbone.blocks:
            backbone.open_attention(block)
        synthesis = [
            Synthesis(
                width,
                self.prompt_length,
                self.bottleneck,
                self.attn_bottleneck,
                self.attn_scale,
                self.ffn_scale,
                self.dropout,
            )
            for _ in backbone.blocks
        ]
        rows = 3 * len(synthesis) + 1
        head = WeightedRows(width, rows, self.bottleneck, self.dropout, self.row_drop_path)
        side = QuerySide(backbone, synthesis, self.feat_scale, head, self.head_norm_eps)
        backbone.place_around(side)

    @property
    def lengths_changed(self) -> frozenset[Length]:
        """Attention is asked with fewer queries."""
        return frozenset({Length.MAP})

    def parameter_count(self, backbone: Backbone) -> int:
        """L(TD + 2a + 4b + 8D + 2) + a + (D + 1)3L + 4D + 1, a and b the two kinds of adapter.

        2,604,397 for ViT-B/16 at one query, 2,632,045 at four, 2,742,637 at sixteen.
        """
        width, depth = backbone.blocks[0].width, len(backbone.blocks)
        a, b = (2 * width * h + h + width for h in (self.bottleneck, self.attn_bottleneck))
        block = self.prompt_length * width + 2 * a + 4 * b + 8 * width + 2
        norm = sum(p.numel() for p in backbone.final_norm.parameters())
        return depth * block + 1 + a + 2 * width + (width + 1) * 3 * depth + norm

    @property
    def identity_at_start(self) -> bool:
        """The head reads the queries."""
        return False

    def first_changed_block(self, backbone: Backbone) -> int:
        """None of them."""
        return len(backbone.blocks)

    def reads(self, backbone: Backbone) -> tuple[str, ...]:
        """What enters every block; the last one's output is not needed."""
        return tuple(f"tokens.{i}" for i in range(len(backbone.blocks)))
