"""Closed-form parameter counts of the specifications, at full size and without memory for it."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
from torch import nn

import vpeft_bench
from vpeft_bench.backbones import block_map
from vpeft_bench.methods.registry import build_method, method_class

NAMES = {
    "vit_b": "vit_base_patch16_224",
    "swin_b": "swin_base_patch4_window7_224",
    "swin_l": "swin_large_patch4_window7_224",
}

COUNTS: list[tuple[str, str, dict[str, Any], int]] = [
    ("vit_b", "full", {}, 85_798_656),
    ("vit_b", "linear", {}, 0),
    ("vit_b", "bitfit", {}, 102_912),
    ("vit_b", "ln_tune", {}, 38_400),
    ("vit_b", "lora", {"rank": 8}, 294_912),
    ("vit_b", "lora", {"rank": 16}, 589_824),
    ("vit_b", "lora", {"rank": 8, "targets": ["qkv"]}, 294_912),
    ("vit_b", "lora", {"rank": 8, "dora": True}, 294_912 + 2 * 768 * 12),
    ("vit_b", "ssf", {}, 205_824),
    ("vit_b", "arc", {}, 96_432),
    ("vit_b", "arc", {"placement": "attn"}, 48_216),
    ("vit_b", "ssl", {}, 64_512),
    ("vit_b", "ssb", {}, 147_456),
    ("vit_b", "partial", {}, 7_087_872),
    ("vit_b", "partial", {"last_blocks": 2}, 2 * 7_087_872),
    ("vit_b", "partial", {"final_norm": True}, 7_089_408),
    ("swin_b", "partial", {}, 12_601_632),
    ("swin_l", "partial", {}, 28_339_632),
    ("vit_b", "attn_scale", {"dra": False}, 465_708),
    ("vit_b", "attn_scale", {"granularity": "head", "dra": False}, 144),
    ("vit_b", "attn_scale", {"granularity": "head"}, 144 + 18_432),
    ("swin_b", "attn_scale", {"dra": False}, 24 * 49**2),
    ("vit_b", "fact_tt", {"rank": 16}, 61_440),
    ("vit_b", "fact_tt", {"rank": 8}, 21_504),
    ("vit_b", "fact_tt", {"rank": 4}, 8_448),
    ("vit_b", "fact_tk", {"rank": 32}, 86_528),
    ("vit_b", "fact_tk", {"rank": 16}, 30_976),
    ("vit_b", "cp", {"rank": 64}, 107_584),
    ("vit_b", "cp", {"rank": 64, "core": "full"}, 369_664),
    ("vit_b", "adapter", {"bottleneck": 8}, 156_768),
    ("vit_b", "adapter", {"bottleneck": 12}, 230_544),
    ("vit_b", "adapter", {"bottleneck": 96}, 1_779_840),
    ("vit_b", "adapter", {"bottleneck": 8, "placement": "houlsby"}, 313_536),
    ("vit_b", "adapter", {"bottleneck": 8, "last_blocks": 6}, 78_384),
    ("vit_b", "adaptformer", {"bottleneck": 64}, 1_189_632),
    ("vit_b", "adaptformer", {"bottleneck": 8}, 156_768),
    ("vit_b", "adaptformer", {"bottleneck": 8, "layer_norm": "in"}, 175_200),
    ("vit_b", "vpt_shallow", {"prompt_length": 100}, 76_800),
    ("vit_b", "vpt_deep", {"prompt_length": 10}, 92_160),
    ("vit_b", "vpt_deep", {"prompt_length": 50}, 460_800),
    ("vit_b", "vpt_deep", {"prompt_length": 100}, 921_600),
    # B p d_p + D d_p + D: one projection serves every block
    ("vit_b", "vpt_deep", {"prompt_length": 10, "projection_width": 96}, 86_016),
    ("vit_b", "prefix", {"prompt_length": 10}, 184_320),
    ("vit_b", "convpass", {"bottleneck": 8}, 327_552),
    ("vit_b", "convpass", {"bottleneck": 8, "placement": "attn"}, 163_776),
    ("swin_b", "convpass", {"bottleneck": 8}, 437_504),
    ("vit_b", "repadapter", {}, 239_808),
    ("vit_b", "repadapter", {"placement": "attn"}, 119_904),
    ("vit_b", "hydra", {}, 239_712),
    ("vit_b", "sct", {"channels": 96}, 111_744),
    ("vit_b", "sct", {"channels": 96, "placement": "mlp"}, 111_744),
    ("vit_b", "sct", {"channels": 96, "placement": "qkv"}, 223_488),
    ("swin_b", "mona", {}, 3_667_456),
    ("swin_l", "mona", {}, 5_267_712),
    ("vit_b", "sidetune", {}, 75_953),
    ("vit_b", "dtl", {}, 36_864),
    ("vit_b", "dtl", {"fusion_kernel": 3}, 43_776),
    ("vit_b", "dtl", {"fusion_kernel": 4}, 49_152),
    ("vit_b", "dtl", {"fusion_kernel": 5}, 56_064),
    ("vit_b", "snf", {}, 73_752),
    ("vit_b", "snf", {"flow_length": 0}, 36_864),
    ("vit_b", "snf", {"flow_length": 16}, 627_072),
    ("vit_b", "snf", {"targets": ["mlp"]}, 36_876),
    ("vit_b", "hst", {}, 764_840),
    # stages alike: stem; three convolutions; 12 blocks; four bridges; meta tokens; norms
    (
        "vit_b",
        "hst",
        {"channels": [32] * 4, "heads": [4] * 4},
        27 * 32
        + 4 * 32**2
        + 5 * 32
        + 3 * (9 * 32**2 + 3 * 32)
        + 12 * (12 * 32**2 + 15 * 32)
        + 4 * (768 * 32 + 3 * 32)
        + 12 * 768
        + 24 * 2 * 768,
    ),
    ("vit_b", "synqt", {"prompt_length": 1}, 2_604_397),
    ("vit_b", "synqt", {"prompt_length": 4}, 2_632_045),
    ("vit_b", "synqt", {"prompt_length": 16}, 2_742_637),
    ("vit_b", "lst", {}, 2_376_492),
    ("vit_b", "lst", {"projection_bias": False}, 2_374_476),
    ("vit_b", "lst", {"projection_bias": False, "side_norm": False}, 2_374_284),
    ("vit_b", "last", {}, 608_256),
    ("vit_b", "last", {"bias": True}, 618_048),
    ("vit_b", "gps", {}, 167_424),
    ("vit_b", "noah", {"prompt_length": [10], "rank": [10], "bottleneck": [10]}, 654_456),
    ("vit_b", "gps", {"per_neuron": 2}, 251_136),
    ("vit_b", "gps", {"per_neuron": 15}, 1_339_392),
    ("swin_b", "vpt_shallow", {"prompt_length": 100}, 100 * 128),
    ("swin_b", "vpt_deep", {"prompt_length": 10}, 10 * (2 * 128 + 2 * 256 + 18 * 512 + 2 * 1024)),
    ("swin_b", "vfpt", {"prompt_length": 10}, 120_320),
    ("vit_b", "vfpt", {"prompt_length": 10}, 92_160),
    ("vit_b", "vfpt", {"prompt_length": 100, "depth": "shallow"}, 76_800),
    ("swin_b", "lorand", {}, 1_197_312),
    ("swin_l", "lorand", {}, 1_792_896),
    ("swin_b", "lorand", {"share_kernel": False}, 1_203_456),
    ("swin_l", "lorand", {"share_kernel": False}, 1_799_040),
    ("swin_b", "lorand", {"share_kernel": False, "branches": 4}, 2_370_816),
    ("swin_b", "lorand", {"share_kernel": False, "branches": 4, "kernel_dim": 16}, 4_754_688),
    ("swin_l", "lorand", {"share_kernel": False, "bottleneck": 64}, 1_304_832),
    ("swin_b", "e3va", {}, 1_197_312),
    ("swin_l", "e3va", {}, 1_792_896),
    ("vit_b", "e3va", {}, 915_456),
    ("swin_b", "e3va", {"train_norm": True}, 1_197_312 + 2 * 1024),
    ("vit_b", "patt", {}, 3_558_912),
    ("swin_b", "patt", {}, 4_647_424),
    ("swin_b", "bapat", {}, 6_201_088),
    ("vit_b", "compacter", {"bottleneck": 48, "terms": 4, "rank": 1}, 58_816),
    ("vit_b", "compacter", {"placement": "pfeiffer"}, 29_440),
    ("vit_b", "compacter", {"unfreeze_layer_norms": True}, 58_816 + 38_400),
    ("vit_b", "kadaptation", {"terms": 32, "rank": 1}, 50_176),
    ("vit_b", "u_tuning", {"mlp": "none", "prompt_length": 10}, 184_320),
    ("vit_b", "u_tuning", {"attn": "adapter", "bottleneck": 10}, 2 * 12 * (15_370 + 768)),
    ("vit_b", "u_tuning", {}, 175_152),
    ("swin_b", "full", {}, 86_743_224),
    ("swin_b", "linear", {}, 0),
    ("swin_b", "bitfit", {}, 200_760),
    ("swin_b", "bitfit", {"relative_position_bias": False}, 137_216),
    ("swin_b", "ln_tune", {}, 57_600),
    ("swin_b", "lora", {"rank": 64}, 3_080_192),
    ("swin_b", "adapter", {"bottleneck": 64, "placement": "houlsby"}, 3_107_328),
    ("swin_b", "adaptformer", {"bottleneck": 64, "activation": "gelu"}, 1_553_664),
    ("swin_l", "full", {}, 194_995_476),
    ("swin_l", "bitfit", {}, 301_140),
    ("swin_l", "ln_tune", {}, 86_400),
    ("swin_l", "lora", {"rank": 64}, 4_620_288),
    ("swin_l", "adapter", {"bottleneck": 64, "placement": "houlsby"}, 4_659_456),
    ("swin_l", "adaptformer", {"bottleneck": 64, "activation": "gelu"}, 2_329_728),
]


@functools.cache
def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = timm.create_model(name, num_classes=0)
    return model


@pytest.mark.parametrize(("backbone", "method", "options", "count"), COUNTS)
def test_count(backbone: str, method: str, options: dict[str, Any], count: int) -> None:
    """That the formula is what is placed is tested below, and for every option on small models."""
    model = on_meta(NAMES[backbone])
    assert build_method(method, options).parameter_count(block_map(model)) == count


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "method", "options", "count"), COUNTS)
def test_as_many_are_placed(
    backbone: str, method: str, options: dict[str, Any], count: int
) -> None:
    model = on_meta(NAMES[backbone])
    size = sum(p.numel() for p in model.parameters())
    if build_method(method, options).selects:
        return  # it is placed by data, and there are none of this size
    attached = vpeft_bench.attach(model, method, **options)
    counts = attached.parameter_counts()
    assert (counts.method, counts.head, counts.total) == (count, 0, count)
    assert all(p.is_meta for p in model.parameters())
    attached.detach()
    assert sum(p.numel() for p in model.parameters()) == size


def test_ssf_count_of_a_swin() -> None:
    """A pair behind both patch leaves, every norm and linear, but not in patch merging.

    There the norms have one where it is asked for, the reductions never.
    """
    model = on_meta(NAMES["swin_b"])
    blocks = 22 * sum(
        depth * width for depth, width in zip((2, 2, 18, 2), (128, 256, 512, 1024), strict=True)
    )
    merging = 2 * 4 * (128 + 256 + 512)
    outside = 2 * (2 * 128) + 2 * 1024
    for option, more in ((False, 0), (True, merging)):
        method = build_method("ssf", {"merge_norms": option})
        assert method.parameter_count(block_map(model)) == blocks + outside + more
    assert blocks + outside == 267_264


UNUSUAL = (
    "vit_base_patch16_clip_224",
    "vit_base_patch16_siglip_224",
    "vit_small_patch14_reg4_dinov2",
    "vit_little_patch16_reg4_gap_256",  # q and k norms, LayerScale
)


def _on_unusual_vits() -> Iterator[Any]:
    """Each method at once on one of them, in turn; on the others by .ci/run."""
    found = [m for m in vpeft_bench.list_methods() if "vit" in method_class(m).supported()]
    for turn, method in enumerate(found):
        for index, name in enumerate(UNUSUAL):
            marks = [] if index == turn % len(UNUSUAL) else pytest.mark.slow
            yield pytest.param(name, method, id=f"{method}-{name}", marks=marks)


@pytest.mark.parametrize(("name", "method"), list(_on_unusual_vits()))
def test_counts_of_unusual_vits(name: str, method: str) -> None:
    """Norms in front, map pooling, patches without a bias: formula and model still agree."""
    model = on_meta(name)
    built = build_method(method, {})
    expected = built.parameter_count(block_map(model))
    if built.selects:
        return
    attached = vpeft_bench.attach(model, method)
    assert attached.parameter_counts().method == expected
    attached.detach()
