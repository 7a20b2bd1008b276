"""Attention rollout against the sums written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vpeft_bench.metrics.rollout import added, start, through


def maps(seed: int, *shape: int) -> torch.Tensor:
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()
    return drawn.softmax(dim=-1)


def test_two_blocks_are_the_product_of_two_matrices() -> None:
    first, second = maps(0, 2, 5, 5), maps(1, 2, 5, 5)
    found = through(through(start(2, 5), first), second)
    for picture in range(2):
        one, two = ((np.eye(5) + of[picture].numpy()) / 2 for of in (first, second))
        assert found[picture, :, :5].numpy() == pytest.approx(two @ one)
    assert (found[..., 5] == 0).all(), "no method has added anything"


def test_prompts_and_appended_keys_keep_what_is_read_of_them() -> None:
    """Two prompts after the first token of three, a third key that is no token: one matrix of 6."""
    tokens, attention = 3, maps(2, 1, 5, 6)
    shares = start(1, tokens)
    shares = torch.cat([shares[:, :1], added(shares, 2), shares[:, 1:]], dim=1)
    found = through(shares, attention)[0].numpy()
    whole = np.zeros((5, 6))
    for query in range(5):
        whole[query] = attention[0, query].numpy() / 2
        whole[query, query] += 0.5
    own = whole[:, [0, 3, 4]]
    assert found[:, :3] == pytest.approx(own)
    assert found[:, 3] == pytest.approx(1 - own.sum(axis=1))


def test_what_is_no_map_of_these_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="4 tokens attend to 4, where 3 are known"):
        through(start(1, 3), maps(0, 1, 4, 4))
    with pytest.raises(ValueError, match="do not sum to 1"):
        through(start(1, 3), 2 * maps(0, 1, 3, 3))
