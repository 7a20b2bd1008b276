"""BatchNorm over a batch that several devices share.

PyTorch's SyncBatchNorm does the same, on GPUs alone: it could not be tested without one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn


class _Shared(nn.modules.batchnorm._BatchNorm):
    """In training with mean and variance of what all processes have; else as before."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of places may follow the channels."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, ...) to the same, B being this process's part of the batch."""
        if not self.training or not distributed.is_initialized():
            return super().forward(input)
        shape = [1, -1, *[1] * (input.ndim - 2)]
        others = [axis for axis in range(input.ndim) if axis != 1]
        values = input.float()
        count = values.new_tensor([values.numel() / values.shape[1]])
        sums = _total(torch.cat([values.sum(others), count]))
        mean, every = sums[:-1] / sums[-1], sums[-1].detach()
        centred = values - mean.view(shape)
        variance = _total(centred.square().sum(others)) / every
        self._remember(mean.detach(), variance.detach() * every / (every - 1))
        normal = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            normal = normal * self.weight.view(shape) + self.bias.view(shape)
        return normal.to(input.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics, as they are on one device."""
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        step = self.momentum
        if step is None:  # the mean of all batches
            step = 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, step)
        self.running_var.lerp_(variance, step)


class _Sum(torch.autograd.Function):
    """The sum over all processes; its gradient is that of all their losses."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return _Sum.forward(ctx, gradient)


def _total(tensor: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(tensor)  # type: ignore[no-untyped-call]
    return total


def share_statistics(network: nn.Module) -> None:
    """Let every BatchNorm of a network normalise by the whole batch; names stay the same.

    Raises:
        TypeError: one of them is of a kind of its own.
    """
    for name, module in network.named_modules():
        if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d):
            module.__class__ = _Shared
        elif isinstance(module, nn.modules.batchnorm._BatchNorm) and type(module) is not _Shared:
            raise TypeError(f"{name} is a {type(module).__name__}, whose statistics are its own")
