"""Small pictures of simple shapes, drawn by rule: tasks in the spirit of dSprites and CLEVR.

``location``
    One sprite; the class is the sixteenth of the width, less a margin, that its centre lies in.
``count``
    One to eight sprites of different colours that overlap a little; the class is their number
    minus one.
``orientation``
    One sprite that points somewhere; the class is the sixteenth of the circle it points into,
    class 0 to the right and on clockwise.

The pictures are the same on every machine: all choices are drawn as integers, angles come from a
rounded table, and what remains is elementary arithmetic. Any change of a pixel needs a new
``VERSION``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import PCG64, Generator
from numpy.typing import NDArray

VERSION = 1
IMAGES = 3000
SIZE = 32
NUM_CLASSES = {"location": 16, "count": 8, "orientation": 16}

Ints = NDArray[np.int64]
Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]

SUBPIXELS = 4  # per side: a pixel's coverage is counted on a 4x4 grid
UNITS = 64  # positions and radii are drawn in 64ths of a pixel
ANGLES = 1440  # orientations are drawn in quarters of a degree
_TURN = 2 * np.pi * np.arange(ANGLES) / ANGLES
# Sines differ in their last bit between machines; rounded they do not.
COS = np.round(np.cos(_TURN), 6).astype(np.float32)
SIN = np.round(np.sin(_TURN), 6).astype(np.float32)
_CHUNK = 128  # pictures drawn at once: small enough for the processor's cache

_SEEDS = {"location": 1, "count": 2, "orientation": 3}
_KINDS = {
    "location": ("square", "ellipse", "triangle", "heart"),
    "count": ("disc", "square", "ellipse", "triangle", "heart", "cross"),
    "orientation": ("dart", "drop", "heart"),
}


def permutation(count: int, seed: int) -> Ints:
    """The numbers below ``count`` in an order drawn with ``seed``."""
    keys = Generator(PCG64(seed)).integers(0, 2**62, size=count)
    return np.argsort(keys, kind="stable")


def draw_labels(variant: str) -> Ints:
    """The (3000,) classes of ``variant``, as many of each as divides evenly."""
    return permutation(IMAGES, _SEEDS[variant]) % NUM_CLASSES[variant]


def render(variant: str) -> NDArray[np.uint8]:
    """The (3000, 32, 32, 3) pictures of ``variant``, in the order of ``draw_labels``."""
    rng = Generator(PCG64([_SEEDS[variant], 0]))
    labels = draw_labels(variant)
    dark_background = rng.integers(0, 2, size=IMAGES) == 1
    canvas = backgrounds(rng, dark_background)
    if variant == "count":
        _draw_many(canvas, rng, labels + 1, dark_background)
    else:
        _draw(canvas, np.arange(IMAGES), _lone_sprites(rng, variant, labels, dark_background))
    return canvas.astype(np.uint8)


@dataclass
class _Sprites:
    """One sprite for each of M pictures.

    Attributes:
        kind: (M,) names of shapes.
        centre: (M, 2) x and y, in 64ths of a pixel from the top left corner.
        radius: (M,) of the circle around the shape, in 64ths of a pixel.
        angle: (M,) clockwise, in quarters of a degree.
        colour: (M, 3) RGB from 0 to 255.
    """

    kind: NDArray[np.str_]
    centre: Ints
    radius: Ints
    angle: Ints
    colour: Ints


def _lone_sprites(rng: Generator, variant: str, labels: Ints, dark_background: Bools) -> _Sprites:
    """One sprite per picture, at the place or angle of the picture's class."""
    # Classes keep a gap of two fifths of their width, so that none has to be told from the next
    # by less than a pixel can show.
    within = rng.integers(-30, 31, size=IMAGES)  # hundredths of a class, from its middle
    if variant == "location":
        radius = rng.integers(2 * UNITS + 32, 4 * UNITS + 32, size=IMAGES)
        margin = 4 * UNITS
        width = SIZE * UNITS - 2 * margin
        x = margin + width * (100 * labels + 50 + within) // (100 * NUM_CLASSES[variant])
        y = rng.integers(margin, SIZE * UNITS - margin, size=IMAGES)
        angle = rng.integers(0, ANGLES, size=IMAGES)
    else:
        radius = rng.integers(7 * UNITS, 12 * UNITS, size=IMAGES)
        x, y = rng.integers(13 * UNITS, 19 * UNITS, size=(2, IMAGES))
        angle = ANGLES * (100 * labels + within) // (100 * NUM_CLASSES[variant]) % ANGLES
    hue = rng.integers(0, 1536, size=IMAGES)
    return _Sprites(
        kind=np.array(_KINDS[variant])[rng.integers(0, len(_KINDS[variant]), size=IMAGES)],
        centre=np.stack([x, y], axis=1),
        radius=radius,
        angle=angle,
        colour=strong_colours(rng, hue, dark_background),
    )


