"""Pretrain the embedded demo backbone on procedurally rendered scenes.

No picture is read or downloaded: every image is drawn from a random number generator, and what
was drawn gives the labels. A scene is a stack of textured shapes and pen strokes ("glyphs") in
front of a textured background. Each patch token predicts the attributes of the object under it,
and the pooled token predicts, at a lower weight, the attributes of the whole image: image-level
labels alone learn far more slowly.

The budget is wall-clock time or a number of images, and the cosine schedule follows the budget,
so that a run on a busy machine still ends on time with a fully annealed network.

Example, one hour on two cores::

    python scripts/pretrain_demo_backbone.py --minutes 60 --processes 2 --out pretrain/
    cp pretrain/demo_vit.safetensors vpeft_bench/backbones/
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import save
from timm.layers.attention import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from vpeft_bench.backbones.demo_vit import vpeft_demo_vit

IMAGE_SIZE = 32
PATCH_SIZE = 4
GRID = IMAGE_SIZE // PATCH_SIZE
# Positions and sizes are in half-images: the picture spans [-1, 1] in x (right) and y (down).
PIXELS_PER_UNIT = IMAGE_SIZE / 2
MAX_OBJECTS = 10
IGNORE = -100

# Name -> order of rotational symmetry (0: the shape has no orientation).
SHAPES: dict[str, int] = {
    "disc": 0,
    "egg": 1,
    "ellipse": 2,
    "trefoil": 3,
    "quatrefoil": 4,
    "cinquefoil": 5,
    "hexafoil": 6,
    "triangle": 3,
    "square": 4,
    "pentagon": 5,
    "bar": 2,
    "half_disc": 1,
    "arc": 1,
}
SHAPE_NAMES = tuple(SHAPES)
POLYGON_START, BAR, HALF_DISC, ARC = (
    SHAPE_NAMES.index(name) for name in ("triangle", "bar", "half_disc", "arc")
)
NUM_GEOMETRIC = len(SHAPES)
NUM_GLYPHS = 48
NUM_SHAPES = NUM_GEOMETRIC + NUM_GLYPHS
GLYPH_CONTROLS = 6
GLYPH_SEGMENTS = 16

TEXTURES = ("solid", "stripes", "checker", "dots", "noise", "gradient")
SOLID, STRIPES, CHECKER, DOTS, NOISE, GRADIENT = range(len(TEXTURES))
NOISE_CELLS = 10

NUM_HUES = 12
GREY = NUM_HUES  # one more class, for objects without colour
NUM_PHASES = 16

# The outline of an object is predicted on a coarse grid that reaches a little beyond its radius.
TEMPLATE = 8
TEMPLATE_REACH = 1.1

SINGLE, FEW, MANY, GLYPH_SCENE = range(4)
SCENE_PROBABILITIES = (0.28, 0.27, 0.20, 0.25)

# A patch belongs to an object that covers about two of its sixteen pixels: enough for thin strokes.
PATCH_COVERAGE = 0.12
# An object counts when about three of its pixels are visible.
VISIBLE_PATCHES = 3 / PATCH_SIZE**2


# ------------------------------------------------------------------------------------ rendering


@dataclass(frozen=True)
class SceneSpec:
    """A batch of scenes before rasterisation; slot 0 is in front, the last layer is the background.

    ``B`` scenes have up to ``K`` objects, hence ``K + 1`` layers with a texture and colours.
    """

    shape: Tensor  # [B, K] index of the shape or glyph; -1: empty slot
    x: Tensor  # [B, K] centre
    y: Tensor
    size: Tensor  # [B, K] radius
    angle: Tensor  # [B, K] radians
    variant: Tensor  # [B, K] in [0, 1]: depth of the lobes, thickness of the bar, gap of the arc
    stroke: Tensor  # [B, K] half-width of the pen; 0: filled
    glyph_warp: Tensor  # [B, K, controls, 2] displacement of the glyph's control points
    glyph_matrix: Tensor  # [B, K, 2, 2] linear deformation of the glyph
    texture: Tensor  # [B, K + 1]
    frequency: Tensor  # [B, K + 1] cycles per half-image
    texture_angle: Tensor  # [B, K + 1]
    texture_phase: Tensor  # [B, K + 1, 2]
    noise: Tensor  # [B, K + 1] index into the batch's noise maps
    noise_maps: Tensor  # [N, cells, cells]
    colour: Tensor  # [B, K + 1, 3] first colour of the texture: the one that carries the hue label
    second_colour: Tensor  # [B, K + 1, 3]
    hue: Tensor  # [B, K + 1] hue class, or IGNORE


@dataclass(frozen=True)
class Batch:
    """Rendered images and their targets."""

    images: Tensor  # [B, 3, 32, 32] in [0, 1]
    patch: dict[str, Tensor]  # [B, 64] or [B, 64, width of the target]
    image: dict[str, Tensor]  # [B] or [B, width of the target]


def glyph_prototypes() -> tuple[Tensor, Tensor, Tensor]:
    """Return the fixed alphabet: control points, interpolation matrices and pen-down masks.

    The glyphs are random curves drawn once from a constant seed; a glyph is either smooth
    (Catmull-Rom) or angular (straight lines), and half of them lift the pen once.
    """
    generator = torch.Generator().manual_seed(2024)
    uniform = torch.rand(4096, GLYPH_CONTROLS, 2, generator=generator) * 2 - 1
    steps = (uniform[:, 1:] - uniform[:, :-1]).norm(dim=-1)
    legible = (steps > 0.7).all(dim=1) & (steps < 1.7).all(dim=1)
    extent = uniform.amax(dim=1) - uniform.amin(dim=1)
    candidates = uniform[legible & (extent > 1.2).all(dim=1)]
    # Greedy farthest-point choice keeps the classes of the alphabet apart.
    chosen = [0]
    distance = torch.full((len(candidates),), math.inf)
    for _ in range(NUM_GLYPHS - 1):
        last = (candidates - candidates[chosen[-1]]).flatten(1).norm(dim=1)
        distance = torch.minimum(distance, last)
        chosen.append(int(distance.argmax()))
    controls = candidates[chosen]
    centre = (controls.amax(dim=1, keepdim=True) + controls.amin(dim=1, keepdim=True)) / 2
    controls = controls - centre
    controls = controls / controls.norm(dim=-1).amax(dim=1)[:, None, None]

    position = torch.linspace(0, GLYPH_CONTROLS - 1, GLYPH_SEGMENTS + 1)
    left = position.floor().long().clamp(max=GLYPH_CONTROLS - 2)
    t = (position - left)[:, None]
    smooth_weights = torch.cat(
        [-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2], dim=1
    )
    smooth = torch.zeros(GLYPH_SEGMENTS + 1, GLYPH_CONTROLS)
    straight = torch.zeros(GLYPH_SEGMENTS + 1, GLYPH_CONTROLS)
    for offset in range(4):
        column = (left + offset - 1).clamp(0, GLYPH_CONTROLS - 1)[:, None]
        smooth.scatter_add_(1, column, smooth_weights[:, offset : offset + 1] / 2)
    straight.scatter_(1, left[:, None], 1 - t)
    straight.scatter_(1, left[:, None] + 1, t)
    is_smooth = torch.arange(NUM_GLYPHS) % 3 != 0
    matrices = torch.where(is_smooth[:, None, None], smooth, straight)

    pen_down = torch.ones(NUM_GLYPHS, GLYPH_SEGMENTS, dtype=torch.bool)
    lift = torch.randint(4, GLYPH_SEGMENTS - 6, (NUM_GLYPHS,), generator=generator)
    for glyph in range(1, NUM_GLYPHS, 2):
        pen_down[glyph, lift[glyph] : lift[glyph] + 3] = False
    return controls, matrices, pen_down


GLYPH_POINTS, GLYPH_MATRICES, GLYPH_PEN_DOWN = glyph_prototypes()
# Glyphs are nearly upright: their tilt is no attribute worth predicting.
SYMMETRY = torch.tensor([*SHAPES.values(), *[0] * NUM_GLYPHS])


def hsv_to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Convert colours with components in [0, 1]; the result has a last dimension of 3."""
    offsets = torch.tensor([5.0, 3.0, 1.0], device=hue.device)
    k = (offsets + hue[..., None] * 6) % 6
    ramp = torch.minimum(k, 4 - k).clamp(0, 1)
    return value[..., None] * (1 - saturation[..., None] * ramp)


