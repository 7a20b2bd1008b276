"""Floating-point operations of a backbone's parts, by formula.

A multiplication and an addition are two operations; only products of matrices count, as in
:mod:`vpeft_bench.cost.flops`.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from vpeft_bench.backbones.block_map import Backbone, Block


def patches(backbone: Backbone, count: int) -> int:
    """The patch embedding, at a number of places."""
    convolution: Any = backbone.patch_leaves[0]
    weights: int = convolution.weight.numel()
    return 2 * count * weights


def block(block: Block, tokens: int, attention_tokens: int, window: int) -> int:
    """One transformer block.

    Args:
        tokens: that the MLP sees.
        attention_tokens: that attention sees, padding included.
        window: tokens that each of them attends to.
    """
    qkv, proj = block.linear("qkv"), block.linear("proj")
    gate: Any = getattr(block.attention, "gate", None)
    scores = values = 2 * attention_tokens * window * proj.in_features
    return (
        linear(qkv, attention_tokens)
        + scores
        + values
        + (0 if gate is None else linear(gate, attention_tokens))
        + linear(proj, attention_tokens)
        + linear(block.linear("fc1"), tokens)
        + linear(block.linear("fc2"), tokens)
    )


def latent_pool(pool: Any, tokens: int) -> int:
    """Pooling by the attention of learned queries over ``tokens``, as in SigLIP."""
    latents = pool.latent_len
    scores: int = 2 * latents * tokens * pool.num_heads * pool.head_dim
    values = scores
    of_mlp = (
        0 if pool.mlp is None else linear(pool.mlp.fc1, latents) + linear(pool.mlp.fc2, latents)
    )
    return (
        linear(pool.q, latents)
        + linear(pool.kv, tokens)
        + scores
        + values
        + linear(pool.proj, latents)
        + of_mlp
    )


def linear(module: nn.Module, tokens: int) -> int:
    """A linear on a number of tokens; anything else, such as the identity, multiplies nothing."""
    if not isinstance(module, nn.Linear):
        return 0
    return int(2 * tokens * module.in_features * module.out_features)


def heads(backbone: Backbone) -> int:
    """The classifiers, each on one token."""
    return sum(linear(head, 1) for head in backbone.heads)
