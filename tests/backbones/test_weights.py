"""Loading weights: completely or not at all, from every kind of file, and quickly told when not."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from vpeft_bench.backbones import weights as weights_module
from vpeft_bench.backbones.load import create, load_backbone
from vpeft_bench.backbones.weights import check_weights, load_weights, weights_source
from vpeft_bench.errors import WeightsMismatchError

VIT = "vit_tiny_patch16_224"
SMALL: dict[str, Any] = {"img_size": 32, "embed_dim": 48, "depth": 2}


def small_vit(num_classes: int = 7) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(VIT, num_classes=num_classes, **SMALL)


def loaded_from(path: Path) -> nn.Module:
    return load_backbone(
        VIT, str(path), 5, image_size=32, embed_dim=SMALL["embed_dim"], depth=SMALL["depth"]
    ).model


def assert_same_backbone(a: nn.Module, b: nn.Module) -> None:
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(a.eval().forward_features(images), b.eval().forward_features(images))


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_pth(tmp_path: Path, wrapper: str | None) -> None:
    source = small_vit()
    state = source.state_dict()
    torch.save(state if wrapper is None else {wrapper: state, "epoch": 3}, tmp_path / "w.pth")
    model = loaded_from(tmp_path / "w.pth")
    assert_same_backbone(source, model)
    assert model.get_classifier().out_features == 5


def test_safetensors_with_other_image_size_is_resampled(tmp_path: Path) -> None:
    source = timm.create_model(VIT, num_classes=0, **{**SMALL, "img_size": 64})
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    model = loaded_from(tmp_path / "w.safetensors")
    assert model.pos_embed.shape == (1, 5, 48)
    assert torch.equal(model.blocks[1].mlp.fc1.weight, source.blocks[1].mlp.fc1.weight)


@pytest.mark.parametrize("spoil", ["missing", "unexpected", "shape"])
def test_incomplete_checkpoint_names_what_is_wrong(tmp_path: Path, spoil: str) -> None:
    state = small_vit(0).state_dict()
    if spoil == "missing":
        del state["blocks.1.mlp.fc2.bias"]
        name = "missing: blocks.1.mlp.fc2.bias"
    elif spoil == "unexpected":
        state["blocks.2.norm1.weight"] = torch.ones(48)
        name = "unexpected: blocks.2.norm1.weight"
    else:
        state["blocks.0.attn.qkv.weight"] = torch.zeros(144, 24)
        name = "blocks.0.attn.qkv.weight: file (144, 24), backbone (144, 48)"
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsMismatchError, match="does not fill the backbone") as caught:
        loaded_from(tmp_path / "w.safetensors")
    assert name in str(caught.value)


def jax_arrays(model: nn.Module) -> dict[str, np.ndarray]:
    """The tensors of a timm ViT in the layout of the original JAX checkpoints."""

    def array(tensor: torch.Tensor) -> np.ndarray:
        return tensor.detach().numpy()

    width, heads = model.embed_dim, model.blocks[0].attn.num_heads
    arrays = {
        "cls": array(model.cls_token),
        "embedding/kernel": array(model.patch_embed.proj.weight).transpose(2, 3, 1, 0),
        "embedding/bias": array(model.patch_embed.proj.bias),
        "Transformer/posembed_input/pos_embedding": array(model.pos_embed),
        "Transformer/encoder_norm/scale": array(model.norm.weight),
        "Transformer/encoder_norm/bias": array(model.norm.bias),
    }
    for index, block in enumerate(model.blocks):
        prefix = f"Transformer/encoderblock_{index}"
        attention = f"{prefix}/MultiHeadDotProductAttention_1"
        for name, norm in (("LayerNorm_0", block.norm1), ("LayerNorm_2", block.norm2)):
            arrays[f"{prefix}/{name}/scale"] = array(norm.weight)
            arrays[f"{prefix}/{name}/bias"] = array(norm.bias)
        parts = zip(block.attn.qkv.weight.chunk(3), block.attn.qkv.bias.chunk(3), strict=True)
        for name, (weight, bias) in zip(("query", "key", "value"), parts, strict=True):
            arrays[f"{attention}/{name}/kernel"] = array(weight).T.reshape(width, heads, -1)
            arrays[f"{attention}/{name}/bias"] = array(bias).reshape(heads, -1)
        arrays[f"{attention}/out/kernel"] = array(block.attn.proj.weight).T.reshape(
            heads, -1, width
        )
        arrays[f"{attention}/out/bias"] = array(block.attn.proj.bias)
        for number, linear in enumerate((block.mlp.fc1, block.mlp.fc2)):
            arrays[f"{prefix}/MlpBlock_3/Dense_{number}/kernel"] = array(linear.weight).T
            arrays[f"{prefix}/MlpBlock_3/Dense_{number}/bias"] = array(linear.bias)
    return arrays


def test_original_npz(tmp_path: Path) -> None:
    source = small_vit(0)
    nn.init.normal_(source.pos_embed)
    np.savez(tmp_path / "ViT.npz", **jax_arrays(source))
    assert_same_backbone(source, loaded_from(tmp_path / "ViT.npz"))


def test_incomplete_npz(tmp_path: Path) -> None:
    arrays = jax_arrays(small_vit(0))
    del arrays["Transformer/encoderblock_1/MlpBlock_3/Dense_0/kernel"]
    np.savez(tmp_path / "ViT.npz", **arrays)
    with pytest.raises(WeightsMismatchError, match="encoderblock_1/MlpBlock_3/Dense_0/kernel"):
        loaded_from(tmp_path / "ViT.npz")


@pytest.mark.parametrize(
    ("release", "prefix"),
    [
        ("original", ""),
        ("original", "opt/target/"),
        ("big_vision", ""),
        ("big_vision", "params/"),
        ("stacked", ""),
        ("stacked", "params/img/"),
    ],
)
@pytest.mark.parametrize("size", [32, 64])
def test_npz_is_read_as_timm_reads_it(tmp_path: Path, prefix: str, release: str, size: int) -> None:
    """Bit for bit, resampled positions included; the layouts of the two code bases of Google."""
    source = small_vit(0)
    for parameter in source.parameters():
        nn.init.normal_(parameter)
    arrays = jax_arrays(source) | {"pre_logits/bias": np.ones(3), "head/bias": np.ones(7)}
    if release != "original":
        for old, new in (
            ("Transformer/posembed_input/pos_embedding", "pos_embedding"),
            ("MultiHeadDotProductAttention_1", "MultiHeadDotProductAttention_0"),
            ("MlpBlock_3", "MlpBlock_0"),
            ("LayerNorm_2", "LayerNorm_1"),
        ):
            arrays = {name.replace(old, new): array for name, array in arrays.items()}
    if release == "stacked":
        first = "Transformer/encoderblock_0/"
        stacked = {
            name.replace("_0/", "/", 1): np.stack([array, arrays[name.replace("_0/", "_1/", 1)]])
            for name, array in arrays.items()
            if name.startswith(first)
        }
        arrays = {n: a for n, a in arrays.items() if "encoderblock_" not in n} | stacked
    path = tmp_path / "w.npz"
    np.savez(path, **{prefix + name: array for name, array in arrays.items()})
    by_timm = timm.create_model(VIT, num_classes=5, **SMALL | {"img_size": size})
    by_timm.load_pretrained(str(path))
    ours = create(VIT, 5, size, embed_dim=SMALL["embed_dim"], depth=SMALL["depth"])
    notes = load_weights(ours, weights_source(str(path), ""))
    assert (f'prefix "{prefix}" left out' in notes) == bool(prefix)
    assert any("pos_embed fitted" in note for note in notes) == (size == 64)
    for name, tensor in by_timm.state_dict().items():
        if not name.startswith("head"):
            assert torch.equal(tensor, ours.state_dict()[name]), name


def test_npz_with_pooling_by_attention_is_read_as_timm_reads_it(tmp_path: Path) -> None:
    arguments = SMALL | {"global_pool": "map", "class_token": False}
    source = timm.create_model(VIT, num_classes=0, **arguments)
    arrays = jax_arrays(timm.create_model(VIT, num_classes=0, **SMALL))
    arrays["Transformer/posembed_input/pos_embedding"] = source.pos_embed.detach().numpy()
    width, block = 48, "MAPHead_0"
    attention = f"{block}/MultiHeadDotProductAttention_0"
    drawn = np.random.default_rng(0).normal
    del arrays["cls"]
    arrays[f"{block}/probe"] = drawn(size=(1, 1, width))
    for name in ("query", "key", "value"):
        arrays[f"{attention}/{name}/kernel"] = drawn(size=(width, 3, width // 3))
        arrays[f"{attention}/{name}/bias"] = drawn(size=(3, width // 3))
    arrays[f"{attention}/out/kernel"] = drawn(size=(3, width // 3, width))
    arrays[f"{attention}/out/bias"] = drawn(size=width)
    for kind in ("scale", "bias"):
        arrays[f"{block}/LayerNorm_0/{kind}"] = drawn(size=width)
    for number, (rows, columns) in enumerate(((width, 4 * width), (4 * width, width))):
        arrays[f"{block}/MlpBlock_0/Dense_{number}/kernel"] = drawn(size=(rows, columns))
        arrays[f"{block}/MlpBlock_0/Dense_{number}/bias"] = drawn(size=columns)
    path = tmp_path / "w.npz"
    np.savez(path, **{name: array.astype(np.float32) for name, array in arrays.items()})
    source.load_pretrained(str(path))
    ours = timm.create_model(VIT, num_classes=0, **arguments)
    load_weights(ours, weights_source(str(path), ""))
    assert all(torch.equal(t, source.state_dict()[n]) for n, t in ours.state_dict().items())


def test_npz_is_held_to_the_same_completeness(tmp_path: Path) -> None:
    arrays = jax_arrays(small_vit(0))
    for name, extra in (
        ("Transformer/encoderblock_2/LayerNorm_0/scale", np.ones(48, np.float32)),
        ("something/else", np.ones(2, np.float32)),
    ):
        np.savez(tmp_path / "ViT.npz", **arrays | {name: extra})
        with pytest.raises(WeightsMismatchError, match=f"unexpected: {name}"):
            loaded_from(tmp_path / "ViT.npz")
    spoilt = arrays["embedding/kernel"].copy()
    spoilt[0, 0, 0, 0] = np.nan
    np.savez(tmp_path / "ViT.npz", **arrays | {"embedding/kernel": spoilt})
    with pytest.raises(WeightsMismatchError, match=r"patch_embed\.proj\.weight holds NaN"):
        loaded_from(tmp_path / "ViT.npz")


def test_non_finite_safetensors(tmp_path: Path) -> None:
    state = small_vit(0).state_dict()
    state["norm.bias"][3] = torch.inf
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsMismatchError, match=r"w\.safetensors.*norm\.bias holds infinity"):
        loaded_from(tmp_path / "w.safetensors")


def test_weights_that_were_never_filled_are_refused(tmp_path: Path) -> None:
    """As a sharded or lazily made model is saved: every number would be that of no weights."""
    state = small_vit().state_dict()
    empty = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    torch.save(empty, tmp_path / "w.pth")
    with pytest.raises(WeightsMismatchError, match="every matrix in it holds one value"):
        loaded_from(tmp_path / "w.pth")
    empty["patch_embed.proj.weight"] = state["patch_embed.proj.weight"]
    torch.save(empty, tmp_path / "some.pth")
    loaded_from(tmp_path / "some.pth")


def test_pickles_are_not_executed(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, tuple[str, ...]]:
            return (Path.touch, (str(tmp_path / "trapped"),))

    torch.save({"state_dict": Trap()}, tmp_path / "w.pth")
    with pytest.raises(WeightsMismatchError, match="cannot be read"):
        loaded_from(tmp_path / "w.pth")
    assert not (tmp_path / "trapped").exists()


def test_truncated_file(tmp_path: Path) -> None:
    save_file(small_vit(0).state_dict(), tmp_path / "w.safetensors")
    content = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(WeightsMismatchError, match="cannot be read"):
        loaded_from(tmp_path / "w.safetensors")


def test_swin_and_demo_round_trip(tmp_path: Path) -> None:
    arguments = {"embed_dim": 24, "depths": (1, 1), "num_heads": (2, 2), "window_size": 2}
    source = create("swin_tiny_patch4_window7_224", 3, 32, **arguments)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    model = create("swin_tiny_patch4_window7_224", 4, 32, **arguments)
    load_weights(model, weights_source(str(tmp_path / "w.safetensors"), ""))
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(
            source.eval().forward_features(images), model.eval().forward_features(images)
        )
    demo = load_backbone("vpeft_demo_vit", "hub", 10)
    assert demo.source.kind == "package"
    assert demo.image_size == (32, 32)


def test_missing_file_and_wrong_suffix(tmp_path: Path) -> None:
    (missing,) = check_weights(str(tmp_path / "no.pth"), VIT)
    assert str(tmp_path / "no.pth") in missing.what
    (wrong,) = check_weights("hubb", VIT)
    assert "hub, none" in wrong.fix
    (tmp_path / "now.pth").touch()
    (misspelt,) = check_weights(str(tmp_path / "no.pth"), VIT)
    assert f"did you mean backbone.weights={tmp_path / 'now.pth'}" in misspelt.fix


def test_suffixes_in_any_case(tmp_path: Path) -> None:
    for suffix in (".ckpt", ".pth.tar", ".pt", ".bin", ".PTH", ".SafeTensors", ".Pth.Tar"):
        torch.save(small_vit(0).state_dict(), tmp_path / f"w{suffix}")
        assert check_weights(str(tmp_path / f"w{suffix}"), VIT) == []


def test_files_that_are_no_weights_are_told_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    (pointer,) = check_weights(str(tmp_path / "w.pth"), VIT)
    assert "git lfs pull" in pointer.what
    (folder,) = check_weights(str(tmp_path), VIT)
    assert folder.what == "is a folder"
    assert folder.fix == f"backbone.weights={tmp_path / 'w.pth'}"
    part = tmp_path / "model-00001-of-00002.safetensors"
    save_file({"a": torch.ones(1)}, part)
    (one,) = check_weights(str(part), VIT)
    assert "one of several parts" in one.what
    (folder,) = check_weights(str(tmp_path), VIT)
    assert "several parts" in folder.fix


def test_damaged_files_are_one_line(tmp_path: Path) -> None:
    """Cut off or overwritten anywhere, in every format."""
    state = small_vit(0).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "w.pth")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    np.savez(tmp_path / "w.npz", **jax_arrays(small_vit(0)))
    for name in ("w.safetensors", "w.pth", "old.pth", "w.npz"):
        content = (tmp_path / name).read_bytes()
        pickled = max(content.find(b"data.pkl"), 0)
        damaged = [content[: len(content) * part // 4] for part in range(4)]
        damaged += [
            content[: pickled + at] + b"\xff" * 9 + content[pickled + at + 9 :]
            for at in (20, 80, 300, 2000)
        ]
        for number, spoilt in enumerate(damaged):
            path = tmp_path / f"damaged{number}-{name}"
            path.write_bytes(spoilt)
            said = path.name  # what was overwritten may be some tensor's numbers: it loads
            try:
                loaded_from(path)
            except WeightsMismatchError as error:
                said = str(error).splitlines()[0]
            assert path.name in said


def test_unreachable_hub_is_told_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A hub that swallows packets must not cost timm's minute of retries."""
    silent = socket.socket()
    silent.bind(("127.0.0.1", 0))
    silent.listen(0)
    # A full backlog leaves further connection attempts without an answer.
    full = [socket.socket() for _ in range(4)]
    for attempt in full:
        attempt.setblocking(False)
        attempt.connect_ex(silent.getsockname())
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
    monkeypatch.delenv("https_proxy", raising=False)
    monkeypatch.delenv("HTTPS_PROXY", raising=False)
    monkeypatch.setattr(weights_module, "_in_cache", lambda repository: False)
    start = time.monotonic()
    (problem,) = check_weights("hub", "vit_base_patch16_224.orig_in21k")
    assert time.monotonic() - start < 4
    for expected in ("timm/vit_base_patch16_224.orig_in21k", "backbone.weights=PATH", "=none"):
        assert expected in f"{problem}"
    for opened in (*full, silent):
        opened.close()
