"""Feature maps of a backbone for dense heads, with whatever method is attached to it."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from vpeft_bench.backbones.block_map import Backbone


class StageFeatures(nn.Module):
    """Images to feature maps: one for each stage of the backbone.

    The last map passes the backbone's own final norm, which a method may train or change as it does
    before a classifier; the others are the residual stream as it leaves its stage, before
    patch merging. All of them are what timm's ``forward_intermediates`` gives.

    Where a map is no multiple of Swin's window, timm shifts it cyclically and then pads it, while
    the original code pads it and then shifts: in timm's order the window mask does not part the
    rows and columns that were carried around the edge from those they meet there, so that shifted
    blocks give other numbers. With images padded to a multiple of the window times 32
    (``input.size_divisor=224`` for a window of 7) there is nothing to pad in any stage, and the
    two orders are one.

    Args:
        backbone: the block map of the timm model that is run; a method may be attached to the model
            before or after, and merged or detached.

    Attributes:
        model: the timm model.
        widths: channels of each map.
        strides: pixels of the image per place of the map.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.model = backbone.model
        # By name: a method may put another module in the place of the norm.
        self._final_norm = backbone.path(backbone.final_norm)
        stages = backbone.family.levels(self.model)
        self.widths = tuple(int(stage["num_chs"]) for stage in stages)
        self.strides = tuple(int(stage["reduction"]) for stage in stages)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images ``(B, 3, H, W)`` to maps ``(B, width, H / stride, W / stride)``.

        Some backbones take any size (a Swin built with ``strict_img_size=False``), others the
        square that they were built for.
        """
        model = cast(Any, self.model)
        maps: list[Tensor] = model.forward_intermediates(
            images, indices=len(self.widths), intermediates_only=True
        )
        norm = self.model.get_submodule(self._final_norm)
        last: Tensor = norm(maps[-1].permute(0, 2, 3, 1))
        return [*maps[:-1], last.permute(0, 3, 1, 2)]
