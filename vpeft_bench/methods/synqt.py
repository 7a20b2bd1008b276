"""SynQT: synthesised queries read the frozen blocks; a head of its own weighs what they found."""

from __future__ import annotations

from dataclasses import dataclass

from vpeft_bench.backbones.block_map import Backbone
from vpeft_bench.methods.base import Category, Length, Method, option
from vpeft_bench.methods.parts.query_synthesis import QuerySide, Synthesis, WeightedRows
from vpeft_bench.methods.registry import register
from vpeft_bench.traits import Trait


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
        "the norm in front of the head starts as a copy of the backbone's final norm, with the eps "
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

    prompt_length: int = option(4, "T, queries per block (authors: 1, 4 or 16)", minimum=1)
    bottleneck: int = option(48, "hidden width of the adapters (authors: 48)", minimum=1)
    attn_bottleneck: int = option(
        8, "hidden width of the query attention's projections (authors: 8)", minimum=1
    )
    attn_scale: float = option(1.0, "s_a at the start (authors: 1, or 0.1 per task)")
    ffn_scale: float = option(1.0, "s_f at the start (authors: 1, or 0.1 per task)")
    feat_scale: float = option(
        1.0, "scale of the last block's output at the start (authors: 1, or 0.1 per task)"
    )
    dropout: float = option(0.1, "within the side network (authors: 0.1)", minimum=0.0, maximum=1.0)
    row_drop_path: float = option(
        0.3, "rate at which the head drops a row (authors: 0.3)", minimum=0.0, maximum=1.0
    )
    head_norm_eps: float | None = option(
        1e-5,
        "eps of the norm in front of the head (authors: 1e-5); null: the backbone's",
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
