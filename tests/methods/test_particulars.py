"""What single methods promise beyond the contract: starts, dropout, where they stand."""

from __future__ import annotations

from math import sqrt

import pytest
import torch
from tiny_models import VIT, build, images
from torch import Tensor, nn

import vpeft_bench
from vpeft_bench.errors import UnsupportedBackboneError


def trained(attached: vpeft_bench.Attached, ending: str) -> Tensor:
    """All trained tensors whose name ends so, as one flat tensor."""
    found = [p for n, p in attached.named_trainable_parameters() if n.endswith(ending)]
    return torch.cat([p.detach().flatten() for p in found])


@pytest.mark.parametrize(
    ("init", "projection", "fan"),
    [("vpt", None, 3 * 8 * 8 + 32), ("vpb", None, 32), ("vpt", 6, 3 * 8 * 8 + 6), ("vpb", 6, 6)],
)
@pytest.mark.parametrize("name", ["vpt_shallow", "vpt_deep"])
def test_vpt_start(name: str, init: str, projection: int | None, fan: int) -> None:
    assert (VIT["patch_size"], VIT["embed_dim"]) == (8, 32)
    options = {"prompt_length": 200, "init": init, "projection_width": projection}
    prompts = trained(vpeft_bench.attach(build("vit"), name, **options), "prompts")
    bound = sqrt(6 / fan)
    assert 0.98 * bound < prompts.abs().max() <= bound
    assert prompts.mean().abs() < 0.1 * bound


def test_vpt_dropout_is_each_pictures_own() -> None:
    model = build("vit").train()
    vpeft_bench.attach(model, "vpt_shallow", prompt_length=20, dropout=0.5)
    seen: list[Tensor] = []
    model.blocks[0].stream_in.register_forward_hook(
        lambda _, __, tokens: seen.append(tokens.detach()[:, 1:21])
    )
    model(images(2))
    first, second = seen[0] == 0
    assert not torch.equal(first, second)
    assert 0.4 < first.float().mean() < 0.6


def test_vpt_shallow_needs_prompts_kept_out_of_the_pooling() -> None:
    model = build("vit_avg_reg")
    model.pool_include_prefix = True
    with pytest.raises(UnsupportedBackboneError, match="pool_include_prefix"):
        vpeft_bench.attach(model, "vpt_shallow", prompt_length=2)
    vpeft_bench.attach(model, "vpt_deep", prompt_length=2)


def test_vpt_projection_is_one_for_all_blocks() -> None:
    attached = vpeft_bench.attach(build("vit"), "vpt_deep", projection_width=6)
    names = [n for n, _ in attached.named_trainable_parameters() if "projection" in n]
    assert names == [f"blocks.0.stream_in.projection.{part}" for part in ("weight", "bias")]


def test_adapter_all_zero_start_leaves_only_the_up_bias_alive() -> None:
    """The known defect of the reference that ``init=vpt`` reproduces."""
    attached = vpeft_bench.attach(build("vit"), "adapter", init="vpt")
    optimizer = torch.optim.SGD(attached.trainable_parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        attached.model(images()).square().sum().backward()
        optimizer.step()
    alive = {n for n, p in attached.named_trainable_parameters() if p.any()}
    assert alive == {f"blocks.{i}.mlp_out.up.bias" for i in range(3)}


def test_adapter_stands_in_the_last_blocks_only() -> None:
    attached = vpeft_bench.attach(build("swin"), "adapter", last_blocks=3)
    paths = [placement.path for placement in attached.backbone.placements]
    assert paths == [
        f"layers.{path}.mlp_out" for path in ("0.blocks.1", "1.blocks.0", "1.blocks.1")
    ]
    with pytest.raises(UnsupportedBackboneError, match="the backbone has 4"):
        vpeft_bench.attach(build("swin"), "adapter", last_blocks=99)


@pytest.mark.parametrize(
    ("name", "sides"), [("lora", ("A.q", "B.v")), ("adapter", ("down.weight",))]
)
def test_vpb_start_is_truncated_normal_everywhere(name: str, sides: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    attached = vpeft_bench.attach(build("vit"), name, init="vpb")
    for side in sides:
        assert 0.017 < trained(attached, side).std() < 0.023


def test_lora_scale_is_alpha_over_rank() -> None:
    outputs = {}
    for alpha in (None, 4.0, 8.0):
        torch.manual_seed(0)
        model = build("vit")
        vpeft_bench.attach(model, "lora", rank=4, alpha=alpha, targets=["fc2"], init="vpb")
        outputs[alpha] = model.blocks[2].mlp.fc2(torch.ones(1, 128))
    plain = build("vit").blocks[2].mlp.fc2(torch.ones(1, 128))
    once, twice = (outputs[alpha] - plain for alpha in (4.0, 8.0))
    torch.testing.assert_close(outputs[None] - plain, once)
    torch.testing.assert_close(twice, 2 * once, rtol=1e-4, atol=1e-5)


def test_lora_leaves_the_other_rows_alone() -> None:
    model = build("vit")
    qkv = model.blocks[0].attn.qkv
    x = torch.randn(1, 32)
    plain = qkv(x)
    vpeft_bench.attach(model, "lora", targets=["k"], init="vpb")
    changed = (qkv(x) != plain).reshape(3, 32)
    assert changed.any(1).tolist() == [False, True, False]


def test_ssf_starts_near_the_pretrained_function() -> None:
    attached = vpeft_bench.attach(build("vit"), "ssf")
    scale, shift = trained(attached, "scale"), trained(attached, "shift")
    assert (scale.mean() - 1).abs() < 0.01
    assert shift.mean().abs() < 0.01
    assert 0.015 < scale.std() < 0.025
    assert 0.015 < shift.std() < 0.025


def test_ssf_has_no_pair_in_patch_merging_unless_asked() -> None:
    for asked in (False, True):
        attached = vpeft_bench.attach(build("swin"), "ssf", merge_norms=asked)
        merging = [p.path for p in attached.backbone.placements if "downsample" in p.path]
        assert bool(merging) is asked
        assert all(path.endswith("downsample.norm.delta") for path in merging)


def test_ssf_skips_a_norm_that_is_not_there() -> None:
    model = build("vit")
    model.norm = nn.Identity()
    attached = vpeft_bench.attach(model, "ssf")
    assert len(attached.backbone.placements) == 1 + 3 * 6


def test_norms_outside_the_usual_places_are_tuned() -> None:
    model = build("vit")
    model.norm_pre = nn.RMSNorm(32)
    names = [n for n, _ in vpeft_bench.attach(model, "ln_tune").named_trainable_parameters()]
    assert names[0] == "norm_pre.weight"
    assert len(names) == 1 + 3 * 4 + 2
