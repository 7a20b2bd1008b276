"""SPT: parameters where the task is sensitive, structured where that is most of a matrix."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn

from vpeft_bench.backbones.block_map import Backbone
from vpeft_bench.errors import UnsupportedBackboneError
from vpeft_bench.methods.base import Category, Method, bottleneck_linears, option
from vpeft_bench.methods.data_pass import Selection, SelectionData, evaluating, require_finite
from vpeft_bench.methods.parts.low_rank import LowRankUpdate
from vpeft_bench.methods.parts.sparse import SparseUpdate, differentiable
from vpeft_bench.methods.registry import register

# ---- which entries are worth training ------------------------------------------------------------

PARAMETERS = ("weight", "bias")
Measure = Callable[[Sequence[Tensor]], Sequence[Tensor]]


@dataclass(frozen=True)
class Group:
    """A matrix or vector that is judged as a whole; q, k and v are groups of their own.

    Attributes:
        leaf: name of the leaf, and ``parameter``: its ``weight`` or ``bias``.
        rows: first and last row (exclusive) of the parameter.
        target: what the rows are called in a low-rank update; empty for a vector.
        limit: with as many chosen entries, or more, it is tuned as a whole.
        cost: parameters that this takes.
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
        size: parameters of structured tuning, from ``rank``, columns and rows.
        alpha, beta: a matrix is tuned as a whole from 1 / alpha of its ``size`` on, a vector from
            1 / beta of its length on.
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


# ---- structured tuning ---------------------------------------------------------------------------

Rows = Mapping[str, tuple[int, int]]

SIZES = {
    "lora": lambda rank, inputs, outputs: rank * (inputs + outputs),
    "adapter": lambda rank, inputs, outputs: 2 * rank * outputs + rank + outputs,
}
"""Parameters of each form for one matrix, from its rank, input and output features."""


