"""Mona: what it reads at its start, and tokens that are no part of the image."""

from __future__ import annotations

import pytest
import torch
from tiny_models import build, images
from torch import nn

import vpeft_bench
from vpeft_bench.errors import UnsupportedBackboneError
from vpeft_bench.methods.mona import MultiCognitive
from vpeft_bench.methods.parts.spatial import TokenGrid


def module(prefix_tokens: int | None) -> MultiCognitive:
    torch.manual_seed(0)
    return MultiCognitive(8, 4, 0.0, TokenGrid(prefix_tokens, (3, 5))).eval()


def test_prefix_tokens_pass_and_patches_do_not_see_them() -> None:
    tokens = torch.randn(2, 2 + 15, 8)
    other = tokens.clone()
    other[:, :2] += 1.0
    mona = module(2)
    assert torch.equal(mona(tokens)[:, :2], tokens[:, :2])
    assert torch.equal(mona(tokens)[:, 2:], mona(other)[:, 2:])
    assert not torch.equal(mona(tokens)[:, 2:], tokens[:, 2:])


def test_tokens_and_maps_are_the_same_image() -> None:
    tokens = torch.randn(2, 15, 8)
    torch.testing.assert_close(
        module(None)(tokens.unflatten(1, (3, 5))).flatten(1, 2), module(0)(tokens)
    )


def test_a_token_reaches_three_steps_far() -> None:
    """The largest kernel is 7 x 7: in a line of nine tokens the first is seen by the fourth."""
    torch.manual_seed(0)
    mona = MultiCognitive(8, 4, 0.0, TokenGrid(None, None)).eval()
    line = torch.randn(1, 1, 9, 8)
    moved = line.clone()
    moved[:, :, 0] += 1.0
    changed = (mona(moved) != mona(line)).any(-1)[0, 0]
    assert changed.tolist() == [True] * 4 + [False] * 5


def test_starts_reading_the_stream_itself() -> None:
    mona = module(None)
    assert torch.equal(mona.stream_scale, torch.ones(8))
    assert torch.equal(mona.norm_scale, torch.full((8,), 1e-6))
    assert mona.norm.eps == 1e-5


@pytest.mark.parametrize(("kind", "modules"), [("vit", 4), ("vit_avg_reg", 6), ("swin", 8)])
def test_no_module_where_nothing_reads_it(kind: str, modules: int) -> None:
    """The classifier of the first reads the class token, which the last block's two would pass."""
    attached = vpeft_bench.attach(build(kind), "mona")
    assert len(attached.backbone.placements) == modules


def test_without_a_classifier_every_block_has_its_modules() -> None:
    model = build("vit")
    model.reset_classifier(0)
    attached = vpeft_bench.attach(model, "mona")
    assert len(attached.backbone.placements) == 6
    plain = build("vit").forward_intermediates(images(), intermediates_only=True)
    adapted = model.forward_intermediates(images(), intermediates_only=True)
    assert not any(torch.equal(p, a) for p, a in zip(plain, adapted, strict=True))


def test_patch_dropout_is_refused() -> None:
    model = build("vit")
    model.patch_drop = nn.Dropout(0.5)
    with pytest.raises(UnsupportedBackboneError, match="patch dropout"):
        vpeft_bench.attach(model, "mona")
