"""How far features have moved."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vpeft_bench.metrics.drift import effective_rank, linear_cka, mean_cosine


def normal(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(40, 6), (6, 40)])
def test_features_are_like_themselves_rotated_and_scaled(shape: tuple[int, int]) -> None:
    x = normal(*shape)
    rotation = torch.linalg.qr(normal(shape[1], shape[1], seed=1)).Q
    assert linear_cka(x, x) == pytest.approx(1.0)
    assert linear_cka(x, 3.0 * x @ rotation + 7.0) == pytest.approx(1.0)
    assert mean_cosine(x, 3.0 * x) == pytest.approx(1.0)
    assert mean_cosine(x, -x) == pytest.approx(-1.0)


def test_both_ways_to_compute_cka_agree() -> None:
    x, y = normal(12, 8), normal(12, 20, seed=1)
    x, y = x - x.mean(0), y - y.mean(0)
    direct = (y.T @ x).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())
    assert linear_cka(x, y) == pytest.approx(float(direct))


def test_features_without_anything_in_common_are_unlike() -> None:
    assert linear_cka(normal(5_000, 4), normal(5_000, 4, seed=1)) < 0.01


def test_the_effective_rank_of_a_known_spectrum() -> None:
    directions = torch.linalg.qr(normal(50, 4) - normal(50, 4).mean(0)).Q
    directions = directions - directions.mean(0)
    assert effective_rank(directions) == pytest.approx(4.0, rel=0.01)
    assert effective_rank(directions[:, :1].expand(-1, 6)) == pytest.approx(1.0, rel=1e-6)
    assert math.isnan(effective_rank(torch.ones(5, 3)))


def test_features_that_do_not_vary_have_no_likeness() -> None:
    assert math.isnan(linear_cka(torch.ones(5, 3), normal(5, 3)))
