"""The rule by which pictures of any size are resized: the aspect ratio is kept."""

from __future__ import annotations

import math


def resized_size(size: tuple[int, int], shorter_side: float, longer_side: float) -> tuple[int, int]:
    """Height and width, at least 1, of a picture of ``size`` (height, width) after resizing.

    The shorter side becomes ``shorter_side``, unless the longer one would exceed ``longer_side``;
    then that decides.
    """
    scale = min(shorter_side / min(size), longer_side / max(size))
    height, width = (max(1, math.floor(side * scale + 0.5)) for side in size)
    return height, width
