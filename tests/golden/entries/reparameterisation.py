"""Golden files of the re-parameterisation methods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from entries.entry import Entry, Hyper, Names


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


def _repadapter_options(hyper: Hyper) -> dict[str, Any]:
    placements = {
        "before attention and before the MLP": "attn_mlp",
        "before attention only": "attn",
    }
    sizes = {key: hyper[key] for key in ("bottleneck", "groups", "scale")}
    return {"placement": placements[hyper["positions"]], **sizes}


def _repadapter_names(*leaves: tuple[str, str]) -> Names:
    parts = {"conv_A.weight": "down.weight", "conv_A.bias": "down.bias"}
    parts |= {"conv_B.weight": "up", "conv_B.bias": "bias"}
    return {
        f"{theirs}.{part}": f"{leaf}.input.{our}"
        for theirs, leaf in leaves
        for part, our in parts.items()
    }


def _more_groups(meta: dict[str, Any]) -> None:
    meta["hyper"] |= {"bottleneck": 20, "groups": 5, "scale": 1.5}


def _hydra_names(*leaves: tuple[str, str]) -> Names:
    return {
        f"{theirs}_{side[:3]}.{half}_proj.{part}": f"{leaf}.delta.{side}.{half}.{part}"
        for theirs, leaf in leaves
        for side in ("parallel", "sequential")
        for half in ("down", "up")
        for part in ("weight", "bias")
    }


FACT_CORES = {
    "attn.q_FacTs.weight": "attn.qkv.delta.core.sigma.q",
    "attn.k_FacTs.weight": "attn.qkv.delta.core.sigma.k",
    "attn.v_FacTs.weight": "attn.qkv.delta.core.sigma.v",
    "attn.proj_FacTs.weight": "attn.proj.delta.core.sigma.proj",
    "mlp.fc1_FacTs.weight": "mlp.fc1.delta.core.sigma.fc1",
    "mlp.fc2_FacTs.weight": "mlp.fc2.delta.core.sigma.fc2",
}
# Shared by all blocks, and named where they appear first.
FACT_SHARED = {
    "FacTu.weight": "blocks.0.attn.qkv.delta.shared.U",
    "FacTv.weight": "blocks.0.attn.qkv.delta.shared.V",
}
FACT_TUCKER = {
    "FacTc": "blocks.0.attn.qkv.delta.core.shared.C",
    "FacTp": "blocks.0.attn.qkv.delta.core.shared.P",
}


def _rank_and_scale(hyper: Hyper) -> dict[str, Any]:
    return {"rank": hyper["rank"], "scale": hyper["scale"]}


ENTRIES: dict[str, Entry] = {
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
    "fact_tt": Entry(
        "fact_tt",
        _rank_and_scale,
        blocks=lambda hyper: FACT_CORES,
        whole=lambda hyper, backbone: FACT_SHARED,
        merges=True,
    ),
    "fact_tk": Entry(
        "fact_tk",
        lambda hyper: {**_rank_and_scale(hyper), "slice_order": "petl_vit"},
        whole=lambda hyper, backbone: FACT_SHARED | FACT_TUCKER,
        merges=True,
    ),
    "ssf": Entry(
        "ssf",
        blocks=lambda hyper: _ssf_names(SSF_SITES),
        whole=lambda hyper, backbone: _ssf_names(SSF_SITES_OUTSIDE),
        merges=True,
    ),
    "repadapter": Entry(
        "repadapter",
        _repadapter_options,
        lambda hyper: _repadapter_names(("adapter_attn", "attn.qkv"), ("adapter_mlp", "mlp.fc1")),
        merges=True,
        other_sizes=_more_groups,
    ),
    "repadapter_attn": Entry(
        "repadapter",
        _repadapter_options,
        lambda hyper: _repadapter_names(("adapter_attn", "attn.qkv")),
        merges=True,
        other_sizes=_more_groups,
    ),
    "hydra": Entry(
        "hydra",
        lambda hyper: {key: hyper[key] for key in ("rank", "scale", "dropout")},
        lambda hyper: _hydra_names(("attn.hydra_proj", "attn.proj"), ("mlp.hydra_mlp", "mlp.fc2")),
        merges=True,
    ),
}
