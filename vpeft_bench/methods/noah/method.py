"""NOAH: prompts, LoRA and adapters, each as wide in each block as a search finds best."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch

from vpeft_bench.backbones.block_map import Backbone
from vpeft_bench.errors import UnsupportedBackboneError
from vpeft_bench.methods.base import Category, Length, Method, option
from vpeft_bench.methods.data_pass import Selection, SelectionData
from vpeft_bench.methods.noah.network import PARTS, Subnetwork, Widths, live_parameters
from vpeft_bench.methods.noah.search import Search, SearchOptions, search_widths
from vpeft_bench.methods.registry import register
from vpeft_bench.traits import Trait

PER_BLOCK = "one per block, or one for all; all three null: searched (the paper)"


@register
@dataclass
class NOAH(SearchOptions, Method):
    """[x; P_i] enters block i, qkv gets B_i A_i x, and the MLP's output m gets A_i(m).

    Any of ``prompt_length``, ``rank``, ``bottleneck`` gives a fixed sub-network, without a search;
    what is not given is left out.
    """

    name = "noah"
    title = "Neural Prompt Search"
    arxiv = "2206.04673"
    source = "section 3; modules, search space and evolution of the authors' code"
    category = Category.UNIFIED
    needs = {
        Trait.GLOBAL_ATTENTION: "paper and code are on ViT only: no rule for prompts in windows",
        Trait.FREE_TOKENS: "its prompts stand after the patches, where attention expects none",
    }
    not_mergeable = "prompts are tokens, and its adapters hold an activation"
    idea = (
        "A supernet holds prompts, low-rank updates and adapters of the largest width in every "
        "block and trains with a random choice of widths in each step. An evolutionary search "
        "finds the widths with the best validation accuracy within a parameter budget, which are "
        "then trained from the pretrained model."
    )
    deviations = (
        "The authors' supernet also lists prompts and their positions at the root, which the first "
        "block replaces unseen; they do not exist here, nor are they counted.",
        "For candidates with prompts in the first block the authors count 76,800 + 768 p such dead "
        "parameters against the limit of 0.64M; subtract them from budget for their limit. The "
        "published 0.43M is that count, 442,512 for the mean of their networks; 360,134 are alive.",
        "The authors' last initialisation makes all linears truncated normal, so LoRA does not "
        "start neutral: init=noah. Their prompts and adapters are slices of larger tensors.",
        "stale_prompts=keep cuts off as many prompts as the block before had of its own: older "
        "ones stay for good if it had none. No searched network has such a gap.",
        "Their VTAB scripts search widths 5 to 100, all released networks have 1, 5, 10, the "
        "default; some share one vector of widths between two parts, likely by mistake.",
        "They search with another normalisation than they train with; here it is the same.",
        "Momentum and decay leave alone the parts that a step of the supernet does not use.",
    )

    init: str = option(
        "standard", "standard: LoRA's B zero; noah: see deviations", choices=("standard", "noah")
    )
    dropout: float = option(0.1, "of all three parts (authors)", minimum=0.0, maximum=1.0)
    stale_prompts: str = option(
        "replace", "replace or keep (authors): see deviations", choices=("replace", "keep")
    )
    prompt_length: list[int] | None = option(None, f"prompts: {PER_BLOCK}", minimum=0)
    rank: list[int] | None = option(None, f"of LoRA: {PER_BLOCK}", minimum=0)
    bottleneck: list[int] | None = option(None, f"of the adapters: {PER_BLOCK}", minimum=0)

    @property
    def _given(self) -> list[list[int] | None]:
        return [getattr(self, part) for part in PARTS]

    @property
    def selects(self) -> bool:
        """Where no sub-network is given."""
        return self._given == [None] * len(PARTS)

    def shortened(self) -> Self:
        """One epoch of the supernet and the smallest search; what it finds means nothing."""
        return replace(self, supernet_epochs=1, generations=1, population=2, parents=1)

    def check(self, backbone: Backbone) -> None:
        """As every method; given or searched widths must fit the blocks there are."""
        super().check(backbone)
        blocks = len(backbone.blocks)
        for part, given in zip(PARTS, self._given, strict=True):
            if given is not None and len(given) not in (1, blocks):
                raise UnsupportedBackboneError(
                    f"method.{part} lists {len(given)} widths: the backbone has {blocks} blocks"
                )
        search = self._search(backbone)
        if max(search.depths) > blocks:
            raise UnsupportedBackboneError(
                f"method.depths={search.depths}: the backbone has {blocks} blocks"
            )
        if self.selects and not search.fits(search.smallest):
            least = live_parameters(search.channels, search.smallest)
            raise UnsupportedBackboneError(
                f"method.budget={self.budget}: the smallest sub-network has {least} parameters"
            )

    def _widths(self, backbone: Backbone) -> Widths:
        blocks = len(backbone.blocks)
        given = ([0] if widths is None else widths for widths in self._given)
        return tuple(tuple(w * blocks if len(w) == 1 else w) for w in given)

    def _build(self, backbone: Backbone, widths: Widths) -> Subnetwork:
        return Subnetwork(backbone, widths, self.init, self.dropout, self.stale_prompts)

    def place(self, backbone: Backbone) -> None:
        """The given sub-network."""
        self._build(backbone, self._widths(backbone))

    def _search(self, backbone: Backbone) -> Search:
        return Search(self, backbone.blocks[0].width, len(backbone.blocks))

    def select(self, backbone: Backbone, data: SelectionData) -> Selection:
        """The winning widths of each part."""
        search = self._search(backbone)
        found = search_widths(backbone, data, search, lambda widths: self._build(backbone, widths))
        device = next(backbone.model.parameters()).device
        tensors = [torch.tensor(part, dtype=torch.int32, device=device) for part in found]
        return dict(zip(PARTS, tensors, strict=True))

    def place_selected(self, backbone: Backbone, selection: Selection) -> None:
        """The sub-network that was found."""
        self._build(backbone, tuple(tuple(selection[part].tolist()) for part in PARTS))

    @property
    def lengths_changed(self) -> frozenset[Length]:
        """Blocks see prompts; those that were searched are known later, and count as there."""
        return frozenset({Length.BLOCK, Length.MAP})

    @property
    def lengths_known(self) -> frozenset[Length]:
        """It takes the prompts out again by their places."""
        return frozenset({Length.BLOCK})

    def parameter_count(self, backbone: Backbone) -> int | None:
        """D p + 4 D l + 2 D a + a + D (where a > 0) per block; None where they are searched."""
        if self.selects:
            return None
        return live_parameters(backbone.blocks[0].width, self._widths(backbone))

    @property
    def identity_at_start(self) -> bool:
        """LoRA alone would be."""
        others = any([*(self.prompt_length or ()), *(self.bottleneck or ())])
        return not self.selects and self.init == "standard" and not others

    def first_changed_block(self, backbone: Backbone) -> int:
        """The first with any part; in what is searched, that is the very first."""
        if self.selects:
            return 0
        blocks = zip(*self._widths(backbone), strict=True)
        return next((i for i, widths in enumerate(blocks) if any(widths)), len(backbone.blocks))

    @property
    def changes_embedding(self) -> bool:
        """Prompts enter the first block together with the embedding."""
        return self.selects or bool(self.prompt_length and self.prompt_length[0])
