"""Visual Prompt Tuning: learned tokens beside the image's own, shallow or deep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor, nn

from vpeft_bench.backbones.block_map import Backbone, Block
from vpeft_bench.backbones.further_tokens import TokenPlace
from vpeft_bench.errors import UnsupportedBackboneError
from vpeft_bench.methods.base import Category, Length, Method, option
from vpeft_bench.methods.registry import register
from vpeft_bench.traits import Trait

ON_MAPS = (
    "On Swin prompts go the way of KMnP/vpt: they stand in each window, shifted or not, without "
    "position bias and mask, and their outputs are averaged over the windows; patch merging merges "
    "each with three copies of itself. All start in the range of the first stage.",
    "On Swin a projection has no effect in KMnP/vpt; here it is refused where prompts of several "
    "widths would share it.",
)
"""Deviations that all of VPT's forms have on backbones whose stream is a map."""


class InsertPrompts(nn.Module):
    """[x_prefix; E] -> [x_prefix; dropout(P); E], or wherever ``place`` puts them in the stream."""

    def __init__(
        self, prompts: Tensor, place: TokenPlace, projection: nn.Linear | None, dropout: float
    ) -> None:
        super().__init__()
        self.prompts = nn.Parameter(prompts)
        self.projection = projection
        self.dropout = nn.Dropout(dropout)
        self.place = place

    def forward(self, x: Tensor) -> Tensor:
        """The stream, ``(B, N, D)`` or ``(B, H, W, D)``, to the stream with p tokens more."""
        prompts = self.prompts if self.projection is None else self.projection(self.prompts)
        if self.training and self.dropout.p > 0:
            # Expanded first: every picture drops prompt values of its own, as in KMnP/vpt.
            prompts = self.dropout(prompts.expand(x.shape[0], -1, -1))
        prompts = self.inserted(prompts).expand(x.shape[0], -1, -1).to(x.dtype)
        return self.place.put(x, prompts)

    def inserted(self, prompts: Tensor) -> Tensor:
        """The tokens that are inserted for ``prompts`` ``(1 or B, p, D)``: in VPT, these very."""
        return prompts


class RemovePrompts(nn.Module):
    """The inverse of :class:`InsertPrompts`."""

    def __init__(self, place: TokenPlace, length: int) -> None:
        super().__init__()
        self.place, self.length = place, length

    def forward(self, x: Tensor) -> Tensor:
        """The stream with p tokens more to the stream."""
        return self.place.split(x, self.length)[1]


@dataclass
class VPT(Method):
    """What both depths share: where prompts stand, how they start, the optional projection."""

    title = "Visual Prompt Tuning"
    arxiv = "2203.12119"
    category = Category.ADDITION
    needs = {
        Trait.FURTHER_TOKENS: (
            "VPT's code gives a prompt the position bias zero, which is neutral only where biases "
            "may have either sign; for other backbones it says none"
        ),
    }
    not_mergeable = "prompts are tokens, not weights"

    prompt_length: int = option(10, "p, prompts per insertion", minimum=1)
    dropout: float = option(0.0, "dropout on the prompts (VPT's code: 0)", minimum=0.0, maximum=1.0)
    projection_width: int | None = option(
        None, "learn prompts of this width, brought to D by one shared linear", minimum=1
    )
    init: str = option(
        "vpt",
        "uniform; bound from patch area and width (vpt) or width alone (vpb)",
        choices=("vpt", "vpb"),
    )

    @property
    def shallow(self) -> bool:
        """Whether there are prompts in the first block only, which stay in the stream."""
        return False

    @property
    def lengths_changed(self) -> frozenset[Length]:
        """Blocks see prompts, and where they are shallow they stay in the stream."""
        return frozenset({Length.BLOCK, Length.MAP, *([Length.STREAM] if self.shallow else [])})

    @property
    def lengths_known(self) -> frozenset[Length]:
        """Prompts stand, and are taken out again, at fixed places."""
        return frozenset({Length.BLOCK})

    @property
    def identity_at_start(self) -> bool:
        """Prompts are attended to from the first step."""
        return False

    def _width(self, block: Block) -> int:
        return self.projection_width or block.width

    def _new_prompts(self, backbone: Backbone, block: Block) -> Tensor:
        """(1, p, d) uniform in +-sqrt(6 / (3 * patch area + d)), or +-sqrt(6 / d) for ``vpb``.

        The bound of the first block holds for all.
        """
        first = self._width(backbone.blocks[0])
        height, breadth = backbone.patch_leaves[0].kernel_size  # type: ignore[misc]
        fan = first if self.init == "vpb" else 3 * height * breadth + first  # type: ignore[operator]
        bound = sqrt(6.0 / fan)
        return torch.empty(1, self.prompt_length, self._width(block)).uniform_(-bound, bound)

    def _new_projection(self, backbone: Backbone) -> nn.Linear | None:
        if self.projection_width is None:
            return None
        projection = nn.Linear(self.projection_width, backbone.blocks[0].width)
        nn.init.kaiming_normal_(projection.weight, a=0, mode="fan_out")
        return projection

    def _insertion(
        self, prompts: Tensor, place: TokenPlace, projection: nn.Linear | None
    ) -> nn.Module:
        return InsertPrompts(prompts, place, projection, self.dropout)

    def _check_shallow(self, backbone: Backbone) -> None:
        if getattr(backbone.model, "pool_include_prefix", False):
            raise UnsupportedBackboneError(
                f"method {self.name} does not support pool_include_prefix=True: the prompts would "
                "be pooled with the image's own tokens"
            )
        learned = getattr(backbone.model, "pos_embed", None) is not None
        if learned and getattr(backbone.model, "dynamic_img_size", False):
            raise UnsupportedBackboneError(
                f"method {self.name} does not support dynamic_img_size=True: timm would count the "
                "prompts as position-embedded tokens"
            )

    def _check_deep(self, backbone: Backbone) -> None:
        if self.projection_width and Trait.ONE_RESOLUTION not in backbone.family.traits:
            raise UnsupportedBackboneError(
                f"method {self.name} does not support projection_width on {backbone.family.name} "
                "backbones: one linear for all blocks needs blocks of one width "
                "(projection_width=null)"
            )

    def _place_shallow(self, backbone: Backbone) -> None:
        first = backbone.blocks[0]
        place = backbone.family.token_place(backbone.prefix_tokens)
        prompts, projection = self._new_prompts(backbone, first), self._new_projection(backbone)
        first.place("stream_in", self._insertion(prompts, place, projection))
        backbone.expect_tokens(self.prompt_length)

    def _place_deep(self, backbone: Backbone, at: int | None) -> None:
        projection = self._new_projection(backbone)
        place = backbone.family.token_place(at)
        for block in backbone.blocks:
            insert = self._insertion(self._new_prompts(backbone, block), place, projection)
            block.place("stream_in", insert)
            block.place("stream_out", RemovePrompts(place, self.prompt_length))
            backbone.expect_tokens(self.prompt_length, block)

    def _count(self, backbone: Backbone, blocks: Sequence[Block]) -> int:
        width = self.projection_width
        projection = 0 if width is None else backbone.blocks[0].width * (width + 1)
        return sum(self.prompt_length * self._width(block) for block in blocks) + projection