@dataclass(frozen=True)
class Style:
    """What the camera needs to know about scenes; every field is ``[B]``."""

    large: Tensor  # the main object stays legible at low resolution
    grey: Tensor
    freedom: Tensor  # in [0, 1]: how far the scene departs from a plain object in the middle


class SceneSampler:
    """Draw random scenes; everything follows from the generator it is given."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self.device = generator.device

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Draw uniform numbers."""
        sample = torch.rand(*shape, generator=self.generator, device=self.device)
        return low + (high - low) * sample

    def integer(self, *shape: int, low: int = 0, high: int) -> Tensor:
        """Draw integers in ``[low, high)``."""
        return torch.randint(low, high, shape, generator=self.generator, device=self.device)

    def chance(self, probability: float, *shape: int) -> Tensor:
        """Draw booleans."""
        return self.uniform(*shape) < probability

    def normal(self, *shape: int) -> Tensor:
        """Draw standard normal numbers."""
        return torch.randn(*shape, generator=self.generator, device=self.device)

    def scenes(self, count: int, difficulty: float) -> tuple[SceneSpec, Style]:
        """Draw scenes.

        ``difficulty`` in [0, 1] is the share of scenes drawn from the full distribution. The
        others show, the more so the lower it is, one large, upright, plain object in the middle.
        """
        b, k = count, MAX_OBJECTS
        partial = difficulty * self.uniform(b)
        freedom = torch.where(self.chance(difficulty, b), torch.ones_like(partial), partial)
        free = freedom[:, None]
        kind = torch.multinomial(
            torch.tensor(SCENE_PROBABILITIES, device=self.device),
            b,
            replacement=True,
            generator=self.generator,
        )
        easy = self.uniform(b) >= freedom
        kind = torch.where(easy & (kind != GLYPH_SCENE), SINGLE, kind)
        many, glyph_scene = kind == MANY, kind == GLYPH_SCENE
        crowded = (many | (kind == FEW))[:, None]

        single_count = torch.ones(b, dtype=torch.long, device=self.device)
        objects = torch.stack(
            [
                single_count,
                self.integer(b, low=1, high=5),
                self.integer(b, low=1, high=MAX_OBJECTS + 1),
                single_count + (self.chance(0.25, b) & ~easy),
            ]
        ).gather(0, kind[None])[0]
        occupied = torch.arange(k, device=self.device) < objects[:, None]

        size_low = torch.tensor([0.35, 0.2, 0.1, 0.5], device=self.device)[kind][:, None]
        size_high = torch.tensor([0.95, 0.65, 0.26, 1.05], device=self.device)[kind][:, None]
        size = size_low * (size_high / size_low) ** self.uniform(b, k)
        size = torch.where(crowded, size, 0.75 * (size / 0.75) ** free)
        # Behind a glyph lies, at times, one smaller shape.
        behind = glyph_scene[:, None] & (torch.arange(k, device=self.device) > 0)
        size = torch.where(behind, size * 0.5, size)

        position = self._positions(many, size)
        position = torch.where(crowded[..., None], position, position * free[..., None])

        shape = self.integer(b, k, high=NUM_GEOMETRIC)
        glyph = self.integer(b, k, low=NUM_GEOMETRIC, high=NUM_SHAPES)
        first = torch.arange(k, device=self.device) == 0
        is_glyph = (glyph_scene[:, None] & first) | (
            (kind == FEW)[:, None] & self.chance(0.15, b, k)
        )
        shape = torch.where(is_glyph, glyph, shape)
        # Half of the crowds are of one kind, as in most counting tasks.
        uniform_crowd = (many & self.chance(0.5, b))[:, None]
        shape = torch.where(uniform_crowd, shape[:, :1], shape)
        shape = torch.where(occupied, shape, -1)

        upright = self.normal(b, k) * 0.2
        angle = torch.where(is_glyph, upright, self.uniform(b, k, low=-math.pi, high=math.pi))
        angle = angle * free

        pen = 0.04 * (0.22 / 0.04) ** self.uniform(b, k)
        is_stroke = is_glyph | (shape == ARC) | ((self.uniform(b, k) < 0.25 * free) & (size > 0.3))
        # A pen wider than a third of the shape would fill it.
        pen = torch.minimum(pen, size * torch.where(is_glyph, 0.3, 0.25))
        stroke = torch.where(is_stroke, pen.clamp(min=0.03), torch.zeros_like(pen))

        identity = torch.eye(2, device=self.device)
        grey = self.chance(0.35, b) | (glyph_scene & self.chance(0.6, b))
        plain = (grey & self.chance(0.6, b)) | easy
        colour, second, hue = self._colours(freedom, grey, plain, uniform_crowd)
        texture = self.integer(b, k + 1, high=len(TEXTURES))
        texture = torch.where(self.chance(0.35, b, k + 1) | plain[:, None], SOLID, texture)
        # On a pen stroke only the broad textures can be told apart.
        thin = F.pad(is_stroke, (0, 1))
        texture = torch.where(thin & (texture != GRADIENT), SOLID, texture)
        spec = SceneSpec(
            shape=shape,
            x=position[..., 0],
            y=position[..., 1],
            size=size,
            angle=angle,
            variant=self.uniform(b, k),
            stroke=stroke,
            glyph_warp=self.normal(b, k, GLYPH_CONTROLS, 2) * 0.08 * free[..., None, None],
            glyph_matrix=identity + self.normal(b, k, 2, 2) * 0.15 * free[..., None, None],
            texture=texture,
            frequency=1.2 * 2.5 ** self.uniform(b, k + 1),
            texture_angle=self.uniform(b, k + 1, high=math.pi),
            texture_phase=self.uniform(b, k + 1, 2),
            noise=self.integer(b, k + 1, high=b),
            noise_maps=self.uniform(b, NOISE_CELLS, NOISE_CELLS),
            colour=colour,
            second_colour=second,
            hue=hue,
        )
        return spec, Style(large=~crowded[:, 0], grey=grey, freedom=freedom)

    def _positions(self, many: Tensor, size: Tensor) -> Tensor:
        """Place objects: crowds on a jittered 4 x 4 grid, all others freely."""
        b, k = size.shape
        reach = (1 - 0.7 * size).clamp(min=0.05)
        free = (self.uniform(b, k, 2) * 2 - 1) * reach[..., None]
        cells = self.uniform(b, 16).argsort(dim=1)[:, :k]
        centres = torch.stack([cells % 4, cells // 4], dim=-1) * 0.5 - 0.75
        slack = (0.3 - size).clamp(min=0.03)[..., None]
        crowd = centres + (self.uniform(b, k, 2) * 2 - 1) * slack
        return torch.where(many[:, None, None], crowd, free)

    def _colours(
        self, freedom: Tensor, grey: Tensor, plain: Tensor, uniform_crowd: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Draw two colours and the hue class of every layer, with contrast to the background."""
        b, layers = len(freedom), MAX_OBJECTS + 1
        hue = self.uniform(b, layers)
        saturation = self.uniform(b, layers, low=0.45)
        colourless = self.chance(0.15, b, layers) | grey[:, None]

        bright_background = (self.uniform(b) < 0.4 * freedom)[:, None]
        opposite = (
            (self.uniform(b, layers) >= 0.3 * freedom[:, None]) | grey[:, None] | colourless[:, -1:]
        )
        # An object as bright as its background must differ from it in hue.
        hue = torch.where(opposite, hue, (hue[:, -1:] + 0.2 + 0.6 * hue) % 1)
        colourless &= opposite
        bright = bright_background ^ opposite
        bright[:, -1:] = bright_background
        colourless[:, -1] |= grey
        crowd_hue = torch.where(opposite[:, :1], hue[:, :1], (hue[:, -1:] + 0.5) % 1)
        hue[:, :-1] = torch.where(uniform_crowd, crowd_hue, hue[:, :-1])
        bright[:, :-1] = torch.where(uniform_crowd, bright[:, :1], bright[:, :-1])
        colourless[:, :-1] = torch.where(uniform_crowd, colourless[:, :1], colourless[:, :-1])

        saturation = torch.where(colourless, torch.zeros_like(saturation), saturation)
        level = self.uniform(b, layers)
        value = torch.where(bright, 0.75 + 0.25 * level, 0.15 + 0.3 * level)
        # The plainest pictures are pure ink on pure paper, or the reverse.
        pure = torch.where(bright, 0.9 + 0.1 * level, 0.08 * level)
        value = torch.where((plain & grey)[:, None], pure, value)
        contrast = self.uniform(b, layers, low=0.25, high=0.45)
        second_value = torch.where(bright, value - contrast, value + contrast).clamp(0, 1)
        other_hue = self.chance(0.3, b, layers)
        second_hue = torch.where(other_hue, self.uniform(b, layers), hue)

        label = (hue * NUM_HUES).round().long() % NUM_HUES
        label = torch.where(colourless, GREY, label)
        label = torch.where(grey[:, None], IGNORE, label)
        return (
            hsv_to_rgb(hue, saturation, value),
            hsv_to_rgb(second_hue, saturation, second_value),
            label,
        )


def shape_distance(shape: Tensor, u: Tensor, v: Tensor, variant: Tensor, pen: Tensor) -> Tensor:
    """Return the signed distance (negative inside) to geometric shapes of radius 1.

    ``shape``, ``variant`` and ``pen`` are ``[N]``, ``u`` and ``v`` are ``[N, pixels]`` in the
    frame of the object. Each family of formulas is evaluated only for its own rows.
    """
    distance = torch.empty_like(u)
    radius = torch.hypot(u, v)
    azimuth = torch.atan2(v, u)

    def rows(mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        index = mask.nonzero()[:, 0]
        return index, radius[index], azimuth[index], variant[index, None]

    index, r, phi, amount = rows(shape < POLYGON_START)
    lobes = shape[index, None].float()
    depth = (0.2 + 0.25 * amount) * (lobes > 0)
    edge = (1 + depth * torch.cos(lobes * phi)) / (1 + depth)
    slope = depth * lobes * torch.sin(lobes * phi) / (1 + depth)
    # Dividing by the gradient makes the edge equally sharp all around the contour.
    distance[index] = (r - edge) / torch.sqrt(1 + (slope / r.clamp(min=0.3)) ** 2)

    index, r, phi, _ = rows((shape >= POLYGON_START) & (shape < BAR))
    half_sector = math.pi / (shape[index, None] - POLYGON_START + 3)
    distance[index] = r * torch.cos(phi % (2 * half_sector) - half_sector) - half_sector.cos()

    index, _, _, amount = rows(shape == BAR)
    distance[index] = torch.maximum(u[index].abs() - 1, v[index].abs() - 0.1 - 0.35 * amount)

    index, r, _, _ = rows(shape == HALF_DISC)
    distance[index] = torch.maximum(r - 1, u[index])

    index, r, phi, amount = rows(shape == ARC)
    gap = 0.4 + 1.2 * amount
    middle = 1 - pen[index, None]
    to_end = torch.hypot(u[index] - middle * gap.cos(), v[index].abs() - middle * gap.sin())
    distance[index] = torch.where(phi.abs() < gap, to_end, (r - middle).abs())
    return distance


def glyph_distance(spec: SceneSpec, rows: tuple[Tensor, ...], u: Tensor, v: Tensor) -> Tensor:
    """Return the distance to the pen path of glyphs, in units of their size."""
    device = u.device
    glyph = (spec.shape[rows] - NUM_GEOMETRIC).cpu()
    controls = GLYPH_POINTS[glyph].to(device) + spec.glyph_warp[rows]
    controls = controls @ spec.glyph_matrix[rows]
    path = GLYPH_MATRICES[glyph].to(device) @ controls
    pen_down = GLYPH_PEN_DOWN[glyph].to(device)
    nearest = torch.full_like(u, math.inf)
    for segment in range(GLYPH_SEGMENTS):
        start = path[:, segment, :, None]
        step = path[:, segment + 1, :, None] - start
        du, dv = u - start[:, 0], v - start[:, 1]
        along = du * step[:, 0] + dv * step[:, 1]
        along = (along / (step**2).sum(dim=1).clamp(min=1e-6)).clamp(0, 1)
        squared = (du - along * step[:, 0]) ** 2 + (dv - along * step[:, 1]) ** 2
        squared = squared.masked_fill(~pen_down[:, segment, None], math.inf)
        nearest = torch.minimum(nearest, squared)
    return nearest.sqrt()


def pixel_grid(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return x and y of the pixel centres, flattened."""
    centres = (torch.arange(IMAGE_SIZE, device=device) + 0.5) / PIXELS_PER_UNIT - 1
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return x.flatten(), y.flatten()


def object_distance(spec: SceneSpec, rows: tuple[Tensor, ...], dx: Tensor, dy: Tensor) -> Tensor:
    """Return the signed distance to the objects in ``rows``, at points relative to their centres.

    ``dx`` and ``dy`` are ``[N, points]`` in half-images, and so is the distance.
    """
    size = spec.size[rows][:, None]
    cos, sin = spec.angle[rows].cos()[:, None], spec.angle[rows].sin()[:, None]
    u, v = (dx * cos + dy * sin) / size, (dy * cos - dx * sin) / size
    shape, stroke = spec.shape[rows], spec.stroke[rows]

    distance = torch.empty_like(u)
    geometric = (shape < NUM_GEOMETRIC).nonzero()[:, 0]
    distance[geometric] = shape_distance(
        shape[geometric],
        u[geometric],
        v[geometric],
        spec.variant[rows][geometric],
        (stroke / spec.size[rows])[geometric],
    )
    glyph = (shape >= NUM_GEOMETRIC).nonzero()[:, 0]
    glyph_rows = tuple(index[glyph] for index in rows)
    distance[glyph] = glyph_distance(spec, glyph_rows, u[glyph], v[glyph])

    distance = distance * size
    # A drawn line lies on the inner side of its contour, so that the size stays the outer radius.
    is_outline = (stroke > 0) & (shape < ARC)
    line = torch.where(is_outline[:, None], (distance + stroke[:, None]).abs(), distance)
    return torch.where(stroke[:, None] > 0, line - stroke[:, None], distance)


def coverage(spec: SceneSpec) -> tuple[Tensor, Tensor]:
    """Return how much of each pixel each object would cover alone, and each object's outline.

    The coverage is ``[B, K, pixels]``. The outline is the same in a window that is centred on the
    object and scaled to its size, but not turned: ``[B, K, TEMPLATE * TEMPLATE]``.
    """
    b, k = spec.shape.shape
    px, py = pixel_grid(spec.shape.device)
    rows = (spec.shape >= 0).nonzero(as_tuple=True)
    dx, dy = px - spec.x[rows][:, None], py - spec.y[rows][:, None]
    distance = object_distance(spec, rows, dx, dy)
    covered = torch.zeros(b, k, IMAGE_SIZE**2, device=px.device)
    # One pixel of linear ramp across the edge is the usual analytic anti-aliasing.
    covered[rows] = (0.5 - distance * PIXELS_PER_UNIT).clamp(0, 1)

    cell = 2 * TEMPLATE_REACH / TEMPLATE
    cells = (torch.arange(TEMPLATE, device=px.device) + 0.5) * cell - TEMPLATE_REACH
    ty, tx = torch.meshgrid(cells, cells, indexing="ij")
    size = spec.size[rows][:, None]
    distance = object_distance(spec, rows, tx.flatten() * size, ty.flatten() * size)
    outline = torch.zeros(b, k, TEMPLATE**2, device=px.device)
    outline[rows] = (0.5 - distance / (size * cell)).clamp(0, 1)
    return covered, outline


def texture_mix(spec: SceneSpec) -> Tensor:
    """Return the share of the second colour in each pixel of each layer: ``[B, K + 1, pixels]``."""
    px, py = pixel_grid(spec.texture.device)
    mix = torch.zeros(*spec.texture.shape, IMAGE_SIZE**2, device=px.device)
    used = F.pad(spec.shape >= 0, (0, 1), value=True)

    rows = ((spec.texture != SOLID) & (spec.texture != NOISE) & used).nonzero(as_tuple=True)
    texture = spec.texture[rows][:, None]
    cos = spec.texture_angle[rows].cos()[:, None]
    sin = spec.texture_angle[rows].sin()[:, None]
    frequency, phase = spec.frequency[rows][:, None], spec.texture_phase[rows]
    along, across = px * cos + py * sin, py * cos - px * sin
    wave_u = torch.sin(2 * math.pi * (frequency * along + phase[:, :1]))
    wave_v = torch.sin(2 * math.pi * (frequency * across + phase[:, 1:]))
    dots = (wave_u + wave_v) / 2 - 0.3
    pattern = torch.where(texture == CHECKER, wave_u * wave_v, wave_u)
    pattern = torch.where(texture == DOTS, dots, pattern)
    sharp = (0.5 + 2 * pattern).clamp(0, 1)
    mix[rows] = torch.where(texture == GRADIENT, (0.5 + 0.5 * along).clamp(0, 1), sharp)

    rows = ((spec.texture == NOISE) & used).nonzero(as_tuple=True)
    maps = F.interpolate(
        spec.noise_maps[:, None], IMAGE_SIZE, mode="bilinear", align_corners=False
    ).flatten(1)
    mix[rows] = (2 * maps[spec.noise[rows]] - 0.5).clamp(0, 1)
    return mix


def rasterise(spec: SceneSpec) -> Batch:
    """Draw scenes, without any camera effect, and read off the targets."""
    b, k = spec.shape.shape
    covered, outline = coverage(spec)
    behind = torch.cumprod(1 - covered, dim=1)
    transmitted = torch.cat([torch.ones_like(behind[:, :1]), behind[:, :-1]], dim=1)
    visible = torch.cat([covered * transmitted, behind[:, -1:]], dim=1)
    second = visible * texture_mix(spec)
    colours = torch.cat([spec.colour, spec.second_colour], dim=1)
    weights = torch.cat([visible - second, second], dim=1)
    images = torch.bmm(colours.transpose(1, 2), weights).view(b, 3, IMAGE_SIZE, IMAGE_SIZE)

    share = F.avg_pool2d(visible.view(b, k + 1, IMAGE_SIZE, IMAGE_SIZE), PATCH_SIZE).flatten(2)
    most, owner = share[:, :k].max(dim=1)
    foreground = most > PATCH_COVERAGE
    layer = torch.where(foreground, owner, k)

    total = share[:, :k].sum(dim=2)
    main = total.argmax(dim=1, keepdim=True)
    symmetry = SYMMETRY.to(spec.shape.device)[spec.shape.clamp(min=0)]
    phase = (spec.angle * symmetry / (2 * math.pi)) % 1
    phase = torch.where(symmetry > 0, phase, torch.full_like(phase, float(IGNORE)))
    log_size = (spec.size / 0.3).log()

    def of_owner(values: Tensor) -> Tensor:
        """Look up an attribute of the object under each patch."""
        return values.gather(1, owner)

    patch_centres = (torch.arange(GRID, device=owner.device) + 0.5) * (2 / GRID) - 1
    cy, cx = torch.meshgrid(patch_centres, patch_centres, indexing="ij")
    offset = torch.stack([of_owner(spec.x) - cx.flatten(), of_owner(spec.y) - cy.flatten()], dim=-1)
    blank = float("nan")
    patch = {
        "foreground": foreground.float(),
        "shape": torch.where(foreground, of_owner(spec.shape), IGNORE),
        "phase": torch.where(foreground, of_owner(phase), float(IGNORE)),
        "hue": spec.hue.gather(1, layer),
        "texture": spec.texture.gather(1, layer),
        "size": torch.where(foreground, of_owner(log_size), blank),
        "offset": torch.where(foreground[..., None], offset, blank),
        "outline": torch.where(
            foreground[..., None],
            outline.gather(1, owner[..., None].expand(-1, -1, TEMPLATE**2)),
            blank,
        ),
    }
    main_outline = outline[torch.arange(b, device=owner.device), main[:, 0]]
    image = {
        "count": (total > VISIBLE_PATCHES).sum(dim=1),
        "shape": spec.shape.gather(1, main)[:, 0],
        "phase": phase.gather(1, main)[:, 0],
        "hue": spec.hue.gather(1, main)[:, 0],
        "background_hue": spec.hue[:, k],
        "texture": spec.texture.gather(1, main)[:, 0],
        "background_texture": spec.texture[:, k],
        "size": log_size.gather(1, main)[:, 0],
        "outline": main_outline,
        "position": torch.cat([spec.x.gather(1, main), spec.y.gather(1, main)], dim=1),
    }
    return Batch(images, patch, image)


def photograph(images: Tensor, sampler: SceneSampler, style: Style) -> Tensor:
    """Apply what a camera or scanner does: low resolution, blur, contrast, noise."""
    b = len(images)
    free = style.freedom[:, None, None, None]
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    amount = free * sampler.uniform(b, 1, 1, 1) * sampler.chance(0.3, b, 1, 1, 1)
    images = images + amount * (blurred - images)
    coarse = style.large & (sampler.uniform(b) < 0.2 * style.freedom)
    for pixels in (8, 16):
        index = (coarse & sampler.chance(0.6, b)).nonzero()[:, 0]
        small = F.adaptive_avg_pool2d(images[index], pixels)
        images[index] = F.interpolate(small, IMAGE_SIZE, mode="bilinear", align_corners=False)
    loss_of_contrast = 0.5 * free * sampler.uniform(b, 1, 1, 1) * sampler.chance(0.5, b, 1, 1, 1)
    images = loss_of_contrast * sampler.uniform(b, 1, 1, 1) + (1 - loss_of_contrast) * images
    strength = 0.08 * free * sampler.uniform(b, 1, 1, 1) * sampler.chance(0.5, b, 1, 1, 1)
    noise = sampler.normal(*images.shape)
    noise = torch.where(style.grey[:, None, None, None], noise[:, :1], noise)
    return (images + strength * noise).clamp(0, 1)


def render_batch(
    count: int, seed: int, difficulty: float = 1.0, device: str | torch.device = "cpu"
) -> Batch:
    """Render ``count`` images with their targets; the seed determines everything."""
    sampler = SceneSampler(torch.Generator(device=device).manual_seed(seed))
    spec, style = sampler.scenes(count, difficulty)
    scenes = rasterise(spec)
    images = photograph(scenes.images, sampler, style)
    return Batch(images, scenes.patch, scenes.image)


# ------------------------------------------------------------------------- network and objective

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


# ------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class Options:
    """The command line."""

    out: Path
    minutes: float | None
    images: int | None
    batch_size: int
    learning_rate: float
    seed: int
    processes: int
    threads: int
    device: str
    checkpoint_minutes: float
    held_out: int
    resume: bool


CURRICULUM_SHARE = 0.4
WARMUP_SHARE = 0.02
EMA_DECAY = 0.999
# Seeds of training batches count up from here; held-out scenes use the seeds below.
FIRST_TRAINING_SEED = 1_000_000


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write to a temporary name beside ``path``, then rename: readers never see half a file."""
    partial = path.with_name(path.name + ".partial")
    write(partial)
    os.replace(partial, path)


def export(weights: Mapping[str, Tensor], path: Path, facts: Mapping[str, str]) -> None:
    """Write the backbone as fp32 safetensors, with facts about its making as metadata."""
    tensors = {name: value.detach().float().cpu().contiguous() for name, value in weights.items()}
    metadata = {
        "format": "pt",
        "architecture": "vpeft_demo_vit",
        "license": "apache-2.0",
        "recipe": "scripts/pretrain_demo_backbone.py",
        "training_data": "procedurally rendered scenes",
        **facts,
    }
    data = save(tensors, metadata=metadata)
    write_atomically(path, lambda partial: partial.write_bytes(data))


def learning_rate_factor(progress: float) -> float:
    """Return the linear warm-up, then the cosine, as a function of the spent share of budget."""
    warmup = min(1.0, progress / WARMUP_SHARE)
    return warmup * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def make_optimizer(model: nn.Module, learning_rate: float) -> torch.optim.AdamW:
    """Build AdamW; norms, biases and the position embedding are not decayed."""
    decayed: list[Tensor] = []
    exempt: list[Tensor] = []
    for name, parameter in model.named_parameters():
        is_exempt = parameter.ndim < 2 or name.endswith("pos_embed")
        (exempt if is_exempt else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": exempt, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))


class Trainer:
    """One training process; with several, each renders its own images and gradients are averaged.

    Every process computes the same update, so only the first one evaluates and writes files.
    """

    def __init__(self, options: Options, rank: int) -> None:
        self.options = options
        self.rank = rank
        self.device = torch.device(options.device)
        torch.manual_seed(options.seed)
        self.model = Pretrainer().to(self.device)
        self.average = Pretrainer().to(self.device)
        self.average.load_state_dict(self.model.state_dict())
        self.optimizer = make_optimizer(self.model, options.learning_rate)
        self.step = 0
        self.spent_seconds = 0.0  # by earlier runs that this one resumes
        if options.resume:
            self._load()
        self.started = time.monotonic()

    @property
    def images(self) -> int:
        """Return how many images all processes have trained on."""
        return self.step * self.options.batch_size * self.options.processes

    @property
    def seconds(self) -> float:
        """Return the wall-clock time spent, including that of resumed runs."""
        return self.spent_seconds + time.monotonic() - self.started

    def progress(self) -> float:
        """Return the share of the budget spent; 1 ends the run."""
        shares = [0.0]
        if self.options.minutes is not None:
            shares.append(self.seconds / (60 * self.options.minutes))
        if self.options.images is not None:
            shares.append(self.images / self.options.images)
        return max(shares)

    def run(self) -> None:
        """Train until the budget is spent."""
        first = self.rank == 0
        held_out = self._held_out() if first else []
        recent: list[dict[str, Tensor]] = []
        saved_at = self.seconds
        progress = self._agreed(self.progress())
        while progress < 1:
            recent.append(self._train_step(progress))
            progress = self._agreed(self.progress())
            due = self.seconds - saved_at > 60 * self.options.checkpoint_minutes
            if first and (due or progress >= 1):
                self._report(held_out, recent)
                self._save()
                recent.clear()
                saved_at = self.seconds

    def _agreed(self, progress: float) -> float:
        """Return the first process's progress: all must stop after the same step."""
        if self.options.processes == 1:
            return progress
        shared = torch.tensor([progress], dtype=torch.float64)
        dist.broadcast(shared, 0)
        return shared.item()

    def _train_step(self, progress: float) -> dict[str, Tensor]:
        options = self.options
        for group in self.optimizer.param_groups:
            group["lr"] = options.learning_rate * learning_rate_factor(progress)
        scene_index = self.step * options.processes + self.rank
        batch = render_batch(
            options.batch_size,
            seed=FIRST_TRAINING_SEED * (options.seed + 1) + scene_index,
            difficulty=min(1.0, progress / CURRICULUM_SHARE),
            device=self.device,
        )
        self.optimizer.zero_grad(set_to_none=True)
        by_head = losses(self.model, batch)
        total_loss(by_head).backward()
        if options.processes > 1:
            self._average_gradients()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        self._update_average()
        return {name: value.detach() for name, value in by_head.items()}

    def _average_gradients(self) -> None:
        """Average over processes in one message."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.options.processes
        parts = flat.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    @torch.no_grad()
    def _update_average(self) -> None:
        """Follow the weights with an exponential average, shorter at the start."""
        decay = min(EMA_DECAY, (1 + self.step) / (10 + self.step))
        pairs = zip(self.average.parameters(), self.model.parameters(), strict=True)
        for average, value in pairs:
            average.lerp_(value, 1 - decay)

    def _held_out(self) -> list[Batch]:
        """Render the fixed scenes on which every run of this script is scored."""
        size = min(128, self.options.held_out)
        return [
            render_batch(size, seed=seed, device=self.device)
            for seed in range(max(1, self.options.held_out // size))
        ]

    def _report(self, held_out: list[Batch], recent: list[dict[str, Tensor]]) -> None:
        """Append a line to the curve: losses since the last line, scores of the average."""
        row: dict[str, float] = {
            "images": self.images,
            "seconds": round(self.seconds, 1),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
        }
        for name in recent[0]:
            row[f"loss_{name}"] = float(torch.stack([r[name] for r in recent]).mean())
        self.average.eval()
        row |= evaluate(self.average, held_out)
        path = self.options.out / "curve.csv"
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(row))
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow({k: f"{v:.6g}" if k != "images" else v for k, v in row.items()})
        shown = ("patch_foreground", "patch_shape", "patch_phase", "image_shape", "image_count")
        scores = "  ".join(f"{name} {row[f'score_{name}']:.3f}" for name in shown)
        print(f"{self.images} images  {self.seconds:.0f} s  {scores}", flush=True)

    def _save(self) -> None:
        out, options = self.options.out, self.options
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        write_atomically(out / "checkpoint.pt", lambda partial: torch.save(state, partial))
        facts = {"images": str(self.images), "seed": str(options.seed)}
        export(self.average.trunk.state_dict(), out / "demo_vit.safetensors", facts)

    def _load(self) -> None:
        path = self.options.out / "checkpoint.pt"
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        self.spent_seconds = state["seconds"]


def train_process(rank: int, options: Options, rendezvous: str) -> None:
    """Run one process of a training run."""
    torch.set_num_threads(options.threads)
    if options.processes > 1:
        dist.init_process_group(
            "gloo", init_method=rendezvous, rank=rank, world_size=options.processes
        )
    Trainer(options, rank).run()
    if options.processes > 1:
        dist.destroy_process_group()


def pretrain(options: Options) -> None:
    """Train, leaving ``demo_vit.safetensors``, ``checkpoint.pt`` and ``curve.csv`` in ``out``."""
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.resume:
        (options.out / "curve.csv").unlink(missing_ok=True)
    if options.processes == 1:
        train_process(0, options, "")
        return
    with tempfile.TemporaryDirectory() as directory:
        rendezvous = f"file://{directory}/rendezvous"
        spawn(train_process, args=(options, rendezvous), nprocs=options.processes)


def parse_options(arguments: list[str] | None = None) -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for everything written")
    parser.add_argument("--minutes", type=float, help="wall-clock budget, resumed runs included")
    parser.add_argument("--images", type=int, help="budget in images, over all processes")
    parser.add_argument("--batch-size", type=int, default=32, help="images per process and step")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="peak of the cosine")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1, help="data-parallel processes (CPU)")
    parser.add_argument("--threads", type=int, default=1, help="threads per process")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--checkpoint-minutes", type=float, default=3.0)
    parser.add_argument("--held-out", type=int, default=1024, help="images that score the heads")
    parser.add_argument("--resume", action="store_true", help="continue from OUT/checkpoint.pt")
    values = parser.parse_args(arguments)
    if values.minutes is None and values.images is None:
        parser.error("give a budget: --minutes, --images or both")
    return Options(**{field.name: getattr(values, field.name) for field in fields(Options)})


if __name__ == "__main__":
    pretrain(parse_options())
