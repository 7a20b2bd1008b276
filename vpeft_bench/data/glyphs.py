"""Small pictures of characters of no alphabet: many classes of few pictures, drawn by rule.

A class is two to four strokes of a pen, drawn once from the class's own seed. A picture of it is
drawn by another hand: the points that bend a stroke are moved, the whole is turned, scaled, slanted
and shifted, and pen, ink and ground are others.

As the sprites, the pictures are the same on every machine. Any change of a pixel needs a new
``VERSION``.
"""

from __future__ import annotations

import numpy as np
from numpy.random import PCG64, Generator
from numpy.typing import NDArray

from vpeft_bench.data.sprites import COS, SIN, SIZE, backgrounds, strong_colours

VERSION = 1
CLASSES = 100
PICTURES_PER_CLASS = 60

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

_SEED = 11
_STROKES = (2, 5)  # of a class: from, below
_GRID = 20  # units from the middle within which points lie that bend strokes
_UNIT = np.float32(11 / _GRID)  # pixels
_MOVED = 2  # units by which a hand moves each of them, at most
_TIMES = 33  # places along a stroke at which the pen is put down
_INKS = 16  # steps from ground to ink


def labels() -> Ints:
    """The (6000,) classes, in the order of :func:`render`."""
    return np.repeat(np.arange(CLASSES), PICTURES_PER_CLASS)


def render() -> NDArray[np.uint8]:
    """The (6000, 32, 32, 3) pictures, class by class."""
    return np.concatenate([_pictures(label) for label in range(CLASSES)])


def _pictures(label: int) -> NDArray[np.uint8]:
    """The (60, 32, 32, 3) pictures of one class."""
    strokes = _strokes(label)
    rng = Generator(PCG64([_SEED, 1, label]))
    count = PICTURES_PER_CLASS
    dark = rng.integers(0, 2, size=count) == 1
    ground = backgrounds(rng, dark)
    ink = strong_colours(rng, rng.integers(0, 1536, size=count), dark)
    covered = _covered(_by_hand(rng, strokes), rng.integers(70, 140, size=count))[..., None]
    blend = ground * (_INKS - covered) + ink[:, None, None, :] * covered
    return ((blend + _INKS // 2) // _INKS).astype(np.uint8)


def _strokes(label: int) -> Ints:
    """The (S, 4, 2) points that bend the strokes of a class: cubic Bezier curves."""
    rng = Generator(PCG64([_SEED, 0, label]))
    return rng.integers(-_GRID, _GRID + 1, size=(int(rng.integers(*_STROKES)), 4, 2))


def _by_hand(rng: Generator, strokes: Ints) -> Floats:
    """The (M, P, 2) places where the pens of M hands are put down, in pixels, x before y."""
    count = PICTURES_PER_CLASS
    moved = strokes + rng.integers(-_MOVED, _MOVED + 1, size=(count, *strokes.shape))
    time = np.arange(_TIMES, dtype=np.float32) / np.float32(_TIMES - 1)
    left = 1 - time
    weights = (
        left * left * left,
        3 * left * left * time,
        3 * left * time * time,
        time * time * time,
    )
    points = sum(
        weight[:, None] * moved[:, :, None, place].astype(np.float32)
        for place, weight in enumerate(weights)
    )
    assert isinstance(points, np.ndarray)
    placed = points.reshape(count, -1, 2).astype(np.float32) * _UNIT
    x, y = placed[..., 0], placed[..., 1]

    turn = rng.integers(-60, 61, size=(count, 1))  # quarters of a degree
    cos, sin = COS[turn], SIN[turn]
    wide, high = (rng.integers(75, 111, size=(count, 1)).astype(np.float32) / 100 for _ in "xy")
    slant = rng.integers(-25, 26, size=(count, 1)).astype(np.float32) / 100
    shift = rng.integers(-256, 257, size=(2, count, 1)).astype(np.float32) / 64  # pixels
    x, y = wide * (x + slant * y), high * y
    x, y = cos * x - sin * y + shift[0], sin * x + cos * y + shift[1]
    return (np.stack([x, y], axis=2) + np.float32(SIZE / 2)).astype(np.float32)


def _covered(places: Floats, radii: Ints) -> Ints:
    """How much of each pixel the pen covers, in sixteenths: (M, 32, 32).

    Args:
        places: (M, P, 2) of the pen, in pixels.
        radii: (M,) of the pen, in hundredths of a pixel.
    """
    middles = np.arange(SIZE, dtype=np.float32) + np.float32(0.5)
    nearest = np.full((len(places), SIZE, SIZE), np.inf, dtype=np.float32)
    for place in range(places.shape[1]):
        across = middles - places[:, place, :1]
        down = middles - places[:, place, 1:]
        np.minimum(nearest, (across * across)[:, None] + (down * down)[:, :, None], out=nearest)
    within = (radii.astype(np.float32) / 100)[:, None, None] + np.float32(0.5) - np.sqrt(nearest)
    return np.rint(np.clip(within, 0, 1) * _INKS).astype(np.int64)
