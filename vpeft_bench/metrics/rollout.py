"""Attention rollout: what of a token, after some blocks, came from which token of the input.

Abnar and Zuidema, Quantifying Attention Flow in Transformers, ACL 2020 (arXiv 2005.00928). The maps
of a block are averaged over its heads, the residual stream is counted as half of what a token has,
``(A + I) / 2``, and the blocks are multiplied. Values, norms and MLPs are left out: it is a picture
of where attention can have read, no proof of what the network has used.

Shares are ``(B, N, S + 1)``: of each of N tokens the share of each of S tokens of the image, and in
the last column that of all that a method added (prompts, keys and values). A row sums to 1: what a
method added is counted, and is not handed to the image.
"""

from __future__ import annotations

import torch
from torch import Tensor


def start(batch: int, tokens: int) -> Tensor:
    """Before the first block every token is itself: ``(B, S, S + 1)``."""
    shares = torch.eye(tokens, tokens + 1, dtype=torch.float64)
    return shares.expand(batch, -1, -1)


def added(shares: Tensor, count: int) -> Tensor:
    """The shares of ``count`` tokens that a method has added, ``(B, count, S + 1)``."""
    fresh = shares.new_zeros(shares.shape[0], count, shares.shape[2])
    fresh[..., -1] = 1
    return fresh


def through(shares: Tensor, attention: Tensor) -> Tensor:
    """The shares after a block.

    Args:
        shares: those before it, ``(B, N, S + 1)``.
        attention: its map, the mean over heads, ``(B, N, M)``; each row sums to 1. Where M is
            larger than N, a method has appended keys and values that are no token of the stream.

    Raises:
        ValueError: the map belongs to another number of tokens, or its rows are no shares.
    """
    attention = attention.to(shares)
    queries, keys = attention.shape[1:]
    tokens = shares.shape[1]
    if queries != tokens or keys < tokens:
        raise ValueError(f"{queries} tokens attend to {keys}, where {tokens} are known")
    if (attention < 0).any() or not ((attention.sum(dim=2) - 1).abs() < 1e-3).all():
        raise ValueError("the rows of an attention map do not sum to 1")
    read = torch.cat([shares, added(shares, keys - tokens)], dim=1)
    return (attention @ read + shares) / 2
