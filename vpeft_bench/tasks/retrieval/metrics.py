"""What lies nearest to each picture, and how much of it is of the picture's class.

Recall at K and MAP@R as in "A Metric Learning Reality Check" (arXiv 2003.08505). Every picture is a
query for all others. One that is alone in its class has nothing to find, and is no query.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TIE = 1e-6
"""Cosines that differ by less are equal; then what is of another class comes first.

So an embedding that is the same for every picture finds nothing, in whatever order they are.
"""
_PRODUCTS = 2**24  # cosines that are held at once


@dataclass(frozen=True)
class Found:
    """What was found for each query.

    Attributes:
        queries: (Q,) indices of the pictures that are queries.
        nearest: (Q, K) indices of the nearest others, the nearest first.
        right: (Q, K) bool: those of the query's class.
        average_precision: (Q,) the precision at each of the R nearest that is right, summed over R,
            the number of others of the query's class.
    """

    queries: Tensor
    nearest: Tensor
    right: Tensor
    average_precision: Tensor

    def recall_at(self, k: int) -> Tensor:
        """(Q,) whether one of the ``k`` nearest is of the query's class, as 0 or 1."""
        return self.right[:, :k].any(dim=1).double()


def find(embeddings: Tensor, labels: Tensor, count: int) -> Found:
    """Look for what lies nearest.

    Args:
        embeddings: (N, D) of length 1.
        labels: (N,) classes.
        count: K, how many of the nearest are kept.
    """
    others = labels.bincount()[labels] - 1
    queries = torch.nonzero(others > 0).flatten()
    if not len(queries):
        none = queries.new_empty(0, count)
        return Found(queries, none, none.bool(), none[:, 0].double())
    depth = min(len(labels) - 1, max(count, int(others.max())))
    parts = queries.split(max(1, _PRODUCTS // len(labels)))
    found = [_found(embeddings, labels, some, others[some], depth, count) for some in parts]
    return Found(queries, *(torch.cat(column) for column in zip(*found, strict=True)))


def _found(
    embeddings: Tensor, labels: Tensor, queries: Tensor, relevant: Tensor, depth: int, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Of some queries the nearest, whether they are right, and the average precision."""
    cosines = (embeddings[queries] @ embeddings.T).double()
    cosines -= TIE * (labels == labels[queries, None])
    cosines[torch.arange(len(queries)), queries] = -torch.inf
    nearest = cosines.topk(depth, dim=1).indices
    right = labels[nearest] == labels[queries, None]
    places = torch.arange(1, depth + 1, device=labels.device)
    within = right & (places <= relevant[:, None])
    precision = within.cumsum(dim=1).double() / places
    average = (precision * within).sum(dim=1) / relevant
    return nearest[:, :count], right[:, :count], average


def scores(found: Found, first: Sequence[int]) -> dict[str, float | None]:
    """Percent by name: recall at each of ``first``, and MAP@R; null where there is no query."""
    per_query = {f"recall_at_{k}": found.recall_at(k) for k in first}
    per_query["map_at_r"] = found.average_precision
    return {
        name: 100.0 * float(values.mean()) if len(values) else None
        for name, values in per_query.items()
    }
