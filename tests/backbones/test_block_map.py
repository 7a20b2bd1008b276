"""Opened blocks compute what timm computes, and every place shows the tensor it is named after."""

from __future__ import annotations

import copy
import inspect
import shutil
import statistics
import time
from collections.abc import Callable
from typing import Any, cast

import pytest
import timm
import torch
from timm.layers.mlp import SwiGLU
from timm.models.vision_transformer import ParallelScalingBlock, ResPostBlock
from torch import Tensor, nn

import vpeft_bench
from vpeft_bench.backbones import Backbone, Block, block_map
from vpeft_bench.backbones.sites import (
    OpenedAttention,
    OpenedBlock,
    open_module,
    opened_leaf_class,
)
from vpeft_bench.backbones.trunk import OpenedModel, TrunkOutput, read_features
from vpeft_bench.errors import UnsupportedBackboneError

torch.set_num_threads(1)  # tiny tensors: threads only get in each other's way

SMALL: dict[str, Any] = {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2}
SWIN: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 2,
    "window_size": 4,
    "embed_dim": 16,
    "depths": (2, 2),
    "num_heads": (2, 4),
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", SMALL | {"patch_size": 8}),
    "deit": ("deit_small_patch16_224", SMALL | {"patch_size": 8}),
    "deit3": ("deit3_small_patch16_224", SMALL | {"init_values": 0.5}),
    "dinov2": ("vit_small_patch14_reg4_dinov2", SMALL | {"img_size": 28, "init_values": 0.5}),
    "clip": ("vit_base_patch16_clip_224", SMALL),
    "siglip": ("vit_base_patch16_siglip_224", SMALL),
    "avg": ("vit_tiny_patch16_224", SMALL | {"global_pool": "avg"}),
    "qk_norm": ("vit_little_patch16_reg4_gap_256", SMALL | {"init_values": 0.5}),
    "dynamic": ("vit_tiny_patch16_224", SMALL | {"dynamic_img_size": True}),
    "swin": ("swin_tiny_patch4_window7_224", SWIN),
    # 20 x 20 and 10 x 10 tokens in windows of 7: padded in both stages
    "swin_padded": ("swin_tiny_patch4_window7_224", SWIN | {"img_size": 40, "window_size": 7}),
}
EVERY_MODEL = pytest.mark.parametrize("kind", MODELS)


def build(kind: str, **more: Any) -> Any:  # nn.Module would type every attribute as a tensor
    name, overrides = MODELS[kind]
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=3, **(overrides | more))
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def images(kind: str, size: int | None = None) -> Tensor:
    size = MODELS[kind][1]["img_size"] if size is None else size
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def open_everything(backbone: Backbone) -> None:
    """Open every block, attention and leaf, and place nothing."""
    leaves = [*backbone.patch_leaves, *backbone.merge_norms, backbone.final_norm]
    for block in backbone.blocks:
        backbone.open_block(block)
        backbone.open_attention(block)
        leaves += block.leaves.values()
    for leaf in leaves:
        open_module(leaf, opened_leaf_class(type(leaf)))  # type: ignore[arg-type]  # it hashes


class PlainTrunk(nn.Module):
    """Runs the blocks as timm does."""

    def forward(self, images: Tensor, x: Tensor, model: OpenedModel) -> TrunkOutput:
        streams = []
        for stage in model.stages():
            x = stage.merge(x)
            for block in stage.blocks:
                x = model.run(block, x)
                streams.append(x)
        return TrunkOutput(streams)


def pair(kind: str, **more: Any) -> tuple[Any, Any]:
    """An opened model and an untouched one with the same weights."""
    plain = build(kind, **more)
    opened = copy.deepcopy(plain)
    open_everything(block_map(opened))
    return opened, plain


def pair_with_trunk(kind: str, **more: Any) -> tuple[Any, Any]:
    """A model with a plain loop around its trunk and an untouched one with the same weights."""
    plain = build(kind, **more)
    opened = copy.deepcopy(plain)
    block_map(opened).place_around(PlainTrunk())
    return opened, plain


