"""HST: meta tokens and trained norms in the backbone, a pyramid of side blocks beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn

from vpeft_bench.backbones.block_map import Backbone, Block
from vpeft_bench.backbones.trunk import OpenedModel, TrunkOutput
from vpeft_bench.errors import MethodOptionError, Problem, UnsupportedBackboneError
from vpeft_bench.methods.base import Category, Length, Method, option
from vpeft_bench.methods.parts.spatial import TokenGrid, require_grid
from vpeft_bench.methods.registry import register
from vpeft_bench.traits import Trait

# ---- the pyramid ---------------------------------------------------------------------------------

BLOCK_EPS = 1e-6  # of a side block's norms, the norm after a stage and the BatchNorm
MLP_RATIO = 4


class MetaTokens(nn.Module):
    """x -> [m; x]: fresh tokens before a block of the backbone."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(1, count, width))
        nn.init.xavier_uniform_(self.tokens)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, N, D)`` to ``(B, n + N, D)``."""
        return torch.cat([self.tokens.expand(x.shape[0], -1, -1).to(x.dtype), x], dim=1)


class ToTokens(nn.Module):
    """A convolution's map ``(B, C, H, W)``, every place of it normed, ``(B, H, W, C)``."""

    def __init__(self, convolution: nn.Module, channels: int) -> None:
        super().__init__()
        self.convolution = convolution
        self.norm = nn.LayerNorm(channels)

    def forward(self, image: Tensor) -> Tensor:
        """``(B, C', H', W')`` to ``(B, H, W, C)``."""
        tokens: Tensor = self.norm(self.convolution(image).permute(0, 2, 3, 1))
        return tokens


class CrossAttention(nn.Module):
    """Multi-head attention of x to other tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, to: Tensor) -> Tensor:
        """x ``(B, N, C)``, to ``(B, K, C)``."""
        q, k, v = (
            tokens.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for tokens in (self.q(x), self.k(to), self.v(to))
        )
        read = nn.functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj(read.transpose(1, 2).flatten(2))
        return out


class SideBlock(nn.Module):
    """x + CrossAttn(LN x, [LN(T g); mean(P)]), + P, + MLP(LN x), with P = T(resized patches).

    g are the meta tokens after a block of the backbone, T is the stage's linear.
    """

    def __init__(self, width: int, heads: int, drop_path: float) -> None:
        super().__init__()
        self.meta_norm = nn.LayerNorm(width)
        self.norm1 = nn.LayerNorm(width, eps=BLOCK_EPS)
        self.attn = CrossAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=BLOCK_EPS)
        self.fc1 = nn.Linear(width, MLP_RATIO * width)
        self.fc2 = nn.Linear(MLP_RATIO * width, width)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, meta: Tensor, patches: Tensor) -> Tensor:
        """x and patches ``(B, N, C)``, meta ``(B, n, C)``, both through T."""
        to = torch.cat([self.meta_norm(meta), patches.mean(dim=1, keepdim=True)], dim=1)
        x = x + self.drop_path(self.attn(self.norm1(x), to)) + patches
        mlp: Tensor = self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))
        out: Tensor = x + self.drop_path(mlp)
        return out


class Stage(nn.Module):
    """One resolution of the pyramid: a strided convolution, side blocks, a norm.

    Args:
        entry: from the map of the stage before (or the image) to this stage's tokens.
        read: the backbone's blocks that it reads; a side block for each, with its drop-path rate.
    """

    def __init__(self, entry: ToTokens, width: int, heads: int, read: Sequence[Block]) -> None:
        super().__init__()
        self.entry = entry
        self.bridge = nn.Linear(read[0].width, width)
        self.blocks = nn.ModuleList(SideBlock(width, heads, block.drop_path) for block in read)
        self.norm = nn.LayerNorm(width, eps=BLOCK_EPS)

    def forward(self, image: Tensor, read: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Map to map ``(B, C, H, W)``; ``read``: meta tokens and patch map of its backbone blocks.

        The bridge is applied before the resizing, to fewer channels: both are linear, and the
        weights of a bilinear resizing add up to one, so the order does not matter.
        """
        tokens = self.entry(image)
        size = tokens.shape[1:3]
        x = tokens.flatten(1, 2)
        for block, (meta, patches) in zip(self.blocks, read, strict=True):
            bridged = self.bridge(patches.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            resized = nn.functional.interpolate(bridged, size, mode="bilinear")
            x = block(x, self.bridge(meta), resized.flatten(2).transpose(1, 2))
        image = self.norm(x).transpose(1, 2).unflatten(2, size)
        return image


class PyramidSide(nn.Module):
    """Around the trunk: the blocks, with their meta tokens, then the pyramid, whose mean is read.

    Args:
        groups: the backbone's blocks that each stage reads.
    """

    def __init__(
        self,
        backbone: Backbone,
        meta_tokens: int,
        channels: Sequence[int],
        heads: Sequence[int],
        groups: Sequence[Sequence[Block]],
    ) -> None:
        super().__init__()
        self.meta_tokens = meta_tokens
        self.grid = TokenGrid.of(backbone)
        first = channels[0]
        stem = nn.Sequential(
            nn.Conv2d(3, first, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(first),
            nn.ReLU(),
            nn.Conv2d(first, first, 2, stride=2),
        )
        strided = [nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(channels)]
        self.stages = nn.ModuleList(
            Stage(ToTokens(entry, width), width, number_of_heads, blocks)
            for entry, width, number_of_heads, blocks in zip(
                [stem, *strided], channels, heads, groups, strict=True
            )
        )
        self.out_norm = nn.BatchNorm1d(channels[-1], eps=BLOCK_EPS, affine=False)
        self.apply(_initialise)

    def forward(self, images: Tensor, x: Tensor, model: OpenedModel) -> TrunkOutput:
        """The streams without meta tokens, and the pyramid's own features."""
        streams, read = [], []
        for _, block in model.steps():
            meta, x = model.run(block, x).tensor_split([self.meta_tokens], dim=1)
            streams.append(x)
            read.append((meta, self.grid.split(x)[1]))
        image = images
        for stage in self.stages:
            here, read = read[: len(stage.blocks)], read[len(stage.blocks) :]  # type: ignore[arg-type]
            image = stage(image, here)
        return TrunkOutput(streams, self.out_norm(image.mean(dim=(2, 3))))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)


# ---- the method ----------------------------------------------------------------------------------


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
        "the bridge to the side width is applied before the bilinear resizing, which gives "
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
        """Meta tokens before every block, the pyramid around the trunk, a head to fit."""
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
        """The image, for the pyramid, and the tokens before the first block."""
        return ("images", "tokens.0")
