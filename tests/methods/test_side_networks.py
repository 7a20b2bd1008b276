"""Side networks: what they leave alone, and that what they read is all they need."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import build, images, targets
from torch import Tensor, nn

import vpeft_bench
from vpeft_bench.attaching.attachment import Attached
from vpeft_bench.backbones import block_map
from vpeft_bench.backbones.trunk import read_features
from vpeft_bench.errors import MethodOptionError, UnsupportedBackboneError

FROZEN: list[tuple[str, str, dict[str, Any]]] = [
    ("vit", "sidetune", {}),
    ("swin", "sidetune", {}),
    ("vit_avg_reg", "lst", {}),
    ("vit", "last", {}),
    ("vit_avg_reg", "last", {"gap": 3}),
    ("vit", "synqt", {}),
    ("vit_avg_reg", "synqt", {}),
]
ROUTED: list[tuple[str, str, dict[str, Any]]] = [
    ("vit", "dtl", {"fusion_kernel": 3}),
    ("vit_avg_reg", "dtl", {"fusion_kernel": 2, "injecting_blocks": [2]}),
    ("vit", "dtl", {"injecting_blocks": [0, 2], "tapped_blocks": [0]}),
    ("swin", "dtl", {}),
    ("swin", "dtl", {"injecting_blocks": [1, 3], "fusion_kernel": 3}),  # 1 ends a stage
]
SIDE = pytest.mark.parametrize(("kind", "name", "options"), [*FROZEN, *ROUTED])


def attach_random(
    kind: str, name: str, options: dict[str, Any], dtype: torch.dtype = torch.float64
) -> Attached:
    """A method away from its start; in float64, which shows any mistake beyond rounding."""
    attached = vpeft_bench.attach(build(kind).to(dtype), name, **options)
    generator = torch.Generator().manual_seed(3)
    for parameter in attached.trainable_parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=dtype)
    return attached


def plain_streams(kind: str) -> list[Tensor]:
    model = build(kind).double()
    streams: list[Tensor] = []
    for block in block_map(model).blocks:
        block.module.register_forward_hook(lambda _, __, out: streams.append(out))
    with torch.no_grad():
        model(images().double())
    return streams


@SIDE
def test_what_is_read_is_enough(kind: str, name: str, options: dict[str, Any]) -> None:
    """With the features of the plain model, the trunk up to there is not needed."""
    attached = attach_random(kind, name, options)
    model, x = attached.model, images().double()
    trunk: Any = model.trunk
    with torch.no_grad():
        expected = model(x)
        reads = attached.method.reads(attached.backbone)
        cached = read_features(reads, x, model.embed(x), model)  # type: ignore[operator, arg-type]
        for block in attached.backbone.blocks[
            : attached.method.first_changed_block(attached.backbone)
        ]:
            if name != "synqt":  # its queries read through the frozen blocks
                block.module.forward = None  # type: ignore[method-assign, assignment]
        output = trunk.side(cached, model)
        last = output.features if output.features is not None else model.pooled(output.streams[-1])  # type: ignore[operator]
        assert torch.equal(model.classify(last), expected)  # type: ignore[operator]


@SIDE
def test_streams_behind_every_block(kind: str, name: str, options: dict[str, Any]) -> None:
    """Frozen ones are the plain model's, bit for bit, those behind an injection are not."""
    attached = attach_random(kind, name, options)
    model, x = attached.model, images().double()
    with torch.no_grad():
        streams = model.around(x).streams  # type: ignore[operator]
    plain = plain_streams(kind)
    assert [s.shape for s in streams] == [s.shape for s in plain]
    same = [torch.equal(ours, theirs) for ours, theirs in zip(streams, plain, strict=True)]
    depth = len(plain)
    changed_from = {"dtl": attached.method.first_changed_block(attached.backbone) - 1}.get(
        name, depth - 1 if name in ("lst", "last") else depth
    )
    assert same == [index < changed_from for index in range(depth)]


@pytest.mark.parametrize(("kind", "name", "options"), FROZEN)
def test_no_activation_of_the_trunk_is_kept(kind: str, name: str, options: dict[str, Any]) -> None:
    """No graph goes through a frozen block, and none of its inner tensors wait for a backward."""
    attached = attach_random(kind, name, options)
    model = attached.model
    recording: list[bool] = []
    kept: list[int] = []
    inside = [False]

    def enter(*_: Any) -> None:
        inside[0] = True
        recording.append(torch.is_grad_enabled())

    def leave(_: Any, __: Any, out: Tensor) -> None:
        inside[0] = False
        recording.append(out.requires_grad)

    for block in attached.backbone.blocks:
        block.module.register_forward_pre_hook(enter)
        block.module.register_forward_hook(leave)

    def pack(tensor: Tensor) -> Tensor:
        kept.append(inside[0])
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(images().double())
    nn.functional.cross_entropy(output, targets()).backward()
    assert len(recording) == 2 * len(attached.backbone.blocks)
    assert not any(recording)
    assert kept
    assert not any(kept)


def test_dtl_keeps_nothing_in_front_of_its_first_injection() -> None:
    attached = attach_random("vit", "dtl", {"injecting_blocks": [1, 2]})
    recorded: list[bool] = []
    for block in attached.backbone.blocks:
        block.module.register_forward_hook(lambda _, __, out: recorded.append(out.requires_grad))
    attached.model(images().double())
    assert recorded == [False, False, True]


