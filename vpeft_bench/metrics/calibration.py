"""How far a classifier's probabilities can be believed."""

from __future__ import annotations

import torch
from torch import Tensor

BINS = 15
"""As in Guo et al. (arXiv 1706.04599)."""


class Calibration:
    """Expected calibration error, negative log-likelihood and Brier score, in constant memory.

    ECE (arXiv 1706.04599): predictions are put into 15 bins of equal width by the probability of
    the predicted class; the gap between its mean and the accuracy of each bin, weighted by size.
    Brier: the squared distance of the probabilities from the one-hot truth, from 0 to 2.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Start anew."""
        self._bins: Tensor | None = None  # (3, BINS): pictures, sum of probabilities, hits
        self._sums: Tensor | None = None  # of log-likelihoods and of Brier scores

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Logits ``(B, C)`` of pictures with classes ``(B,)``; nothing is waited for."""
        if self._bins is None or self._sums is None:
            self._bins = torch.zeros(3, BINS, dtype=torch.float64, device=logits.device)
            self._sums = torch.zeros(2, dtype=torch.float64, device=logits.device)
        log_shares = logits.detach().double().log_softmax(dim=1)
        shares = log_shares.exp()
        sure, predicted = shares.max(dim=1)
        hits = (predicted == labels).double()
        place = (sure * BINS).ceil().long().clamp(1, BINS) - 1
        self._bins.index_add_(1, place, torch.stack([torch.ones_like(sure), sure, hits]))
        of_truth = shares.gather(1, labels[:, None]).squeeze(1)
        brier = shares.square().sum(dim=1) - 2 * of_truth + 1
        self._sums += torch.stack([-log_shares.gather(1, labels[:, None]).sum(), brier.sum()])

    def sums(self) -> tuple[Tensor, Tensor]:
        """What is known, on the CPU; see :meth:`add_sums`."""
        assert self._bins is not None
        assert self._sums is not None
        return self._bins.cpu(), self._sums.cpu()

    def add_sums(self, sums: tuple[Tensor, Tensor]) -> None:
        """Add what another one knows of other pictures."""
        if self._bins is None or self._sums is None:
            self._bins, self._sums = (part.clone() for part in sums)
            return
        self._bins += sums[0].to(self._bins.device)
        self._sums += sums[1].to(self._sums.device)

    def bins(self) -> Tensor:
        """``(3, BINS)`` of all pictures since: how many, sum of probabilities, hits."""
        assert self._bins is not None
        return self._bins

    def values(self) -> dict[str, float]:
        """``ece`` in percent, ``nll`` in nats and ``brier``, of all pictures since."""
        assert self._bins is not None
        assert self._sums is not None
        images = float(self._bins[0].sum())
        gaps = (self._bins[1] - self._bins[2]).abs().sum()
        nll, brier = (self._sums / images).tolist()
        return {"ece": 100.0 * float(gaps) / images, "nll": nll, "brier": brier}
