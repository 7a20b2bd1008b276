"""Pictures of any size to a batch, and boxes and masks back."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
from torchvision.ops import clip_boxes_to_image, remove_small_boxes

from vpeft_bench.config.sections import InputConfig
from vpeft_bench.sizes import resized_size

FILTER = "bilinear"
"""How pictures are resized, whatever the weights' own filter is."""

THINNEST = 1e-2
"""Objects thinner than this, in pixels of the resized picture, are left out in training."""


class Resizing(GeneralizedRCNNTransform):
    """torchvision's transform, with a size of its own in evaluation and no vanishing sides.

    Pictures are made smaller with antialiasing. A picture in a batch is padded on the right and
    below, with the mean colour.

    Args:
        sizes: see :class:`InputConfig`.
        square: side of a ViT's square: the longer side is that long, the rest is padding. None for
            backbones that take any size.
        mean: of the backbone's preprocessing, for pixels from 0 to 1.
        std: as ``mean``.
    """

    def __init__(
        self,
        sizes: InputConfig,
        square: int | None,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__(
            sizes.shorter_sides if square is None else square,
            sizes.longer_side if square is None else square,
            list(mean),
            list(std),
            size_divisible=sizes.size_divisor if square is None else square,
        )
        for name, values in (("_mean", mean), ("_std", std)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)
        self.test_shorter_side = sizes.test_shorter_side if square is None else square
        self.crop_shorter_sides = sizes.crop_shorter_sides
        self.crop_sides = sizes.crop_sides

    def normalize(self, image: Tensor) -> Tensor:
        """As torchvision's, which copies mean and deviation to the device for every picture."""
        mean, std = (cast(Tensor, values).to(image.dtype) for values in (self._mean, self._std))
        return (image - mean) / std

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """A picture ``(3, h, w)`` with its objects at the size at which it enters the backbone."""
        if not self.training:
            return self._resized(image, target, self.test_shorter_side)
        if target is not None and self.crop_shorter_sides and draw(0, 1):
            image, target = self._resized(image, target, self.torch_choice(self.crop_shorter_sides))
            assert target is not None
            image, target = random_part(image, target, self.crop_sides)
        return self._resized(image, target, self.torch_choice(self.min_size))

    def _resized(
        self, image: Tensor, target: dict[str, Tensor] | None, shorter: int
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        size = (int(image.shape[-2]), int(image.shape[-1]))
        new_size = resized_size(size, shorter, self.max_size)
        image = functional.interpolate(image[None], new_size, mode=FILTER, antialias=True)[0]
        if target is None:
            return image, None
        boxes = resize_boxes(target["boxes"], size, new_size)
        kept = remove_small_boxes(boxes, THINNEST)
        target = {name: value[kept] for name, value in (target | {"boxes": boxes}).items()}
        if "masks" in target:
            masks = target["masks"][:, None]
            target["masks"] = functional.interpolate(masks, new_size, mode="nearest-exact")[:, 0]
        return image, target

    def postprocess(
        self,
        result: list[dict[str, Tensor]],
        image_shapes: list[tuple[int, int]],
        original_image_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Detections in pixels of the original pictures; masks ``(n, H, W)`` bool."""
        if self.training:
            return result
        sizes = zip(result, image_shapes, original_image_sizes, strict=True)
        for found, size, original in sizes:
            boxes = found["boxes"]
            resized = resize_boxes(boxes, size, original)
            found["boxes"] = clip_boxes_to_image(resized, original)
            if "masks" in found:
                # torchvision samples target masks as if pixels were points at their upper left
                # corners: what is learned is the mask of a box half a pixel further.
                covered = resize_boxes(boxes + 0.5, size, original)
                found["masks"] = pasted(found["masks"], covered, original)
        return result


def draw(low: int, high: int) -> int:
    """A whole number from ``low`` to ``high``, both included, of torch's generator."""
    return int(torch.randint(low, high + 1, ()))


def random_part(
    image: Tensor, target: dict[str, Tensor], sides: Sequence[int]
) -> tuple[Tensor, dict[str, Tensor]]:
    """A part of a picture ``(3, h, w)``, and what of its objects lies there; there may be none.

    Args:
        image: the picture.
        target: ``boxes`` and whatever else belongs to each object; ``masks`` ``(n, h, w)``.
        sides: least and most pixels of either side, as far as the picture reaches.
    """
    height, width = (draw(min(whole, sides[0]), min(whole, sides[1])) for whole in image.shape[-2:])
    top, left = draw(0, image.shape[-2] - height), draw(0, image.shape[-1] - width)
    rows, columns = slice(top, top + height), slice(left, left + width)
    boxes = target["boxes"] - target["boxes"].new_tensor([left, top, left, top])
    boxes = clip_boxes_to_image(boxes, (height, width))
    kept = remove_small_boxes(boxes, THINNEST)
    target = {name: value[kept] for name, value in (target | {"boxes": boxes}).items()}
    if "masks" in target:
        target["masks"] = target["masks"][:, rows, columns]
    return image[:, rows, columns], target


def pasted(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks of boxes as masks of the picture, ``(n, H, W)`` bool: what is 0.5 at least.

    torchvision's own function counts pixels from 0 to the width inclusive, so that its masks are a
    pixel too wide and too high; it also needs four bytes per pixel of every mask at once.

    Args:
        masks: probabilities ``(n, 1, m, m)``, each stretched over its box.
        boxes: ``(n, 4)``, may reach beyond the picture.
        size: height and width of the picture.
    """
    height, width = size
    result = torch.zeros((len(masks), height, width), dtype=torch.bool, device=masks.device)
    for index, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        left, right = max(floor(x0), 0), min(ceil(x1), width)
        top, bottom = max(floor(y0), 0), min(ceil(y1), height)
        if left >= right or top >= bottom or x0 >= x1 or y0 >= y1:
            continue
        xs = (torch.arange(left, right, device=masks.device) + 0.5 - x0) / (x1 - x0)
        ys = (torch.arange(top, bottom, device=masks.device) + 0.5 - y0) / (y1 - y0)
        grid = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=-1)[None] * 2 - 1
        sampled = functional.grid_sample(masks[[index]], grid, align_corners=False)
        result[index, top:bottom, left:right] = sampled[0, 0] >= 0.5
    return result