@register
@dataclass
class VPTShallow(VPT):
    """X_0 = [x_cls; P; E]; the prompts travel through all blocks like register tokens.

    With average pooling the prompts are left out of the mean, and so they are of feature maps.
    """

    name = "vpt_shallow"
    source = "equations 4 to 6"
    idea = (
        "Learned tokens enter the first block after the class token and travel through all "
        "blocks with the image's own. The backbone stays frozen."
    )
    deviations = (
        "V-PETL Bench draws the prompts from a range sqrt(2) wider on ViT-B/16, because its "
        "bound leaves the patch area out: init=vpb.",
        "KMnP/vpt keeps the frozen encoder in eval mode while the prompts train; V-PETL Bench "
        "trains with drop-path 0.1. Here that is a setting of the backbone.",
        "The published VTAB-1k row (0.08M) is prompt_length=100; the FGVC row (0.25M) is a "
        "length searched per data set (mean 90) with the mean head.",
        *ON_MAPS,
        "On Swin KMnP/vpt lays out prompts and windows in different orders, so that from the "
        "second block on the prompts of one picture meet the windows of another; here each picture "
        "has its own, which is what that code gives for one picture at a time.",
    )

    prompt_length: int = option(
        100, "p (V-PETL Bench: 100)", minimum=1, search=(5, 10, 50, 100, 200)
    )

    @property
    def shallow(self) -> bool:
        """They do."""
        return True

    def check(self, backbone: Backbone) -> None:
        """As every method; and timm must be able to take prompts for prefix tokens."""
        super().check(backbone)
        self._check_shallow(backbone)

    def place(self, backbone: Backbone) -> None:
        """Prompts enter the first block and count as prefix tokens from there on."""
        self._place_shallow(backbone)

    def parameter_count(self, backbone: Backbone) -> int:
        """pD: 76,800 for ViT-B/16 at p = 100; of the first stage in a Swin."""
        return self._count(backbone, backbone.blocks[:1])


@register
@dataclass
class VPTDeep(VPT):
    """[x_i, _, E_i] = L_i([x_{i-1}, P_{i-1}, E_{i-1}]): fresh prompts for every block.

    Each block's prompts are dropped after it, which is the same as replacing them before the next,
    and leaves every block's output with the image's own tokens only.
    """

    name = "vpt_deep"
    source = "equation 8"
    idea = (
        "Every block gets learned tokens of its own, which its attention reads beside the "
        "image's tokens and which are dropped after it. The backbone stays frozen."
    )
    deviations = (
        "The length is searched per task in the published rows: on VTAB-1k its mean is 60.9 "
        "(0.56M), on FGVC 73, with the mean head (0.85M). 10 is the default here and no "
        "published row.",
        "V-PETL Bench contains no VPT-Deep; its row equals the numbers of earlier papers.",
        "position=append puts the prompts after the patches, as modelscope does; in a ViT that "
        "gives the same class token.",
        *ON_MAPS,
        "On Swin the dropout of KMnP/vpt drops the same values of deep prompts for a whole batch; "
        "here each picture has its own.",
    )

    prompt_length: int = option(
        10,
        "p per block; published rows search it per task (VTAB mean 61), 10 is ours",
        minimum=1,
        search=(5, 10, 50, 100),
    )
    position: str = option(
        "prepend",
        "prepend: after the class token; append: at the end",
        choices=("prepend", "append"),
    )

    def check(self, backbone: Backbone) -> None:
        """As every method; and after the patches only where attention knows no positions."""
        super().check(backbone)
        self._check_deep(backbone)
        if self.position == "append" and Trait.FREE_TOKENS not in backbone.family.traits:
            raise UnsupportedBackboneError(
                f"method {self.name} does not support position=append on {backbone.family.name} "
                "backbones: attention knows positions there, and would take tokens at the end for "
                "patches (position=prepend)"
            )

    def place(self, backbone: Backbone) -> None:
        """Prompts enter and leave every block."""
        self._place_deep(backbone, backbone.prefix_tokens if self.position == "prepend" else None)

    def parameter_count(self, backbone: Backbone) -> int:
        """The sum of pD over all blocks: 92,160 for ViT-B/16 at p = 10."""
        return self._count(backbone, backbone.blocks)
