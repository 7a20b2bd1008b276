"""Golden files of the addition-based methods."""

from __future__ import annotations

from typing import Any

from entries.entry import Entry, Hyper, Names
from vpeft_bench.backbones import Backbone


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


ENTRIES: dict[str, Entry] = {
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
    "convpass": _convpass_entry("attn_mlp"),
    "convpass_attn": _convpass_entry("attn"),
}
