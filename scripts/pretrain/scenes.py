"""What is in a picture: scenes drawn from a random number generator, before any pixel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.vocabulary import (
    ARC,
    FEW,
    GLYPH_CONTROLS,
    GLYPH_SCENE,
    GLYPH_SEGMENTS,
    GRADIENT,
    GREY,
    IGNORE,
    MANY,
    MAX_OBJECTS,
    NOISE_CELLS,
    NUM_GEOMETRIC,
    NUM_GLYPHS,
    NUM_HUES,
    NUM_SHAPES,
    SCENE_PROBABILITIES,
    SHAPES,
    SINGLE,
    SOLID,
    TEXTURES,
)


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
