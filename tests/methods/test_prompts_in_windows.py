"""Prompts where attention stays within windows and patches are merged between stages."""

from __future__ import annotations

from typing import Any, cast

import pytest
import timm
import torch
from tiny_models import MODELS, build, images
from torch import Tensor, nn

import vpeft_bench
from vpeft_bench.backbones import block_map
from vpeft_bench.backbones.features import StageFeatures
from vpeft_bench.backbones.further_tokens import AboveMap
from vpeft_bench.errors import NotStackableError, UnsupportedBackboneError

PROMPTS = [
    ("vpt_shallow", {"prompt_length": 5}),
    ("vpt_deep", {"prompt_length": 5}),
    ("vfpt", {"prompt_length": 5}),
    ("vfpt", {"prompt_length": 5, "depth": "shallow"}),
]
EVERY_FORM = pytest.mark.parametrize(("name", "options"), PROMPTS)


def swin(seed: int = 0, **arguments: Any) -> Any:
    """A Swin as in tiny_models, in float64, with other arguments."""
    name, own = MODELS["swin"]
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = timm.create_model(name, num_classes=5, drop_path_rate=0.0, **(own | arguments))
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.double().eval()


def prompted(model: Any, name: str, **options: Any) -> vpeft_bench.Attached:
    """With prompts so large that nobody can overlook them."""
    attached = vpeft_bench.attach(model, name, **options)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in attached.trainable_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return attached


