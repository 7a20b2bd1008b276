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
