"""Tokens as maps: order, prefix tokens, grids that are not the patch embedding's."""

from __future__ import annotations

import pytest
import timm
import torch
from tiny_models import MODELS, VIT, build

from vpeft_bench.backbones import block_map
from vpeft_bench.errors import UnsupportedBackboneError
from vpeft_bench.methods.parts.spatial import TokenGrid, require_grid


@pytest.mark.parametrize("kind", MODELS)
def test_join_is_the_inverse_of_split(kind: str) -> None:
    grid = TokenGrid.of(block_map(build(kind)))
    shape = (2, 4, 8, 6) if kind == "swin" else (2, (grid.prefix_tokens or 0) + 16, 6)
    x = torch.randn(shape)
    prefix, image = grid.split(x)
    assert image.shape == ((2, 6, 4, 8) if kind == "swin" else (2, 6, 4, 4))
    assert torch.equal(grid.join(prefix, image), x)
    assert grid.join(prefix[..., :3], image[:, :3]).shape == (*shape[:-1], 3)


def test_patches_lie_row_by_row() -> None:
    """The map of the patch embedding's own output is its convolution's output."""
    model = timm.create_model("vit_tiny_patch16_224", **{**VIT, "img_size": (16, 40)})
    grid = TokenGrid.of(block_map(model))
    images = torch.randn(2, 3, 16, 40)
    prefix, image = grid.split(torch.cat([torch.zeros(2, 1, 32), model.patch_embed(images)], 1))
    assert image.shape == (2, 32, 2, 5)
    assert torch.equal(image, model.patch_embed.proj(images))
    assert not prefix.any()


def test_another_number_of_tokens_is_a_square_or_an_error() -> None:
    grid = TokenGrid.of(block_map(build("vit")))
    assert grid.split(torch.randn(1, 1 + 25, 3))[1].shape == (1, 3, 5, 5)
    with pytest.raises(ValueError, match="24 patch tokens"):
        grid.split(torch.randn(1, 1 + 24, 3))


def test_dropped_patches_are_refused() -> None:
    model = timm.create_model("vit_tiny_patch16_224", patch_drop_rate=0.5, **VIT)
    with pytest.raises(UnsupportedBackboneError, match="patch_drop_rate=0"):
        require_grid("some", block_map(model))
    require_grid("some", block_map(build("vit")))
    require_grid("some", block_map(build("swin")))
