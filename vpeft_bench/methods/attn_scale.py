"""AttnScale: scale the attention probabilities, and offset both branches (DRA)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vpeft_bench.backbones.block_map import Backbone
from vpeft_bench.errors import UnsupportedBackboneError
from vpeft_bench.methods.base import (
    Category,
    Length,
    MergeableModule,
    Method,
    add_in_float64,
    option,
)
from vpeft_bench.methods.registry import register


class MapScale(nn.Module):
    """A * S with one S of n x n for all heads, after the softmax; not normalised again."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.S = nn.Parameter(torch.ones(tokens, tokens))

    def forward(self, probabilities: Tensor) -> Tensor:
        """``(B, heads, n, n)``."""
        return probabilities * self.S


class HeadScale(MergeableModule):
    """s_h * A_h, by scaling the values of head h: (s_h A_h) v_h = A_h (s_h v_h)."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.s = nn.Parameter(torch.ones(heads))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """y ``(..., 3D)`` holds q, k and v; the input x is not used."""
        qk, v = y.tensor_split([y.shape[-1] // 3 * 2], dim=-1)
        v = v.unflatten(-1, (len(self.s), -1)) * self.s.unsqueeze(1)
        return torch.cat([qk, v.flatten(-2)], dim=-1)

    @torch.no_grad()
    def merge_into(self, leaf: nn.Module) -> None:
        """Scale the rows of v, and their biases."""
        assert isinstance(leaf, nn.Linear)
        rows = leaf.weight.double().T
        leaf.weight.copy_(self(rows, rows).T)
        if leaf.bias is not None:
            leaf.bias.copy_(self(rows, leaf.bias.double()))


class Offset(MergeableModule):
    """y + d, the same for every token."""

    adds = True

    def __init__(self, width: int) -> None:
        super().__init__()
        self.d = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """y ``(..., D)``; the input x is not used."""
        return y + self.d

    def obstacle(self, leaf: nn.Module) -> str | None:
        """An offset needs a bias to go into."""
        return None if getattr(leaf, "bias", None) is not None else "it has no bias for the offset"

    def merge_into(self, leaf: nn.Module) -> None:
        """bias <- bias + d."""
        assert isinstance(leaf, nn.Linear)
        add_in_float64(leaf.bias, self.d)


@register
@dataclass
class AttnScale(Method):
    """softmax(q k^T / sqrt(d)) * S v, and d_a, d_f added to what attention and MLP put out.

    In a Swin n is the number of tokens in a window. The offsets stand before LayerScale, where
    there is one.
    """

    name = "attn_scale"
    title = "Strong Baselines for Parameter Efficient Few-Shot Fine-tuning (AttnScale with DRA)"
    arxiv = "2304.01917"
    source = "abstract: scaling parameters for each attention matrix and a domain-residual adapter"
    category = Category.REPARAMETERISATION
    not_mergeable = "a scale per pair of tokens is no weight (granularity=head can be merged)"
    idea = (
        "The attention probabilities of every block are multiplied by learned numbers, one for "
        "each pair of tokens or one for each head. A domain-residual adapter adds a learned offset "
        "to the output of the attention and of the MLP."
    )
    deviations = (
        "No code was published and the exact shape of the scales could not be established. "
        "Default: n x n per block, shared by its heads, after the softmax, without normalising "
        "again (granularity=map); granularity=head has one number per head.",
        "The survey lists it under two categories; here it counts as re-parameterisation.",
    )

    granularity: str = option(
        "map", "map: n x n per block; head: one number per head", choices=("map", "head")
    )
    dra: bool = option(True, "offsets of the domain-residual adapter (paper: with them)")

    @property
    def merge_refusal(self) -> str | None:
        """Only the scales of heads are weights."""
        return self.not_mergeable if self.granularity == "map" else None

    def check(self, backbone: Backbone) -> None:
        """As every method; and n must be one number for ``granularity=map``."""
        super().check(backbone)
        if self.granularity == "map" and (backbone.any_grid or backbone.drops_patches):
            raise UnsupportedBackboneError(
                f"method {self.name} does not support dynamic_img_size=True or patch dropout: the "
                "number of tokens would not be that of the scales (nearest: granularity=head)"
            )

    def place(self, backbone: Backbone) -> None:
        """Scales in every attention, offsets after its projection and after the MLP."""
        for block in backbone.blocks:
            if self.granularity == "map":
                block.place("attention_map", MapScale(block.attended_tokens))
            else:
                block.place("qkv", HeadScale(block.heads))
            if self.dra:
                block.place("proj", Offset(block.width))
                block.place("fc2", Offset(block.width))

    @property
    def lengths_known(self) -> frozenset[Length]:
        """S has an entry for each of the map."""
        return frozenset({Length.MAP} if self.granularity == "map" else ())

    def parameter_count(self, backbone: Backbone) -> int:
        """n^2 L or HL, and 2DL: for ViT-B/16 465,708 or 144, and 18,432."""
        return sum(
            (block.attended_tokens**2 if self.granularity == "map" else block.heads)
            + 2 * block.width * self.dra
            for block in backbone.blocks
        )
