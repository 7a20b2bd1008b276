"""Golden files of the addition-based methods."""

from __future__ import annotations

from typing import Any

import torch
from golden_files import GoldenFile
from torch import Tensor

from entries.entry import Entry, Hyper, Names
from vpeft_bench.attaching.attachment import Attached
from vpeft_bench.backbones import Backbone
from vpeft_bench.methods.lorand import LoRandAdapter


def _bottleneck(ours: str, down: str, up: str) -> dict[str, str]:
    return {
        f"{theirs}.{part}": f"{ours}.{half}.{part}"
        for theirs, half in ((down, "down"), (up, "up"))
        for part in ("weight", "bias")
    }


def _adaptformer_options(hyper: Hyper) -> dict[str, Any]:
    return {
        "bottleneck": hyper["bottleneck"],
        "scale": hyper["scale"],
        "activation": hyper["activation"].split()[0],
        "layer_norm": hyper.get("layernorm_option", "none"),
    }


def _adaptformer_names(hyper: Hyper) -> Names:
    names = _bottleneck("mlp_parallel", "adaptmlp.down_proj", "adaptmlp.up_proj")
    if hyper["layernorm_option"] == "in":
        names |= {
            f"adaptmlp.adapter_layer_norm_before.{part}": f"mlp_parallel.norm.{part}"
            for part in ("weight", "bias")
        }
    return names


def _swin_module(ours: str, theirs: str) -> dict[str, str]:
    return _bottleneck(ours, f"{theirs}.project1", f"{theirs}.project2")


def _convpass_entry(placement: str) -> Entry:
    parts = {"attn_mlp": ("attn", "mlp"), "attn": ("attn",)}[placement]
    return Entry(
        "convpass",
        lambda hyper: {
            "bottleneck": hyper["bottleneck"],
            "scale": hyper["scale"],
            "placement": placement,
        },
        lambda hyper: {
            f"adapter_{part}.adapter_{layer}.{kind}": f"{part}_parallel_normed.{layer}.{kind}"
            for part in parts
            for layer in ("down", "conv", "up")
            for kind in ("weight", "bias")
        },
    )


def _sct_entry(placement: str, names: dict[str, str]) -> Entry:
    return Entry(
        "sct",
        lambda hyper: {
            "channels": hyper["num_channels"],
            "scale": hyper["effective_scale"],
            "placement": placement,
        },
        lambda hyper: {
            f"{theirs}.{part}": f"{ours}.linear.{part}"
            for theirs, ours in names.items()
            for part in ("weight", "bias")
        },
        merges=placement != "attn",
        calibration=_sct_calibration,
        check_selection=_sct_selection,
    )


def _sct_calibration(file: GoldenFile) -> list[tuple[Tensor, ...]]:
    """The file's pictures in two batches of unequal size, as the reference saw them."""
    images, labels = file.tensor("calib/images", torch.float64), file.tensor("calib/labels")
    return [(images[:5], labels[:5]), (images[5:], labels[5:])]


def _sct_selection(file: GoldenFile, attached: Attached) -> None:
    expected = file.group("select")
    if not expected:
        return  # a variant of other sizes, which the reference has not seen
    assert attached.selection is not None
    assert set(attached.selection) == set(expected)
    assert all(attached.selection[site].equal(chosen) for site, chosen in expected.items())


def _prompts(backbone: Backbone) -> list[str]:
    return [f"{block.path}.stream_in.prompts" for block in backbone.blocks]


def _official_vpt_options(hyper: Hyper) -> dict[str, Any]:
    return {"prompt_length": hyper["prompt_length"], "projection_width": hyper["project_dim"]}


def _official_vpt_names(hyper: Hyper, backbone: Backbone) -> Names:
    first, *later = _prompts(backbone)
    names: dict[str, str | list[str]] = {"transformer.prompt_embeddings": first}
    if hyper["deep"]:
        names["transformer.deep_prompt_embeddings"] = later
    if hyper["project_dim"] is not None:
        # One projection serves every block; it is named where it occurs first.
        projection = f"{backbone.blocks[0].path}.stream_in.projection"
        names |= {f"transformer.prompt_proj.{p}": f"{projection}.{p}" for p in ("weight", "bias")}
    return names