@pytest.mark.parametrize("fusion_kernel", [0, 2, 3])
@torch.no_grad()
def test_dtl_on_a_swin(fusion_kernel: int) -> None:
    """By hand: the state starts anew in every stage, each injecting stage has its convolution."""
    options = {"fusion_kernel": fusion_kernel, "injecting_blocks": [0, 1, 3], "beta": 3.0}
    attached = attach_random("swin", "dtl", options)
    model, x = attached.model, images().double()
    expected = model(x)
    taps, fusions = model.trunk.taps, model.trunk.fusions  # type: ignore[union-attr]
    plain: Any = build("swin").double()
    plain.head.load_state_dict(model.head.state_dict())  # type: ignore[union-attr]
    assert len(fusions) == (2 if fusion_kernel else 0)

    stream = plain.patch_embed(x)
    index = 0
    for number, stage in enumerate(plain.layers):
        stream = stage.downsample(stream)
        h = torch.zeros_like(stream)
        for block in stage.blocks:
            h = h + stream @ taps[str(index)].A.T @ taps[str(index)].B.T
            stream = block(stream)
            if index != 2:
                e = h / (1 + torch.exp(-3.0 * h))
                if fusion_kernel:
                    # an even kernel looks one place further to the right and down
                    left, right = (fusion_kernel - 1) // 2, fusion_kernel // 2
                    image = nn.functional.pad(e.permute(0, 3, 1, 2), (left, right, left, right))
                    weight = fusions[str(number)].weight
                    image = nn.functional.conv2d(image, weight, groups=len(weight))
                    e = image.permute(0, 2, 3, 1)
                stream = stream + e
            index += 1
    torch.testing.assert_close(plain.forward_head(plain.norm(stream)), expected)


def test_dtl_taps_by_default_what_has_an_effect() -> None:
    attached = vpeft_bench.attach(build("swin"), "dtl")
    names = {name.split(".")[2] for name, _ in attached.named_trainable_parameters()}
    assert names == {"2", "3"}  # the second stage; what the first put in would be lost
    assert attached.method.reads(attached.backbone) == ("tokens.2", "tokens.3")
    attached.detach()
    attached = vpeft_bench.attach(build("swin"), "dtl", injecting_blocks=[3, 1])
    assert attached.method.reads(attached.backbone) == ("tokens.0", "tokens.1", "outputs.1")


def test_dtl_on_a_vit_b_reads_up_to_block_6() -> None:
    import timm

    with torch.device("meta"):
        backbone = block_map(timm.create_model("vit_base_patch16_224"))
    method = vpeft_bench.methods.registry.build_method("dtl", {})
    assert method.reads(backbone) == tuple(f"tokens.{i}" for i in range(8))
    assert method.first_changed_block(backbone) == 7


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        ("vit", {"injecting_blocks": [3]}, "no block 3"),
        ("vit", {"tapped_blocks": [-1]}, "no block -1"),
        ("vit", {"tapped_blocks": [2], "injecting_blocks": [1, 2]}, "no block up to 1 is tapped"),
        ("vit", {"tapped_blocks": [0, 2], "injecting_blocks": [1]}, "no block from 2 on injects"),
        ("swin", {"tapped_blocks": [0, 2], "injecting_blocks": [2]}, "from 0 on injects in its"),
    ],
)
def test_dtl_refuses_blocks_without_effect(kind: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UnsupportedBackboneError, match=says):
        vpeft_bench.attach(build(kind), "dtl", **options)


@pytest.mark.parametrize(("kind", "pooling"), [("vit", "token"), ("vit_avg_reg", "avg")])
@torch.no_grad()
def test_dtl_leaves_class_and_register_tokens_out_of_the_convolution(
    kind: str, pooling: str
) -> None:
    attached = attach_random(kind, "dtl", {"fusion_kernel": 3})
    model: Any = attached.model
    assert model.global_pool == pooling
    prefix = attached.backbone.prefix_tokens
    added = torch.randn(2, prefix + 16, 32, dtype=torch.float64)
    fused = model.trunk.fuse(added, 0)
    assert torch.equal(fused[:, :prefix], added[:, :prefix])
    corner = added[:, prefix:].reshape(2, 4, 4, 32)[:, :2, :2]  # what the first patch sees
    kernel = model.trunk.fusions["0"].weight[:, 0, 1:, 1:]
    torch.testing.assert_close(
        fused[:, prefix], torch.einsum("bhwd,dhw->bd", corner, kernel), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"heads": [2, 4]}, "2 numbers of heads for 4 stages"),
        ({"channels": [8, 9, 12], "heads": [2, 4, 3]}, "nearest: 8 channels"),
    ],
)
def test_hst_refuses_stages_that_do_not_fit(options: dict[str, Any], says: str) -> None:
    with pytest.raises(MethodOptionError, match=says):
        vpeft_bench.attach(build("vit"), "hst", **options)


def test_hst_needs_a_block_for_every_stage() -> None:
    with pytest.raises(UnsupportedBackboneError, match="4 stages need as many blocks"):
        vpeft_bench.attach(build("vit"), "hst")
