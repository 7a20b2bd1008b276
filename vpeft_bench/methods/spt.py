"""SPT: parameters where the task is sensitive, structured where that is most of a matrix."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from vpeft_bench.backbones.block_map import Backbone
from vpeft_bench.errors import UnsupportedBackboneError
from vpeft_bench.methods.base import Category, Method, option
from vpeft_bench.methods.data_pass import Selection, SelectionData
from vpeft_bench.methods.parts.sensitivity import (
    PARAMETERS,
    Group,
    all_groups,
    choose,
    leaves,
    sensitivities,
)
from vpeft_bench.methods.parts.sparse import SparseUpdate
from vpeft_bench.methods.parts.structured import SIZES, structured_module
from vpeft_bench.methods.registry import register


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
        "lora", "of structured tuning; adapter: behind the linear", choices=("lora", "adapter")
    )
    budget: int = option(400_000, "parameters in all, class token included (ours)", minimum=1)
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