def _swin_vpt_names(hyper: Hyper, backbone: Backbone) -> Names:
    first, *later = _prompts(backbone)
    names: dict[str, str | list[str]] = {"prompt_embeddings": first}
    if hyper["deep"]:
        for block, prompts in zip(backbone.blocks[1:], later, strict=True):
            of_stage = names.setdefault(f"deep_prompt_embeddings_{block.stage}", [])
            of_stage.append(prompts)  # type: ignore[union-attr]
    return names


def _vfpt_options(hyper: Hyper) -> dict[str, Any]:
    return {
        "depth": "deep" if hyper["deep"] else "shallow",
        "ratio": hyper["fourier_percentage"],
        "transform": hyper["fourier_dimension"],
        **_official_vpt_options(hyper),
    }


VFPT = Entry("vfpt", _vfpt_options, whole=_official_vpt_names)
SWIN_VPT = {
    "swin_vpt_shallow": Entry("vpt_shallow", _official_vpt_options, whole=_swin_vpt_names),
    "swin_vpt_deep": Entry("vpt_deep", _official_vpt_options, whole=_swin_vpt_names),
    "swin_vfpt_deep": Entry("vfpt", _vfpt_options, whole=_swin_vpt_names),
}


def _compacter_options(hyper: Hyper) -> dict[str, Any]:
    return {
        "bottleneck": hyper["bottleneck"],
        "terms": hyper["hypercomplex_division"],
        "rank": hyper["phm_rank"],
        "placement": "houlsby",
        "activation": {"gelu": "gelu", "gelu_new": "gelu_tanh"}[hyper["non_linearity"]],
        "unfreeze_layer_norms": hyper["unfreeze_layer_norms"],
    }


def _compacter_names(hyper: Hyper) -> Names:
    parts = {"W_left": "blocks.left", "W_right": "blocks.right", "b": "bias"}
    return {
        f"{place}_adapter.{half}_sampler.{part}": f"{place}_out.{half}.{our}"
        for place in ("attn", "mlp")
        for half in ("down", "up")
        for part, our in parts.items()
    }


def _compacter_rule(hyper: Hyper, backbone: Backbone) -> Names:
    return {"phm_rule": f"{backbone.blocks[0].path}.attn_out.down.rule.A"}


def _other_compacter(meta: dict[str, Any]) -> None:
    meta["hyper"] |= {"bottleneck": 10, "hypercomplex_division": 5, "phm_rank": 3}


COMPACTER = Entry(
    "compacter",
    _compacter_options,
    _compacter_names,
    _compacter_rule,
    other_sizes=_other_compacter,
)


def _mona_names(hyper: Hyper) -> Names:
    parts = {"gamma": "norm_scale", "gammax": "stream_scale"}
    modules = {"norm": "norm", "project1": "down", "project2": "up"}
    modules |= {"adapter_conv.projector": "pointwise"}
    modules |= {f"adapter_conv.conv{i + 1}": f"depthwise.{i}" for i in range(3)}
    parts |= {f"{t}.{p}": f"{o}.{p}" for t, o in modules.items() for p in ("weight", "bias")}
    return {
        f"{theirs}.{name}": f"{slot}.{our}"
        for theirs, slot in (("my_module_1", "stream_mid"), ("my_module_2", "stream_out"))
        for name, our in parts.items()
    }


def _lorand(hyper: Hyper) -> LoRandAdapter:
    branches, kernel_dim = hyper["branches"], hyper["kernel_dim"]
    return LoRandAdapter(hyper["width"], hyper["hidden"], branches, kernel_dim, share_kernel=False)


def _lorand_names(hyper: Hyper, backbone: Backbone) -> Names:
    sides = {"project1": "down", "project2": "up"}
    factors = {"A": "P", "g": "K", "B": "Q"}
    names = {f"{theirs}.bias": f"{ours}.bias" for theirs, ours in sides.items()}
    return names | {
        f"{theirs}.param_dict.{factor}{i}": f"{ours}.{our}.{i}"
        for theirs, ours in sides.items()
        for factor, our in factors.items()
        for i in range(hyper["branches"])
    }


