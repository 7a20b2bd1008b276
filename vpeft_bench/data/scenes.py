"""Small scenes of textured shapes, drawn by rule: boxes, masks and label maps that are exact.

A scene has one to six shapes, each in front of those drawn before it, on a textured background
that also carries small marks which are no objects. A pixel belongs to the foremost shape that
covers at least half of it. A shape is drawn only where its centre lies well inside the picture and
where every shape before it keeps ``MIN_VISIBLE_PERCENT`` of its area, and ``MIN_VISIBLE_AREA``
pixels, in sight; otherwise another shape is tried, and after ``TRIES`` of them the scene stays as
it is. So every shape in a picture is labelled, and none is hidden too far to be told.

The pictures are the same on every machine, see ``vpeft_bench.data.sprites``. Any change of a pixel
needs a new ``VERSION``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import PCG64, Generator
from numpy.typing import NDArray

from vpeft_bench.data.splits import Objects
from vpeft_bench.data.sprites import (
    ANGLES,
    COS,
    SHAPES,
    SIN,
    SUBPIXELS,
    UNITS,
    Bools,
    Floats,
    Ints,
    rgb,
)

VERSION = 1
IMAGES = 700
SIZE = 64
CLASS_NAMES = ("disc", "square", "triangle", "heart", "cross", "ring")
MAX_OBJECTS = 6
MIN_VISIBLE_PERCENT = 40
MIN_VISIBLE_AREA = 25
TRIES = 20
NO_CLASS = 255

_SEED = 4
_WINDOW = 36  # side of the square a shape is drawn in, pixels
_MIN_RADIUS, _MAX_RADIUS = 6 * UNITS, 16 * UNITS


def _ring(u: Floats, v: Floats) -> Bools:
    square = u * u + v * v
    return (square <= 1) & (square >= 0.3)


def _bar(u: Floats, v: Floats) -> Bools:
    return (np.abs(u) <= 1) & (np.abs(v) <= 0.12)


_OUTLINES: dict[str, Callable[[Floats, Floats], Bools]] = {**SHAPES, "ring": _ring, "bar": _bar}


def render() -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    """All scenes.

    Returns:
        pixels: (700, 64, 64, 3) RGB.
        instances: (700, 64, 64), 0 where no shape is, i where the i-th shape of the scene is.
        classes: (700, 6) places in ``CLASS_NAMES`` of the shapes, from behind to the front, then
            ``NO_CLASS``.
    """
    pixels = np.empty((IMAGES, SIZE, SIZE, 3), dtype=np.uint8)
    instances = np.zeros((IMAGES, SIZE, SIZE), dtype=np.uint8)
    classes = np.full((IMAGES, MAX_OBJECTS), NO_CLASS, dtype=np.uint8)
    for index in range(IMAGES):
        pixels[index] = _scene(Generator(PCG64([_SEED, index])), instances[index], classes[index])
    return pixels, instances, classes


def objects(instances: NDArray[np.uint8], classes: NDArray[np.uint8], with_masks: bool) -> Objects:
    """What is in a scene: boxes are tight around what can be seen of each shape.

    Args:
        instances: (64, 64), see ``render``.
        classes: (6,), see ``render``.
        with_masks: give the masks as well.
    """
    labels = classes[classes != NO_CLASS].astype(np.int64)
    masks = instances == np.arange(1, len(labels) + 1)[:, None, None]
    boxes = np.array([_box(mask) for mask in masks], dtype=np.float64)
    return Objects(
        boxes=boxes.reshape(-1, 4),
        labels=labels,
        ignored=np.zeros(len(labels), dtype=np.bool_),
        areas=masks.sum(axis=(1, 2)).astype(np.float64),
        masks=masks if with_masks else None,
    )


def label_map(instances: NDArray[np.uint8], classes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(64, 64) classes: 0 for the background, then ``CLASS_NAMES``."""
    # The entry of an absent shape overflows to 0 and is never looked up.
    return np.concatenate([np.zeros(1, dtype=np.uint8), classes + np.uint8(1)])[instances]


def _box(mask: Bools) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what is set; right and bottom are exclusive."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