def _draw_many(canvas: Ints, rng: Generator, counts: Ints, dark_background: Bools) -> None:
    """Draw ``counts`` sprites onto each picture, near different points of a 4x4 grid."""
    most = NUM_CLASSES["count"]
    cells = np.argsort(rng.integers(0, 2**62, size=(IMAGES, 16)), axis=1, kind="stable")
    hues = np.argsort(rng.integers(0, 2**62, size=(IMAGES, most)), axis=1, kind="stable")
    first_hue = rng.integers(0, 1536, size=IMAGES)
    for layer in range(most):
        # Drawn for all pictures and used for some, so that the order of draws is the same for all.
        cell = np.stack([cells[:, layer] % 4, cells[:, layer] // 4], axis=1)
        shift = rng.integers(-UNITS, UNITS + 1, size=(IMAGES, 2))
        layer_sprites = _Sprites(
            kind=np.array(_KINDS["count"])[rng.integers(0, len(_KINDS["count"]), size=IMAGES)],
            centre=(8 * cell + 4) * UNITS + shift,
            radius=rng.integers(2 * UNITS + 48, 4 * UNITS + 16, size=IMAGES),
            angle=rng.integers(0, ANGLES, size=IMAGES),
            colour=strong_colours(rng, first_hue + 1536 // most * hues[:, layer], dark_background),
        )
        _draw(canvas, np.flatnonzero(counts > layer), layer_sprites)


def _draw(canvas: Ints, pictures: Ints, sprites: _Sprites) -> None:
    """Paint the sprites of ``pictures`` onto them, with smooth edges."""
    for kind in np.unique(sprites.kind):
        chosen = pictures[sprites.kind[pictures] == kind]
        for start in range(0, len(chosen), _CHUNK):
            chunk = chosen[start : start + _CHUNK]
            covered = _coverage(str(kind), sprites, chunk)[..., None]
            colour = sprites.colour[chunk][:, None, None, :]
            full = SUBPIXELS**2
            blend = canvas[chunk] * (full - covered) + colour * covered
            canvas[chunk] = (blend + full // 2) // full


def _coverage(kind: str, sprites: _Sprites, chunk: Ints) -> Ints:
    """How many of the 16 points in each pixel lie in the sprite: (len(chunk), 32, 32)."""
    steps = (np.arange(SIZE * SUBPIXELS, dtype=np.float32) + np.float32(0.5)) / SUBPIXELS
    radius = (sprites.radius[chunk].astype(np.float32) / UNITS)[:, None]
    centre = sprites.centre[chunk].astype(np.float32) / UNITS
    x = ((steps - centre[:, :1]) / radius)[:, None, :]
    y = ((steps - centre[:, 1:]) / radius)[:, :, None]
    cos, sin = (table[sprites.angle[chunk]][:, None, None] for table in (COS, SIN))
    inside = SHAPES[kind](cos * x + sin * y, cos * y - sin * x)
    # Rows before columns: a sum over both at once is several times slower.
    rows = inside.reshape(len(chunk), SIZE, SUBPIXELS, -1).sum(axis=2, dtype=np.uint8)
    covered: Ints = rows.reshape(len(chunk), SIZE, SIZE, SUBPIXELS).sum(axis=3, dtype=np.int64)
    return covered


# The shapes, each inside the unit circle and, where it points, pointing along u.


def _disc(u: Floats, v: Floats) -> Bools:
    return u * u + v * v <= 1


def _square(u: Floats, v: Floats) -> Bools:
    return (np.abs(u) <= 0.75) & (np.abs(v) <= 0.75)


def _ellipse(u: Floats, v: Floats) -> Bools:
    return u * u + 4 * v * v <= 1


def _triangle(u: Floats, v: Floats) -> Bools:
    return (u >= -0.5) & (np.abs(v) <= 0.577 * (1 - u))


def _cross(u: Floats, v: Floats) -> Bools:
    across, along = np.minimum(np.abs(u), np.abs(v)), np.maximum(np.abs(u), np.abs(v))
    return (across <= 0.3) & (along <= 0.95)


def _heart(u: Floats, v: Floats) -> Bools:
    across, up = 1.25 * v, 0.15 - 1.25 * u
    body = across * across + up * up - 1
    inside: Bools = body * body * body <= across * across * up * up * up
    return inside


def _dart(u: Floats, v: Floats) -> Bools:
    width = np.abs(v)
    return (width <= 0.4 * (1 - u)) & (u >= -0.3 - 0.9 * width)


def _drop(u: Floats, v: Floats) -> Bools:
    ball = (u + 0.45) * (u + 0.45) + v * v <= 0.3
    tip = (np.abs(v) <= 0.407 * (1 - u)) & (u >= -0.25)
    return ball | tip


SHAPES = {
    "disc": _disc,
    "square": _square,
    "ellipse": _ellipse,
    "triangle": _triangle,
    "cross": _cross,
    "heart": _heart,
    "dart": _dart,
    "drop": _drop,
}


def backgrounds(rng: Generator, dark: Bools) -> Ints:
    """(M, 32, 32, 3) backgrounds of little colour: plain, cloudy or striped, with some grain."""
    count = len(dark)
    value = np.where(dark, rng.integers(20, 90, size=count), rng.integers(180, 236, size=count))
    saturation = rng.integers(0, 80, size=count)
    colour = rgb(rng.integers(0, 1536, size=count), saturation, value)

    # Clouds: values at the corners of cells of 8 pixels, blended linearly between them.
    corners = rng.integers(-24, 25, size=(count, 5, 5))
    position = np.arange(SIZE)
    blend = np.zeros((SIZE, 5), dtype=np.int64)
    blend[position, position // 8] = 8 - position % 8
    blend[position, position // 8 + 1] = position % 8
    clouds = blend @ corners @ blend.T // 64

    slope = rng.integers(-3, 4, size=(2, count, 1, 1))
    phase = rng.integers(0, 24, size=(count, 1, 1))
    bands = slope[0] * position[:, None] + slope[1] * position[None, :] + phase
    stripes = 24 * (bands // 12 % 2) - 12

    pattern = rng.integers(0, 3, size=(count, 1, 1))
    texture = np.select([pattern == 1, pattern == 2], [clouds, stripes], default=0)
    grain = rng.integers(-4, 5, size=(count, SIZE, SIZE, 1))
    pixels: Ints = np.clip(colour[:, None, None, :] + texture[..., None] + grain, 0, 255)
    return pixels


def strong_colours(rng: Generator, hue: Ints, dark_background: Bools) -> Ints:
    """(M, 3) strong colours of the given hues: bright on dark pictures, dark on bright ones."""
    count = len(dark_background)
    bright = rng.integers(210, 256, size=count)
    dark = rng.integers(70, 150, size=count)
    return rgb(
        hue % 1536, rng.integers(150, 256, size=count), np.where(dark_background, bright, dark)
    )


def rgb(hue: Ints, saturation: Ints, value: Ints) -> Ints:
    """RGB from 0 to 255 of colours given by hue (0 to 1535), saturation and value (0 to 255)."""
    # A channel's share falls from 255 to 0 with the hue's distance from the channel's own.
    distance = np.abs((hue[:, None] - np.array([0, 512, 1024]) + 768) % 1536 - 768)
    share: Ints = np.clip(512 - distance, 0, 255)
    rgb: Ints = value[:, None] * (255 * 255 - saturation[:, None] * (255 - share)) // (255 * 255)
    return rgb