class SeriesAdapters(nn.Module):
    """y_t + drop_path(W_up GELU(W_down dropout(y_t))) on the output rows of each target t.

    Args:
        reads_input: the linear's input x, as wide as its output, takes the place of y_t in the
            second term.
    """

    def __init__(
        self, rows: Rows, rank: int, dropout: float, drop_path: float, reads_input: bool
    ) -> None:
        super().__init__()
        self.rows = dict(rows)
        self.reads_input = reads_input
        pairs = {t: bottleneck_linears(hi - lo, rank, "standard") for t, (lo, hi) in rows.items()}
        self.down = nn.ModuleDict({target: down for target, (down, _) in pairs.items()})
        self.up = nn.ModuleDict({target: up for target, (_, up) in pairs.items()})
        self.dropout = nn.Dropout(dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Input x ``(..., in_features)`` and output y ``(..., out_features)`` of the linear."""
        added = []
        for target, (low, high) in self.rows.items():
            read = x if self.reads_input else y[..., low:high]
            hidden = nn.functional.gelu(self.down[target](self.dropout(read)))
            branch = self.drop_path(self.up[target](hidden))
            added.append(nn.functional.pad(branch, (low, y.shape[-1] - high)))
        return y + torch.stack(added).sum(0)


def structured_module(
    form: str,
    leaf: nn.Linear,
    rows: Rows,
    rank: int,
    dropout: float,
    drop_path: float,
    reads_input: bool,
) -> nn.Module:
    """What is placed on ``leaf``: a low-rank update beside it (``lora``) or adapters after it.

    Args:
        reads_input: an adapter reads the input of ``leaf``, not its output.
    """
    if form == "adapter":
        return SeriesAdapters(rows, rank, dropout, drop_path, reads_input)
    update = LowRankUpdate(leaf.in_features, leaf.out_features, rows, rank, 1.0, 0.0, "standard")
    # What a whole picture loses in x, it loses in B A x.
    update.dropout = nn.Sequential(nn.Dropout(dropout), DropPath(drop_path))
    return update


# ---- the method ----------------------------------------------------------------------------------


@register
@dataclass
class SPT(Method):
    """The most sensitive weights of all, up to a budget: W + delta, and W + B A where they crowd.

    Sensitivity is the squared gradient. A matrix with at least 1 / alpha as many chosen entries as
    a low-rank update has parameters gets the update instead; a vector with 1 / beta of its entries
    chosen is tuned whole.
    """

    name = "spt"
    title = "Sensitivity-Aware Visual Parameter-Efficient Fine-Tuning"
    arxiv = "2303.08566"
    source = "algorithm 1; sites, alpha, beta and class token of the authors' code (ziplab/SPT)"
    category = Category.PARTIAL
    idea = (
        "Squared gradients on a few batches tell which weights the task is sensitive to, and a "
        "budget says how many may train. Matrices where many are sensitive get a low-rank update "
        "or an adapter, all other chosen weights are tuned one by one."
    )
    deviations = (
        "The authors try 20,000, 40,000, ... chosen weights and take what comes closest to the "
        "budget, above it or below; fit=closest takes the closest of all. Here it stays within.",
        "The authors count single weights of norms and never train them; here they train.",
        "A vector tuned whole is one in which every entry has a learned addition: weight decay "
        "pulls it to the pretrained value, not to zero.",
        "The authors score in train mode, with drop-path and a new head: mode=train for the first.",
        "form=adapter has both biases, as their count of parameters says; their dropout leaves "
        "out the attention's projection. Drop-path is drawn once for q, k and v.",
        "In form=adapter the authors' module on the attention's output projection reads that "
        "projection's input, all others the output of their linear. proj_reads=output is the same "
        "rule for all.",
        "The authors run budgets of 0.2M to 1M per task and keep the best; 0.4M is ours.",
    )

    form: str = option(
        "lora", "of structured tuning; adapter: after the linear", choices=("lora", "adapter")
    )
    budget: int = option(
        400_000,
        "parameters in all, class token included (ours)",
        minimum=1,
        search=(200_000, 400_000, 600_000, 800_000, 1_000_000),
    )
    rank: int = option(8, "r of structured tuning (authors: 8)", minimum=1)
    alpha: float = option(10.0, "structured from 1/alpha of its size on (authors: 10)", minimum=1.0)
    beta: float = option(5.0, "a vector whole from 1/beta of its length on (authors)", minimum=1.0)
    fit: str = option(
        "within",
        "within: the budget is a limit; closest: it may be exceeded (authors)",
        choices=("within", "closest"),
    )
    batches: int = option(16, "batches to measure sensitivity on (authors: 16)", minimum=1)
    batch_size: int = option(32, "pictures in each (authors: 32)", minimum=1)
    dropout: float = option(0.1, "in structured tuning (authors)", minimum=0.0, maximum=1.0)
    drop_path: float = option(0.1, "likewise (authors: 0.1 in every block)", minimum=0, maximum=1)
    proj_reads: str = option(
        "input",
        "what an adapter on the attention's output projection reads (authors: its input)",
        choices=("input", "output"),
        neutral="output",
        only_where={"form": "adapter"},
    )
    mode: str = option(
        "eval", "of the model while it is measured; train: authors", choices=("eval", "train")
    )

    @property
    def selects(self) -> bool:
        """What trains comes from training data."""
        return True

    @property
    def merge_refusal(self) -> str | None:
        """Low-rank updates and single values fold into the weight."""
        return None if self.form == "lora" else "form=adapter has a GELU between its projections"

    def check(self, backbone: Backbone) -> None:
        """As every method; and the class token must fit in."""
        super().check(backbone)
        if any(block.in_pieces for block in backbone.blocks):
            raise UnsupportedBackboneError(
                f"method {self.name} does not support {backbone.family.name} backbones with "
                "query, key and value, or gate and MLP, in linears of their own: it ranks the "
                "entries of a whole weight"
            )
        if self.budget < (needed := sum(p.numel() for p in self.unfrozen(backbone))):
            raise UnsupportedBackboneError(
                f"method.budget={self.budget}: the class token alone has {needed} parameters"
            )

    def unfrozen(self, backbone: Backbone) -> Iterable[nn.Parameter]:
        """The class token, where there is one."""
        token = getattr(backbone.model, "cls_token", None)
        return () if token is None else (token,)

    def parameter_count(self, backbone: Backbone) -> None:
        """At most the budget; the data decide."""

    def groups(self, backbone: Backbone) -> list[Group]:
        """Every matrix and vector that is judged."""
        return list(all_groups(backbone, SIZES[self.form], self.rank, self.alpha, self.beta))

    def select(self, backbone: Backbone, data: SelectionData) -> Selection:
        """Chosen entries of each tensor, as indices into it, and which matrices are structured."""
        if not backbone.has_head:
            raise UnsupportedBackboneError(f"method {self.name} needs a head (num_classes)")
        pictures = data.training(shuffle=True, batch_size=self.batch_size)
        batches = itertools.islice(pictures, self.batches)
        budget = self.budget - sum(p.numel() for p in self.unfrozen(backbone))

        def measure(parameters: Sequence[Tensor]) -> list[Tensor]:
            return sensitivities(backbone, parameters, batches, self.mode)

        return choose(backbone, self.groups(backbone), measure, budget, self.fit)

    def place_selected(self, backbone: Backbone, selection: Selection) -> None:
        """Structured modules on their linears, sparse updates on the rest."""
        rows: dict[str, dict[str, tuple[int, int]]] = {}
        matrices = [group for group in self.groups(backbone) if group.target]
        for group, whole in zip(matrices, selection["structured"].tolist(), strict=True):
            if whole:
                rows.setdefault(group.leaf, {})[group.target] = group.rows
        for name, leaf in leaves(backbone).items():
            if name in rows:
                assert isinstance(leaf, nn.Linear)
                reads_input = self.proj_reads == "input" and name.endswith(".proj")
                module = structured_module(
                    self.form,
                    leaf,
                    rows[name],
                    self.rank,
                    self.dropout,
                    self.drop_path,
                    reads_input,
                )
                backbone.place_on_leaf(leaf, module)
            for parameter in PARAMETERS:
                indices = selection.get(f"{name}.{parameter}")
                if indices is not None:
                    update = SparseUpdate(indices, parameter)
                    backbone.place_on_leaf(leaf, update, f"{parameter}_update")

    @property
    def changes_embedding(self) -> bool:
        """By the class token."""
        return True

    def reads(self, backbone: Backbone) -> tuple[str, ...]:
        """Without a class token, what enters the first block stays the same."""
        return ("images",) if list(self.unfrozen(backbone)) else ("tokens.0",)
