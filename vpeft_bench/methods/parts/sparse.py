"""Single entries of a weight or bias, learned beside the frozen rest: for GPS and SPT."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vpeft_bench.methods.base import WeightUpdate


class SparseUpdate(WeightUpdate):
    """W + delta, where delta is zero outside the entries that were chosen.

    Args:
        indices: the chosen entries, counted through the flattened weight; each once.
        parameter: what the update is placed on, ``weight`` or ``bias``.
    """

    indices: Tensor

    def __init__(self, indices: Tensor, parameter: str = "weight") -> None:
        super().__init__()
        self.parameter = parameter
        self.values = nn.Parameter(torch.zeros(len(indices)))
        # Stored with the selection; twice would be once too often.
        self.register_buffer("indices", indices.long(), persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with the learned values added."""
        values = self.values.to(weight.dtype)
        return weight.flatten().index_add(0, self.indices, values).view_as(weight)


@contextmanager
def differentiable(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Gradients with respect to frozen parameters can be asked for inside."""
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