class Projected(nn.Module):
    """Keys and values of tokens that every window reads."""

    def __init__(self, tokens: Tensor, block: Any) -> None:
        super().__init__()
        self.tokens, self.block = tokens, [block]

    def forward(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        (block,) = self.block
        _, keys, values = block.attn.split_heads(block.attn.qkv(block.norm1(self.tokens)), 3)
        more = (keys.expand(len(k), -1, -1, -1), values.expand(len(v), -1, -1, -1))
        return torch.cat([k, more[0]], dim=2), torch.cat([v, more[1]], dim=2)


# windows as they fit, padded in both stages, of single rows, and one window for the whole map
@pytest.mark.parametrize("window", [4, 7, (2, 8), 16])
@torch.no_grad()
def test_deep_prompts_are_keys_and_values_that_every_window_reads(window: Any) -> None:
    """Without position bias and mask; found another way than the prompts go."""
    model = swin(window_size=window)
    attached = prompted(model, "vpt_deep", prompt_length=5)
    x = images().double()
    found = model(x)
    prompts = [cast(Any, b.module).stream_in.prompts.clone() for b in attached.backbone.blocks]
    attached.detach()
    plain = model(x)
    for block, tokens in zip(block_map(model).blocks, prompts, strict=True):
        block.place("keys_values", Projected(tokens, block.module))
    torch.testing.assert_close(found, model(x), rtol=0, atol=1e-12)
    assert not torch.allclose(found, plain, atol=1e-3)


@torch.no_grad()
def test_shallow_prompts_are_averaged_over_windows_and_merged_with_copies_of_themselves() -> None:
    model = swin()
    attached = prompted(model, "vpt_shallow", prompt_length=5)
    windows: list[Tensor] = []
    streams: list[Tensor] = []
    for block in attached.backbone.blocks:
        block.attention.register_forward_hook(lambda _, __, output: windows.append(output))
        block.module.register_forward_hook(lambda _, __, output: streams.append(output))
    model(images().double())
    place = AboveMap()
    prompts = attached.backbone.blocks[0].module.stream_in.prompts.expand(2, -1, -1)  # type: ignore[operator,union-attr]
    for index, block in enumerate(attached.backbone.blocks):
        module: Any = block.module
        if index == 2:
            merge = model.layers[1].downsample
            prompts = merge.reduction(merge.norm(torch.cat([prompts] * 4, dim=-1)))
        attended = windows[index].unflatten(0, (2, -1))
        assert attended.shape[1] == (16 if block.stage == 0 else 4)
        prompts = prompts + attended[:, :, :5].mean(1)
        prompts = prompts + module.mlp(module.norm2(prompts))
        found, own = place.split(streams[index], 5)
        torch.testing.assert_close(found, prompts, rtol=0, atol=1e-12)
        assert tuple(own.shape[1:3]) == ((16, 16) if block.stage == 0 else (8, 8))


@EVERY_FORM
@torch.no_grad()
def test_prompts_of_one_picture_never_meet_another(name: str, options: dict[str, Any]) -> None:
    """In the authors' code they do, where they are shallow."""
    model = swin()
    prompted(model, name, **options)
    x = images(3).double()
    alone = torch.cat([model(x[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(model(x), alone, rtol=0, atol=1e-12)


@EVERY_FORM
@torch.no_grad()
def test_feature_maps_hold_the_image_alone(name: str, options: dict[str, Any]) -> None:
    model = swin()
    x = images().double()
    plain = StageFeatures(block_map(model))(x)
    attached = prompted(model, name, **options)
    maps = StageFeatures(attached.backbone)(x)
    assert [m.shape for m in maps] == [m.shape for m in plain]
    assert not any(torch.allclose(a, b, atol=1e-3) for a, b in zip(maps, plain, strict=True))
    pooled = model.head.fc(maps[-1].mean((2, 3)))  # what the classifier reads is the last of them
    torch.testing.assert_close(pooled, model(x), rtol=0, atol=1e-12)
    final, taken = model.forward_intermediates(x)
    torch.testing.assert_close(final, model.forward_features(x), rtol=0, atol=0)
    torch.testing.assert_close(taken[0], maps[0], rtol=0, atol=0)
    attached.detach()
    assert all(map(torch.equal, StageFeatures(block_map(model))(x), plain))


@EVERY_FORM
@torch.no_grad()
def test_pictures_of_any_size(name: str, options: dict[str, Any]) -> None:
    """As many prompts on any map; at the model's own size what it gives without that freedom."""
    fixed, free = swin(), swin(strict_img_size=False, always_partition=True)
    prompted(fixed, name, **options)
    attached = prompted(free, name, **options)
    x = images().double()
    torch.testing.assert_close(free(x), fixed(x), rtol=0, atol=1e-12)
    # neither whole windows nor whole patches to merge, and maps narrower than the prompts are many
    for size, first, second in (((44, 58), (22, 29), (11, 15)), ((34, 6), (17, 3), (9, 2))):
        maps = StageFeatures(attached.backbone)(torch.randn(1, 3, *size, dtype=torch.float64))
        assert [tuple(m.shape[2:]) for m in maps] == [first, second]
        assert all(m.isfinite().all() for m in maps)


def test_prompts_are_as_wide_as_their_stage_and_start_in_the_range_of_the_first() -> None:
    for name, widths in (("vpt_shallow", [16]), ("vpt_deep", [16, 16, 32, 32])):
        attached = vpeft_bench.attach(build("swin"), name, prompt_length=200)
        prompts = attached.trainable_parameters()
        assert [p.shape for p in prompts] == [(1, 200, width) for width in widths]
        bound = (6 / (3 * 2 * 2 + 16)) ** 0.5
        assert all(0.98 * bound < p.abs().max() <= bound for p in prompts)


def test_rows_of_different_length_are_told_apart_though_they_fill_as_many_rows() -> None:
    model = build("swin")
    for length in (3, 4):
        for name in ("vpt_deep", "vpt_shallow"):
            one = vpeft_bench.attach(model, name, as_=f"{name} {length}", prompt_length=length)
            one.disable()
    carried = vpeft_bench.attachments(model)
    refused = [
        (["vpt_deep 3", "vpt_deep 4"], "vpt_deep 3: 3 in each block, vpt_deep 4: 4 in each block"),
        (["vpt_deep 3", "vpt_shallow 3"], "vpt_shallow 3: 3 from the first block on"),
        (["vpt_shallow 3", None], "the plain model: none"),
    ]
    for names, said in refused:
        with pytest.raises(NotStackableError, match=said), carried.rows(names):
            pass


def test_where_no_bias_is_neutral_prompts_are_refused() -> None:
    for name, _ in PROMPTS:
        with pytest.raises(UnsupportedBackboneError, match="position bias zero, which is neutral"):
            vpeft_bench.attach(build("swinv2"), name)
