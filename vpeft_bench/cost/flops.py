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
from timm.layers.attention_pool import AttentionPoolLatent
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vpeft_bench.backbones.block_map import Backbone, Block

COUNTED_BATCHES = (2, 4)
"""Batch sizes that are run to count; attention in single steps would need more memory at more."""


def per_image(run: Callable[[int], object], batch_size: int) -> int:
    """Operations of one image in a batch of ``batch_size``.

    What is the same for every batch size is work per step (weights that are built from factors),
    and each image of the batch has its share of it.

    Args:
        run: does what is counted, with so many images.
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
    of_family = {"vit": _vit, "swin": _swin}.get(backbone.family)
    return None if of_family is None else of_family(backbone, image_size)


def _vit(backbone: Backbone, image_size: tuple[int, int]) -> int | None:
    model: Any = backbone.model
    height, width = model.patch_embed.dynamic_feat_size(image_size)
    tokens = backbone.prefix_tokens + height * width
    of_pool = 0
    if (pool := model.attn_pool) is not None:
        if type(pool) is not AttentionPoolLatent:
            return None
        pooled = tokens if model.pool_include_prefix else height * width
        of_pool = _latent_pool(pool, pooled)
    return (
        _patches(backbone, height * width)
        + sum(_block(block, tokens, tokens, tokens) for block in backbone.blocks)
        + of_pool
        + _linear(backbone.head, 1)
    )


def _swin(backbone: Backbone, image_size: tuple[int, int]) -> int:
    model: Any = backbone.model
    height, width = model.patch_embed.dynamic_feat_size(image_size)
    total = _patches(backbone, height * width) + _linear(backbone.head, 1)
    for index, stage in enumerate(model.layers):
        if not isinstance(stage.downsample, nn.Identity):  # the map is padded to an even size
            height, width = math.ceil(height / 2), math.ceil(width / 2)
            total += _linear(stage.downsample.reduction, height * width)
        for block in (block for block in backbone.blocks if block.stage == index):
            module: Any = block.module
            window_height, window_width = module.window_size  # the map is padded to whole windows
            padded_height = math.ceil(height / window_height) * window_height
            padded_width = math.ceil(width / window_width) * window_width
            window = window_height * window_width
            total += _block(block, height * width, padded_height * padded_width, window)
    return total


def _patches(backbone: Backbone, patches: int) -> int:
    convolution: Any = backbone.patch_leaves[0]
    weights: int = convolution.weight.numel()
    return 2 * patches * weights


def _block(block: Block, tokens: int, attention_tokens: int, window: int) -> int:
    """One transformer block.

    Args:
        tokens: that the MLP sees.
        attention_tokens: that attention sees, padding included.
        window: tokens that each of them attends to.
    """
    qkv, proj = block.linear("qkv"), block.linear("proj")
    gate: Any = getattr(block.attention, "gate", None)
    scores = values = 2 * attention_tokens * window * proj.in_features
    return (
        _linear(qkv, attention_tokens)
        + scores
        + values
        + (0 if gate is None else _linear(gate, attention_tokens))
        + _linear(proj, attention_tokens)
        + _linear(block.linear("fc1"), tokens)
        + _linear(block.linear("fc2"), tokens)
    )


def _latent_pool(pool: Any, tokens: int) -> int:
    """Pooling by the attention of learned queries over ``tokens``, as in SigLIP."""
    latents = pool.latent_len
    scores: int = 2 * latents * tokens * pool.num_heads * pool.head_dim
    values = scores
    of_mlp = (
        0 if pool.mlp is None else _linear(pool.mlp.fc1, latents) + _linear(pool.mlp.fc2, latents)
    )
    return (
        _linear(pool.q, latents)
        + _linear(pool.kv, tokens)
        + scores
        + values
        + _linear(pool.proj, latents)
        + of_mlp
    )


def _linear(module: nn.Module, tokens: int) -> int:
    """A linear on so many tokens; anything else, such as the identity, multiplies nothing."""
    if not isinstance(module, nn.Linear):
        return 0
    return int(2 * tokens * module.in_features * module.out_features)
