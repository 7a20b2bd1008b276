"""Names and layouts of other releases in timm's: by timm's own filters, and what they lack.

Lacking are the original JAX checkpoints of ViT as a state dict (timm reads them into a model, and
leaves what it does not ask for without a word), and blocks that DINOv2's training stores in chunks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vpeft_bench.backbones.families import family_of

State = dict[str, Tensor]


@dataclass(frozen=True)
class Translation:
    """Tensors under timm's names.

    Attributes:
        state: what could be translated; the rest under its own names.
        own_names: of tensors that are not there, by timm's name: what the file would call them.
        resampled: name, shape in the file and shape for the backbone of what changed its size.
    """

    state: State
    own_names: dict[str, str] = field(default_factory=dict)
    resampled: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()


def to_timm(state: Mapping[str, Tensor], model: nn.Module) -> Translation:
    """Tensors of another release (original ViT, DINOv2, CLIP, Swin) as timm's loader maps them.

    Raises:
        Exception: whatever timm's filters raise on tensors that they did not expect.
    """
    options: dict[str, Any] = {}
    own_names: dict[str, str] = {}
    source = dict(state)
    if "embedding/kernel" in source:
        source, own_names = _from_jax(source, model)
        options = {"interpolation": "bilinear", "antialias": False}  # as timm's reader of .npz
    else:
        source = {re.sub(r"^blocks\.\d+\.(?=\d+\.)", "blocks.", n): t for n, t in source.items()}
    family = family_of(model)
    if family is None:
        return Translation(source, own_names)
    translated = dict(family.to_timm(source, model, **options))
    return Translation(translated, own_names, tuple(_resampled(source, translated)))


# What a filter resamples under other names than timm's: those of CLIP.
_OTHER_NAMES = {
    "pos_embed": "visual.positional_embedding",
    "patch_embed.proj.weight": "visual.conv1.weight",
}


def _resampled(
    before: State, after: State
) -> Iterator[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    for name, tensor in after.items():
        other = _OTHER_NAMES.get(name, "")
        source = before.get(name, before.get(other, before.get(f"module.{other}")))
        if source is None:
            continue
        was = tuple(source.shape) if source.ndim == tensor.ndim else (1, *source.shape)
        if len(was) == tensor.ndim and was != tuple(tensor.shape):
            yield name, was, tuple(tensor.shape)


# ---- the original JAX checkpoints (.npz) ---------------------------------------------------------


@dataclass(frozen=True)
class _Layout:
    """How a release numbers the modules of a block."""

    positions: str
    attention: int
    mlp: int
    second_norm: int


_ORIGINAL = _Layout("Transformer/posembed_input/pos_embedding", 1, 3, 2)
_BIG_VISION = _Layout("pos_embedding", 0, 0, 1)
_STACKED = "Transformer/encoderblock/"
_SUFFIX = {"weight": "kernel", "bias": "bias"}


def _from_jax(arrays: State, model: nn.Module) -> tuple[State, dict[str, str]]:
    """The tensors that ``model`` asks for, and all other arrays under their own names."""
    rest = dict(arrays)
    for name in [name for name in rest if name.startswith(_STACKED)]:  # one array for all blocks
        stack, part = rest.pop(name), name.removeprefix(_STACKED)
        for index, layer in enumerate(stack):
            rest[f"Transformer/encoderblock_{index}/{part}"] = layer
    layout = _BIG_VISION if _BIG_VISION.positions in rest else _ORIGINAL
    state, own_names = {}, {}
    for name in model.state_dict():
        sources = _jax_names(name, layout)
        if sources and all(source in rest for source in sources):
            parts = [_from_jax_layout(source, rest.pop(source)) for source in sources]
            state[name] = torch.cat(parts) if len(parts) > 1 else parts[0].contiguous()
        elif sources:
            own_names[name] = ", ".join(source for source in sources if source not in rest)
    return state | rest, own_names


def _jax_names(name: str, layout: _Layout) -> list[str]:
    """The arrays that make timm's tensor ``name``, in the order they are put together."""
    if name in ("cls_token", "pos_embed"):
        return ["cls" if name == "cls_token" else layout.positions]
    if name.startswith("patch_embed.proj."):
        return [f"embedding/{_SUFFIX[name.rpartition('.')[2]]}"]
    if name.startswith("head."):
        return [f"head/{_SUFFIX[name.rpartition('.')[2]]}"]
    if name == "attn_pool.latent":
        return ["MAPHead_0/probe"]
    module, _, kind = name.rpartition(".")
    if module == "norm":
        return [f"Transformer/encoder_norm/{_norm(kind)}"]
    if found := re.fullmatch(r"blocks\.(\d+)\.(.+)", module):
        block, module = f"Transformer/encoderblock_{found[1]}", found[2]
        attention, mlp = layout.attention, layout.mlp
    elif module.startswith("attn_pool."):
        block, module = "MAPHead_0", module.removeprefix("attn_pool.")
        attention, mlp = 0, 0
    else:
        return []
    norms = {"norm": 0, "norm1": 0, "norm2": layout.second_norm}
    if module in norms:
        return [f"{block}/LayerNorm_{norms[module]}/{_norm(kind)}"]
    linears = {
        "attn.qkv": ("query", "key", "value"),
        "q": ("query",),
        "kv": ("key", "value"),
        "attn.proj": ("out",),
        "proj": ("out",),
    }
    if module in linears:
        attended = f"{block}/MultiHeadDotProductAttention_{attention}"
        return [f"{attended}/{part}/{_SUFFIX[kind]}" for part in linears[module]]
    if module in ("mlp.fc1", "mlp.fc2"):
        return [f"{block}/MlpBlock_{mlp}/Dense_{int(module[-1]) - 1}/{_SUFFIX[kind]}"]
    return []


def _norm(kind: str) -> str:
    return {"weight": "scale", "bias": "bias"}[kind]


def _from_jax_layout(name: str, array: Tensor) -> Tensor:
    """JAX keeps inputs first, and heads as a dimension of their own."""
    part, _, kind = name.rpartition("/")
    if part.endswith(("/query", "/key", "/value")):
        return array.flatten(1).T if kind == "kernel" else array.flatten()
    if kind != "kernel":
        return array
    if part.endswith("/out"):  # (heads, D / heads, D)
        return array.permute(2, 0, 1).flatten(1)
    return array.permute(3, 2, 0, 1) if array.ndim == 4 else array.T
