"""HST: meta tokens and trained norms in the backbone, a pyramid of side blocks beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from vpeft_bench.backbones.block_map import Backbone, Block
from vpeft_bench.errors import MethodOptionError, Problem, UnsupportedBackboneError
from vpeft_bench.methods.base import Category, Length, Method, option
from vpeft_bench.methods.parts.pyramid_side import MetaTokens, PyramidSide
from vpeft_bench.methods.parts.spatial import require_grid
from vpeft_bench.methods.registry import register
from vpeft_bench.traits import Trait


@register
@dataclass
class HST(Method):
    """The mean of a side pyramid is classified, fed with meta tokens and patches of every block.

    The head is replaced by one of the last stage's width. In training, a batch needs two pictures
    at least: the features pass a BatchNorm.
    """

    name = "hst"
    title = "Hierarchical Side-Tuning for Vision Transformers"
    arxiv = "2310.05393"
    source = "meta tokens, bridge and side network as in the authors' vit_hsn.py"
    category = Category.SIDE
    idea = (
        "Every block gets a fresh meta token and trains its norms; a four-stage pyramid over the "
        "image attends to what the meta tokens and patches found. The head reads the pyramid."
    )
    deviations = (
        "not a pure side network: meta tokens and norms change the backbone's features, and "
        "gradients pass through all of it",
        "the bridge to the side width is applied in front of the bilinear resizing, which gives "
        "the same values at a fraction of the cost",
        "resetting the classifier in the authors' code builds a head of the backbone's width; "
        "here it has the last stage's width, 72",
        "the tables' 0.78M is 764,840 plus the mean FGVC head of width 72, in the VTAB table too",
        "backbones of other depth than 12: the blocks are spread over the stages as evenly as "
        "possible",
    )
    needs = {
        Trait.ONE_RESOLUTION: (
            "its meta tokens and bridges expect one width and one grid of patches"
        ),
        Trait.FREE_TOKENS: "its meta tokens stand first, where attention expects the class token",
    }
    batch_statistics = True
    not_dense = "its pyramid gives one vector per picture, for a classifier"
    not_mergeable = "the side network replaces what the head reads"

    prompt_length: int = option(1, "n, meta tokens per block (authors: 1)", minimum=1)
    channels: list[int] = option([32, 48, 64, 72], "width of every side stage (authors)", minimum=1)
    heads: list[int] = option([2, 4, 8, 12], "heads of every side stage (authors)", minimum=1)

    def check(self, backbone: Backbone) -> None:
        """As every method; stages must have heads that fit, and blocks to read."""
        super().check(backbone)
        require_grid(self.name, backbone)
        if len(self.heads) != len(self.channels):
            what = f"{len(self.heads)} numbers of heads for {len(self.channels)} stages"
            raise MethodOptionError([Problem("method.heads", what, "one for each of channels")])
        for width, heads in zip(self.channels, self.heads, strict=True):
            if width % heads:
                what = f"{width} channels do not split into {heads} heads"
                fix = f"nearest: {max(1, round(width / heads)) * heads} channels"
                raise MethodOptionError([Problem("method.channels", what, fix)])
        if len(backbone.blocks) < len(self.channels):
            raise UnsupportedBackboneError(
                f"method.channels: {len(self.channels)} stages need as many blocks, the backbone "
                f"has {len(backbone.blocks)}"
            )

    def _groups(self, backbone: Backbone) -> list[list[Block]]:
        """The blocks that each stage reads: three for each of four stages in a ViT-B."""
        blocks, stages = backbone.blocks, len(self.channels)
        return [
            [block for block in blocks if block.index * stages // len(blocks) == stage]
            for stage in range(stages)
        ]

    def place(self, backbone: Backbone) -> None:
        """Meta tokens in front of every block, the pyramid around the trunk, a head to fit."""
        for block in backbone.blocks:
            block.place("stream_in", MetaTokens(self.prompt_length, block.width))
        groups = self._groups(backbone)
        pyramid = PyramidSide(backbone, self.prompt_length, self.channels, self.heads, groups)
        backbone.place_around(pyramid)
        backbone.replace_head(self.channels[-1])

    def unfrozen(self, backbone: Backbone) -> Iterator[nn.Parameter]:
        """norm1 and norm2 of every block."""
        for block in backbone.blocks:
            for site in ("norm1", "norm2"):
                yield from block.leaf(site).parameters()

    @property
    def lengths_changed(self) -> frozenset[Length]:
        """Meta tokens go with the stream through every block."""
        return frozenset({Length.BLOCK, Length.MAP})

    @property
    def lengths_known(self) -> frozenset[Length]:
        """Its pyramid tells meta tokens and patches apart by their places."""
        return frozenset({Length.BLOCK, Length.STREAM})

    def parameter_count(self, backbone: Backbone) -> int:
        """764,840 for ViT-B/16: 764,840 = 552,656 + 166,104 + 9,216 + 36,864.

        Per side block of width c: 12c^2 + 13c and a norm 2c; per stage: a bridge Dc + c, a norm 2c,
        a convolution and its norm; per block of the backbone: n meta tokens and two norms.
        """
        width, first = backbone.blocks[0].width, self.channels[0]
        stem = 27 * first + 4 * first**2 + 5 * first
        strided = sum(9 * a * b + 3 * b for a, b in pairwise(self.channels))
        stages = sum(
            len(blocks) * (12 * c**2 + 15 * c) + width * c + 3 * c
            for c, blocks in zip(self.channels, self._groups(backbone), strict=True)
        )
        meta = self.prompt_length * width * len(backbone.blocks)
        norms: list[Tensor] = list(self.unfrozen(backbone))
        return stem + strided + stages + meta + sum(p.numel() for p in norms)

    @property
    def identity_at_start(self) -> bool:
        """The head reads another network."""
        return False

    def reads(self, backbone: Backbone) -> tuple[str, ...]:
        """The image, for the pyramid, and the tokens in front of the first block."""
        return ("images", "tokens.0")
