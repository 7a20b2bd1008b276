"""Pictures with their classes, objects or label maps drawn, in one sheet."""

from __future__ import annotations

import colorsys
import functools
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vpeft_bench.config.sections import IGNORED_LABEL
from vpeft_bench.data.splits import Dataset
from vpeft_bench.files import write_atomically

CELL = 240
"""Longer side of a drawn picture, pixels."""
GAP, LINE, FONT_SIZE = 8, 16, 12
LEGEND = 130  # pixels of a class in the legend
IGNORED = (160, 160, 160)
"""The colour of objects that are neither trained on nor counted as missed."""

Colour = tuple[int, int, int]


@dataclass
class Panel:
    """One picture with its versions side by side.

    Attributes:
        versions: RGB pictures of the same size, e.g. the truth and the prediction.
        caption: one line below them.
        classes: classes that occur in it, for the legend.
    """

    versions: list[Image.Image]
    caption: str
    classes: set[int] = field(default_factory=set)


def class_name(dataset: Dataset, label: int) -> str:
    """The name of a class; its number where the data set has no names."""
    if dataset.class_names is not None:
        return dataset.class_names[label]
    return f"class {dataset.listed_label(label)}"


def colour(label: int) -> Colour:
    """A colour of its own for each class; neighbours differ by the golden angle."""
    value = 1.0 if label % 2 == 0 else 0.75
    red, green, blue = colorsys.hsv_to_rgb((0.02 + 0.61803 * label) % 1, 0.85, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def save(picture: Image.Image, path: Path) -> None:
    """Write a picture as PNG, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    content = io.BytesIO()
    picture.save(content, format="png")
    write_atomically(path, content.getvalue())


def enlarged(picture: Image.Image, cell: int = CELL) -> Image.Image:
    """The picture, its longer side ``cell`` pixels."""
    return picture.resize(_enlarged_size(picture, cell), Image.Resampling.BICUBIC)


def with_objects(
    picture: Image.Image,
    boxes: NDArray[np.floating],
    labels: Sequence[int],
    masks: NDArray[np.generic] | None = None,
    ignored: Sequence[bool] | None = None,
    names: Sequence[str] | None = None,
    cell: int = CELL,
) -> Image.Image:
    """The enlarged picture with masks and boxes of its objects in the colours of their classes.

    Args:
        picture: at its own size.
        boxes: (N, 4) left, top, right, bottom, pixels of the picture.
        labels: (N,) classes.
        masks: (N, H, W), not zero where the object is.
        ignored: (N,) which of them are drawn in ``IGNORED`` instead.
        names: (N,) what is written beside the boxes, where that hides no other name and is not
            much wider than the box; None: nothing.
        cell: longer side of what is returned, pixels.
    """
    large = enlarged(picture, cell)
    grey = ignored if ignored is not None else [False] * len(labels)
    colours = [
        IGNORED if left_out else colour(label) for label, left_out in zip(labels, grey, strict=True)
    ]
    if masks is not None:
        pixels = np.array(large, dtype=np.float32)
        for mask, tint in zip(masks, colours, strict=True):
            shape = Image.fromarray((mask != 0).astype(np.uint8) * 255)
            inside = np.array(shape.resize(large.size, Image.Resampling.NEAREST)) > 0
            pixels[inside] = (pixels[inside] + np.array(tint)) / 2
        large = Image.fromarray(pixels.round().astype(np.uint8))
    pen = ImageDraw.Draw(large)
    scale = np.array([large.width / picture.width, large.height / picture.height] * 2)
    corners = [(box * scale).round().astype(int).tolist() for box in boxes]
    for (left, top, right, bottom), tint in zip(corners, colours, strict=True):
        # Right and bottom are exclusive; a box of no extent is drawn as a point.
        pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), None, tint, width=2)
    taken: list[tuple[int, int, int]] = []
    for (start, top, right, _), tint, name in zip(corners, colours, names or (), strict=False):
        text = fitted(name, large.width)
        width = round(_font().getlength(text)) + 4
        # Above the corner if there is room, and inside if not.
        left = min(max(start, 0), max(large.width - width, 0))
        top = top - LINE if top >= LINE else max(top, 0)
        hides = any(
            left < other + length and other < left + width and abs(top - line) < LINE
            for other, length, line in taken
        )
        if not hides and width <= 2 * (right - start):
            taken.append((left, width, top))
            _write_name(pen, text, left, top, width, tint)
    return large


def _write_name(
    pen: ImageDraw.ImageDraw, text: str, left: int, top: int, width: int, tint: Colour
) -> None:
    """A name on a ground of its colour."""
    dark = 0.3 * tint[0] + 0.6 * tint[1] + 0.1 * tint[2] < 128
    pen.rectangle((left, top, left + width, top + LINE - 1), fill=tint)
    pen.text((left + 2, top + 1), text, fill="white" if dark else "black", font=_font())


def coloured(label_map: NDArray[np.uint8], cell: int = CELL) -> Image.Image:
    """A label map ``(H, W)`` in the colours of its classes, enlarged; black where there is none."""
    palette = np.zeros((256, 3), dtype=np.uint8)
    for label in range(IGNORED_LABEL):
        palette[label] = colour(label)
    picture = Image.fromarray(palette[label_map])
    return picture.resize(_enlarged_size(picture, cell), Image.Resampling.NEAREST)


def fitted(text: str, width: int) -> str:
    """As much of ``text`` as ``width`` pixels hold."""
    if _font().getlength(text) <= width:
        return text
    kept = len(text)
    while kept and _font().getlength(f"{text[:kept]}...") > width:
        kept -= 1
    return f"{text[:kept]}..."


def sheet(
    panels: Sequence[Panel], title: str, dataset: Dataset, columns: int, cell: int = CELL
) -> Image.Image:
    """All panels in a grid, the title above, the legend below.

    Args:
        panels: drawn with the same ``cell``.
        title: in one line.
        dataset: names the classes.
        columns: panels in a row, at most.
        cell: longer side of a picture, pixels.
    """
    versions = max((len(panel.versions) for panel in panels), default=1)
    columns = max(1, min(len(panels), columns))
    width = versions * cell + (versions - 1) * 2
    rows = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    heights = [max(p.versions[0].height for p in row) + LINE + GAP for row in rows]
    legend = sorted({label for panel in panels for label in panel.classes})
    total_width = columns * (width + GAP) + GAP
    per_line = max(1, total_width // LEGEND)
    legend_height = LINE * -(-len(legend) // per_line) + GAP if legend else 0
    height = GAP + LINE + GAP + sum(heights) + legend_height + GAP
    drawn = Image.new("RGB", (total_width, height), "white")
    pen = ImageDraw.Draw(drawn)
    pen.text((GAP, GAP), fitted(title, total_width - 2 * GAP), fill="black", font=_font())
    top = GAP + LINE + GAP
    for row, height in zip(rows, heights, strict=True):
        for column, panel in enumerate(row):
            left = GAP + column * (width + GAP)
            for place, version in enumerate(panel.versions):
                drawn.paste(version, (left + place * (cell + 2), top))
            below = top + panel.versions[0].height + 1
            pen.text((left, below), fitted(panel.caption, width), fill="black", font=_font())
        top += height
    for place, label in enumerate(legend):
        left = GAP + place % per_line * LEGEND
        line = top + place // per_line * LINE
        pen.rectangle((left, line + 2, left + 10, line + 12), fill=colour(label))
        name = fitted(class_name(dataset, label), LEGEND - 20)
        pen.text((left + 15, line), name, fill="black", font=_font())
    return drawn


def _enlarged_size(picture: Image.Image, cell: int) -> tuple[int, int]:
    scale = cell / max(picture.size)
    return max(1, round(picture.width * scale)), max(1, round(picture.height * scale))


@functools.cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(FONT_SIZE)


def evenly(batches: Any, pictures: int) -> Iterator[tuple[int, Any, Any]]:
    """Index, picture and truth of ``pictures`` of them, spread evenly over the split."""
    size = len(batches.dataset)
    for index in np.linspace(0, size - 1, min(pictures, size)).round().astype(np.int64):
        (image,), (target,) = batches.dataset[0, index[None]]
        yield int(index), image, target
