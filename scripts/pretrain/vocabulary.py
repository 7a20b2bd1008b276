"""What pictures may show: shapes, textures, hues, and how large things are."""

from __future__ import annotations

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
