"""Which method of ours a golden file is about, with which options, and whose tensor is whose.

Adding a method is adding one entry. Its map goes from a name of the reference to ours: one name, or
several whose tensors, put behind each other along the first axis, make up the reference's (a pair
stacked in one matrix, the prompts of many blocks in one tensor). Shapes are adapted, so a trailing
axis of size one needs no mention. ``blocks`` holds names inside one block, ``whole`` the others.
What is trained in place keeps timm's name and needs no entry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vpeft_bench.backbones import Backbone

Hyper = Mapping[str, Any]
Names = Mapping[str, str | list[str]]


def _nothing(*_: object) -> Names:
    return {}


@dataclass(frozen=True)
class Entry:
    """How to run one golden file.

    Attributes:
        method: our method's name.
        options: ``meta.hyper`` -> our options.
        blocks: names below a block, the same in every block.
        whole: names outside the blocks, or across several.
        merges: the reference can be folded into the backbone, so ours has to be.
    """

    method: str
    options: Callable[[Hyper], dict[str, Any]] = lambda hyper: {}
    blocks: Callable[[Hyper], Names] = _nothing
    whole: Callable[[Hyper, Backbone], Names] = _nothing
    merges: bool = False

    def names(self, hyper: Hyper, backbone: Backbone) -> dict[str, list[str]]:
        """Every name of the reference -> the names of ours that make it up, in order."""
        names = {
            f"{block.path}.{theirs}": [f"{block.path}.{our}" for our in _listed(ours)]
            for block in backbone.blocks
            for theirs, ours in self.blocks(hyper).items()
        }
        whole = self.whole(hyper, backbone).items()
        return names | {theirs: _listed(ours) for theirs, ours in whole}


def _listed(names: str | list[str]) -> list[str]:
    return [names] if isinstance(names, str) else names


# ---- adapters ----------------------------------------------------------------------------------


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


# ---- low-rank updates and scaling ---------------------------------------------------------------


def _targets(hyper: Hyper) -> list[str]:
    return [{"query": "q", "key": "k", "value": "v"}[target] for target in hyper["targets"]]


def _lora_names(hyper: Hyper) -> Names:
    return {
        f"attn.linear_{side.lower()}_{target}.weight": f"attn.qkv.delta.{side}.{target}"
        for target in _targets(hyper)
        for side in ("A", "B")
    }


def _stacked_lora_names(hyper: Hyper) -> Names:
    return {
        f"attn.qkv.lora_{side}": [f"attn.qkv.delta.{side}.{t}" for t in _targets(hyper)]
        for side in ("A", "B")
    }


SSF_SITES = {
    "norm1": "ssf_{}_1",
    "attn.qkv": "attn.ssf_{}_1",
    "attn.proj": "attn.ssf_{}_2",
    "norm2": "ssf_{}_2",
    "mlp.fc1": "mlp.ssf_{}_1",
    "mlp.fc2": "mlp.ssf_{}_2",
}
SSF_SITES_OUTSIDE = {"patch_embed.proj": "patch_embed.ssf_{}_1", "norm": "ssf_{}_1"}


def _ssf_names(sites: Mapping[str, str]) -> Names:
    return {
        theirs.format(part): f"{leaf}.delta.{part}"
        for leaf, theirs in sites.items()
        for part in ("scale", "shift")
    }


# ---- prompts ------------------------------------------------------------------------------------


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
    "full": Entry("full", merges=True),
    "linear": Entry("linear", merges=True),
    "bitfit": Entry("bitfit", merges=True),
    "swin_bitfit": Entry("bitfit", merges=True),
    "lntune": Entry("ln_tune", merges=True),
    "swin_lntune": Entry("ln_tune", merges=True),
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
    "lora": Entry(
        "lora",
        lambda hyper: {
            "rank": hyper["rank"],
            "alpha": hyper["scale"] * hyper["rank"],
            "targets": _targets(hyper),
        },
        _lora_names,
        merges=True,
    ),
    "lora_qkv": Entry(
        "lora",
        lambda hyper: {"rank": hyper["lora_length"], "targets": ["qkv"]},
        lambda hyper: {
            f"attn.lora.lora_{side.lower()}.weight": f"attn.qkv.delta.{side}.qkv" for side in "AB"
        },
        merges=True,
    ),
    "swin_lora": Entry(
        "lora",
        lambda hyper: {
            "rank": hyper["rank"],
            "alpha": hyper["lora_alpha"],
            "targets": _targets(hyper),
        },
        _stacked_lora_names,
        merges=True,
    ),
    "ssf": Entry(
        "ssf",
        blocks=lambda hyper: _ssf_names(SSF_SITES),
        whole=lambda hyper, backbone: _ssf_names(SSF_SITES_OUTSIDE),
        merges=True,
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
}
