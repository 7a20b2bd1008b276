"""An opened model with nothing placed is timm's, and goes on from any of its blocks."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from tiny_models import MODELS, build, images

from vpeft_bench.backbones import block_map
from vpeft_bench.backbones.trunk import OpenedModel


@pytest.mark.parametrize("kind", MODELS)
def test_opened_with_nothing_placed_is_timms_own(kind: str) -> None:
    plain, opened = build(kind), build(kind)
    block_map(opened).open_trunk()
    assert isinstance(opened, OpenedModel)
    assert list(opened.state_dict()) == list(plain.state_dict())
    x = images()
    assert torch.equal(opened(x), plain(x))
    assert torch.equal(opened.forward_features(x), plain.forward_features(x))
    final, maps = cast(tuple, opened.forward_intermediates(x, norm=True))
    expected_final, expected_maps = plain.forward_intermediates(x, norm=True)
    assert torch.equal(final, expected_final)
    assert len(maps) == len(expected_maps)
    assert all(torch.equal(a, b) for a, b in zip(maps, expected_maps, strict=True))


@pytest.mark.parametrize("kind", MODELS)
def test_it_goes_on_from_any_block(kind: str) -> None:
    plain, opened = build(kind), build(kind)
    backbone = block_map(opened)
    backbone.open_trunk()
    model, x = cast(OpenedModel, opened), images()
    expected = plain(x)
    for index in range(len(backbone.blocks)):
        features = model.read([f"tokens.{index}"], x)
        assert not features[f"tokens.{index}"].requires_grad
        assert torch.equal(model.resume(features), expected)
    assert torch.equal(model.resume(model.read(["features"], x)), expected)
