"""Training batches in which some pictures of each class come together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vpeft_bench.data.loading import EpochSampler


class GroupSampler(EpochSampler):
    """Every picture once in an epoch, in groups of pictures of one class.

    Groups are drawn anew in each epoch and come in random order. What does not fill a group is a
    smaller one.

    Args:
        labels: (N,) classes.
        batch_size: pictures per batch.
        seed: of the order.
        group_size: pictures of a group; 1: plain shuffling.
    """

    def __init__(
        self, labels: NDArray[np.int64], batch_size: int, seed: int, group_size: int
    ) -> None:
        super().__init__(len(labels), batch_size, seed, shuffle=True)
        self.labels = labels
        self.group_size = group_size

    def order(self) -> NDArray[np.int64]:
        """All indices in the order of the chosen epoch."""
        rng = np.random.default_rng([self.seed, self.epoch])
        shuffled = rng.permutation(self.size)
        if self.group_size == 1:
            return shuffled
        by_class = shuffled[np.argsort(self.labels[shuffled], kind="stable")]
        starts = np.flatnonzero(np.diff(self.labels[by_class], prepend=-1))
        place = np.arange(self.size) - np.repeat(starts, np.diff(starts, append=self.size))
        groups = np.cumsum(place % self.group_size == 0) - 1
        # Whole groups first: then batches of whole groups have no part of one.
        ranks = rng.permutation(groups[-1] + 1) + self.size * (
            np.bincount(groups) < self.group_size
        )
        return by_class[np.argsort(ranks[groups], kind="stable")]