def _other_lorand(meta: dict[str, Any]) -> None:
    meta["hyper"] |= {"width": 15, "hidden": 7, "branches": 3, "kernel_dim": 5}


ENTRIES: dict[str, Entry] = {
    "lorand": Entry("lorand", whole=_lorand_names, module=_lorand, other_sizes=_other_lorand),
    "mona": Entry("mona", lambda hyper: {"bottleneck": hyper["bottleneck"]}, _mona_names),
    "adapter": Entry(
        "adapter",
        lambda hyper: {"bottleneck": hyper["bottleneck"]},
        lambda hyper: _bottleneck(
            "mlp_out", "adapter_module.adapter_downsample", "adapter_module.adapter_upsample"
        ),
    ),
    "adapter_houlsby": Entry(  # named so by its source; it stands behind the MLP only
        "adapter",
        lambda hyper: {"bottleneck": hyper["adapter_length"]},
        lambda hyper: _bottleneck("mlp_out", "adapter.ln1", "adapter.ln2"),
    ),
    "swin_adapter": Entry(
        "adapter",
        lambda hyper: {"bottleneck": hyper["bottleneck"], "placement": "houlsby"},
        lambda hyper: (
            _swin_module("attn_out", "my_module_1") | _swin_module("mlp_out", "my_module_2")
        ),
    ),
    "adaptformer": Entry("adaptformer", _adaptformer_options, _adaptformer_names),
    "adaptformer_official": Entry("adaptformer", _adaptformer_options, _adaptformer_names),
    "swin_adaptformer": Entry(
        "adaptformer",
        _adaptformer_options,
        lambda hyper: _swin_module("mlp_parallel", "my_module_1"),
    ),
    "vpt_shallow": Entry(
        "vpt_shallow",
        lambda hyper: {"prompt_length": hyper["prompt_length"]},
        whole=lambda hyper, backbone: {"prompt_embeddings": _prompts(backbone)[0]},
    ),
    "vpt_shallow_official": Entry("vpt_shallow", _official_vpt_options, whole=_official_vpt_names),
    "vpt_deep": Entry("vpt_deep", _official_vpt_options, whole=_official_vpt_names),
    "vpt_deep_project": Entry("vpt_deep", _official_vpt_options, whole=_official_vpt_names),
    "prompt_deep_append": Entry(
        "vpt_deep",
        lambda hyper: {"prompt_length": hyper["prompt_length"], "position": "append"},
        lambda hyper: {"prompt.prompt_token": "stream_in.prompts"},
    ),
    "prefix": Entry(
        "prefix",
        lambda hyper: {"prompt_length": hyper["prefix_length"]},
        lambda hyper: {
            "attn.prefix.prefix_key": "attn.keys_values.keys",
            "attn.prefix.prefix_value": "attn.keys_values.values",
        },
    ),
    "compacter": COMPACTER,
    "compacter_published": COMPACTER,
    **SWIN_VPT,
    "vfpt_deep_all": VFPT,
    "vfpt_deep_full": VFPT,
    "vfpt_deep_hidden": VFPT,
    "vfpt_deep_project": VFPT,
    "vfpt_deep_sequence": VFPT,
    "vfpt_shallow_all": VFPT,
    "vfpt_shallow_hidden": VFPT,
    "vfpt_shallow_sequence": VFPT,
    "convpass": _convpass_entry("attn_mlp"),
    "convpass_attn": _convpass_entry("attn"),
    "swin_convpass": _convpass_entry("attn_mlp"),
    "swin_convpass_attn": _convpass_entry("attn"),
    "sct_attn": _sct_entry("attn", {"sct_attn.adapt_linear": "stream_mid"}),
    "sct_mlp": _sct_entry("mlp", {"sct_mlp.adapt_linear": "mlp.fc2.delta.parts.out"}),
    "sct_qkv": _sct_entry(
        "qkv", {f"attn.{part}_l": f"attn.qkv.delta.parts.{part}" for part in ("q", "v")}
    ),
}
