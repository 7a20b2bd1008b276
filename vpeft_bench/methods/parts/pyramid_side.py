"""HST's side network: a pyramid over the image that attends to what the frozen blocks found."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn

from vpeft_bench.backbones.block_map import Backbone, Block
from vpeft_bench.backbones.trunk import OpenedModel, TrunkOutput
from vpeft_bench.methods.parts.spatial import TokenGrid

BLOCK_EPS = 1e-6  # of a side block's norms, the norm behind a stage and the BatchNorm
MLP_RATIO = 4


class MetaTokens(nn.Module):
    """x -> [m; x]: fresh tokens in front of a block of the backbone."""

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

    g are the meta tokens behind a block of the backbone, T is the stage's linear.
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

        The bridge is applied in front of the resizing, to fewer channels: both are linear, and the
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
