"""The block map: what a method may know of a backbone, whatever its family."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from timm.layers.norm import RmsNorm
from torch import nn

from vpeft_bench.backbones.family import Family
from vpeft_bench.backbones.joined import JoinedLinear
from vpeft_bench.backbones.placement import ChangedParameters, Placement, Replacement, follow, join
from vpeft_bench.backbones.rows import ByRow, Rows
from vpeft_bench.backbones.sites import (
    JOINED,
    OpenedAttention,
    OpenedBlock,
    close_module,
    fill,
    open_module,
    opened_leaf_class,
    withdraw,
)
from vpeft_bench.traits import Trait

LINEARS = ("qkv", "proj", "fc1", "fc2")
NORMS = ("norm1", "norm2")
LEAF_SLOTS = {"": "delta", "input": "input", "weight": "weight_update", "bias": "bias_update"}


@dataclass(frozen=True)
class OpenedClasses:
    """A family's opened classes: of the whole model, its blocks and their attention."""

    model: type[nn.Module]
    block: type[nn.Module]
    attention: type[nn.Module]


@dataclass
class Block:
    """One transformer block and the places it offers.

    Attributes:
        index: position in the whole backbone, counted over all stages.
        path: the block's name in the model.
        attention: its attention module.
        width: channels D of the residual stream.
        stage: index of the stage (0 in a ViT).
    """

    index: int
    path: str
    module: nn.Module
    attention: nn.Module
    width: int
    stage: int
    leaves: dict[str, nn.Module]
    _backbone: Backbone = field(repr=False)

    def leaf(self, site: str) -> nn.Module:
        """The block's own linear or norm at ``site`` (``qkv proj fc1 fc2 norm1 norm2``)."""
        return self.leaves[site]

    def linear(self, site: str) -> nn.Linear:
        """As :meth:`leaf`, for the four linears."""
        leaf = self.leaves[site]
        assert isinstance(leaf, nn.Linear)
        return leaf

    @property
    def heads(self) -> int:
        """Attention heads."""
        return self.attention.num_heads  # type: ignore[return-value]

    @property
    def mlp_reader(self) -> nn.Module:
        """What reads the stream between the halves: norm2, or fc1 where norms come last."""
        return self.leaves["fc1" if self._backbone.family.norms_last else "norm2"]

    @property
    def in_pieces(self) -> bool:
        """Whether timm has some of its linears as several."""
        return any(isinstance(x, JoinedLinear) and len(x.pieces) > 1 for x in self.leaves.values())

    def layer_scale(self, site: str) -> nn.Parameter | None:
        """The factors of what ``proj`` or ``fc2`` adds to the stream, where there are any."""
        number = {"proj": 1, "fc2": 2}.get(site)
        layer = getattr(self.module, f"ls{number}", None)
        gamma = getattr(layer, "gamma", None)
        return getattr(self.module, f"gamma_{number}", None) if gamma is None else gamma

    @property
    def attended_tokens(self) -> int:
        """Tokens that attend to each other: of the picture with its prefix, or of a window."""
        return self._backbone.family.attended_tokens(self._backbone, self)

    @property
    def drop_path(self) -> float:
        """Drop-path rate of the block, for branches that draw their own."""
        return getattr(self.module.drop_path1, "drop_prob", 0.0) or 0.0

    def place(self, site: str, module: nn.Module) -> None:
        """Put ``module`` at ``site``.

        Args:
            site: a leaf (``qkv proj fc1 fc2 norm1 norm2``: called ``module(x, y)`` with the leaf's
                input and output), a leaf's input (``qkv.input`` ...: called with it), a leaf's
                weight or bias (``qkv.weight``, ``qkv.bias`` ...: called with it), or a slot of
                :class:`OpenedBlock` or :class:`OpenedAttention`.

        Raises:
            KeyError: the block has no such site.
            ValueError: something is there already.
        """
        leaf, _, part = site.partition(".")
        if leaf in self.leaves and part in LEAF_SLOTS:
            self._backbone.place_on_leaf(self.leaves[leaf], module, LEAF_SLOTS[part])
        elif site in OpenedBlock.SLOTS:
            self._backbone.place_in_block(self, site, module)
        elif site in OpenedAttention.SLOTS:
            self._backbone.place_in_attention(self, site, module)
        else:
            slots = (*OpenedBlock.SLOTS, *OpenedAttention.SLOTS)
            raise KeyError(f"no site {site!r}; sites: {[*self.leaves, *slots]}")


