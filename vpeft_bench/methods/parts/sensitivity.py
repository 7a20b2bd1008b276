"""SPT's question: which entries of which tensors are worth training, for so many parameters?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor, nn

from vpeft_bench.backbones.block_map import Backbone
from vpeft_bench.methods.data_pass import Selection, evaluating, require_finite
from vpeft_bench.methods.parts.sparse import differentiable

PARAMETERS = ("weight", "bias")
Measure = Callable[[Sequence[Tensor]], Sequence[Tensor]]


@dataclass(frozen=True)
class Group:
    """A matrix or vector that is judged as a whole; q, k and v are groups of their own.

    Attributes:
        leaf: name of the leaf, and ``parameter``: its ``weight`` or ``bias``.
        rows: first and last row (exclusive) of the parameter.
        target: what the rows are called in a low-rank update; empty for a vector.
        limit: from so many chosen entries on it is tuned as a whole ...
        cost: ... by so many parameters.
    """

    leaf: str
    parameter: str
    rows: tuple[int, int]
    target: str
    limit: int
    cost: int


def sensitivities(
    backbone: Backbone, parameters: Sequence[Tensor], batches: Iterable[Sequence[Tensor]], mode: str
) -> list[Tensor]:
    """sum over batches of (dL/dw)^2, with the cross-entropy L of a batch.

    Args:
        mode: ``eval`` or ``train``, of the model.
    """
    totals = [torch.zeros_like(parameter) for parameter in parameters]
    with evaluating(backbone.model), differentiable(parameters):
        backbone.model.train(mode == "train")
        for images, labels in batches:
            loss = nn.functional.cross_entropy(backbone.model(images), labels)
            gradients = torch.autograd.grad(loss, parameters)
            for total, gradient in zip(totals, gradients, strict=True):
                total += gradient.square()
    require_finite(totals, "sensitivity of the data pass")
    return totals


def allocate(
    scores: Sequence[Tensor], groups: Sequence[Group], budget: int, fit: str
) -> tuple[list[Tensor], list[bool]]:
    """The most sensitive entries of all, as many as the budget allows.

    Entries are taken in the order of their scores; each costs one parameter. The one that makes a
    group reach its limit costs what is missing to tune the group as a whole, and later ones of the
    group cost nothing. So the cost never falls, and no more than ``limit`` entries matter.

    Args:
        scores: of each group's entries, flat.
        fit: ``within``: as many as fit in; ``closest``: as come closest to the budget.

    Returns:
        For each group the entries taken, ascending, and whether it is tuned as a whole.
    """
    candidates = [s.topk(min(g.limit, len(s))) for s, g in zip(scores, groups, strict=True)]
    costs = []
    for score, group in zip(scores, groups, strict=True):
        cost = score.new_ones(min(group.limit, len(score)), dtype=torch.long)
        if group.limit <= len(score):
            cost[-1] = group.cost - (group.limit - 1)
        costs.append(cost)
    order = torch.cat([c.values for c in candidates]).argsort(descending=True, stable=True)
    totals = torch.cat(costs)[order].cumsum(0)
    if fit == "within":
        taken = int((totals <= budget).sum())
    else:
        taken = int((totals - budget).abs().argmin()) + 1
    chosen = torch.zeros_like(order, dtype=torch.bool)
    chosen[order[:taken]] = True
    flags = chosen.split([len(cost) for cost in costs])
    entries = [c.indices[f].sort().values for c, f in zip(candidates, flags, strict=True)]
    return entries, [len(e) >= g.limit for e, g in zip(entries, groups, strict=True)]


def leaves(backbone: Backbone) -> dict[str, nn.Module]:
    """Linears and norms that are judged: those of the blocks, of a Swin's merging, the last."""
    named = {f"{b.path}.{site}": leaf for b in backbone.blocks for site, leaf in b.leaves.items()}
    named |= {f"merge_norms.{i}": norm for i, norm in enumerate(backbone.merge_norms)}
    named["final_norm"] = backbone.final_norm
    return {n: leaf for n, leaf in named.items() if isinstance(leaf, nn.Linear | nn.LayerNorm)}


def all_groups(
    backbone: Backbone, size: Callable[[int, int, int], int], rank: int, alpha: float, beta: float
) -> Iterator[Group]:
    """Every matrix and vector that is judged.

    Args:
        size: parameters of structured tuning of ``rank``, for so many columns and rows.
        alpha, beta: the share of a matrix's ``size``, of a vector's length, from which on it is
            tuned as a whole, is one of so many.
    """
    for name, leaf in leaves(backbone).items():
        for parameter in PARAMETERS:
            tensor = getattr(leaf, parameter)
            if not isinstance(tensor, nn.Parameter):  # none, or kept in pieces beside the linear
                continue
            targets = ("q", "k", "v") if name.endswith(".qkv") else (name.rpartition(".")[2],)
            rows = len(tensor) // len(targets)
            for part, target in enumerate(targets):
                where = (part * rows, (part + 1) * rows)
                if tensor.ndim == 1:
                    yield Group(name, parameter, where, "", ceil(rows / beta), rows)
                else:
                    cost = size(rank, tensor.shape[1], rows)
                    yield Group(name, parameter, where, target, ceil(cost / alpha), cost)


def choose(
    backbone: Backbone, groups: Sequence[Group], measure: Measure, budget: int, fit: str
) -> Selection:
    """What to train: indices into each tensor by its name, and which matrices are ``structured``.

    Args:
        measure: gives the scores of tensors; ``budget``, ``fit``: see :func:`allocate`.
    """
    named = leaves(backbone)
    owners = list(dict.fromkeys((group.leaf, group.parameter) for group in groups))
    measured = measure([getattr(named[leaf], parameter) for leaf, parameter in owners])
    of_owner = dict(zip(owners, measured, strict=True))
    scores = [of_owner[g.leaf, g.parameter][slice(*g.rows)].flatten() for g in groups]
    entries, whole = allocate(scores, groups, budget, fit)
    structured = [w for group, w in zip(groups, whole, strict=True) if group.target]
    indices: dict[str, list[Tensor]] = {}
    for group, score, chosen, as_a_whole in zip(groups, scores, entries, whole, strict=True):
        if as_a_whole and group.target:
            continue
        if as_a_whole:
            chosen = torch.arange(len(score), device=score.device)
        before = group.rows[0] * len(score) // (group.rows[1] - group.rows[0])
        indices.setdefault(f"{group.leaf}.{group.parameter}", []).append(before + chosen)
    selection = {name: torch.cat(parts).int() for name, parts in indices.items()}
    selection = {name: entries for name, entries in selection.items() if len(entries)}
    return selection | {"structured": torch.tensor(structured, device=scores[0].device)}
