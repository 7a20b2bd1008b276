"""Distilled DeiT: a ViT with a distillation token and a second head, timm's own class for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from timm.models.deit import VisionTransformerDistilled
from torch import Tensor

from vpeft_bench.backbones.block_map import OpenedClasses
from vpeft_bench.backbones.one_stage import OpenedOneStage
from vpeft_bench.backbones.vit import OpenedViTAttention, OpenedViTBlock, ViT


class OpenedDistilled(OpenedOneStage, VisionTransformerDistilled):  # type: ignore[misc]  # no mask
    """timm's distilled DeiT with something placed around its trunk."""

    def embed(self, images: Tensor) -> Tensor:
        """Class and distillation token, patches and positions, ``(B, N, D)``."""
        x = self._pos_embed(self.patch_embed(images))
        return cast(Tensor, self.norm_pre(self.patch_drop(x)))

    def pooled(self, stream: Tensor) -> Tensor:
        """Class and distillation token after the final norm, ``(B, 2, D)``."""
        return cast(Tensor, self.norm(stream)[:, :2])

    def classify(self, features: Tensor) -> Any:
        """The mean of both heads' logits; both where timm is told to train by distillation.

        Features ``(B, D)`` that a side network gives are read by both heads.
        """
        two = features.unbind(1) if features.ndim == 3 else (features, features)
        x, x_dist = (self.head_drop(token) for token in two)
        logits, of_distillation = self.head(x), self.head_dist(x_dist)
        if self.distilled_training and self.training:
            return logits, of_distillation
        return (logits + of_distillation) / 2


class DistilledDeiT(ViT):
    """DeiT with distillation."""

    name = "deit"
    title = "distilled DeiT"
    models = (VisionTransformerDistilled,)
    modules = ("deit",)
    shown = None
    small = None
    opened = OpenedClasses(OpenedDistilled, OpenedViTBlock, OpenedViTAttention)

    def to_timm(self, state: Mapping[str, Tensor], model: Any, **options: Any) -> Mapping[str, Any]:
        """As a ViT's; LayerScale of DeiT III under another name."""
        return super().to_timm(state, model, adapt_layer_scale=True, **options)


FAMILY = DistilledDeiT()
