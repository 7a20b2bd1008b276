"""Weights as people have them: the part of a file that fills a backbone is found, and told."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from vpeft_bench.backbones.load import create, load_backbone
from vpeft_bench.backbones.weights import load_weights, weights_source
from vpeft_bench.errors import WeightsMismatchError

VIT = "vit_tiny_patch16_224"
SMALL: dict[str, Any] = {"embed_dim": 48, "depth": 2}
SWIN = "swin_tiny_patch4_window7_224"
SMALL_SWIN: dict[str, Any] = {
    "embed_dim": 24,
    "depths": (1, 1),
    "num_heads": (2, 2),
    "window_size": 2,
}
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    torch.manual_seed(0)
    return dict(timm.create_model(VIT, num_classes=7, img_size=32, **SMALL).state_dict())


def loaded(path: Path, content: object, name: str = "w.pth", **arguments: Any) -> Any:
    torch.save(content, path / name)
    return load_backbone(VIT, str(path / name), 5, **({"image_size": 32} | SMALL | arguments))


def refused(path: Path, content: object, **arguments: Any) -> str:
    """The message, which fits a screen."""
    with pytest.raises(WeightsMismatchError, match=r"w\.pth") as caught:
        loaded(path, content, **arguments)
    assert len(str(caught.value).splitlines()) <= 20
    return str(caught.value)


def filled(found: Any, state: State) -> bool:
    """Whether the backbone holds ``state``, its own head left fresh."""
    own = found.model.state_dict()
    return all(torch.equal(own[name], t) for name, t in state.items() if "head" not in name)


def under(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def other(state: State) -> State:
    return {name: tensor + 1 for name, tensor in state.items()}


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "model.",
        "backbone.",
        "encoder.",
        "trunk.",
        "visual.",
        "net.",
        "module.backbone.",
        "model.backbone.",
        "_orig_mod.",
        "a.name.nobody.thought.of.",
    ],
)
def test_a_common_prefix_is_left_out_and_told(tmp_path: Path, state: State, prefix: str) -> None:
    found = loaded(tmp_path, {"state_dict": under(prefix, state), "epoch": 3})
    assert filled(found, state)
    if prefix == "_orig_mod.":
        assert found.notes == ("names of torch's wrappers left out",)
    else:
        assert found.notes == ("took state_dict", f'prefix "{prefix}" left out')


def test_a_bare_state_has_nothing_to_tell(tmp_path: Path, state: State) -> None:
    for content in (state, {"model": state}, {"state_dict": state}, {"module": state}):
        found = loaded(tmp_path, content)
        assert filled(found, state)
        assert found.notes == ()


@pytest.mark.parametrize(
    "suffix", [".pth", ".PTH", ".pt", ".bin", ".ckpt", ".pth.tar", ".Pth.Tar", ".anything"]
)
def test_the_name_of_the_file_does_not_matter(tmp_path: Path, state: State, suffix: str) -> None:
    assert filled(loaded(tmp_path, state, f"w{suffix}"), state)


def files(wanted: State) -> dict[str, tuple[object, str]]:
    """Layouts of releases that hold several networks: what they hold, which is taken."""
    rest = other(wanted)
    projection = {"head.mlp.0.weight": torch.zeros(3, 3), "head.last_layer.weight_v": torch.ones(1)}
    return {
        "timm train.py": ({"state_dict": rest, "state_dict_ema": wanted}, "state_dict_ema"),
        "deit": ({"model": rest, "model_ema": wanted, "args": argparse.Namespace()}, "model_ema"),
        "lightning": (
            {"state_dict": under("model.", rest) | under("ema_model.", wanted)},
            "state_dict.ema_model",
        ),
        "dino": (
            {
                "student": under("module.backbone.", rest) | under("module.", projection),
                "teacher": under("backbone.", wanted) | projection,
                "args": argparse.Namespace(arch="vit"),
            },
            "teacher.backbone",
        ),
        "dinov2": (
            {"model": under("student.backbone.", rest) | under("teacher.backbone.", wanted)},
            "model.teacher.backbone",
        ),
        "moco v3": (
            {
                "state_dict": under("module.base_encoder.", wanted)
                | under("module.momentum_encoder.", rest)
                | {"module.predictor.0.weight": torch.zeros(2, 2)}
            },
            "state_dict.module.base_encoder",
        ),
        "moco": (
            {"state_dict": under("encoder_q.", wanted) | under("encoder_k.", rest)},
            "state_dict.encoder_q",
        ),
        "i-jepa": (
            {"encoder": under("module.", wanted), "target_encoder": under("module.", rest)},
            "encoder.module",
        ),
        "no average yet": ({"state_dict": wanted, "state_dict_ema": None}, ""),
    }


@pytest.mark.parametrize("release", list(files({})))
def test_of_several_networks_the_usual_one_is_taken_and_told(
    tmp_path: Path, state: State, release: str
) -> None:
    content, part = files(state)[release]
    found = loaded(tmp_path, content)
    assert filled(found, state)
    assert not part or found.notes[0].startswith(f"took {part}, not ")


def test_what_is_not_the_backbone_s_is_told(tmp_path: Path, state: State) -> None:
    heads = {"decode_head.conv_seg.weight": torch.ones(3), "auxiliary_head.x": torch.ones(2)}
    found = loaded(tmp_path, {"state_dict": under("backbone.", state) | heads, "meta": {}})
    assert filled(found, state)
    assert "2 tensors of decode_head, auxiliary_head not used" in found.notes
    masked = {
        "mask_token": torch.zeros(1, 1, 48),
        "decoder_pos_embed": torch.zeros(1, 5, 48),
        "decoder_blocks.0.norm1.weight": torch.ones(3),
    }
    found = loaded(tmp_path, {"model": state | masked})
    assert filled(found, state)
    assert found.notes == ("3 tensors of mask_token, decoder_pos_embed, decoder_blocks not used",)


def test_which_of_two_networks_is_never_guessed(tmp_path: Path, state: State) -> None:
    content = {"online": state, "target": other(state)}
    assert "online and target fill the backbone with different values" in refused(tmp_path, content)
    assert filled(loaded(tmp_path, {"online": state, "target": dict(state)}), state)


def test_an_average_that_is_incomplete_is_not_taken(tmp_path: Path, state: State) -> None:
    part = {name: tensor for name, tensor in other(state).items() if "norm" in name}
    assert filled(loaded(tmp_path, {"state_dict": state, "state_dict_ema": part}), state)


def test_names_of_torch_s_wrappers_and_dinov2_s_chunks(tmp_path: Path, state: State) -> None:
    wrapped = {
        re.sub(r"^(blocks\.\d+\.)", r"_fsdp_wrapped_module.\1_checkpoint_wrapped_module.", name): t
        for name, t in state.items()
    }
    assert filled(loaded(tmp_path, wrapped), state)
    chunks = {re.sub(r"^blocks\.(\d+)\.", r"blocks.0.\1.", n): t for n, t in state.items()}
    assert filled(loaded(tmp_path, {"teacher": under("backbone.", chunks)}), state)


def test_a_stored_model_gives_its_weights(tmp_path: Path, state: State) -> None:
    model = timm.create_model(VIT, num_classes=7, img_size=32, **SMALL)
    model.load_state_dict(state)
    assert filled(loaded(tmp_path, model), state)
    assert filled(loaded(tmp_path, {"model": nn.DataParallel(model)}), state)


def test_any_head_is_left_out_where_the_backbone_has_none(tmp_path: Path, state: State) -> None:
    torch.save(state, tmp_path / "w.pth")
    model = create(VIT, 0, 32, **SMALL)
    load_weights(model, weights_source(str(tmp_path / "w.pth"), ""))
    assert torch.equal(model.cls_token, state["cls_token"])


def test_sizes_and_kinds_of_numbers_that_change_are_told(tmp_path: Path, state: State) -> None:
    found = loaded(tmp_path, state, image_size=64)
    assert found.notes == ("pos_embed fitted from (1, 5, 48) to (1, 17, 48), as timm does",)
    half = {name: tensor.bfloat16() for name, tensor in state.items()}
    found = loaded(tmp_path, half)
    assert found.notes == ("stored in bfloat16",)
    assert filled(found, {name: tensor.float() for name, tensor in half.items()})
    found = loaded(tmp_path, {name: tensor.double() for name, tensor in state.items()})
    assert found.notes == ("float64 rounded to float32",)
    tables = timm.create_model(SWIN, num_classes=0, img_size=32, **SMALL_SWIN).state_dict()
    torch.save(tables, tmp_path / "s.pth")
    source = weights_source(str(tmp_path / "s.pth"), "")
    notes = load_weights(create(SWIN, 3, 32, **SMALL_SWIN | {"window_size": 4}), source)
    assert any("relative_position_bias_table fitted from (9, 2)" in note for note in notes)


@pytest.mark.parametrize(
    ("value", "word"), [(torch.nan, "NaN"), (torch.inf, "infinity"), (-torch.inf, "infinity")]
)
def test_numbers_that_are_not_finite_are_refused(
    tmp_path: Path, state: State, value: float, word: str
) -> None:
    spoilt = state | {"blocks.0.attn.qkv.weight": state["blocks.0.attn.qkv.weight"].clone()}
    spoilt["blocks.0.attn.qkv.weight"][0, 0] = value
    for content in (
        spoilt,
        {"state_dict": state, "state_dict_ema": spoilt},
        {name: tensor.half() for name, tensor in spoilt.items()},
    ):
        assert f"blocks.0.attn.qkv.weight holds {word}" in refused(tmp_path, content)


def test_too_large_for_float32(tmp_path: Path, state: State) -> None:
    large = {name: tensor.double() for name, tensor in state.items()}
    large["norm.bias"] = torch.full((48,), 1e300, dtype=torch.float64)
    assert "norm.bias holds infinity" in refused(tmp_path, large)


def test_quantised_weights_are_refused(tmp_path: Path, state: State) -> None:
    linears = {n: (t * 100).to(torch.int8) for n, t in state.items() if t.ndim == 2}
    message = refused(tmp_path, state | linears)
    assert "of kind int8, first blocks.0.attn.qkv.weight" in message
    quantised = torch.quantize_per_tensor(state["blocks.0.mlp.fc1.weight"], 0.1, 0, torch.qint8)
    message = refused(tmp_path, state | {"blocks.0.mlp.fc1.weight": quantised})
    assert "blocks.0.mlp.fc1.weight (a torch._utils._rebuild_qtensor, no plain tensor)" in message


def depth(state: State, blocks: int) -> State:
    rest = {name: tensor for name, tensor in state.items() if not name.startswith("blocks.")}
    first = {name[9:]: tensor for name, tensor in state.items() if name.startswith("blocks.0.")}
    return rest | {f"blocks.{i}.{name}": t for i in range(blocks) for name, t in first.items()}


def without_class_token(state: State) -> State:
    return {n: t for n, t in state.items() if n != "cls_token"} | {
        "pos_embed": state["pos_embed"][:, 1:].clone()
    }


def transformers(state: State) -> State:
    names = {
        "cls_token": "vit.embeddings.cls_token",
        "pos_embed": "vit.embeddings.position_embeddings",
        "patch_embed.proj.weight": "vit.embeddings.patch_embeddings.projection.weight",
    }
    swaps = {
        "blocks.": "vit.encoder.layer.",
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attn.qkv": "attention.attention.query",
        "attn.proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    renamed = {}
    for name, tensor in state.items():
        new = names.get(name, name)
        for ours, theirs in swaps.items():
            new = new.replace(ours, theirs)
        renamed[new] = tensor
    return renamed


def openmmlab(state: State) -> State:
    swaps = {
        "blocks.": "backbone.layers.",
        "norm1": "ln1",
        "norm2": "ln2",
        "patch_embed.proj": "backbone.patch_embed.projection",
        "mlp.fc1": "ffn.layers.0.0",
        "mlp.fc2": "ffn.layers.1",
    }
    renamed = {}
    for name, tensor in state.items():
        for ours, theirs in swaps.items():
            name = name.replace(ours, theirs)
        renamed[name] = tensor
    return renamed


def other_sizes(**sizes: Any) -> State:
    arguments = {"num_classes": 0, "img_size": 32} | SMALL | sizes
    return dict(timm.create_model(VIT, **arguments).state_dict())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: depth(s, 4), ("another depth: 4 blocks in the file, 2 in the backbone",)),
        (lambda s: depth(s, 4), ("unexpected: blocks.2 to blocks.3 (24 tensors)",)),
        (lambda s: depth(s, 1), ("another depth: 1 blocks", "missing: blocks.1 (12 tensors)")),
        (without_class_token, ("the file has no class token", "missing: cls_token")),
        (
            lambda s: s | {"reg_token": torch.zeros(1, 4, 48)},
            ("the backbone has no register tokens", "unexpected: reg_token"),
        ),
        (transformers, ("names are those of Hugging Face transformers", "huggingface.co/timm")),
        (openmmlab, ("names are those of OpenMMLab",)),
        (lambda s: other_sizes(embed_dim=96), ("another width: 96 in the file, 48",)),
        (
            lambda s: under("module.", other_sizes(embed_dim=96)),
            ("all 30 names carry the prefix module.", "also: another width: 96"),
        ),
        (
            lambda s: timm.create_model("resnet10t", num_classes=0).state_dict(),
            ("names are those of a ResNet, which the backbone is not",),
        ),
        (
            lambda s: create(SWIN, 0, 32, **SMALL_SWIN).state_dict(),
            ("names are those of a Swin Transformer, which the backbone is not",),
        ),
        (
            lambda s: {f"x.{n}".replace("blocks", "parts"): t for n, t in s.items()},
            ("all 32 names carry the prefix x.",),
        ),
        (lambda s: {"a": torch.ones(2)}, ("missing: blocks.0 to blocks.1", "unexpected: a")),
        (lambda s: {"epoch": 3}, ("it holds no tensors with names",)),
        (lambda s: torch.ones(2), ("it holds no tensors with names",)),
    ],
)
def test_the_first_difference_of_kind_is_named(
    tmp_path: Path, state: State, change: Any, said: tuple[str, ...]
) -> None:
    message = refused(tmp_path, change(state))
    for text in said:
        assert text in message, message


def test_whatever_timm_s_filters_raise_is_one_line(tmp_path: Path, state: State) -> None:
    """Positions that are no square grid; a patch embedding of two dimensions."""
    for spoilt in (
        {"pos_embed": torch.zeros(1, 4, 48)},
        {"pos_embed": torch.zeros(5)},
        {"patch_embed.proj.weight": torch.zeros(3, 5)},
    ):
        message = refused(tmp_path, state | spoilt)
        assert f"{next(iter(spoilt))}: file" in message
