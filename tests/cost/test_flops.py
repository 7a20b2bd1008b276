"""Counted operations equal the formula, whatever computes attention."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

from vpeft_bench.attaching.attachment import attach
from vpeft_bench.backbones import block_map
from vpeft_bench.backbones.swin import FAMILY
from vpeft_bench.cost.flops import closed_form, count, per_image
from vpeft_bench.runs.build import unfuse_attention

SWIN = {"embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4, "patch_size": 2}
SWIN_ANY = SWIN | dict(FAMILY.any_size)
MODELS: dict[str, tuple[str, tuple[int, int], dict[str, Any]]] = {
    "demo": ("vpeft_demo_vit", (32, 32), {}),
    "ViT-Ti/16": ("vit_tiny_patch16_224", (224, 224), {}),
    "ViT-Ti/16, another size": ("vit_tiny_patch16_224", (96, 160), {"img_size": (96, 160)}),
    "no head": ("vit_tiny_patch16_224", (64, 64), {"img_size": 64, "num_classes": 0}),
    "DINOv2 with registers": (
        "vit_small_patch14_reg4_dinov2",
        (70, 70),
        {"img_size": 70, "depth": 2},
    ),
    "SigLIP, pooled by attention": (
        "vit_base_patch16_siglip_224",
        (64, 64),
        {"img_size": 64, "depth": 1},
    ),
    "CLIP": ("vit_base_patch16_clip_224", (32, 32), {"img_size": 32, "depth": 1}),
    "Swin, whole windows": ("swin_tiny_patch4_window7_224", (64, 64), SWIN | {"img_size": 64}),
    "Swin, padded windows": ("swin_tiny_patch4_window7_224", (60, 76), SWIN_ANY),
    "Swin, odd maps": ("swin_tiny_patch4_window7_224", (50, 38), SWIN_ANY),
    "distilled DeiT": ("deit_tiny_distilled_patch16_224", (32, 32), {"img_size": 32, "depth": 2}),
    "BEiT": ("beit_base_patch16_224", (32, 32), {"img_size": 32, "depth": 1}),
    "DINOv3": ("vit_small_patch16_dinov3", (32, 48), {"img_size": (32, 48), "depth": 1}),
    "EVA-02": ("eva02_base_patch14_448", (28, 28), {"img_size": 28, "depth": 1}),
    "PE, pooled by attention": (
        "vit_pe_core_base_patch16_224",
        (32, 32),
        {"img_size": 32, "depth": 1},
    ),
    "Swin V2, padded windows": ("swinv2_tiny_window8_256", (60, 76), SWIN_ANY),
    "Swin-T": ("swin_tiny_patch4_window7_224", (224, 224), {}),
}


@pytest.mark.parametrize("name", MODELS)
def test_counter_and_formula_agree(name: str) -> None:
    model_name, size, arguments = MODELS[name]
    model = timm.create_model(model_name, **({"num_classes": 7} | arguments)).eval()
    expected = closed_form(block_map(model), size)
    images = torch.randn(1, 3, *size)

    assert expected is not None
    assert count(lambda: model(images)) == expected
    unfuse_attention(model)
    assert count(lambda: model(images)) == expected


def test_published_numbers() -> None:
    """17.6 and 15.4 thousand million multiply-adds, as timm's and the papers' tables have them."""
    for name, giga_multiply_adds in (
        ("vit_base_patch16_224", 17.56),
        ("swin_base_patch4_window7_224", 15.47),
    ):
        with torch.device("meta"):
            backbone = block_map(timm.create_model(name, num_classes=1000))
        found = closed_form(backbone, (224, 224))
        assert found is not None
        assert found / 2e9 == pytest.approx(giga_multiply_adds, rel=0.01)


def test_a_pool_without_a_formula_has_none() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1)
    model.attn_pool = nn.Identity()
    assert closed_form(block_map(model), (32, 32)) is None


@pytest.mark.parametrize("groups", [1, 8])
def test_backward_of_a_convolution_costs_twice_the_forward(groups: int) -> None:
    """Once for each gradient; PyTorch's own formula would count a depth-wise one 8 times."""
    convolution = nn.Conv2d(8, 8, 3, padding=1, groups=groups)
    images = torch.randn(2, 8, 6, 6, requires_grad=True)
    forward = count(lambda: convolution(images))
    assert forward == 2 * 2 * 36 * 8 * (8 // groups) * 9
    assert count(lambda: convolution(images).sum().backward()) == 3 * forward
    frozen = images.detach()
    assert count(lambda: convolution(frozen).sum().backward()) == 2 * forward


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_of_full_fine_tuning_costs_three_forward_passes(fused: bool) -> None:
    """Of the patch embedding alone no gradient of the input is needed."""
    model = timm.create_model("vpeft_demo_vit", num_classes=10)
    if not fused:
        unfuse_attention(model)
    images = torch.randn(1, 3, 32, 32)
    embedding = 2 * 64 * model.patch_embed.proj.weight.numel()
    forward = count(lambda: model(images))
    assert count(lambda: model(images).sum().backward()) == 3 * forward - embedding


def test_work_per_step_is_shared_by_the_batch() -> None:
    """LoRA of the peft library with DoRA builds its weight once for all images."""
    weights = [nn.Parameter(torch.randn(16, 4)), nn.Parameter(torch.randn(4, 16))]

    def run(images: int) -> None:
        torch.randn(images, 16) @ (weights[0] @ weights[1])

    of_image, of_step = 2 * 16 * 16, 2 * 16 * 4 * 16
    assert per_image(run, 8) == of_image + of_step // 8
    assert per_image(run, 1) == of_image + of_step


def test_a_method_is_counted_where_it_is_placed() -> None:
    model = timm.create_model("vpeft_demo_vit", num_classes=10)
    images = torch.randn(1, 3, 32, 32)
    plain = count(lambda: model(images))
    attach(model, "adapter", bottleneck=8)
    added = 2 * 6 * 64 * 2 * 128 * 8  # two linears, 6 blocks of 64 tokens, behind both branches
    assert count(lambda: model(images)) in (plain + added, plain + 2 * added)