EVERY_PAIR = pytest.mark.parametrize("paired", [pair, pair_with_trunk], ids=["opened", "trunk"])
Paired = Callable[..., tuple[Any, Any]]


def output_and_gradients(model: Any, x: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(2)
    x = x.clone().requires_grad_()
    output = model(x)
    output.square().sum().backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {"output": output.detach(), "input": cast(Tensor, x.grad)} | gradients


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert list(left) == list(right)
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


# ---- opened is the same -------------------------------------------------------------------------


@EVERY_MODEL
@EVERY_PAIR
@pytest.mark.parametrize("training", [False, True])
def test_opened_is_bit_identical(kind: str, training: bool, paired: Paired) -> None:
    # Dropout and drop-path on: the same random numbers must be drawn in the same order.
    opened, plain = paired(kind, drop_path_rate=0.3, proj_drop_rate=0.2)
    opened.train(training)
    plain.train(training)
    assert list(opened.state_dict()) == list(plain.state_dict())
    x = images(kind)
    assert_same(output_and_gradients(opened, x), output_and_gradients(plain, x))


@EVERY_MODEL
@EVERY_PAIR
def test_gradient_checkpointing(kind: str, paired: Paired) -> None:
    opened, plain = paired(kind)
    opened.set_grad_checkpointing()
    x = images(kind)
    assert_same(output_and_gradients(opened, x), output_and_gradients(plain, x))


@EVERY_MODEL
@EVERY_PAIR
def test_forward_features_and_intermediates(kind: str, paired: Paired) -> None:
    opened, plain = paired(kind)
    x = images(kind)
    assert torch.equal(opened.forward_features(x), plain.forward_features(x))
    options: list[dict[str, Any]] = [{}, {"indices": [0]}, {"norm": True, "indices": 1}]
    if "swin" not in kind:
        options.append({"return_prefix_tokens": True, "output_fmt": "NLC"})
    for option in options:
        final, taken = opened.forward_intermediates(x, **option)
        expected_final, expected = plain.forward_intermediates(x, **option)
        assert torch.equal(final, expected_final)
        torch.testing.assert_close(taken, expected, rtol=0, atol=0)
        only = opened.forward_intermediates(x, intermediates_only=True, **option)
        torch.testing.assert_close(only, expected, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["vit", "clip"])
def test_attention_mask_and_causal(kind: str) -> None:
    opened, plain = pair(kind)
    x = images(kind)
    tokens = plain.forward_features(x).shape[1]
    mask = torch.randn(tokens, tokens, generator=torch.Generator().manual_seed(3))
    assert torch.equal(opened(x, attn_mask=mask), plain(x, attn_mask=mask))
    if "is_causal" in inspect.signature(plain.forward).parameters:  # not in older versions of timm
        assert torch.equal(opened(x, is_causal=True), plain(x, is_causal=True))
    assert not torch.equal(opened(x), opened(x, attn_mask=mask))


def test_dynamic_image_size() -> None:
    opened, plain = pair("dynamic")
    for size in (32, 48, 64):
        x = images("dynamic", size)
        assert torch.equal(opened(x), plain(x))
    vpeft_bench.attach(plain, "vpt_deep", prompt_length=3)
    assert plain(images("dynamic", 48)).isfinite().all()
    with pytest.raises(UnsupportedBackboneError, match="dynamic_img_size"):
        vpeft_bench.attach(build("dynamic"), "vpt_shallow", prompt_length=3)


@pytest.mark.parametrize("kind", ["vit", pytest.param("swin", marks=pytest.mark.slow)])
@EVERY_PAIR
def test_compiles_as_one_graph(kind: str, paired: Paired) -> None:
    opened, plain = paired(kind)
    x = images(kind)
    expected = output_and_gradients(plain, x)
    compiled = torch.compile(opened, backend="aot_eager", fullgraph=True)
    for name, value in output_and_gradients(compiled, x).items():
        torch.testing.assert_close(value, expected[name.removeprefix("_orig_mod.")])


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_compiles_with_a_method(kind: str) -> None:
    model = build(kind)
    vpeft_bench.attach(model, "lora", rank=2, targets=["q", "v", "fc1"])
    x = images(kind)
    expected = output_and_gradients(model, x)
    model.zero_grad()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for name, value in output_and_gradients(compiled, x).items():
        torch.testing.assert_close(value, expected[name.removeprefix("_orig_mod.")])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs g++")
def test_compiles_with_inductor() -> None:
    opened, plain = pair("vit")
    x = images("vit")
    with torch.no_grad():
        compiled = torch.compile(opened, fullgraph=True)(x)
        torch.testing.assert_close(compiled, plain(x), rtol=1e-4, atol=1e-4)


@EVERY_MODEL
def test_close_restores_every_class(kind: str) -> None:
    model = build(kind)
    expected = output_and_gradients(model, images(kind))
    classes = [type(module) for module in model.modules()]
    attributes = [dict(vars(module)) for module in model.modules()]
    children = [dict(module.named_children()) for module in model.modules()]
    backbone = block_map(model)
    for block in backbone.blocks:
        for slot in OpenedBlock.SLOTS:
            block.place(slot, nn.Identity())
        for slot in OpenedAttention.SLOTS:
            block.place(slot, nn.Identity())
        for site in block.leaves:
            block.place(site, SecondArgument())
    backbone.place_around(PlainTrunk())
    backbone.replace_head(7)
    for leaf in [*backbone.patch_leaves, *backbone.merge_norms, backbone.final_norm]:
        backbone.place_on_leaf(leaf, SecondArgument())
    assert len(backbone.placements) == len(backbone.blocks) * 25 + 1 + len(
        [*backbone.patch_leaves, *backbone.merge_norms, backbone.final_norm]
    )
    backbone.close()
    assert [type(module) for module in model.modules()] == classes
    assert [vars(module).keys() for module in model.modules()] == [a.keys() for a in attributes]
    assert [dict(module.named_children()) for module in model.modules()] == children
    assert backbone.placements == []
    model.zero_grad()
    assert_same(output_and_gradients(model, images(kind)), expected)


# ---- what each place sees -----------------------------------------------------------------------


class SecondArgument(nn.Module):
    """In a leaf: the leaf's own output."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y


class Probe(nn.Module):
    """Records what it is given; on a parallel branch it adds nothing."""

    def __init__(self, gives: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.gives = gives
        self.seen: list[Tensor] = []

    def forward(self, *tensors: Tensor) -> Tensor:
        self.seen = list(tensors)
        return self.gives(tensors[-1])


def recorded(plain: nn.Module, path: str, x: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Input and output of every module below ``path`` in a pass of the plain model."""
    inputs, outputs = {}, {}
    block = plain.get_submodule(path)

    def record(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            inputs[name], outputs[name] = given[0], output

        return hook

    hooks = [m.register_forward_hook(record(name)) for name, m in block.named_modules()]
    plain(x)
    for hook in hooks:
        hook.remove()
    return inputs, outputs


@EVERY_MODEL
@torch.no_grad()
def test_every_slot_sees_its_tensor(kind: str) -> None:
    plain, probed = build(kind), build(kind)
    x = images(kind)
    backbone = block_map(probed)
    for block in backbone.blocks:
        probes = {
            slot: Probe(torch.zeros_like if "parallel" in slot else lambda z: z)
            for slot in OpenedBlock.SLOTS
        }
        for slot, probe in probes.items():
            block.place(slot, probe)
        assert torch.equal(probed(x), plain(x))
        given, out = recorded(plain, block.path, x)
        swin = backbone.family.name == "swin"
        attention = plain.get_submodule(block.path)._attn(out["norm1"]) if swin else out["ls1"]
        expected = {
            name: value.reshape(given[""].shape)  # timm flattens a Swin's map for the MLP
            for name, value in _named_tensors(swin, given, out, attention).items()
        }
        seen = {slot: probe.seen[0] for slot, probe in probes.items()}
        assert_same(seen, expected)
        assert all(tensor.shape[-1] == block.width for tensor in seen.values())


def _named_tensors(
    swin: bool, given: dict[str, Tensor], out: dict[str, Tensor], attention: Tensor
) -> dict[str, Tensor]:
    return {
        "stream_in": given[""],
        "attn_in": out["norm1"],
        "attn_parallel": given[""],
        "attn_parallel_normed": out["norm1"],
        "attn_out": attention,
        "attn_added": out["drop_path1"],
        "attn_shortcut": given[""],
        "stream_mid": given["norm2"],
        "mlp_in": out["norm2"],
        "mlp_parallel": given["norm2"],
        "mlp_parallel_normed": out["norm2"],
        "mlp_out": out["mlp"] if swin else out["ls2"],
        "mlp_added": out["drop_path2"],
        "mlp_shortcut": given["norm2"],
        "block_parallel": given[""],
        "stream_out": out[""],
    }


class KeysValues(nn.Module):
    """Records keys and values and appends ``rows`` of its own."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows
        self.seen: list[Tensor] = []

    def forward(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self.seen = [k, v]
        more = 0.3 * torch.ones(*k.shape[:2], self.rows, k.shape[-1])
        return torch.cat([k, more], dim=2), torch.cat([v, -more], dim=2)


@EVERY_MODEL
@torch.no_grad()
def test_attention_slots(kind: str) -> None:
    """Keys, values and probabilities are the plain ones; appended rows are seen by every query."""
    plain, probed = build(kind), build(kind)
    x = images(kind)
    for index, block in enumerate(block_map(probed).blocks):
        keys_values, parallel = KeysValues(0), Probe(torch.zeros_like)
        probability = Probe(lambda p: p)
        block.place("keys_values", keys_values)
        block.place("attention_parallel", parallel)
        block.place("attention_map", probability)
        torch.testing.assert_close(probed(x), plain(x), rtol=1e-4, atol=1e-5)
        (q,), (k, v), (p,) = parallel.seen, keys_values.seen, probability.seen
        attention = block_map(plain).blocks[index].attention
        given, out = recorded(plain, f"{block.path}.attn", x)
        rows = out["qkv"].unflatten(-1, (3, block.heads, -1)).permute(2, 0, 3, 1, 4)
        if not isinstance(getattr(attention, "q_norm", nn.Identity()), nn.Identity):
            rows = torch.stack([attention.q_norm(rows[0]), attention.k_norm(rows[1]), rows[2]])
        torch.testing.assert_close(torch.stack([q, k, v]), rows, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(p.sum(-1), torch.ones(p.shape[:-1]))
        before = (p @ v).transpose(1, 2).flatten(2)
        if isinstance(getattr(attention, "norm", nn.Identity()), nn.Identity):
            torch.testing.assert_close(before, given["proj"], rtol=1e-4, atol=1e-5)

        # three rows more, by hand: the scores of the plain rows keep their bias and mask
        keys_values.rows = 3
        probed(x)
        (p_more,), (q,), (k, v) = probability.seen, parallel.seen, keys_values.seen
        prefix = (q * block.attention.scale) @ (0.3 * torch.ones_like(k[:, :, :3])).transpose(2, 3)
        ratio = p_more[..., -3:].sum(-1) / p_more[..., :-3].sum(-1)
        plain_scores = p_more[..., :-3] / p_more[..., :-3].sum(-1, keepdim=True)
        torch.testing.assert_close(plain_scores, p, rtol=1e-3, atol=1e-5)
        assert p_more.shape[-1] == p.shape[-1] + 3
        weights = p_more[..., -3:] / p_more[..., -3:].sum(-1, keepdim=True)
        torch.testing.assert_close(weights, prefix.softmax(-1), rtol=1e-3, atol=1e-5)
        assert (ratio > 0).all()
        keys_values.rows = 0


@pytest.mark.parametrize("kind", ["vit", "qk_norm", "swin", "swin_padded"])
@torch.no_grad()
def test_fused_and_explicit_attention_agree(kind: str) -> None:
    fused, explicit = build(kind), build(kind)
    for block in block_map(fused).blocks:
        block.place("keys_values", KeysValues(2))
    for block in block_map(explicit).blocks:
        block.place("keys_values", KeysValues(2))
        block.attention.fused_attn = False
    x = images(kind)
    torch.testing.assert_close(fused(x), explicit(x), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(fused(x), build(kind)(x), atol=1e-3)


@pytest.mark.parametrize("fused", [True, False])
@EVERY_MODEL
@torch.no_grad()
def test_attention_map_takes_the_probabilities_place(kind: str, fused: bool) -> None:
    """Twice the probabilities are twice the values; and the same ones change not one bit."""
    plain, same, mapped, doubled = (build(kind) for _ in range(4))
    for model in (plain, same, mapped, doubled):
        for block in block_map(model).blocks:
            block.attention.fused_attn = fused
            if model is same:
                block.place("attention_map", nn.Identity())
            if model is mapped:
                block.place("attention_map", Double())
            if model is doubled:
                block.place("qkv", DoubleValues())
    x = images(kind)
    assert torch.equal(same(x), plain(x))
    torch.testing.assert_close(mapped(x), doubled(x), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(mapped(x), plain(x), atol=1e-3)


@EVERY_MODEL
@torch.no_grad()
def test_read_features(kind: str) -> None:
    """Every feature is what the plain model computes, whatever else is asked for."""
    opened, plain = pair_with_trunk(kind)
    x = images(kind)
    blocks = block_map(plain).blocks
    expected = {"images": x, "features": plain.forward_head(plain.forward_features(x), True)}
    for i, block in enumerate(blocks):
        given, out = recorded(plain, block.path, x)
        middle = given["norm2"].reshape(given[""].shape)
        expected |= {f"outputs.{i}": out[""], f"tokens.{i + 1}": out[""]}
        expected |= {f"attn.{i}": middle - given[""], f"mlp.{i}": out[""] - middle}
    for i, block in enumerate(blocks):  # patch merging stands between out and in
        expected[f"tokens.{i}"] = recorded(plain, block.path, x)[0][""]
    tokens = opened.embed(x)
    for name in expected:
        (value,) = read_features([name], x, tokens, opened).values()
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5, msg=name)
    together = read_features(expected, x, tokens, opened)
    assert list(together) == list(expected)
    torch.testing.assert_close(together, expected, rtol=1e-4, atol=1e-5)


@EVERY_MODEL
@torch.no_grad()
def test_every_leaf_shows_its_input_and_output(kind: str) -> None:
    plain, probed = build(kind), build(kind)
    x = images(kind)
    backbone = block_map(probed)
    for block in backbone.blocks:
        probes = {site: Probe(lambda y: y) for site in block.leaves}
        for site, probe in probes.items():
            block.place(site, probe)
        assert torch.equal(probed(x), plain(x))
        given, out = recorded(plain, block.path, x)
        for site, probe in probes.items():
            name = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
            path = name.get(site, site)
            assert torch.equal(probe.seen[0], given[path])
            assert torch.equal(probe.seen[1], out[path])
            assert block.leaf(site) is probed.get_submodule(f"{block.path}.{path}")


class DoubleValues(nn.Module):
    """Twice the values behind qkv."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        q, k, v = y.chunk(3, dim=-1)
        return torch.cat([q, k, 2 * v], dim=-1)


class Double(nn.Module):
    """Twice what it is given; in a leaf, twice the leaf's output."""

    def forward(self, *tensors: Tensor) -> Tensor:
        return 2 * tensors[-1]


@pytest.mark.parametrize("site", OpenedBlock.SLOTS)
@pytest.mark.parametrize("kind", ["dinov2", "swin"])
@torch.no_grad()
def test_doubling_changes_what_it_should(kind: str, site: str) -> None:
    plain, doubled = build(kind), build(kind)
    block, reference = block_map(doubled).blocks[1], block_map(plain).blocks[1]
    block.place(site, Double())
    x = recorded(plain, reference.path, images(kind))[0][""]
    torch.testing.assert_close(block.module(x), by_hand(reference, x, site))
    assert not torch.allclose(block.module(x), reference.module(x), atol=1e-3)


def by_hand(block: Block, x: Tensor, site: str) -> Tensor:
    """A pre-norm block as its papers write it, with ``site`` doubled."""

    def at(name: str, value: Tensor) -> Tensor:
        return 2 * value if site == name else value

    def half(name: str, x: Tensor, norm: nn.Module, branch: Callable[[Tensor], Tensor]) -> Tensor:
        normed = at(f"{name}_in", norm(x))
        y = at(f"{name}_shortcut", x) + at(f"{name}_added", at(f"{name}_out", branch(normed)))
        y = y + 2 * x if site == f"{name}_parallel" else y
        return y + 2 * normed if site == f"{name}_parallel_normed" else y

    m: Any = block.module
    swin = hasattr(m, "_attn")
    attention = m._attn if swin else lambda z: m.ls1(m.attn(z))
    mlp = m.mlp if swin else lambda z: m.ls2(m.mlp(z))
    entering = at("stream_in", x)
    x = half("attn", entering, m.norm1, attention)
    x = half("mlp", at("stream_mid", x), m.norm2, mlp)
    return at("stream_out", x + 2 * entering if site == "block_parallel" else x)


@pytest.mark.parametrize("part", ["weight", "bias"])
@pytest.mark.parametrize("site", ["qkv", "proj", "norm1", "norm2", "fc1", "fc2", "patch"])
@torch.no_grad()
def test_an_update_takes_the_place_of_weight_or_bias(site: str, part: str) -> None:
    plain, doubled = build("vit"), build("vit")
    backbone, reference = block_map(doubled), block_map(plain)
    if site == "patch":
        backbone.place_on_leaf(backbone.patch_leaves[0], Double(), f"{part}_update")
        leaf: Any = reference.patch_leaves[0]
    else:
        backbone.blocks[1].place(f"{site}.{part}", Double())
        leaf = reference.blocks[1].leaf(site)
    before = plain(images("vit"))
    getattr(leaf, part).mul_(2)
    assert torch.equal(doubled(images("vit")), plain(images("vit")))
    assert not torch.equal(before, plain(images("vit")))


@pytest.mark.parametrize("site", ["qkv", "proj", "norm2", "fc1", "fc2"])
@torch.no_grad()
def test_a_leafs_input_is_changed_in_front_of_it(site: str) -> None:
    plain, doubled = build("vit"), build("vit")
    block_map(doubled).blocks[1].place(f"{site}.input", Double())
    before = plain(images("vit"))
    leaf = block_map(plain).blocks[1].leaf(site)
    leaf.register_forward_pre_hook(lambda _, given: (2 * given[0],))
    assert torch.equal(doubled(images("vit")), plain(images("vit")))
    assert not torch.equal(before, plain(images("vit")))


@torch.no_grad()
def test_a_replaced_head_reads_other_features() -> None:
    for kind in ("vit", "swin"):
        model = build(kind)
        backbone = block_map(model)
        head = backbone.head
        backbone.replace_head(7)
        fresh: Any = backbone.head
        assert (fresh.in_features, fresh.out_features) == (7, 3)
        backbone.close()
        assert backbone.head is head


@pytest.mark.parametrize("site", ["norm1", "qkv", "proj", "norm2", "fc1", "fc2"])
@torch.no_grad()
def test_doubling_a_leaf_is_doubling_its_weights(site: str) -> None:
    plain, doubled = build("vit"), build("vit")
    block_map(doubled).blocks[0].place(site, Double())
    for parameter in block_map(plain).blocks[0].leaf(site).parameters():
        parameter.mul_(2)
    torch.testing.assert_close(doubled(images("vit")), plain(images("vit")))


@pytest.mark.parametrize("kind", ["vit", "swin"])
@torch.no_grad()
def test_drop_path_drops_the_branch_and_nothing_else(kind: str) -> None:
    model = build(kind)
    block = block_map(model).blocks[0]
    x = recorded(model, block.path, images(kind))[0][""]
    module: Any = block.module
    module.drop_path1 = module.drop_path2 = Probe(torch.zeros_like)
    block.place("attn_out", Double())
    block.place("mlp_parallel", Double())
    torch.testing.assert_close(module(x), x + 2 * x)


def test_places_are_taken_once_and_must_exist() -> None:
    block = block_map(build("vit")).blocks[0]
    block.place("qkv", SecondArgument())
    with pytest.raises(ValueError, match=r"blocks\.0\.attn\.qkv\.delta already holds a SecondArg"):
        block.place("qkv", SecondArgument())
    block.place("mlp_out", nn.Identity())
    with pytest.raises(ValueError, match=r"blocks\.0\.mlp_out already holds a Identity"):
        block.place("mlp_out", nn.Identity())
    with pytest.raises(KeyError, match=r"no site 'mlp_output'; sites: .*qkv.*mlp_out"):
        block.place("mlp_output", nn.Identity())


def test_placed_modules_take_type_and_mode() -> None:
    model = build("vit").double()
    block = block_map(model).blocks[0]
    placed = nn.Linear(32, 32)
    block.place("mlp_out", placed)
    assert placed.weight.dtype is torch.float64
    assert not placed.training
    names = {n for n, _ in model.named_parameters() if "mlp_out" in n}
    assert names == {"blocks.0.mlp_out.weight", "blocks.0.mlp_out.bias"}


# ---- prompts and prefix tokens ------------------------------------------------------------------


@pytest.mark.parametrize("method", ["vpt_shallow", "vpt_deep"])
@pytest.mark.parametrize("kind", ["vit", "dinov2", "clip", "siglip", "avg", "qk_norm"])
@torch.no_grad()
def test_intermediates_with_prompts(kind: str, method: str) -> None:
    model = build(kind)
    x = images(kind)
    shapes = [tuple(f.shape) for f in model.forward_intermediates(x, intermediates_only=True)]
    prefix = model.num_prefix_tokens
    attached = vpeft_bench.attach(model, method, prompt_length=3)
    more = 3 if method == "vpt_shallow" else 0
    assert model.num_prefix_tokens == prefix + more
    taken = model.forward_intermediates(x, intermediates_only=True)
    assert [tuple(f.shape) for f in taken] == shapes
    if prefix + more:
        final, pairs = model.forward_intermediates(x, return_prefix_tokens=True, norm=True)
        assert [tokens.shape[1] for _, tokens in pairs] == [prefix + more] * len(shapes)
        patches = final[:, prefix + more :].transpose(1, 2).reshape(shapes[-1])
        assert torch.equal(pairs[-1][0], patches)
    attached.detach()
    assert model.num_prefix_tokens == prefix


@torch.no_grad()
def test_average_pooling_leaves_prompts_out() -> None:
    model = build("avg")
    vpeft_bench.attach(model, "vpt_shallow", prompt_length=3)
    tokens = model.forward_features(images("avg"))
    pooled = tokens[:, 1 + 3 :].mean(1)
    torch.testing.assert_close(model(images("avg")), model.head(model.fc_norm(pooled)))


# ---- which models -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "family", "blocks", "width", "heads", "prefix", "final_norm"),
    [
        ("vit_base_patch16_224", "vit", 12, 768, 12, 1, "norm"),
        ("deit_small_patch16_224", "vit", 12, 384, 6, 1, "norm"),
        ("vit_small_patch14_reg4_dinov2", "vit", 12, 384, 6, 5, "norm"),
        ("vit_base_patch16_clip_224", "vit", 12, 768, 12, 1, "norm"),
        ("vit_base_patch16_siglip_224", "vit", 12, 768, 12, 0, "norm"),
        ("vit_little_patch16_reg4_gap_256", "vit", 14, 320, 5, 4, "fc_norm"),
        ("swin_base_patch4_window7_224", "swin", 24, 1024, 32, 0, "norm"),
        ("deit_small_distilled_patch16_224", "deit", 12, 384, 6, 2, "norm"),
        ("beitv2_base_patch16_224", "beit", 12, 768, 12, 1, "fc_norm"),
        ("vit_base_patch16_dinov3", "eva", 12, 768, 12, 5, "norm"),
        ("eva02_large_patch14_448", "eva", 24, 1024, 16, 1, "fc_norm"),
        ("eva_giant_patch14_224", "eva", 40, 1408, 16, 1, "fc_norm"),
        ("vit_pe_core_base_patch16_224", "eva", 12, 768, 12, 1, "norm"),
        ("swinv2_base_window8_256", "swinv2", 24, 1024, 32, 0, "norm"),
    ],
)
def test_real_names_map(
    name: str, family: str, blocks: int, width: int, heads: int, prefix: int, final_norm: str
) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    backbone = block_map(model)
    last = backbone.blocks[-1]
    assert (backbone.family.name, len(backbone.blocks)) == (family, blocks)
    assert (last.width, last.heads, backbone.prefix_tokens) == (width, heads, prefix)
    assert backbone.final_norm is model.get_submodule(final_norm)
    assert [b.index for b in backbone.blocks] == list(range(blocks))
    assert all(model.get_submodule(b.path) is b.module for b in backbone.blocks)
    if family in ("swin", "swinv2"):
        assert [b.stage for b in backbone.blocks] == [0] * 2 + [1] * 2 + [2] * 18 + [3] * 2
        assert [b.width for b in backbone.blocks[::6]] == [128, 512, 512, 512]
        assert len(backbone.merge_norms) == 3
        assert len(backbone.patch_leaves) == 2
    vpeft_bench.attach(model, "lora").detach()


@pytest.mark.parametrize(
    ("name", "overrides", "says"),
    [
        ("resnet18", {}, "ResNet has no block map; mapped families: Beit, Eva, SwinTransformer"),
        ("swinv2_cr_tiny_224", {}, "SwinTransformerV2Cr has no block map"),
        ("eva02_enormous_patch14_clip_224", {}, r"blocks\.0 is EvaBlockPostNorm"),
        ("vit_small_patch16_dinov3", {"patch_drop_rate": 0.5}, "covers no patch dropout"),
        ("vit_small_patch16_18x2_224", {}, r"blocks\.0 is ParallelThingsBlock"),
        (
            "vit_tiny_patch16_224",
            {"block_fn": ParallelScalingBlock},
            r"blocks\.0 is ParallelScalingBlock\(\); .* pre-norm Block with fused qkv",
        ),
        ("vit_tiny_patch16_224", {"block_fn": ResPostBlock}, r"blocks\.0 is ResPostBlock"),
        ("vit_tiny_patch16_224", {"mlp_layer": SwiGLU}, r"blocks\.0 is Block\(.*mlp: SwiGLU\)"),
        ("vit_tiny_r_s16_p8_224", {}, "patch_embed is a HybridEmbed; .* convolutional stem"),
    ],
)
def test_unmapped_models_say_why(name: str, overrides: dict[str, Any], says: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, **overrides)
    classes = [type(module) for module in model.modules()]
    with pytest.raises(UnsupportedBackboneError, match=says):
        vpeft_bench.attach(model, "lora")
    assert [type(module) for module in model.modules()] == classes


# ---- what it costs ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "batch"), [("vit_tiny_patch16_224", 4), ("vit_base_patch16_224", 1)]
)
def test_opened_blocks_cost_nothing(name: str, batch: int) -> None:
    plain = timm.create_model(name, num_classes=10).eval()
    opened = copy.deepcopy(plain)
    open_everything(block_map(opened))
    x = torch.randn(batch, 3, 224, 224)

    def seconds(model: nn.Module) -> float:
        # Processor time: waiting for a core that other processes hold is not the blocks' cost.
        start = time.process_time()
        model(x).sum().backward()
        return time.process_time() - start

    for model in (plain, opened):
        seconds(model)  # the first pass allocates
    # Interleaved, in alternating order: what else the machine does then hits both alike.
    times: dict[str, list[float]] = {"plain": [], "opened": []}
    for turn in range(16):
        order = [("plain", plain), ("opened", opened)]
        for label, model in order if turn % 2 else order[::-1]:
            times[label].append(seconds(model))
    ratio = statistics.median(times["opened"]) / statistics.median(times["plain"])
    print(f"\n{name}: opened / plain = {ratio:.4f} (median of 16 forward and backward passes)")
    assert ratio < 1.10
