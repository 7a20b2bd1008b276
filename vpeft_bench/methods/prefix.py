"""Prefix tuning: learned keys and values that every query attends to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vpeft_bench.backbones.block_map import Backbone
from vpeft_bench.methods.base import Category, Length, Method, option
from vpeft_bench.methods.registry import register


class KeyValuePrefix(nn.Module):
    """K <- [K; P_k], V <- [V; P_v], with P_k and P_v split into heads as K and V are.

    Args:
        width: D, all heads together.
    """

    def __init__(self, width: int, prompt_length: int) -> None:
        super().__init__()
        self.keys = nn.Parameter(torch.empty(1, prompt_length, width))
        self.values = nn.Parameter(torch.empty(1, prompt_length, width))
        nn.init.xavier_uniform_(self.keys)
        nn.init.xavier_uniform_(self.values)

    def forward(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values ``(B, heads, N, d)`` to ``(B, heads, N + p, d)``."""
        return _append(k, self.keys), _append(v, self.values)


def _append(rows: Tensor, prefix: Tensor) -> Tensor:
    batch, heads = rows.shape[:2]
    prefix = prefix.unflatten(2, (heads, -1)).transpose(1, 2)  # (1, heads, p, d)
    return torch.cat([rows, prefix.expand(batch, -1, -1, -1).to(rows.dtype)], dim=2)


@register
@dataclass
class Prefix(Method):
    """softmax(Q [K; P_k]^T / sqrt(d)) [V; P_v] = (1 - l) Attn(Q, K, V) + l Attn(Q, P_k, P_v).

    l is the softmax mass on the prefix, for each query and head. In a Swin every window has the
    same prefix, without position bias and never masked.
    """

    name = "prefix"
    title = "Prefix-Tuning: Optimizing Continuous Prompts for Generation"
    arxiv = "2101.00190"
    source = "prefixes without the reparameterising MLP; in vision as in U-Tuning (2303.00690)"
    category = Category.ADDITION
    not_mergeable = "keys and values of a prefix are constants, not functions of the input"
    idea = (
        "Learned rows are appended to the keys and the values of every attention. Every query "
        "attends to them beside the image's own tokens, and the sequence does not grow."
    )
    deviations = (
        "The FGVC budget of 0.36M in V-PETL Bench is p = 10 (184,320) plus the mean head.",
        "V-PETL Bench has no image code; its video class raises in both modes (it swaps the names "
        "of its modes and adds an N x N bias to N x (N + p) scores), so its Video-Swin row (6.37M) "
        "cannot come from it. It is not offered.",
        "Xavier-uniform is applied to (1, p, D) tensors, as in the U-Tuning authors' library: the "
        "bound is sqrt(6 / (p D + D)).",
    )

    prompt_length: int = option(
        10, "p, rows per block (10 gives V-PETL Bench's published budget)", minimum=1
    )

    def place(self, backbone: Backbone) -> None:
        """One prefix in every attention."""
        for block in backbone.blocks:
            block.place("keys_values", KeyValuePrefix(block.width, self.prompt_length))

    @property
    def lengths_changed(self) -> frozenset[Length]:
        """Every query sees the prefix as well."""
        return frozenset({Length.MAP})

    def parameter_count(self, backbone: Backbone) -> int:
        """2pD per block: 184,320 for ViT-B/16 at p = 10."""
        return sum(2 * self.prompt_length * block.width for block in backbone.blocks)

    @property
    def identity_at_start(self) -> bool:
        """The prefix draws attention from the first step."""
        return False
