"""Floating-point operations: counted while a network runs, and by formula for plain backbones.

Both count what multiplies matrices: linears, convolutions, attention. A multiplication and an
addition are two operations. What works element by element (norms, activations, softmax, residual
additions) is left out, as everywhere in the field; so are Fourier transforms, linear solves and
products with sparse matrices, which a few methods use.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vpeft_bench.backbones.block_map import Backbone

COUNTED_BATCHES = (2, 4)
"""Batch sizes that are run to count; attention in single steps would need more memory at more."""


def per_image(run: Callable[[int], object], batch_size: int) -> int:
    """Operations of one image in a batch of ``batch_size``.

    What is the same for every batch size is work per step (weights that are built from factors),
    and each image of the batch has its share of it.

    Args:
        run: does what is counted, with the number of images it is given.
    """
    small, large = COUNTED_BATCHES
    of_small, of_large = count(lambda: run(small)), count(lambda: run(large))
    of_image = (of_large - of_small) / (large - small)
    of_step = of_small - small * of_image
    return round(of_image + of_step / batch_size)


def count(run: Callable[[], object]) -> int:
    """Operations of ``run()``, by the shapes of what is multiplied.

    Attention is computed in single steps meanwhile: which fused kernel would be used depends on the
    device, PyTorch's counter does not know all of them, and of those that it knows it also counts
    what they compute again in the backward pass.
    """
    counter = FlopCounterMode(display=False, custom_mapping=_FORMULAS)
    with sdpa_kernel(SDPBackend.MATH), counter:
        run()
    return counter.get_total_flops()


def _convolution_backward(
    grad_out: Sequence[int],
    x: Sequence[int],
    weight: Sequence[int],
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    output_mask: Sequence[bool],
    out_shape: Any = None,
) -> int:
    """The gradients of input and weight each take as many operations as the convolution itself.

    PyTorch's own formula for that of the weight does not know groups.
    """
    positions = math.prod((x if transposed else grad_out)[2:])
    forward = 2 * x[0] * positions * math.prod(weight)
    return forward * sum(output_mask[:2])


_FORMULAS: dict[Any, Any] = {torch.ops.aten.convolution_backward: _convolution_backward}
"""By operation, for arguments with shapes in the place of tensors."""


# ---- by formula ---------------------------------------------------------------------------------


def closed_form(backbone: Backbone, image_size: tuple[int, int]) -> int | None:
    """Operations of a plain backbone's forward pass on one image; None where there is no formula.

    Args:
        image_size: height and width, pixels.
    """
    return backbone.family.flops(backbone, image_size)
