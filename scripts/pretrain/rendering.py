"""From scenes to pixels, and to what every patch shows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.scenes import SYMMETRY, SceneSampler, SceneSpec, Style, glyph_prototypes
from pretrain.vocabulary import (
    ARC,
    BAR,
    CHECKER,
    DOTS,
    GLYPH_SEGMENTS,
    GRADIENT,
    GRID,
    HALF_DISC,
    IGNORE,
    IMAGE_SIZE,
    NOISE,
    NUM_GEOMETRIC,
    PATCH_COVERAGE,
    PATCH_SIZE,
    PIXELS_PER_UNIT,
    POLYGON_START,
    SOLID,
    TEMPLATE,
    TEMPLATE_REACH,
    VISIBLE_PATCHES,
)


@dataclass(frozen=True)
class Batch:
    """Rendered images and their targets."""

    images: Tensor  # [B, 3, 32, 32] in [0, 1]
    patch: dict[str, Tensor]  # [B, 64] or [B, 64, width of the target]
    image: dict[str, Tensor]  # [B] or [B, width of the target]


GLYPH_POINTS, GLYPH_MATRICES, GLYPH_PEN_DOWN = glyph_prototypes()


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