class Backbone:
    """A timm model seen through its block map.

    Attributes:
        model: the timm model itself; opening and placing changes it in place.
        family: what is particular to models of this kind.
        blocks: every transformer block, in order.
        patch_leaves: the patch embedding's convolution, then its norm where it has one.
        merge_norms: the norms of patch merging.
        final_norm: the norm before the classifier (``norm``, or ``fc_norm`` after pooling).
        prefix_tokens: class and register tokens before the patches (0 where the stream is a map).
        placements: what the method of this map placed.
        replaced: children of timm's in whose place something stands.
        changed: parameters of timm's that the method changes.
        further_tokens: how many the method puts into the stream: of a block, by its index, or from
            the first block to the end, by None.
        guest: what a method keeps beside the model from one call to the next (another library's
            handle on what it placed); None where there is nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        family: Family,
        opened: OpenedClasses,
        patch_leaves: list[nn.Module],
        final_norm: nn.Module,
        merge_norms: list[nn.Module],
        prefix_tokens: int,
    ) -> None:
        self.model = model
        self.family = family
        self.blocks: list[Block] = []
        self.patch_leaves = patch_leaves
        self.final_norm = final_norm
        self.merge_norms = merge_norms
        self.prefix_tokens = prefix_tokens
        self.placements: list[Placement] = []
        self.guest: Any = None
        self._opened = opened
        self.replaced: list[Replacement] = []
        self.changed = ChangedParameters()
        self.further_tokens: dict[int | None, int] = {}
        self._original_classes: dict[nn.Module, type[nn.Module]] = {}
        self._names: dict[nn.Module, str] = {m: name for name, m in model.named_modules()}
        self._joined_paths: dict[nn.Module, str] = {}
        self._whole: dict[nn.Module, JoinedLinear] = {}

    def add_block(self, path: str, leaves: dict[str, nn.Module], stage: int = 0) -> None:
        """The next block, by its name in the model and its norms and linears.

        A linear in pieces becomes a child of what calls it once that is opened: ``qkv`` of the
        attention, ``fc1`` of the block.
        """
        module: Any = self.model.get_submodule(path)
        width = leaves["proj"].out_features
        assert isinstance(width, int)
        index = len(self.blocks)
        self.blocks.append(Block(index, path, module, module.attn, width, stage, leaves, self))
        for site, host in (("qkv", f"{path}.attn"), ("fc1", path)):
            if isinstance(joined := leaves[site], JoinedLinear):
                self._joined_paths[joined] = f"{host}.{JOINED}"
                if len(joined.pieces) == 1:
                    self._whole[joined.pieces[0]] = joined

    # ---- what there is -------------------------------------------------------------------------

    @property
    def head(self) -> nn.Module:
        """The classifier; never part of a method. Several of them as one module, in their order."""
        return self.heads[0] if len(self.heads) == 1 else nn.ModuleList(self.heads)

    @property
    def heads(self) -> list[nn.Module]:
        """The classifiers: one, or one for each token that is classified."""
        found: Any = self.model.get_classifier()  # type: ignore[operator]  # timm's
        return list(found) if isinstance(found, tuple) else [found]

    @property
    def has_head(self) -> bool:
        """Whether there are classes."""
        return not isinstance(self.heads[0], nn.Identity)

    @property
    def reads_prefix_only(self) -> bool:
        """Whether the classifier reads no patch: class token pooling."""
        return self.has_head and getattr(self.model, "global_pool", None) == "token"

    @property
    def drops_patches(self) -> bool:
        """Whether patches are dropped at random in training, so that they form no grid."""
        dropout = getattr(self.model, "patch_drop", None)
        return not isinstance(dropout, nn.Identity | None)

    @property
    def any_grid(self) -> bool:
        """Whether the number of tokens that attend to each other depends on the picture."""
        takes_any = bool(getattr(self.model, "dynamic_img_size", False))
        return takes_any and Trait.GLOBAL_ATTENTION in self.family.traits

    def position_tables(self) -> list[nn.Parameter]:
        """Learned biases of attention by relative position."""
        tables = (getattr(m, "relative_position_bias_table", None) for m in self.modules())
        return [table for table in tables if isinstance(table, nn.Parameter)]

    def modules(self) -> Iterator[nn.Module]:
        """Every module outside the head."""
        head = set(self.head.modules())
        return (module for module in self.model.modules() if module not in head)

    def original_modules(self) -> Iterator[tuple[nn.Module, str]]:
        """Every module that timm built, the head's included, with its name in the model."""
        return iter(self._names.items())

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Every parameter outside the head, by its name in the model; a shared one once."""
        head = set(self.head.parameters())
        return ((n, p) for n, p in self.model.named_parameters() if p not in head)

    def norms(self) -> list[nn.Module]:
        """Every normalisation layer outside the head (norm1, norm2, final, patch, merging, q/k)."""
        batch_norm = nn.modules.batchnorm._BatchNorm
        kinds = (nn.LayerNorm, nn.GroupNorm, batch_norm, nn.RMSNorm, RmsNorm)
        return [module for module in self.modules() if isinstance(module, kinds)]

    def biases(self) -> Iterator[tuple[nn.Module, nn.Parameter]]:
        """Every bias outside the head, with the module that holds it."""
        for module in self.modules():
            for name in ("bias", "q_bias", "v_bias"):
                if isinstance(bias := getattr(module, name, None), nn.Parameter):
                    yield module, bias

    def path(self, module: nn.Module) -> str:
        """The name in the model that one of its own modules has, or had before it was replaced."""
        return self._joined_paths.get(module) or self._names[module]

    def original_tensors(self) -> dict[str, torch.Tensor]:
        """Parameters and buffers of the model as timm built it, whatever is placed by now.

        The names are those of the plain model's ``state_dict``, in its order.
        """
        found = {}
        for module, path in self._names.items():
            state: dict[str, torch.Tensor] = {}
            module._save_to_state_dict(state, f"{path}." if path else "", keep_vars=True)
            found.update(state)
        return found

    # ---- opening and placing -------------------------------------------------------------------

    def open_block(self, block: Block) -> None:
        """Open one block; a method that places something there does it by itself."""
        self.open(block.module, self._opened.block)
        if self.family.attention_knows_positions:
            self.open_attention(block)  # timm's own takes no further token

    def open_attention(self, block: Block) -> None:
        """Open the attention of one block."""
        self.open(block.attention, self._opened.attention)
        self._connect(block.attention, block.leaves["qkv"])

    def _connect(self, host: nn.Module, leaf: nn.Module) -> None:
        """Let an opened attention or block call the whole of a linear in pieces."""
        if isinstance(leaf, JoinedLinear) and getattr(host, JOINED) is None:
            setattr(host, JOINED, leaf.train(host.training))

    def call_whole(self, leaf: nn.Module) -> None:
        """Make sure that ``leaf`` is what the model calls, and no pieces of it."""
        if isinstance(leaf, JoinedLinear):
            for block in self.blocks:
                if block.leaves["qkv"] is leaf:
                    self.open_attention(block)
                elif block.leaves["fc1"] is leaf:
                    self.open_block(block)
                    self._connect(block.module, leaf)

    def place_in_block(self, block: Block, slot: str, module: nn.Module) -> None:
        """Put ``module`` into a stream slot of ``block``."""
        self.open_block(block)
        self._place(block.module, slot, module)

    def place_in_attention(self, block: Block, slot: str, module: nn.Module) -> None:
        """Put ``module`` into a slot of the attention of ``block``."""
        self.open_attention(block)
        self._place(block.attention, slot, module)

    def place_on_leaf(self, leaf: nn.Module, module: nn.Module, slot: str = "delta") -> None:
        """Put ``module`` on a linear, norm or convolution: after it, before it, on its weight."""
        leaf = self._whole.get(leaf, leaf)
        self.call_whole(leaf)
        self.open(leaf, opened_leaf_class(self._original_classes.get(leaf, type(leaf))))  # type: ignore[arg-type]  # a class hashes
        self._place(leaf, slot, module)

    def open_trunk(self) -> None:
        """Open the model and all its blocks, so that they can be run one by one."""
        for block in self.blocks:
            self.open_block(block)
        self.open(self.model, self._opened.model)

    def place_around(self, module: nn.Module) -> None:
        """Put ``module`` around the trunk; it is called ``module(images, x, model)``."""
        self.open_trunk()
        self._place(self.model, "trunk", module)

    @contextmanager
    def replacing(self, leaves: Iterable[nn.Module]) -> Iterator[None]:
        """Let another library put modules of its own in the place of ``leaves``.

        Whatever stands there afterwards counts as placed, also where an error ended it half-way:
        :meth:`close` puts the leaves back.
        """
        leaves = list(leaves)
        for leaf in leaves:
            self.call_whole(leaf)
        try:
            yield
        finally:
            for leaf in leaves:
                parent, _, name = self.path(leaf).rpartition(".")
                host = self.model.get_submodule(parent)
                module = getattr(host, name)
                if module is not leaf:
                    join(module, leaf)
                    self.replaced.append(Replacement(host, name, leaf, module))
                    self.placements.append(Placement(leaf, name, module, self.path(leaf), True))

    def replace_head(self, in_features: int) -> None:
        """Give the model a fresh linear head that reads ``in_features`` channels.

        For methods whose features are not as wide as the backbone's. Without a head (no classes)
        there is nothing to replace.
        """
        for head in self.heads:
            if not isinstance(head, nn.Linear):
                continue
            fresh = nn.Linear(in_features, head.out_features, head.bias is not None)
            nn.init.trunc_normal_(fresh.weight, std=0.02)
            if fresh.bias is not None:
                nn.init.zeros_(fresh.bias)
            parent, _, name = self._names[head].rpartition(".")
            host = self.model.get_submodule(parent)
            fresh = fresh.to(head.weight).train(head.training)
            self.replaced.append(Replacement(host, name, head, fresh))
            setattr(host, name, fresh)

    def open(self, module: nn.Module, opened_class: type[nn.Module]) -> None:
        """Give a module of the model its opened class; :meth:`close` undoes it."""
        self._original_classes.setdefault(module, type(module))
        open_module(module, opened_class)

    def _place(self, host: nn.Module, slot: str, module: nn.Module) -> None:
        path = f"{self.path(host)}.{slot}".lstrip(".")  # the model itself has no name
        if getattr(host, slot) is not None:
            raise ValueError(f"{path} already holds a {type(getattr(host, slot)).__name__}")
        join(module, host)
        setattr(host, slot, module)
        self.placements.append(Placement(host, slot, module, path))

    @contextmanager
    def folding(self, leaf: nn.Module) -> Iterator[nn.Module]:
        """What a module is folded into in the place of ``leaf``; its values are then the leaf's."""
        if not isinstance(leaf, JoinedLinear):
            yield leaf
            return
        plain = leaf.plain()
        yield plain
        leaf.take(plain)

    def expect_tokens(self, count: int, block: Block | None = None) -> None:
        """Make the model ready for further tokens that a method puts into the stream.

        Pooling and feature maps then leave them out.

        Args:
            block: that they enter and leave; None where they enter the first and stay to the end.
        """
        self.family.count_further_tokens(self, count, block)
        self.further_tokens[None if block is None else block.index] = count

    def _count_further_tokens(self, further: Mapping[int | None, int], sign: int) -> None:
        for index, count in further.items():
            block = None if index is None else self.blocks[index]
            self.family.count_further_tokens(self, sign * count, block)

    # ---- leaving and coming back ---------------------------------------------------------------

    def another(self) -> Backbone:
        """A map of the same model for another method, with nothing placed."""
        twin = copy.copy(self)
        twin.blocks = [replace(block, _backbone=twin) for block in self.blocks]
        twin.placements, twin.replaced, twin.changed = [], [], ChangedParameters()
        twin.further_tokens, twin.guest = {}, None
        return twin

    def take_out(self) -> None:
        """Take everything placed out of the model; what came after it must be out already.

        Nothing is left of it: the model is the plain one, bit for bit.
        """
        for placement in reversed(self.placements):
            if not placement.replaces:
                withdraw(placement.host, placement.slot)
        for one in reversed(self.replaced):
            setattr(one.host, one.name, one.original)
        self._count_further_tokens(self.further_tokens, -1)
        self.changed.take_out()

    def put_in(self) -> None:
        """Put everything that :meth:`take_out` took out into the model again, after all others."""
        self.changed.put_in()
        for one in self.replaced:
            follow(one.module, one.original)
            setattr(one.host, one.name, one.module)
        for placement in self.placements:
            if not placement.replaces:
                follow(placement.module, placement.host)
                fill(placement.host, placement.slot, placement.module)
        self._count_further_tokens(self.further_tokens, 1)

    @contextmanager
    def by_row(self, keys: Sequence[str | None], maps: Mapping[str, Backbone]) -> Iterator[None]:
        """Let each picture of a batch pass through what one of ``maps`` placed, all of it in slots.

        Args:
            keys: one for each picture; those that are not in ``maps`` pass through nothing.
            maps: of the same model, by key; what they placed is out of it.
        """
        rows = Rows(keys)
        held: dict[tuple[nn.Module, str], dict[Hashable, nn.Module]] = {}
        for key, one in maps.items():
            for placement in one.placements:
                follow(placement.module, placement.host)
                held.setdefault((placement.host, placement.slot), {})[key] = placement.module
        further = next((one.further_tokens for one in maps.values()), {})
        for (host, slot), modules in held.items():
            fill(host, slot, ByRow(slot, rows, modules).train(host.training))
        self._count_further_tokens(further, 1)
        try:
            yield
        finally:
            self._count_further_tokens(further, -1)
            for host, slot in held:
                withdraw(host, slot)

    def forget(self) -> None:
        """What was taken out does not come back."""
        self.placements.clear()
        self.replaced.clear()
        self.changed = ChangedParameters()
        self.further_tokens, self.guest = {}, None

    def clear(self) -> None:
        """Take out everything placed, for good."""
        self.take_out()
        self.forget()

    def close(self) -> None:
        """Take out everything placed and give every module its own class back."""
        self.clear()
        for module, original in self._original_classes.items():
            close_module(module, original)
        self._original_classes.clear()


def held_parameters(leaf: nn.Module) -> list[nn.Parameter]:
    """The model's own parameters in which a linear, norm or convolution has its values."""
    if isinstance(leaf, JoinedLinear):
        return leaf.held_parameters()
    return list(leaf.parameters(recurse=False))


def fingerprint(tensors: Iterator[tuple[str, torch.Tensor]]) -> str:
    """SHA-256 over names, types, shapes and values of ``tensors``, in the order given."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
