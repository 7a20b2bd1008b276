"""Golden files of the re-parameterisation methods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from entries.entry import Entry, Hyper, Names, Part
from vpeft_bench.backbones import Backbone
from vpeft_bench.methods.parts.slices import sliced_linears


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


SSF_SITES_OF_SWIN = SSF_SITES_OUTSIDE | {"patch_embed.norm": "patch_embed.ssf_{}_2"}


def _ssf_names(sites: Mapping[str, str]) -> Names:
    return {
        theirs.format(part): f"{leaf}.delta.{part}"
        for leaf, theirs in sites.items()
        for part in ("scale", "shift")
    }


def _subspace_entry(method: str, scales: Mapping[str, str]) -> Entry:
    linears = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    names = {
        f"{leaf}.{t}": f"{leaf}.weight_update.{o}" for leaf in linears for t, o in scales.items()
    }
    return Entry(method, blocks=lambda hyper: names, merges=True)


ARC_SITES = {"att": "attn.qkv.input", "mlp": "mlp.fc1.input"}


def _arc_entry(placement: str) -> Entry:
    sites = {"attn_mlp": ("att", "mlp"), "attn": ("att",)}[placement]

    def names(hyper: Hyper, backbone: Backbone) -> Names:
        first = backbone.blocks[0].path
        shared = {
            f"transformer.{site}_down_projection": f"{first}.{ARC_SITES[site]}.shared.P"
            for site in sites
        }
        return shared | {
            f"transformer.layer.{block.index}.{site}_adapter.adapter_{theirs}": (
                f"{block.path}.{ARC_SITES[site]}.{our}"
            )
            for block in backbone.blocks
            for site in sites
            for theirs, our in (("rescale", "c"), ("bias", "b"))
        }

    return Entry(
        "arc",
        lambda hyper: {"bottleneck": hyper["adapter_dim"], "placement": placement},
        whole=names,
        merges=True,
        head="head_mlp.head",
    )


SWIN_ARC_SITES = {"attn": "attn.qkv.input", "mlp": "stream_mid"}


def _swin_arc_blocks(hyper: Hyper) -> Names:
    return {
        f"{site}_{theirs}": f"{ours}.{our}"
        for site, ours in SWIN_ARC_SITES.items()
        for theirs, our in (("lambda", "c"), ("lambda_bias", "b"))
    }


def _swin_arc_shared(hyper: Hyper, backbone: Backbone) -> Names:
    first = {block.stage: block for block in reversed(backbone.blocks)}
    return {
        f"layers.{stage}.{site}_u": f"{block.path}.{ours}.shared.P"
        for stage, block in first.items()
        for site, ours in SWIN_ARC_SITES.items()
    }


def _kadaptation_names(hyper: Hyper) -> Names:
    update = "attn.qkv.delta"
    return {"attn.b": f"{update}.bias"} | {
        f"attn.{target[0]}_proj_adapter1_{side}": f"{update}.{target}_blocks.{side}"
        for target in ("query", "value")
        for side in ("left", "right")
    }


def _kadaptation_rules(hyper: Hyper, backbone: Backbone) -> Names:
    update = f"{backbone.blocks[0].path}.attn.qkv.delta"
    return {
        f"phm_rule{number}_{side}": f"{update}.{target}_rule.{side}"
        for number, target in ((1, "query"), (2, "value"))
        for side in ("left", "right")
    }


def _cp_names(hyper: Hyper, backbone: Backbone) -> Names:
    """The reference keeps the columns of P of every attention and MLP apart."""
    first = f"{backbone.blocks[0].path}.attn.qkv.delta"
    columns: dict[str, list[int]] = {}
    (linears,) = sliced_linears(backbone).values()
    sites = [linear for linear in linears for _ in range(linear.slices)]
    for column, linear in enumerate(sites):
        part = "mlp.mlp_CP" if linear.site in ("fc1", "fc2") else "attn.CP_attention"
        columns.setdefault(f"{linear.block.path}.{part}", []).append(column)
    P = f"{first}.core.shared.P"
    shared = {"CP_C": "core.shared.C", "CP_U.weight": "shared.U", "CP_V.weight": "shared.V"}
    return {
        **{theirs: f"{first}.{our}" for theirs, our in shared.items()},
        **{theirs: Part(P, (slice(None), where)) for theirs, where in columns.items()},
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
    "swin_ssf": Entry(
        "ssf",
        blocks=lambda hyper: _ssf_names(SSF_SITES),
        whole=lambda hyper, backbone: _ssf_names(SSF_SITES_OF_SWIN),
        merges=True,
    ),
    "ssl": _subspace_entry("ssl", {"lora": "s_in"}),
    "ssb": _subspace_entry("ssb", {"lora": "s_out", "lora_row": "s_in"}),
    "arc": _arc_entry("attn_mlp"),
    "arc_attn": _arc_entry("attn"),
    "swin_arc": Entry(
        "arc",
        lambda hyper: {"bottleneck": hyper["adapter_dim"], "mlp_site": "stream"},
        _swin_arc_blocks,
        _swin_arc_shared,
    ),
    "kadaptation": Entry(
        "kadaptation",
        lambda hyper: {
            "terms": hyper["phm_dim"],
            "rank": hyper["phm_rank"],
            "scale": hyper["scale"],
        },
        _kadaptation_names,
        _kadaptation_rules,
        merges=True,
    ),
    "cp_full": Entry(
        "cp",
        lambda hyper: {**_rank_and_scale(hyper), "core": hyper["core"]},
        whole=_cp_names,
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
