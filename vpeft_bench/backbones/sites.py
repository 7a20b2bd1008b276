"""Opening timm modules: named places where a method may attach.

An *opened* module is the very same object with its class exchanged for a subclass that has empty
slots and an explicit ``forward`` (the way ``torch.nn.utils.parametrize`` and FSDP2 work). Nothing
is copied: parameters, buffers, hooks and ``state_dict`` names stay as they were, every reference to
the module stays valid, and closing it puts the class back. An empty slot costs one ``is None``.
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar, cast

from torch import Tensor, nn


def apply(slot: Any, x: Tensor) -> Tensor:
    """``slot(x)``, or ``x`` itself where the slot (a module or None) is empty."""
    return x if slot is None else cast(Tensor, slot(x))


class OpenedBlock(nn.Module):
    """Slots of a pre-norm transformer block, shared by every family.

    All slots see channels last: ``(B, N, D)`` in a ViT. In a Swin the slots of the MLP half see
    ``(B, H*W, D)``, all others ``(B, H, W, D)``.

    ========================  ==========================================================
    ``stream_in``             residual stream entering the block
    ``attn_in``, ``mlp_in``   output of norm1 / norm2
    ``attn_out``, ``mlp_out`` branch output (after LayerScale), before drop-path and addition
    ``attn_parallel``, ...    a branch of its own, fed by the un-normed stream, added at the
                              residual outside drop-path; ``*_parallel_normed``: fed by the norm
    ``attn_shortcut``, ...    the identity path of the residual addition
    ``stream_mid``            residual stream after the first addition
    ``stream_out``            residual stream leaving the block
    ========================  ==========================================================
    """

    SLOTS: ClassVar[tuple[str, ...]] = (
        "stream_in",
        "attn_in",
        "attn_parallel",
        "attn_parallel_normed",
        "attn_out",
        "attn_shortcut",
        "stream_mid",
        "mlp_in",
        "mlp_parallel",
        "mlp_parallel_normed",
        "mlp_out",
        "mlp_shortcut",
        "stream_out",
    )

    def add_branch(self, branch: str, stream: Tensor, normed: Tensor, residual: Tensor) -> Tensor:
        """Residual addition of ``branch`` ("attn" or "mlp") with its shortcut and parallel slots.

        Args:
            stream: the residual stream before the norm, ``(..., D)``.
            normed: what the branch itself read.
            residual: the branch output after drop-path.
        """
        x = apply(getattr(self, f"{branch}_shortcut"), stream) + residual
        parallel = getattr(self, f"{branch}_parallel")
        if parallel is not None:
            x = x + parallel(stream)
        parallel_normed = getattr(self, f"{branch}_parallel_normed")
        if parallel_normed is not None:
            x = x + parallel_normed(normed)
        return x


class OpenedLeaf(nn.Module):
    """A linear, norm or convolution whose output a method may change.

    The slot ``delta`` holds a module called as ``delta(x, y)`` with the leaf's input and output;
    what it returns replaces the output.
    """

    SLOTS: ClassVar[tuple[str, ...]] = ("delta",)
    delta: nn.Module | None

    def forward(self, x: Tensor) -> Tensor:
        """The leaf's own output, changed by ``delta`` where one is placed."""
        y = super().forward(x)
        delta = self.delta
        return cast(Tensor, y if delta is None else delta(x, y))


@functools.cache
def opened_leaf_class(leaf_class: type[nn.Module]) -> type[nn.Module]:
    """``leaf_class`` with an output slot in front."""
    return type(f"Opened{leaf_class.__name__}", (OpenedLeaf, leaf_class), {})


def open_module(module: nn.Module, opened_class: type[nn.Module]) -> None:
    """Give ``module`` the class ``opened_class`` and its empty slots; no effect where it has it."""
    if type(module) is opened_class:
        return
    module.__class__ = opened_class
    for slot in opened_class.SLOTS:  # type: ignore[attr-defined]  # every opened class has SLOTS
        module.register_module(slot, None)


def close_module(module: nn.Module, original_class: type[nn.Module]) -> None:
    """Undo :func:`open_module`: drop the slots with whatever they hold, restore the class."""
    for slot in type(module).SLOTS:  # type: ignore[attr-defined]
        del module._modules[slot]
    module.__class__ = original_class
