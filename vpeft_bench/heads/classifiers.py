"""Heads for classification besides the backbone's own linear."""

from __future__ import annotations

from torch import Tensor, nn

from vpeft_bench.config.sections import HeadConfig


class BatchNormLinear(nn.Linear):
    """W BN(x) + b with a BatchNorm without affine parameters.

    It takes over the linear's own parameters and adds none; the running statistics are buffers.

    Args:
        linear: what the normed features are read by.
        eps: added to the variance.
    """

    def __init__(self, linear: nn.Linear, eps: float) -> None:
        nn.Module.__init__(self)  # no parameters of its own, and no random numbers for them
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.norm = nn.BatchNorm1d(linear.in_features, eps=eps, affine=False)
        self.norm.to(linear.weight.device)

    def forward(self, x: Tensor) -> Tensor:
        """Features ``(B, D)`` to logits ``(B, C)``; to train it takes two pictures at least."""
        return super().forward(self.norm(x))


def norm_before_classifier(model: nn.Module, eps: float) -> None:
    """Put a :class:`BatchNormLinear` in the place of a timm model's linear classifier.

    The method is attached already: some give the model a classifier of another width.
    """
    found = model.get_classifier()  # type: ignore[operator]  # timm's
    for linear in found if isinstance(found, tuple) else (found,):  # one for each token it reads
        (path,) = (name for name, module in model.named_modules() if module is linear)
        parent, _, name = path.rpartition(".")
        normed = BatchNormLinear(linear, eps).train(linear.training)
        setattr(model.get_submodule(parent), name, normed)


def add_norm(model: nn.Module, head: HeadConfig) -> None:
    """``head=batch_norm``: see :func:`norm_before_classifier`."""
    norm_before_classifier(model, head.norm_eps)
