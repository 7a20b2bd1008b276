"""The losses of retrieval: each has a proxy for every trained class, and pulls pictures to theirs.

They are pytorch-metric-learning's.
"""

from __future__ import annotations

from collections.abc import Callable

from pytorch_metric_learning.losses import NormalizedSoftmaxLoss, ProxyAnchorLoss
from torch import nn

from vpeft_bench.tasks.retrieval.kind import RetrievalOptions


def proxy_anchor(options: RetrievalOptions, classes: int, width: int) -> nn.Module:
    """Proxy-Anchor (arXiv 2003.13911): every proxy against all pictures of a batch."""
    loss: nn.Module = ProxyAnchorLoss(classes, width, margin=options.margin, alpha=options.alpha)
    return loss


def normalized_softmax(options: RetrievalOptions, classes: int, width: int) -> nn.Module:
    """Cross entropy of the cosines to the proxies over a temperature (arXiv 1811.12649)."""
    loss: nn.Module = NormalizedSoftmaxLoss(classes, width, temperature=options.temperature)
    return loss


LOSSES: dict[str, Callable[[RetrievalOptions, int, int], nn.Module]] = {
    "proxy_anchor": proxy_anchor,
    "normalized_softmax": normalized_softmax,
}
"""From the options, the number of trained classes and the width of an embedding to the loss."""
