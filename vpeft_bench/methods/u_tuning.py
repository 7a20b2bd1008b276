"""U-Tuning: light tuners parallel to frozen operations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vpeft_bench.backbones.block_map import Backbone
from vpeft_bench.errors import Problem
from vpeft_bench.methods.base import Category, Method, bottleneck_linears, option
from vpeft_bench.methods.registry import register


class PrefixTuner(nn.Module):
    """softmax(Q P_k^T / sqrt(d)) P_v: the frozen queries attend to p learned pairs alone.

    Args:
        width: D, all heads together.
        zero: the values start as zero, and with them the branch.
    """

    def __init__(self, width: int, prompt_length: int, zero: bool) -> None:
        super().__init__()
        self.keys = nn.Parameter(torch.empty(1, prompt_length, width))
        self.values = nn.Parameter(torch.zeros(1, prompt_length, width))
        for prefix in (self.keys,) if zero else (self.keys, self.values):
            nn.init.xavier_uniform_(prefix)

    def forward(self, q: Tensor) -> Tensor:
        """Queries ``(B, heads, N, d)``; the result is added before the output projection."""
        k, v = (
            prefix.unflatten(2, (q.shape[1], -1)).transpose(1, 2).to(q.dtype)  # (1, heads, p, d)
            for prefix in (self.keys, self.values)
        )
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        branch: Tensor = scores.softmax(dim=-1).to(q.dtype) @ v
        return branch


class AdapterTuner(nn.Module):
    """W_u GELU(W_d x + b_d) + b_u, without a skip of its own."""

    def __init__(self, width: int, bottleneck: int, init: str) -> None:
        super().__init__()
        self.down, self.up = bottleneck_linears(width, bottleneck, init)
        if init == "modelscope":
            for linear in (self.down, self.up):
                nn.init.xavier_uniform_(linear.weight)
                nn.init.normal_(linear.bias, std=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """What the operation beside it reads, ``(..., D)``; the result is added to its output."""
        branch: Tensor = self.up(nn.functional.gelu(self.down(x)))
        return branch


@register
@dataclass
class UTuning(Method):
    """x <- x + MHA(u) + T(u), u = norm1(x); x <- x + FFN(v) + T(v), v = norm2(x).

    The tuner of the attention is a prefix by default, that of the MLP an adapter; a third one may
    stand beside the whole block: x <- Block(x) + T(x).
    """

    name = "u_tuning"
    title = "Rethinking Efficient Tuning Methods from a Unified Perspective"
    arxiv = "2303.00690"
    source = "the unified form OP(x) + T(x); the mix of tuners is ours"
    category = Category.ADDITION
    not_mergeable = "a softmax or a GELU stands inside its tuners"
    idea = (
        "A light tuner runs parallel to a frozen operation and reads the same input. Prefix, "
        "adapter and others are choices of the operation and of the tuner."
    )
    deviations = (
        "Neither V-PETL Bench nor the authors' library contains U-Tuning: which tuner stands "
        "where in the published rows is unknown. The default mix is ours and could not be "
        "compared with the authors'.",
        "The published FGVC row is 0.36M with the mean head; the default lengths (175,152) give "
        "the same 0.36M, and so would attn=prefix mlp=none prompt_length=10 (184,320).",
        "The tuners of the authors' library start away from zero (Xavier-uniform): "
        "init=modelscope. By default every tuner starts as zero.",
        "A prefix tuner shares the frozen query and output projections of the attention, and has "
        "no factors (1 - l) and l as prefix tuning has.",
    )

    attn: str = option(
        "prefix",
        "tuner beside the attention (ours: prefix)",
        choices=("prefix", "adapter", "none"),
    )
    mlp: str = option(
        "adapter", "tuner beside the MLP (ours: adapter)", choices=("adapter", "none")
    )
    block: str = option(
        "none", "tuner beside the whole block (ours: none)", choices=("adapter", "none")
    )
    prompt_length: int = option(5, "p, pairs of a prefix tuner (ours, by the budget)", minimum=1)
    bottleneck: int = option(4, "r, width of an adapter tuner (ours, by the budget)", minimum=1)
    init: str = option(
        "standard", "standard: the identity; modelscope: random", choices=("standard", "modelscope")
    )

    def conflicts(self) -> Iterator[Problem]:
        """No tuner at all."""
        if self._sites() == []:
            yield Problem("method.block=none", "no tuner is left", "method.mlp=adapter")

    def _sites(self) -> list[str]:
        """Where adapters and prefixes stand."""
        chosen = {
            "attention_parallel": self.attn == "prefix",
            "attn_parallel_normed": self.attn == "adapter",
            "mlp_parallel_normed": self.mlp == "adapter",
            "block_parallel": self.block == "adapter",
        }
        return [site for site, wanted in chosen.items() if wanted]

    def place(self, backbone: Backbone) -> None:
        """One tuner per chosen operation of every block."""
        for block in backbone.blocks:
            for site in self._sites():
                block.place(site, self._tuner(site, block.width))

    def _tuner(self, site: str, width: int) -> nn.Module:
        if site == "attention_parallel":
            return PrefixTuner(width, self.prompt_length, zero=self.init == "standard")
        return AdapterTuner(width, self.bottleneck, self.init)

    def parameter_count(self, backbone: Backbone) -> int:
        """2pD per prefix and 2Dr + r + D per adapter: 175,152 for ViT-B/16."""
        p, r = self.prompt_length, self.bottleneck
        return sum(
            2 * p * block.width
            if site == "attention_parallel"
            else 2 * block.width * r + r + block.width
            for block in backbone.blocks
            for site in self._sites()
        )

    @property
    def identity_at_start(self) -> bool:
        """With zero values and zero up-projections."""
        return self.init == "standard"
