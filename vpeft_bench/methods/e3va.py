"""E3VA: a highway of adapters beside the frozen trunk, fed by what its branches put out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from vpeft_bench.backbones.block_map import Backbone
from vpeft_bench.backbones.trunk import OpenedModel, SideNetwork, TrunkOutput
from vpeft_bench.methods.base import Category, Length, Method, option
from vpeft_bench.methods.parts.multi_branch import MultiBranchBottleneck, bottleneck_count
from vpeft_bench.methods.registry import register


class Highway(SideNetwork):
    """y <- y + a_i + A_i(a_i) + m_i + M_i(m_i) for every block i; y starts as the tokens.

    a_i and m_i are what attention and MLP of the frozen block i add to the frozen stream; between
    stages y goes through the frozen patch merging. Without the adapters A and M, y is that stream.
    """

    def __init__(self, adapters: Iterable[tuple[MultiBranchBottleneck, ...]]) -> None:
        attn, mlp = zip(*adapters, strict=True)
        super().__init__(
            ["tokens.0", *(f"{branch}.{i}" for i in range(len(attn)) for branch in ("attn", "mlp"))]
        )
        self.attn = nn.ModuleList(attn)
        self.mlp = nn.ModuleList(mlp)

    def side(self, features: dict[str, Tensor], model: OpenedModel) -> TrunkOutput:
        """The highway after every block, in place of the frozen stream."""
        y, streams = features["tokens.0"], []
        for index, (merge, _) in enumerate(model.steps()):
            attn, mlp = features[f"attn.{index}"], features[f"mlp.{index}"]
            y = merge(y) if index else y
            y = y + attn + self.attn[index](attn)
            y = y + mlp + self.mlp[index](mlp)
            streams.append(y)
        return TrunkOutput(streams)


@register
@dataclass
class E3VA(Method):
    """A residual stream of its own, made of the frozen branches and the adapters that read them.

    Its count leaves out the norms after the stages, as the published one does: dense decoders
    have and train them as their own. A classifier reads the highway through the backbone's final
    norm, which ``train_norm=true`` trains.
    """

    name = "e3va"
    title = (
        "Parameter-efficient is not sufficient: Exploring Parameter, Memory, and Time Efficient "
        "Adapter Tuning for Dense Predictions"
    )
    arxiv = "2306.09729"
    source = "figure 2; there is no public code"
    category = Category.ADDITION
    idea = (
        "Low-rank adapters read what attention and MLP of every frozen block put out and add up "
        "beside the backbone, on a highway with the backbone's own down-sampling. Gradients run "
        "along the highway only, so that nothing of the backbone is kept for the backward pass."
    )
    deviations = (
        "The wiring is reconstructed from the paper's figure and its counts, 1,197,312 for Swin-B "
        "and 1,792,896 for Swin-L: LoRand's projections with 2 branches, kernels of 8 shared by "
        "down and up, half the width, biases, no norms; no result of the authors checks it.",
        "What the highway carries between stages is not stated: here the sum of frozen stream and "
        "adapters goes through the patch merging, so that without adapters it stays the backbone.",
        "The paper trains a norm after every stage; those belong to the decoder here, and the "
        "final norm before a classifier is frozen unless train_norm=true.",
        "It does not start as the backbone: all factors start random, as LoRand's.",
    )
    not_mergeable = "the adapters are a network beside the backbone"

    branches: int = option(2, "terms of each projection's sum (fits the counts)", minimum=1)
    kernel_dim: int = option(8, "size of the kernels (fits the counts)", minimum=1)
    bottleneck: int | None = option(
        None, "hidden width; null: half the block's (fits the counts)", minimum=1
    )
    share_kernel: bool = option(True, "one set of kernels for down and up (fits the counts)")
    train_norm: bool = option(False, "train the final norm, which a classifier reads (ours: no)")

    def place(self, backbone: Backbone) -> None:
        """One highway around the trunk, with two adapters per block."""
        backbone.place_around(
            Highway(
                tuple(MultiBranchBottleneck(*self._sizes(block.width)) for _ in ("attn", "mlp"))
                for block in backbone.blocks
            )
        )

    def unfrozen(self, backbone: Backbone) -> Iterable[nn.Parameter]:
        """The final norm, where it is asked for."""
        return backbone.final_norm.parameters() if self.train_norm else ()

    def _sizes(self, width: int) -> tuple[int, int, int, int, bool]:
        hidden = self.bottleneck or width // 2
        return width, hidden, self.branches, self.kernel_dim, self.share_kernel

    @property
    def lengths_known(self) -> frozenset[Length]:
        """It reads what both branches of a block add to the tokens of the picture."""
        return frozenset({Length.BLOCK})

    def parameter_count(self, backbone: Backbone) -> int:
        """99D + 256 per block: 1,197,312 for Swin-B and 915,456 for ViT-B/16."""
        norm = sum(p.numel() for p in self.unfrozen(backbone))
        return norm + 2 * sum(bottleneck_count(*self._sizes(b.width)) for b in backbone.blocks)

    @property
    def identity_at_start(self) -> bool:
        """The adapters start random."""
        return False

    def first_changed_block(self, backbone: Backbone) -> int:
        """None: the whole trunk is frozen."""
        return len(backbone.blocks)

    def reads(self, backbone: Backbone) -> tuple[str, ...]:
        """The tokens, and what every branch adds to them."""
        branches = (f"{kind}.{b.index}" for b in backbone.blocks for kind in ("attn", "mlp"))
        return ("tokens.0", *branches)
