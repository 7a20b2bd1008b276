"""Swin Transformers (version 1): timm's ``SwinTransformer``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from timm.models.swin_transformer import (
    PatchMerging,
    SwinTransformer,
    SwinTransformerBlock,
    WindowAttention,
    checkpoint_filter_fn,
    window_partition,
    window_reverse,
)
from torch import Tensor, nn

from vpeft_bench.backbones.block_map import Backbone, Block, OpenedClasses
from vpeft_bench.backbones.further_tokens import AboveMap
from vpeft_bench.backbones.sites import OpenedAttention, OpenedBlock
from vpeft_bench.backbones.windowed import OpenedWindowed, Windowed
from vpeft_bench.traits import Trait

PLACE = AboveMap()
"""Where further tokens stand. Their way through the network is that of VPT's code (KMnP/vpt)."""


class OpenedSwinBlock(OpenedBlock, SwinTransformerBlock):
    """timm's Swin block with its places open; window shift, mask and padding stay timm's.

    All of it runs on the map ``(B, H, W, D)``; timm flattens it for the MLP, to the same result.

    Attributes:
        further_tokens: how many stand in the stream, in rows above the map.
    """

    further_tokens = 0

    def attn_branch(self, normed: Tensor) -> Tensor:
        """Attention within shifted windows, ``(B, H, W, D)``."""
        if self.further_tokens == 0:
            return cast(Tensor, self._attn(normed))
        return PLACE.put(*self._attn_beside(*PLACE.split(normed, self.further_tokens)))

    def _attn_beside(self, tokens: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """As timm's ``_attn``, with the further tokens of a picture in each of its windows.

        Args:
            tokens: ``(B, p, D)``; they are neither shifted nor masked.
            x: the map, ``(B, H, W, D)``.

        Returns:
            The map, and the tokens: the mean of what the windows make of them.
        """
        block: Any = self
        (_, height, width, _), (shift_y, shift_x) = x.shape, block.shift_size
        window_height, window_width = block.window_size
        x = torch.roll(x, (-shift_y, -shift_x), (1, 2))
        x = nn.functional.pad(x, (0, 0, 0, -width % window_width, 0, -height % window_height))
        windows = window_partition(x, block.window_size).flatten(1, 2)
        mask = block.get_attn_mask(x) if block.dynamic_mask else block.attn_mask
        padded_height, padded_width = x.shape[1:3]
        per_picture = (padded_height // window_height) * (padded_width // window_width)
        in_each = tokens[:, None].expand(-1, per_picture, -1, -1).flatten(0, 1)
        attended = block.attn(torch.cat([in_each, windows], dim=1), mask=mask)
        count = tokens.shape[1]
        tokens = attended[:, :count].unflatten(0, (-1, per_picture)).mean(1)
        windows = attended[:, count:].unflatten(1, block.window_size)
        x = window_reverse(windows, block.window_size, padded_height, padded_width)
        return torch.roll(x[:, :height, :width], (shift_y, shift_x), (1, 2)), tokens

    def mlp_branch(self, normed: Tensor) -> Tensor:
        """MLP, ``(B, H, W, D)``."""
        return cast(Tensor, self.mlp(normed))


class OpenedWindowAttention(OpenedAttention, WindowAttention):
    """timm's window attention with q, k, v within reach."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Windows ``(B * windows, N, D)``; ``mask`` ``(windows, N, N)`` is added to the scores.

        Further tokens stand before those of the window, without position bias and mask.
        """
        batch, tokens, _ = x.shape
        q, k, v = self.split_heads(self.qkv(x), 3)
        biases = [self._get_rel_pos_bias()]
        if mask is not None:
            biases.append(mask[:, None].repeat(batch // len(mask), 1, 1, 1))
        if further := tokens - self.window_area:
            biases = [nn.functional.pad(bias, (further, 0, further, 0)) for bias in biases]
        out = self.attend(q, k, v, biases)
        out = out.transpose(1, 2).reshape(batch, tokens, -1)
        return cast(Tensor, self.proj_drop(self.proj(out)))


class OpenedPatchMerging(PatchMerging):
    """timm's patch merging with further tokens: each is merged with three copies of itself."""

    SLOTS: ClassVar[tuple[str, ...]] = ()
    further_tokens = 0

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, D)`` to ``(B, H / 2, W / 2, 2D)``, with the rows of tokens above both."""
        if self.further_tokens == 0:
            return super().forward(x)
        tokens, x = PLACE.split(x, self.further_tokens)
        return PLACE.put(super().forward(x), self.reduction(self.norm(tokens.repeat(1, 1, 4))))


class OpenedSwin(OpenedWindowed, SwinTransformer):  # type: ignore[misc]  # takes no mask
    """timm's Swin with something placed around its trunk, or further tokens in its stream."""

    further_tokens = 0

    @property
    def runs_blocks(self) -> bool:
        """Also where the stream holds more than the map that timm's own takes it for."""
        # Not by super(), which the torch.compile of older versions cannot follow.
        return self.trunk is not None or self.further_tokens > 0

    def of_image(self, stream: Tensor) -> Tensor:
        """The map alone, ``(B, H, W, D)``."""
        return PLACE.split(stream, self.further_tokens)[1]


class Swin(Windowed):
    """Swin Transformers, version 1."""

    name = "swin"
    title = "Swin Transformer"
    models = (SwinTransformer,)
    modules = ("swin_transformer",)
    traits = Windowed.traits | {Trait.FURTHER_TOKENS}
    shown = ("Swin-B", "swin_base_patch4_window7_224")
    small: ClassVar = (
        "swin_tiny_patch4_window7_224",
        {
            "img_size": 32,
            "patch_size": 4,
            "window_size": 4,
            "embed_dim": 128,
            "depths": (2, 2),
            "num_heads": (4, 8),
            "drop_path_rate": 0.0,
        },
    )
    opened = OpenedClasses(OpenedSwin, OpenedSwinBlock, OpenedWindowAttention)

    def token_place(self, at: int | None) -> AboveMap:
        """Above the map, whatever ``at``: within a window their order means nothing."""
        return PLACE

    def count_further_tokens(self, backbone: Backbone, count: int, block: Block | None) -> None:
        """Tell each module that sees them, and open it."""
        told: list[nn.Module] = []
        for one in backbone.blocks if block is None else [block]:
            backbone.open_block(one)
            backbone.open_attention(one)
            told.append(one.module)
        if block is None:
            backbone.open(backbone.model, OpenedSwin)
            told.append(backbone.model)
            for merge in (m for m in backbone.modules() if isinstance(m, PatchMerging)):
                backbone.open(merge, OpenedPatchMerging)
                told.append(merge)
        for module in told:
            module.further_tokens += count  # type: ignore[assignment,operator]  # an int
            if module.further_tokens == 0:
                del module.further_tokens  # its class says so

    def to_timm(self, state: Mapping[str, Tensor], model: Any, **options: Any) -> Mapping[str, Any]:
        """The original checkpoints, and other sizes."""
        return checkpoint_filter_fn(dict(state), model, **options)  # type: ignore[no-any-return]


FAMILY = Swin()
