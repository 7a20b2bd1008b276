"""VFPT: the transform written out, its relation to VPT, dropout in front of it."""

from __future__ import annotations

import cmath
from math import pi
from typing import Any

import pytest
import torch
from tiny_models import build, images
from torch import Tensor

import vpeft_bench
from vpeft_bench.backbones.further_tokens import InSequence
from vpeft_bench.errors import MethodOptionError
from vpeft_bench.methods.vfpt import InsertFourierPrompts


def insertion(prompts: Tensor, spectral: int, transform: str) -> InsertFourierPrompts:
    return InsertFourierPrompts(prompts, InSequence(1), None, 0.0, spectral, transform)


def dft(values: Tensor, tokens: bool, channels: bool) -> Tensor:
    """The real part of the Fourier sum, term by term, ``(f, D)``."""
    rows, columns = values.shape
    out = torch.zeros_like(values)
    for k in range(rows):
        for m in range(columns):
            total = 0j
            for n in range(rows) if tokens else [k]:
                for c in range(columns) if channels else [m]:
                    turns = (k * n / rows if tokens else 0) + (m * c / columns if channels else 0)
                    total += values[n, c].item() * cmath.exp(-2j * pi * turns)
            out[k, m] = total.real
    return out


@pytest.mark.parametrize(
    ("transform", "tokens", "channels"),
    [("all", True, True), ("sequence", True, False), ("hidden", False, True)],
)
def test_the_transform_is_a_fourier_sum(transform: str, tokens: bool, channels: bool) -> None:
    prompts = torch.randn(1, 5, 6, dtype=torch.float64)
    inserted = insertion(prompts, 3, transform).inserted(prompts)
    assert torch.allclose(inserted[0, :3], dft(prompts[0, :3], tokens, channels))
    assert torch.equal(inserted[:, 3:], prompts[:, 3:])


@pytest.mark.parametrize("depth", ["deep", "shallow"])
def test_without_a_spectral_part_it_is_vpt(depth: str) -> None:
    outputs = []
    for name, options in ((f"vpt_{depth}", {}), ("vfpt", {"ratio": 0.0, "depth": depth})):
        model = build("vit_avg_reg")
        torch.manual_seed(3)
        vpeft_bench.attach(model, name, prompt_length=4, projection_width=6, **options)
        outputs.append(model(images()))
    assert torch.equal(*outputs)


@pytest.mark.parametrize("depth", ["deep", "shallow"])
@pytest.mark.parametrize("projection", [None, 6])
def test_it_folds_into_plain_prompts(depth: str, projection: int | None) -> None:
    """VPT with the transformed prompts has the same logits; with the raw ones it has others."""
    model = build("vit").double()
    options = {"depth": depth, "ratio": 0.8, "projection_width": projection}
    attached = vpeft_bench.attach(model, "vfpt", prompt_length=5, **options)
    with torch.no_grad():
        expected = model(images().double())
        plain: Any = build("vit").double()
        vpt = vpeft_bench.attach(plain, f"vpt_{depth}", prompt_length=5)
        for ours, theirs in zip(attached.backbone.blocks, vpt.backbone.blocks, strict=True):
            module: Any = ours.module
            if (fourier := getattr(module, "stream_in", None)) is None:
                continue  # shallow: the first block only
            raw = fourier.projection(fourier.prompts) if projection else fourier.prompts
            target: Any = theirs.module
            target.stream_in.prompts.copy_(raw)
            assert not torch.allclose(plain(images().double()), expected)
            target.stream_in.prompts.copy_(fourier.inserted(raw))
        assert torch.allclose(plain(images().double()), expected, atol=1e-10)


def test_the_first_rows_of_every_block_are_transformed() -> None:
    attached = vpeft_bench.attach(build("vit"), "vfpt", prompt_length=7)
    for block in attached.backbone.blocks:
        module: Any = block.module.stream_in
        # floor(7 / 2), after the class token
        assert (module.spectral, module.place) == (3, InSequence(1))


def test_dropout_comes_in_front_of_the_transform() -> None:
    """Zeros are left in the plain half alone, and every picture has its own."""
    model = build("vit").train()
    vpeft_bench.attach(model, "vfpt", prompt_length=20, dropout=0.5)
    tokens = model.blocks[0].stream_in(torch.zeros(3, 17, 32))
    spectral, plain = tokens[:, 1:11], tokens[:, 11:21]
    assert spectral.all()
    assert 0.3 < (plain == 0).float().mean() < 0.7
    assert not torch.equal(plain[0], plain[1])
    assert not torch.allclose(spectral[0], spectral[1])


def test_a_share_below_one_prompt_is_refused() -> None:
    with pytest.raises(MethodOptionError, match=r"method\.ratio=0\.1 transforms one"):
        vpeft_bench.attach(build("vit"), "vfpt", ratio=0.09)
    vpeft_bench.attach(build("vit"), "vfpt", ratio=0.1)
