"""What lies nearest to each picture, and how much of it is of the picture's class.

Recall at K and MAP@R as in "A Metric Learning Reality Check" (arXiv 2003.08505). Every picture is a
query for all others. One that is alone in its class has nothing to find, and is no query.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
        nearest: (Q, K) indices of the others by their cosine, the nearest first.
        right: (Q, K) bool: those of the query's class.
        relevant: (Q,) how many others are of the query's class.
    """

    queries: Tensor
    nearest: Tensor
    right: Tensor
    relevant: Tensor

    def recall_at(self, k: int) -> Tensor:
        """(Q,) whether one of the ``k`` nearest is of the query's class, as 0 or 1."""
        return self.right[:, :k].any(dim=1).double()

    def average_precision_at_r(self) -> Tensor:
        """(Q,) the precision at each of the R nearest that is right, summed over R = relevant."""
        places = torch.arange(1, self.right.shape[1] + 1, device=self.right.device)
        right = self.right & (places <= self.relevant[:, None])
        precision = right.cumsum(dim=1).double() / places
        return (precision * right).sum(dim=1) / self.relevant


def find(embeddings: Tensor, labels: Tensor, at_least: int) -> Found:
    """Look for what lies nearest.

    Args:
        embeddings: (N, D) of length 1.
        labels: (N,) classes.
        at_least: how many are looked for; as many as a class has others, where that is more.
    """
    counts = labels.bincount()[labels]
    queries = torch.nonzero(counts > 1).flatten()
    if not len(queries):
        none = queries.new_empty(0, at_least)
        return Found(queries, none, none.bool(), queries)
    most = min(len(labels) - 1, max(at_least, int(counts.max()) - 1))
    nearest = torch.cat(list(_nearest(embeddings, labels, queries, most)))
    right = labels[nearest] == labels[queries, None]
    return Found(queries, nearest, right, counts[queries] - 1)


def _nearest(embeddings: Tensor, labels: Tensor, queries: Tensor, most: int) -> Iterator[Tensor]:
    for some in queries.split(max(1, _PRODUCTS // len(labels))):
        cosines = (embeddings[some] @ embeddings.T).double()
        cosines -= TIE * (labels == labels[some, None])
        cosines[torch.arange(len(some)), some] = -torch.inf
        yield cosines.topk(most, dim=1).indices


def scores(found: Found, first: Sequence[int]) -> dict[str, float | None]:
    """Percent by name: recall at each of ``first``, and MAP@R; null where there is no query."""
    per_query = {f"recall_at_{k}": found.recall_at(k) for k in first}
    per_query["map_at_r"] = found.average_precision_at_r()
    return {
        name: 100.0 * float(values.mean()) if len(values) else None
        for name, values in per_query.items()
    }
