"""How far features of the same pictures have moved: three numbers, each of two matrices.

``X`` and ``Y`` are ``(N, D)``: features of N pictures before and after. All is computed in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor


def effective_rank(x: Tensor) -> float:
    """The number of directions that centred features use, from 1 to min(N - 1, D); nan of none.

    exp of the entropy of the normalised singular values (Roy and Vetterli, EUSIPCO 2007).
    """
    values = torch.linalg.svdvals(_centred(x))
    total = values.sum()
    if not total > 0:
        return float("nan")
    shares = values / total
    return float(torch.exp(torch.special.entr(shares).sum()))


def linear_cka(x: Tensor, y: Tensor) -> float:
    """1 where the features are the same up to rotation and scale, 0 where nothing is shared.

    |Y^T X|^2 / (|X^T X| |Y^T Y|), Frobenius, of centred features (Kornblith et al.,
    arXiv 1905.00414); nan where one of them does not vary.
    """
    x, y = _centred(x), _centred(y)
    # Over pictures where these are fewer than directions: the same sums.
    if len(x) < max(x.shape[1], y.shape[1]):
        of_x, of_y = x @ x.T, y @ y.T
        shared, own = (of_x * of_y).sum(), of_x.norm() * of_y.norm()
    else:
        shared, own = (y.T @ x).square().sum(), (x.T @ x).norm() * (y.T @ y).norm()
    return float(shared / own) if own > 0 else float("nan")


def mean_cosine(x: Tensor, y: Tensor) -> float:
    """The mean over pictures of the cosine between features before and after."""
    return float(torch.cosine_similarity(x.double(), y.double(), dim=1).mean())


def _centred(x: Tensor) -> Tensor:
    x = x.double()
    return x - x.mean(dim=0)
