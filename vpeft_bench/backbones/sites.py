"""Opening timm modules: named places where a method may attach.

An *opened* module is the very same object with its class exchanged for a subclass that has empty
slots and an explicit ``forward`` (the way ``torch.nn.utils.parametrize`` and FSDP2 work). Nothing
is copied: parameters, buffers, hooks and ``state_dict`` names stay as they were, every reference to
the module stays valid, and closing it puts the class back. An empty slot costs one ``is None``.
Where several methods stand in one slot, it holds them in the order in which they came.
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar, cast

from torch import Tensor, nn

JOINED = "joined"
"""Where the whole of a linear in pieces stands in what calls it."""


def apply(slot: Any, x: Tensor) -> Tensor:
    """``slot(x)``, or ``x`` itself where the slot (a module or None) is empty."""
    return x if slot is None else cast(Tensor, slot(x))


class Stacked(nn.ModuleList):
    """Several modules in one slot, in the order in which they came."""


class Chained(Stacked):
    """Each takes what the one before gave."""

    def forward(self, x: Tensor) -> Tensor:
        """A stream, weight or map through all of them."""
        for module in self:
            x = module(x)
        return x


class Summed(Stacked):
    """Branches that all read the same."""

    def forward(self, x: Tensor) -> Tensor:
        """What they give together."""
        return cast(Tensor, sum(module(x) for module in self))


class ChainedOutputs(Stacked):
    """Each changes the output of a leaf that the one before gave; all of them see its input."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The leaf's input and output to its new output."""
        for module in self:
            y = module(x, y)
        return y


