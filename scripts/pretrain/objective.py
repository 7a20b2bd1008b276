"""What is learned of a picture: heads on patch tokens and on the pooled token, and their losses."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from pretrain.rendering import Batch
from pretrain.vocabulary import MAX_OBJECTS, NUM_HUES, NUM_PHASES, NUM_SHAPES, TEMPLATE, TEXTURES
from vpeft_bench.backbones.demo_vit import vpeft_demo_vit

# Width of every head's output.
HEADS: dict[str, int] = {
    "foreground": 1,
    "shape": NUM_SHAPES,
    "phase": NUM_PHASES,
    "hue": NUM_HUES + 1,
    "background_hue": NUM_HUES + 1,
    "texture": len(TEXTURES),
    "background_texture": len(TEXTURES),
    "count": MAX_OBJECTS + 1,
    "size": 1,
    "offset": 2,
    "position": 2,
    "outline": TEMPLATE**2,
}
REGRESSIONS = ("size", "offset", "position")
PATCH_HEADS = ("foreground", "shape", "phase", "hue", "texture", "size", "offset", "outline")
IMAGE_HEADS = (
    "count",
    "shape",
    "phase",
    "hue",
    "background_hue",
    "texture",
    "background_texture",
    "size",
    "position",
    "outline",
)
IMAGE_WEIGHT = 0.25
# Squared errors start well below the cross-entropies; this puts their gradients on a par.
REGRESSION_WEIGHT = 2.0
# The outline leads the way out of the plateau on which shape and orientation start: unlike these
# it varies smoothly with what each patch sees of the contour.
OUTLINE_WEIGHT = 4.0


@torch.no_grad()
def initialise_attention(trunk: VisionTransformer) -> None:
    """Start attention near the identity, as it tends to become in trained transformers.

    With a sine-cosine position embedding, queries and keys whose product is close to the identity
    attend to the neighbourhood, which small vision transformers are slow to find out on their own
    (Trockman & Kolter, "Mimetic Initialization of Self-Attention Layers", 2023).
    """
    width = trunk.embed_dim
    identity = torch.eye(width)

    def noise() -> Tensor:
        return torch.randn(width, width) / math.sqrt(width)

    for attention in trunk.modules():
        if not isinstance(attention, Attention):
            continue
        head_width = attention.head_dim
        query, key, value = attention.qkv.weight.chunk(3)
        for head in range(attention.num_heads):
            rows = slice(head * head_width, (head + 1) * head_width)
            left, scale, right = torch.linalg.svd(0.7 * noise() + 0.7 * identity)
            root = scale[:head_width].sqrt()
            query[rows] = root[:, None] * left[:, :head_width].T
            key[rows] = root[:, None] * right[:head_width]
        left, scale, right = torch.linalg.svd(0.4 * noise() - 0.4 * identity)
        value.copy_(scale.sqrt()[:, None] * right)
        attention.proj.weight.copy_(left * scale.sqrt())


class Pretrainer(nn.Module):
    """The backbone with one linear readout for patches and one for the pooled token."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = vpeft_demo_vit()
        initialise_attention(self.trunk)
        width = self.trunk.num_features
        self.patch_heads = nn.Linear(width, sum(HEADS[name] for name in PATCH_HEADS))
        self.image_heads = nn.Linear(width, sum(HEADS[name] for name in IMAGE_HEADS))

    def forward(self, images: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the predictions of every head for patches and for images."""
        tokens = self.trunk.forward_features((images - 0.5) / 0.5)
        patch = self.patch_heads(tokens).split([HEADS[name] for name in PATCH_HEADS], dim=-1)
        image = self.image_heads(tokens.mean(dim=1)).split(
            [HEADS[name] for name in IMAGE_HEADS], dim=-1
        )
        return (
            dict(zip(PATCH_HEADS, patch, strict=True)),
            dict(zip(IMAGE_HEADS, image, strict=True)),
        )


def head_loss(name: str, prediction: Tensor, target: Tensor) -> Tensor:
    """Return the loss of one head over the patches or images to which it applies."""
    prediction = prediction.flatten(0, -2)
    if name == "foreground":
        return F.binary_cross_entropy_with_logits(prediction[:, 0], target.flatten())
    if name in REGRESSIONS or name == "outline":
        target = target.reshape(prediction.shape)
        applies = ~target.isnan().any(dim=1)
        if not applies.any():
            return prediction.sum() * 0
        if name == "outline":
            loss = F.binary_cross_entropy_with_logits(prediction[applies], target[applies])
            return OUTLINE_WEIGHT * loss
        return REGRESSION_WEIGHT * F.smooth_l1_loss(prediction[applies], target[applies], beta=0.1)
    target = target.flatten()
    applies = target >= 0
    if not applies.any():
        return prediction.sum() * 0
    if name == "phase":
        # The angle is shared between the two nearest bins, so that neighbours count as near.
        log_probability = prediction[applies].log_softmax(dim=-1)
        position = target[applies] * NUM_PHASES
        low = position.floor()
        share = position - low
        low_bin = low.long() % NUM_PHASES
        below = log_probability.gather(1, low_bin[:, None])[:, 0]
        above = log_probability.gather(1, ((low_bin + 1) % NUM_PHASES)[:, None])[:, 0]
        return -((1 - share) * below + share * above).mean()
    return F.cross_entropy(prediction[applies], target[applies])


def head_score(name: str, prediction: Tensor, target: Tensor) -> float:
    """Return the accuracy of one head, or for regressions the mean absolute error."""
    prediction = prediction.flatten(0, -2)
    if name == "foreground":
        return float(((prediction[:, 0] > 0) == target.flatten().bool()).float().mean())
    if name in REGRESSIONS:
        return float((prediction - target.reshape(prediction.shape)).abs().nanmean())
    if name == "outline":
        target = target.reshape(prediction.shape)
        agrees = (prediction > 0) == (target > 0.5)
        return float(agrees[~target.isnan()].float().mean())
    target = target.flatten()
    applies = target >= 0
    target = target[applies]
    if name == "phase":
        target = (target * NUM_PHASES).round().long() % NUM_PHASES
    return float((prediction[applies].argmax(dim=1) == target).float().mean())


def losses(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Return the loss of every head; names start with ``patch_`` or ``image_``."""
    patch, image = model(batch.images)
    result = {f"patch_{n}": head_loss(n, patch[n], batch.patch[n]) for n in PATCH_HEADS}
    result |= {f"image_{n}": head_loss(n, image[n], batch.image[n]) for n in IMAGE_HEADS}
    return result


def total_loss(by_head: Mapping[str, Tensor]) -> Tensor:
    """Add up the heads, those of the pooled token at their lower weight."""
    patch = [value for name, value in by_head.items() if name.startswith("patch_")]
    image = [value for name, value in by_head.items() if name.startswith("image_")]
    return torch.stack(patch).sum() + IMAGE_WEIGHT * torch.stack(image).sum()


@torch.no_grad()
def evaluate(model: nn.Module, batches: list[Batch]) -> dict[str, float]:
    """Score every head on held-out scenes, averaged over the batches."""
    scores: dict[str, float] = {}
    for batch in batches:
        patch, image = model(batch.images)
        for name in PATCH_HEADS:
            score = head_score(name, patch[name], batch.patch[name])
            scores[f"score_patch_{name}"] = scores.get(f"score_patch_{name}", 0.0) + score
        for name in IMAGE_HEADS:
            score = head_score(name, image[name], batch.image[name])
            scores[f"score_image_{name}"] = scores.get(f"score_image_{name}", 0.0) + score
    return {name: score / len(batches) for name, score in scores.items()}
