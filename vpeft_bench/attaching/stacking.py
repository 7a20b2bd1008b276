"""Several attachments on one model: stacked, switched, merged and taken off.

Each is made on the plain model, as if it were the only one, and is a set of modules, replacements
and values that can be taken out of the model and put in again. Those in the model at one time are a
stack: each stands after those that were attached before it.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vpeft_bench.backbones import block_map
from vpeft_bench.backbones.block_map import held_parameters
from vpeft_bench.backbones.joined import JoinedLinear
from vpeft_bench.backbones.placement import Placement
from vpeft_bench.backbones.sites import STACKS
from vpeft_bench.errors import AlreadyAttachedError, NotMergeableError, NotStackableError
from vpeft_bench.methods.base import MergeableModule

if TYPE_CHECKING:
    from vpeft_bench.attaching.attachment import Attached

MARK = "_vpeft_bench_attachments"
"""The attribute of a model that holds its attachments."""


class Attachments(Mapping[str, "Attached"]):
    """The attachments of a model by name, in the order in which they were made.

    Attributes:
        model: the timm model.
        backbone: the block map of the plain model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.backbone = block_map(model)
        head = {*self.backbone.head.parameters(), *self.backbone.head.buffers()}
        state = model.state_dict(keep_vars=True)
        self._base_names = [name for name, tensor in state.items() if tensor not in head]
        originals = dict(self.backbone.named_parameters())
        self._required_grad = {name: p.requires_grad for name, p in originals.items()}
        for parameter in originals.values():
            parameter.requires_grad_(False)
        self._all: dict[str, Attached] = {}
        self._enabled: list[str] = []
        self._by_row = False
        setattr(model, MARK, self)

    def __getitem__(self, name: str) -> Attached:
        """The attachment of that name."""
        return self._all[name]

    def __iter__(self) -> Iterator[str]:
        """Names in the order of attaching."""
        return iter(self._all)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._all)

    def __repr__(self) -> str:
        """Names and methods; those that are out of the model in brackets."""
        listed = (
            f"{name}={one.method.name}" if name in self._enabled else f"[{name}={one.method.name}]"
            for name, one in self._all.items()
        )
        return f"Attachments({', '.join(listed)})"

    # ---- which are in the model ----------------------------------------------------------------

    @property
    def enabled(self) -> tuple[str, ...]:
        """Names of those in the model, in the order in which they are applied."""
        return tuple(self._enabled)

    def only(self, *names: str) -> None:
        """Have these in the model and no others; without names the frozen model, bit for bit.

        Raises:
            KeyError: there is no such attachment.
            NotStackableError: two of them cannot work together.
        """
        for name in names:
            self._known(name)
        if len(names) > 1:
            pairs = itertools.combinations([n for n in self._all if n in names], 2)
            for first, second in pairs:
                require_stackable(self._all[first], self._all[second])
        self.arrange(names)

    @contextmanager
    def rows(self, names: Sequence[str | None]) -> Iterator[None]:
        """Let every picture of a batch have an attachment of its own, inside ``with``.

        What the model then gives is what it gives each picture alone. It is for methods that change
        what passes through the model, as LoRA, adapters and prompts do; not for those that change
        the model. Nothing can be enabled, attached or detached meanwhile.

        Args:
            names: one for each picture, None for the plain model.

        Raises:
            KeyError: there is no such attachment.
            NotStackableError: an attachment cannot be used for single rows, or rows would not be
                equally long; says why.
            ValueError: no names, or the batch has another number of pictures.
        """
        if isinstance(names, str):
            raise ValueError(f"rows: a list of names, one for each picture: [{names!r}]")
        names = list(names)
        if not names:
            raise ValueError("rows: no names, where each picture of the batch needs one")
        for name in dict.fromkeys(name for name in names if name is not None):
            require_by_row(self._known(name))
        chosen = {name: self[name].backbone for name in names if name is not None}
        require_equal_prompts(
            {name: map.further_tokens for name, map in chosen.items()}
            | ({"the plain model": {}} if None in names else {})
        )
        before = self.enabled
        self.arrange(())
        guard = self.backbone.patch_leaves[0].register_forward_pre_hook(
            lambda _, given: _require_batch(given[0], len(names))
        )
        self._by_row = True
        try:
            with self.backbone.by_row(names, chosen):
                yield
        finally:
            self._by_row = False
            guard.remove()
            self.arrange(before)

    def _known(self, name: str) -> Attached:
        """The attachment of that name, which has been placed."""
        if name not in self._all:
            raise KeyError(f"no attachment {name!r}; there are: {', '.join(self._all)}")
        self._all[name].require_placed()
        return self._all[name]

    def arrange(self, names: Collection[str]) -> None:
        """As :meth:`only`, with names that are known to be good."""
        self.require_whole_batches()
        wanted = [name for name in self._all if name in names]
        same = 0
        while same < min(len(wanted), len(self._enabled)) and wanted[same] == self._enabled[same]:
            same += 1
        leaving = self._enabled[same:]
        for name in leaving:
            self._all[name].require_detachable()
        for name in reversed(leaving):
            self._all[name].backbone.take_out()
        for name in wanted[same:]:
            self._all[name].backbone.put_in()
        self._enabled = wanted

    def require_whole_batches(self) -> None:
        """Refuse whatever changes the stack while each row has an attachment of its own.

        Raises:
            AlreadyAttachedError: inside :meth:`rows`.
        """
        if self._by_row:
            raise AlreadyAttachedError("each row has its own attachment here; leave rows() first")

    # ---- coming and leaving --------------------------------------------------------------------

    def add(self, name: str, attached: Attached) -> None:
        """A further one, of which nothing is in the model yet."""
        self._all[name] = attached

    def entered(self, name: str) -> None:
        """One has been placed on the plain model, as the only one."""
        self._enabled = [name]

    def leave(self, name: str) -> None:
        """Take one off; with the last the model is as it was before the first."""
        self.arrange([other for other in self._enabled if other != name])
        self._all.pop(name).backbone.forget()
        self.close_if_empty()
        self.end_if_empty()

    def end_if_empty(self) -> None:
        """Where there is none, leave no trace on the model."""
        if self._all:
            return
        parameters = dict(self.model.named_parameters())
        for name, required_grad in self._required_grad.items():
            parameters[name].requires_grad_(required_grad)
            parameters[name].grad = None
        if getattr(self.model, MARK, None) is self:
            delattr(self.model, MARK)

    def close_if_empty(self) -> None:
        """Give every module its own class back where nothing is placed."""
        maps = [one.backbone for one in self._all.values()]
        if not any(map.placements or map.replaced for map in maps):
            self.backbone.close()

    # ---- the plain model -----------------------------------------------------------------------

    def base_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors below the head as the plain model has them."""
        state = self.backbone.original_tensors()
        for name in self._enabled:
            state |= self._all[name].backbone.changed.originals
        return ((name, state[name]) for name in self._base_names)


def attachments(model: nn.Module) -> Attachments:
    """The attachments of ``model``.

    Raises:
        AlreadyAttachedError: it has none.
    """
    found = getattr(model, MARK, None)
    if found is None:
        raise AlreadyAttachedError("nothing is attached to this model; call attach() first")
    assert isinstance(found, Attachments)
    return found


# ---- what goes together --------------------------------------------------------------------------


def require_stackable(first: Attached, second: Attached) -> None:
    """Refuse two attachments that cannot be in the model at the same time.

    Raises:
        NotStackableError: says why, and what to do.
    """
    reason = _conflict(first, second) or _conflict(second, first)
    if reason is not None:
        raise NotStackableError(
            f"{second.label} cannot be stacked on {first.label}: {reason}; detach one of them, or "
            "disable it and switch between them with attachments(model).only(name)"
        )


def _conflict(one: Attached, other: Attached) -> str | None:
    """Why ``one`` cannot be there with ``other``, or None; to be asked both ways."""
    mine, theirs = one.backbone, other.backbone
    taken = {(p.host, p.slot) for p in theirs.placements if p.slot not in STACKS}
    if any((p.host, p.slot) in taken for p in mine.placements if not p.replaces):
        return "both run the blocks of the model themselves"
    if mine.guest is not None and theirs.guest is not None:
        return "both are handles of the peft library, which holds one for a model"
    if {(r.host, r.name) for r in mine.replaced} & {(r.host, r.name) for r in theirs.replaced}:
        return "both put something in the place of the same module"
    replaced = {r.original: r.name for r in mine.replaced}
    for placement in theirs.placements:
        if placement.host in replaced:
            return (
                f"{one.label} puts a layer of its own in the place of the one that "
                f"{other.label} stands on ({placement.path})"
            )
    if shared := set(mine.changed.parameters) & set(theirs.changed.parameters):
        more = f" and {len(shared) - 1} more" if len(shared) > 1 else ""
        return f"both change the model's own parameter {min(shared)}{more}"
    for length in one.method.lengths_changed & other.method.lengths_known:
        return f"{one.label} changes {length}, which {other.label} takes to be the image's own"
    return None


def require_by_row(attached: Attached) -> None:
    """Refuse what cannot be used for single pictures of a batch.

    Raises:
        NotStackableError: says why, and what to do.
    """
    slots = {p.slot for p in attached.backbone.placements if not p.replaces}
    reason = None
    if attached.backbone.changed.parameters or slots & {"weight_update", "bias_update"}:
        reason = "it changes weights or biases, which all rows have in common"
    elif attached.backbone.replaced:
        reason = "it puts modules of its own in the place of the model's, for the whole batch"
    elif slots - set(STACKS):
        reason = "it runs the blocks of the model itself, for the whole batch"
    if reason is not None:
        raise NotStackableError(
            f"{attached.label} cannot be used for single rows of a batch: {reason}; run its rows "
            f"by themselves, after attachments(model).only({attached.name!r})"
        )


def require_equal_prompts(prompts: Mapping[str, Mapping[int | None, int]]) -> None:
    """Refuse rows that would not be equally long.

    Args:
        prompts: by attachment, as :attr:`Backbone.further_tokens`.

    Raises:
        NotStackableError: says how many each has.
    """
    first, *others = prompts.values()
    if all(other == first for other in others):
        return
    listed = ", ".join(f"{name}: {_listed(further)}" for name, further in prompts.items())
    raise NotStackableError(
        f"rows of one batch must have as many prompts in the same blocks: {listed}"
    )


def _listed(further: Mapping[int | None, int]) -> str:
    counts = sorted(set(further.values()))
    where = " from the first block on" if None in further else " in each block"
    return f"{'/'.join(map(str, counts))}{where}" if counts else "none"


def _require_batch(images: Tensor, count: int) -> None:
    if len(images) != count:
        raise ValueError(f"rows() was given {count} names, the batch has {len(images)} pictures")


# ---- merging -------------------------------------------------------------------------------------


def require_mergeable_first(merging: Attached, others: Mapping[str, Attached]) -> None:
    """Refuse to fold an attachment into weights on which others stand, or after which they come.

    Raises:
        NotMergeableError: says which, and what to do.
    """
    for name, other in others.items():
        if other is merging:
            continue
        if not other.enabled:
            raise NotMergeableError(
                f"{merging.label} cannot be merged: {other.label}, which is disabled, stands on "
                "the weights that merging would change; detach it, or enable it"
            )
        if where := _inner(other, merging):
            raise NotMergeableError(
                f"{merging.label} cannot be merged yet: {other.label} comes before it at {where}; "
                f"merge or detach {name!r} first"
            )


def _inner(other: Attached, merging: Attached) -> str | None:
    """Where ``other`` is nearer to the weight that ``merging`` would change, or None."""
    order = list(merging.carried)
    later = order.index(other.name) > order.index(merging.name)
    held = {p: name for name, p in other.backbone.changed.parameters.items()}
    placed: dict[nn.Module, list[Placement]] = {}
    for placement in other.backbone.placements:
        placed.setdefault(placement.host, []).append(placement)
    for placement in merging.backbone.placements:
        names = [held[p] for p in held_parameters(placement.host) if p in held]
        if names and (changed := [name for name in names if _folding_changes(placement, name)]):
            return changed[0]
        for theirs in placed.get(placement.host, []):
            if _folds_before(theirs, placement, later):
                return theirs.path
    return None


def _folding_changes(placement: Placement, name: str) -> bool:
    """Whether folding it would change the parameter ``name`` of its leaf, found by trying it."""
    leaf, module = placement.host, placement.module
    if not isinstance(module, MergeableModule):
        return True
    trial: Any = leaf.plain() if isinstance(leaf, JoinedLinear) else copy.deepcopy(leaf)
    part = "bias" if name.endswith("bias") else "weight"
    before = getattr(trial, part).detach().clone()
    module.merge_into(trial)
    return not torch.equal(getattr(trial, part), before)


def _folds_before(theirs: Placement, ours: Placement, later: bool) -> bool:
    """Whether what stands on the same leaf must be folded in before ours.

    What changes the weight comes first, then what changes the output, and last what changes the
    input, there the nearest to the leaf.
    """
    stages = ("weight_update", "bias_update", "delta", "input")
    stage, own_stage = stages.index(theirs.slot), stages.index(ours.slot)
    if {stage, own_stage} == {0, 1}:
        return False
    if stage != own_stage:
        return stage < own_stage
    modules = (theirs.module, ours.module)
    if ours.slot == "delta" and all(isinstance(m, MergeableModule) and m.adds for m in modules):
        return False
    return later if ours.slot == "input" else not later
