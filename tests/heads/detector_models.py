"""Small backbones and detectors for the tests of the heads."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor

from vpeft_bench.attaching.attachment import Attached, attach
from vpeft_bench.backbones import Backbone, block_map
from vpeft_bench.backbones.features import StageFeatures
from vpeft_bench.backbones.load import load_backbone
from vpeft_bench.config.sections import HeadConfig, InputConfig
from vpeft_bench.heads.detectors import Detector, build_detector

torch.set_num_threads(1)

CLASSES = 3
SQUARE = 64
HALF = (0.5, 0.5, 0.5)
SWIN: dict[str, Any] = {
    "img_size": 64,
    "window_size": 4,
    "embed_dim": 16,
    "depths": (1, 1, 2, 2),
    "num_heads": (1, 2, 4, 8),
    "drop_path_rate": 0.0,
    "strict_img_size": False,
    "always_partition": True,
}


def swin() -> Backbone:
    """Four stages that take pictures of any size."""
    torch.manual_seed(0)
    model = timm.create_model("swin_tiny_patch4_window7_224", num_classes=0, **SWIN)
    return block_map(model)


def attached(kind: str, method: str = "lora", **options: Any) -> Attached:
    """A method on a small Swin or on the demo ViT for 64 pixels."""
    if kind == "swin":
        return attach(swin().model, method, **options)
    return attach(load_backbone("vpeft_demo_vit", "hub", 0, SQUARE).model, method, **options)


def detector(kind: str, name: str, backbone: Backbone | None = None, **settings: Any) -> Detector:
    """A detector on a small Swin (shorter side 64) or on the demo ViT."""
    torch.manual_seed(0)
    features = StageFeatures(backbone or attached(kind).backbone)
    settings = {"channels": 32, "hidden": 64, "anchor_scale": 4.0} | settings
    sizes = InputConfig(shorter_sides=[64], test_shorter_side=64, longer_side=128)
    square = None if kind == "swin" else SQUARE
    built = build_detector(
        HeadConfig(name=name, **settings), sizes, features, CLASSES, HALF, HALF, square
    )
    if name != "retinanet":  # 512 regions a picture take most of a test's time
        regions: Any = built.model.roi_heads
        regions.fg_bg_sampler.batch_size_per_image = 32
    return built


COLOURS = ((255, 30, 30), (30, 255, 30), (30, 30, 255))


def picture(
    boxes: list[tuple[int, int, int, int]], labels: list[int], size: tuple[int, int] = (96, 128)
) -> tuple[Tensor, dict[str, Tensor]]:
    """Rectangles, one colour a class, on grey; with their boxes and masks."""
    image = torch.full((3, *size), 110, dtype=torch.uint8)
    masks = torch.zeros((len(boxes), *size), dtype=torch.uint8)
    for mask, (x0, y0, x1, y1), label in zip(masks, boxes, labels, strict=True):
        image[:, y0:y1, x0:x1] = torch.tensor(COLOURS[label], dtype=torch.uint8)[:, None, None]
        mask[y0:y1, x0:x1] = 1
    target = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "masks": masks,
        "ignored": torch.zeros(len(boxes), dtype=torch.bool),
        "areas": torch.ones(len(boxes)),
    }
    return image, target


def two_pictures() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Three objects on two pictures of different sizes."""
    first = picture([(10, 12, 50, 60), (70, 40, 120, 90)], [0, 2])
    second = picture([(30, 20, 90, 80)], [1], size=(100, 110))
    return [first[0], second[0]], [first[1], second[1]]


def head_parameters(built: Detector) -> dict[str, torch.nn.Parameter]:
    """Everything outside the timm model, by name."""
    features: Any = built.model.backbone.levels.features
    trunk = set(features.model.parameters())
    return {name: p for name, p in built.named_parameters() if p not in trunk}


def total(losses: dict[str, Tensor]) -> Tensor:
    """The sum of a loss's terms."""
    return torch.stack(list(losses.values())).sum()


def train(built: Detector, steps: int, lr: float) -> list[float]:
    """The loss of every step on :func:`two_pictures`."""
    images, targets = two_pictures()
    optimizer = torch.optim.AdamW([p for p in built.parameters() if p.requires_grad], lr=lr)
    curve = []
    for _ in range(steps):
        loss = total(built.losses(images, targets))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    return curve


def detections(built: Detector, images: list[Tensor]) -> list[dict[str, Tensor]]:
    """What is found in evaluation mode."""
    built.eval()
    with torch.no_grad():
        return built.detect(images)