@dataclass
class _Shape:
    """One shape: position and radius in 64ths of a pixel, angle in quarters of a degree.

    Attributes:
        colours: (2, 3) RGB from 0 to 255 of the texture's two tones.
        texture: ``plain``, ``striped`` or ``checked``.
        period: of the texture, in 64ths of a pixel.
    """

    kind: str
    x: int
    y: int
    radius: int
    angle: int
    colours: Ints
    texture: str = "plain"
    period: int = UNITS


def _scene(
    rng: Generator, instances: NDArray[np.uint8], classes: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Draw one scene: its pixels are returned, what it shows is written into the arguments."""
    dark = bool(rng.integers(2))
    canvas = _background(rng, dark)
    for _ in range(rng.integers(7)):
        mark = _mark(rng, dark)
        _paint(canvas, mark, _coverage(mark))
    first_hue = int(rng.integers(1536))
    hues = np.argsort(rng.integers(0, 2**62, size=MAX_OBJECTS), kind="stable")
    whole: list[int] = []  # number of pixels of each shape before others hide some
    for layer in range(rng.integers(1, MAX_OBJECTS + 1)):
        for _ in range(TRIES):
            class_ = int(rng.integers(len(CLASS_NAMES)))
            hue = first_hue + 1536 // MAX_OBJECTS * int(hues[layer]) + int(rng.integers(-60, 61))
            shape = _object(rng, CLASS_NAMES[class_], hue, dark)
            covered = _coverage(shape)
            mask, area = _footprint(shape, covered)
            seen = np.where(mask, len(whole) + 1, instances)
            if _all_visible(seen, [*whole, area]):
                _paint(canvas, shape, covered)
                instances[:] = seen
                classes[len(whole)] = class_
                whole.append(area)
                break
    return canvas.astype(np.uint8)


def _all_visible(instances: Ints, whole: list[int]) -> bool:
    visible = np.bincount(instances.ravel(), minlength=len(whole) + 1)[1:]
    enough = (100 * visible >= MIN_VISIBLE_PERCENT * np.array(whole)) & (
        visible >= MIN_VISIBLE_AREA
    )
    return bool(enough.all())


def _object(rng: Generator, kind: str, hue: int, dark: bool) -> _Shape:
    """A shape anywhere, in strong colours that stand out from the background."""
    # The smaller of two draws: more small shapes than large ones, as in photographs.
    radius = int(rng.integers(_MIN_RADIUS, _MAX_RADIUS + 1, size=2).min())
    inside = radius * 6 // 10
    x, y = (int(value) for value in rng.integers(inside, SIZE * UNITS - inside, size=2))
    value = int(rng.integers(200, 256)) if dark else int(rng.integers(80, 160))
    [strong] = rgb(np.array([hue % 1536]), rng.integers(170, 256, size=1), np.array([value]))
    # The second tone is further from the background still: paler on dark, deeper on bright.
    other = (strong * 2 + 255 * 3) // 5 if dark else strong * 2 // 5
    return _Shape(
        kind=kind,
        x=x,
        y=y,
        radius=radius,
        angle=int(rng.integers(ANGLES)),
        colours=np.stack([strong, other]),
        texture=("plain", "striped", "checked")[int(rng.integers(3))],
        period=int(rng.integers(4 * UNITS, 7 * UNITS)),
    )


def _mark(rng: Generator, dark: bool) -> _Shape:
    """A thin bar or a speck in a weak colour: clutter."""
    thin = bool(rng.integers(2))
    value = int(rng.integers(110, 190)) if dark else int(rng.integers(110, 180))
    [colour] = rgb(rng.integers(0, 1536, size=1), rng.integers(0, 140, size=1), np.array([value]))
    small = rng.integers(UNITS, 2 * UNITS)
    x, y = (int(place) for place in rng.integers(0, SIZE * UNITS, size=2))
    return _Shape(
        kind="bar" if thin else "ellipse",
        x=x,
        y=y,
        radius=int(rng.integers(4 * UNITS, 9 * UNITS) if thin else small),
        angle=int(rng.integers(ANGLES)),
        colours=np.stack([colour, colour]),
    )


def _footprint(shape: _Shape, covered: Ints) -> tuple[Bools, int]:
    """The pixels of the picture that the shape covers by half, and how many it covers in all."""
    half = covered.sum(axis=0) * 2 >= SUBPIXELS**2
    mask = np.zeros((SIZE, SIZE), dtype=np.bool_)
    place, part = _places(shape)
    mask[place] = half[part]
    return mask, int(half.sum())


def _paint(canvas: Ints, shape: _Shape, covered: Ints) -> None:
    """Draw the shape onto the picture, with smooth edges."""
    full = SUBPIXELS**2
    colour = np.tensordot(covered, shape.colours, axes=(0, 0))
    place, part = _places(shape)
    blend = canvas[place] * (full - covered.sum(axis=0)[part][..., None]) + colour[part]
    canvas[place] = (blend + full // 2) // full


def _corner(shape: _Shape) -> tuple[int, int]:
    """Row and column of the picture at which the shape's window begins; may be negative."""
    return shape.y // UNITS - _WINDOW // 2, shape.x // UNITS - _WINDOW // 2


def _places(shape: _Shape) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """The part of the picture that the shape's window covers, and that part of the window."""
    starts = _corner(shape)
    ranges = [(max(start, 0), min(start + _WINDOW, SIZE)) for start in starts]
    rows, columns = (slice(low, high) for low, high in ranges)
    part = [
        slice(low - start, high - start) for start, (low, high) in zip(starts, ranges, strict=True)
    ]
    return (rows, columns), (part[0], part[1])


def _coverage(shape: _Shape) -> Ints:
    """How many of the 16 points in each pixel of the window have each tone: (2, 36, 36)."""
    steps = (np.arange(_WINDOW * SUBPIXELS, dtype=np.float32) + np.float32(0.5)) / SUBPIXELS
    top, left = _corner(shape)
    # From the shape's centre, in pixels; then turned into the shape's own axes.
    x = (steps - np.float32(shape.x / UNITS - left))[None, :]
    y = (steps - np.float32(shape.y / UNITS - top))[:, None]
    cos, sin = COS[shape.angle], SIN[shape.angle]
    along, across = cos * x + sin * y, cos * y - sin * x
    radius = np.float32(shape.radius / UNITS)
    inside = _OUTLINES[shape.kind](along / radius, across / radius)
    # Half a period in advance: the shape's centre is not on the border of two bands.
    half_period = np.float32(shape.period / (2 * UNITS))
    bands, others = (
        np.floor(axis / half_period + np.float32(0.5)).astype(np.int64) for axis in (along, across)
    )
    second = {"plain": 0, "striped": bands, "checked": bands + others}[shape.texture] % 2 == 1
    tones = np.stack([inside & ~second, inside & second])
    # Rows before columns: a sum over both at once is several times slower.
    rows = tones.reshape(2, _WINDOW, SUBPIXELS, -1).sum(axis=2, dtype=np.uint8)
    covered: Ints = rows.reshape(2, _WINDOW, _WINDOW, SUBPIXELS).sum(axis=3, dtype=np.int64)
    return covered


def _background(rng: Generator, dark: bool) -> Ints:
    """A (64, 64, 3) background of little colour: cloudy, striped or checked, with some grain."""
    value = rng.integers(20, 80, size=1) if dark else rng.integers(190, 240, size=1)
    [colour] = rgb(rng.integers(0, 1536, size=1), rng.integers(0, 80, size=1), value)
    position = np.arange(SIZE)
    pattern = int(rng.integers(3))
    if pattern == 0:
        # Values at the corners of cells of 16 pixels, blended linearly between them.
        corners = rng.integers(-26, 27, size=(5, 5))
        blend = np.zeros((SIZE, 5), dtype=np.int64)
        blend[position, position // 16] = 16 - position % 16
        blend[position, position // 16 + 1] = position % 16
        texture = blend @ corners @ blend.T // 256
    else:
        slopes = rng.integers(-3, 4, size=2)
        strength, width = int(rng.integers(5, 14)), int(rng.integers(10, 25))
        bands = (slopes[0] * position[:, None] + slopes[1] * position + 512) // width
        if pattern == 2:
            bands = bands + (slopes[0] * position - slopes[1] * position[:, None] + 512) // width
        texture = 2 * strength * (bands % 2) - strength
    grain = rng.integers(-4, 5, size=(SIZE, SIZE, 1))
    pixels: Ints = np.clip(colour + texture[..., None] + grain, 0, 255)
    return pixels