class ChainedKeysValues(Stacked):
    """Each takes the keys and values that the one before gave."""

    def forward(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values through all of them."""
        for module in self:
            k, v = module(k, v)
        return k, v


class OpenedBlock(nn.Module):
    """Slots of a pre-norm transformer block, shared by every family.

    All slots see channels last: ``(B, N, D)`` in a ViT, ``(B, H, W, D)`` in a Swin.

    ========================  ==========================================================
    ``stream_in``             residual stream entering the block
    ``attn_in``, ``mlp_in``   what the branch reads: output of norm1 / norm2
    ``attn_out``, ``mlp_out`` branch output (after LayerScale), before drop-path and addition
    ``attn_added``, ...       branch output after drop-path: what is added to the stream
    ``attn_parallel``, ...    a branch of its own, fed by the un-normed stream, added at the
                              residual outside drop-path; ``*_parallel_normed``: fed by the norm
    ``attn_shortcut``, ...    the identity path of the residual addition
    ``block_parallel``        a branch around both halves, fed by the stream that enters attention,
                              added after the MLP
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
        "attn_added",
        "attn_shortcut",
        "stream_mid",
        "mlp_in",
        "mlp_parallel",
        "mlp_parallel_normed",
        "mlp_out",
        "mlp_added",
        "mlp_shortcut",
        "block_parallel",
        "stream_out",
    )

    # Called, not made abstract: a block gets its opened class later, and is never made of it.

    def attn_branch(self, normed: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The attention branch after norm1, up to drop-path; each family has its own."""
        raise NotImplementedError

    def mlp_branch(self, normed: Tensor) -> Tensor:
        """The MLP branch after norm2, up to drop-path; each family has its own."""
        raise NotImplementedError

    def forward(
        self, x: Tensor, *args: Any, added: list[Tensor] | None = None, **kwargs: Any
    ) -> Tensor:
        """The residual stream through the block; further arguments (mask) go to the attention.

        Args:
            added: where given, it receives what the attention and the MLP add to the stream.
        """
        slots = self._modules  # found at once; as attributes, nn.Module searches for them
        x = apply(slots["stream_in"], x)
        parallel = slots["block_parallel"]
        beside = None if parallel is None else parallel(x)
        x = apply(slots["stream_mid"], self._attention_half(x, args, kwargs, added))
        x = self._mlp_half(x, added)
        return apply(slots["stream_out"], x if beside is None else x + beside)

    # Each half is a call of its own, so that what it needs on the way is freed before the next.

    def _attention_half(
        self, x: Tensor, args: Any, kwargs: Any, added: list[Tensor] | None
    ) -> Tensor:
        block: Any = self
        slots = self._modules
        normed = apply(slots["attn_in"], block.norm1(x))
        residual = apply(slots["attn_out"], self.attn_branch(normed, *args, **kwargs))
        residual = apply(slots["attn_added"], block.drop_path1(residual))
        if added is not None:
            added.append(residual)
        return self._add_branch("attn", x, normed, residual)

    def _mlp_half(self, x: Tensor, added: list[Tensor] | None) -> Tensor:
        block: Any = self
        slots = self._modules
        normed = apply(slots["mlp_in"], block.norm2(x))
        residual = apply(slots["mlp_out"], self.mlp_branch(normed))
        residual = apply(slots["mlp_added"], block.drop_path2(residual))
        if added is not None:
            added.append(residual)
        return self._add_branch("mlp", x, normed, residual)

    def branches(self, x: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """What the block adds: attention branch, MLP branch, and the stream after both.

        Args:
            kwargs: what the attention takes beside the stream.
        """
        added: list[Tensor] = []
        x = self(x, added=added, **kwargs)
        attn, mlp = added
        return attn, mlp, x

    def _add_branch(self, branch: str, stream: Tensor, normed: Tensor, residual: Tensor) -> Tensor:
        """Residual addition of ``branch`` ("attn" or "mlp") with its shortcut and parallel slots.

        Args:
            stream: the residual stream before the norm, ``(..., D)``.
            normed: what the branch itself read.
            residual: the branch output after drop-path.
        """
        slots = self._modules
        x = apply(slots[f"{branch}_shortcut"], stream) + residual
        parallel = slots[f"{branch}_parallel"]
        if parallel is not None:
            x = x + parallel(stream)
        parallel_normed = slots[f"{branch}_parallel_normed"]
        if parallel_normed is not None:
            x = x + parallel_normed(normed)
        return x


class OpenedPostNormBlock(OpenedBlock):
    """The same slots where the norms stand after the branches, before the addition.

    What a branch reads (``attn_in``, ``mlp_in``, ``*_parallel_normed``) is then the stream itself,
    and what it puts out (``attn_out``, ``mlp_out``) has passed the norm.
    """

    def _attention_half(
        self, x: Tensor, args: Any, kwargs: Any, added: list[Tensor] | None
    ) -> Tensor:
        block: Any = self
        slots = self._modules
        read = apply(slots["attn_in"], x)
        residual = apply(slots["attn_out"], block.norm1(self.attn_branch(read, *args, **kwargs)))
        residual = apply(slots["attn_added"], block.drop_path1(residual))
        if added is not None:
            added.append(residual)
        return self._add_branch("attn", x, read, residual)

    def _mlp_half(self, x: Tensor, added: list[Tensor] | None) -> Tensor:
        block: Any = self
        slots = self._modules
        read = apply(slots["mlp_in"], x)
        residual = apply(slots["mlp_out"], block.norm2(self.mlp_branch(read)))
        residual = apply(slots["mlp_added"], block.drop_path2(residual))
        if added is not None:
            added.append(residual)
        return self._add_branch("mlp", x, read, residual)


class OpenedAttention(nn.Module):
    """Slots inside multi-head attention, between the qkv linear and the output projection.

    All tensors are split into heads: ``(B, heads, N, d)``; in a Swin B counts windows.

    ======================  ==============================================================
    ``keys_values``         ``(k, v) -> (k, v)`` before the kernel; may append rows, which
                            every query sees (position bias and mask are zero there)
    ``attention_map``       the probabilities ``(B, heads, N, M)`` after the softmax; what it
                            changes of them is added to the output of the (fused) kernel, so
                            that changing nothing is the plain attention, bit for bit
    ``attention_parallel``  fed by the queries, added to the attention's output before
                            the output projection
    ======================  ==============================================================
    """

    SLOTS: ClassVar[tuple[str, ...]] = ("keys_values", "attention_map", "attention_parallel")

    def split_heads(self, projected: Tensor, parts: int) -> tuple[Tensor, ...]:
        """``(B, N, parts * D)`` to as many tensors ``(B, heads, N, d)``.

        They are taken apart before tokens and heads change places, not after as in timm: the
        gradients are then joined as the attention's backward pass leaves them.
        """
        batch, tokens, _ = projected.shape
        heads: Any = self.num_heads
        split = projected.reshape(batch, tokens, parts, heads, -1)
        return tuple(part.transpose(1, 2) for part in split.unbind(2))

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """How well queries ``(B, heads, N, d)`` and keys ``(B, heads, M, d)`` fit."""
        attention: Any = self
        return cast(Tensor, (q * attention.scale) @ k.transpose(-2, -1))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, biases: list[Tensor]) -> Tensor:
        """softmax(q k^T / sqrt(d) + biases) v with the slots applied, ``(B, heads, N, d)``.

        Args:
            biases: each added to the scores, ``(B or 1, heads or 1, N, N)`` or broadcast to it.
        """
        attention: Any = self
        slots = self._modules
        keys_values, attention_map = slots["keys_values"], slots["attention_map"]
        if keys_values is not None:
            rows = k.shape[-2]
            k, v = keys_values(k, v)
            biases = [nn.functional.pad(bias, (0, k.shape[-2] - rows)) for bias in biases]
        probabilities = None
        if attention_map is not None or not attention.fused_attn:
            scores = self.scores(q, k)
            for bias in biases:
                scores = scores + bias
            probabilities = scores.softmax(dim=-1)
        if not attention.fused_attn:
            out = attention.attn_drop(probabilities) @ v
        else:
            out = nn.functional.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=sum(biases).to(q.dtype) if biases else None,  # type: ignore[union-attr]  # a sum of tensors
                dropout_p=attention.attn_drop.p if self.training else 0.0,
                scale=attention.scale,
            )
        if attention_map is not None:
            change = attention_map(probabilities) - probabilities
            out = out + attention.attn_drop(change) @ v
        attention_parallel = slots["attention_parallel"]
        if attention_parallel is not None:
            out = out + attention_parallel(q)
        return cast(Tensor, out)


class OpenedJoinedAttention(OpenedAttention):
    """An attention whose qkv linear may be in pieces; the whole of them is a child while open."""

    SLOTS: ClassVar[tuple[str, ...]] = (*OpenedAttention.SLOTS, JOINED)

    def projected(self, x: Tensor) -> Tensor:
        """Queries, keys and values, ``(B, N, 3D)``."""
        attention: Any = self
        joined = self._modules[JOINED]
        return cast(Tensor, attention.qkv(x) if joined is None else joined(x))


class OpenedLeaf(nn.Module):
    """A linear, norm or convolution whose input, weight or output a method may change.

    The slot ``delta`` holds a module called as ``delta(x, y)`` with the leaf's input and output;
    what it returns replaces the output. The slot ``input`` holds a module called with the input in
    front of the leaf. The slots ``weight_update`` and ``bias_update`` (linears, convolutions and
    layer norms) hold modules called with the weight or the bias; what they return takes its place.
    """

    SLOTS: ClassVar[tuple[str, ...]] = ("input", "delta", "weight_update", "bias_update")
    input: nn.Module | None
    delta: nn.Module | None
    weight_update: nn.Module | None
    bias_update: nn.Module | None

    def forward(self, x: Tensor) -> Tensor:
        """The leaf's own output, changed by what is placed on it."""
        leaf: Any = self
        slots = self._modules
        weight_update, bias_update = slots["weight_update"], slots["bias_update"]
        x = apply(slots["input"], x)
        if weight_update is None and bias_update is None:
            y = super().forward(x)
        else:
            weight = apply(weight_update, leaf.weight)
            y = self._forward_with(x, weight, apply(bias_update, leaf.bias))
        delta = slots["delta"]
        return cast(Tensor, y if delta is None else delta(x, y))

    def _forward_with(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """The leaf's own operation with another weight and bias."""
        leaf: Any = self
        if isinstance(self, nn.Conv2d):
            return cast(Tensor, self._conv_forward(x, weight, bias))
        if isinstance(self, nn.LayerNorm):
            return nn.functional.layer_norm(x, leaf.normalized_shape, weight, bias, leaf.eps)
        return nn.functional.linear(x, weight, bias)


STACKS: dict[str, type[Stacked]] = {
    slot: Summed if "parallel" in slot else Chained
    for slot in (*OpenedBlock.SLOTS, *OpenedAttention.SLOTS, *OpenedLeaf.SLOTS)
} | {"delta": ChainedOutputs, "keys_values": ChainedKeysValues}
"""What a slot with several modules does; in those that are not here (``trunk``) only one can be."""


@functools.cache
def opened_leaf_class(leaf_class: type[nn.Module]) -> type[nn.Module]:
    """``leaf_class`` with slots for its input, its weight and its output."""
    return type(f"Opened{leaf_class.__name__}", (OpenedLeaf, leaf_class), {})


def open_module(module: nn.Module, opened_class: type[nn.Module]) -> None:
    """Give ``module`` the class ``opened_class`` and its empty slots; no effect where it has it."""
    if type(module) is opened_class:
        return
    module.__class__ = opened_class
    for slot in opened_class.SLOTS:  # type: ignore[attr-defined]  # every opened class has SLOTS
        module.register_module(slot, None)


def fill(host: nn.Module, slot: str, module: nn.Module) -> None:
    """Put ``module`` into a slot of ``host``, after what is there already."""
    held = host._modules[slot]
    if held is None:
        host._modules[slot] = module
    elif isinstance(held, Stacked):
        held.append(module)
    else:
        host._modules[slot] = STACKS[slot]([held, module])


def withdraw(host: nn.Module, slot: str) -> None:
    """Undo the last :func:`fill`."""
    held = host._modules[slot]
    if isinstance(held, Stacked):
        del held[-1]
        if len(held) == 1:
            host._modules[slot] = held[0]
    else:
        host._modules[slot] = None


def close_module(module: nn.Module, original_class: type[nn.Module]) -> None:
    """Undo :func:`open_module`: drop the slots with whatever they hold, restore the class."""
    for slot in type(module).SLOTS:  # type: ignore[attr-defined]
        del module._modules[slot]
    module.__class__ = original_class
