"""Golden files of the side methods."""

from __future__ import annotations

from typing import Any

from entries.entry import Entry, Hyper, Names
from vpeft_bench.backbones import Backbone


def _sidetune_names(hyper: Hyper, backbone: Backbone) -> Names:
    names = {"sidetune.alpha": "trunk.alpha"}
    for number in range(4):
        theirs = f"sidetune.side.conv{number + 1}"
        names[f"{theirs}.0.weight"] = f"trunk.convolutions.{3 * number}.weight"
        for part in ("weight", "bias"):
            names[f"{theirs}.1.{part}"] = f"trunk.convolutions.{3 * number + 1}.{part}"
    return names | {f"sidetune.side.fc.{part}": f"trunk.out.{part}" for part in ("weight", "bias")}


def _dtl_options(hyper: Hyper) -> dict[str, Any]:
    return {
        "rank": hyper["rank"],
        "beta": hyper["beta"],
        "fusion_kernel": hyper["fusion_kernel"],
        "tapped_blocks": [int(block) for block in hyper["extract_before_blocks"]],
        "injecting_blocks": [int(block) for block in hyper["add_after_blocks"]],
    }


def _dtl_names(hyper: Hyper, backbone: Backbone) -> Names:
    names = {
        f"lora_dict.{block}.lora_{part}": f"trunk.taps.{block}.{part}"
        for block in hyper["extract_before_blocks"]
        for part in ("A", "B")
    }
    if hyper["fusion_kernel"]:
        stages = sorted({backbone.blocks[int(i)].stage for i in hyper["add_after_blocks"]})
        theirs = "lora_fusion" if not backbone.merge_norms else "lora_fusions.{}"
        names |= {f"{theirs.format(i)}.weight": f"trunk.fusions.{i}.weight" for i in stages}
    return names


def _snf_names(hyper: Hyper) -> Names:
    names = {}
    for theirs, ours in (("flow", "attn_shortcut"), ("flow2", "mlp_shortcut")):
        names[f"{theirs}.affine_transform.mu"] = f"{ours}.mu"
        names[f"{theirs}.affine_transform.logsigma"] = f"{ours}.log_sigma"
        for step in range(hyper["flow_length"]):
            for part, our in (("weight", "w"), ("scale", "u"), ("bias", "b")):
                names[f"{theirs}.transforms.{step}.{part}"] = f"{ours}.steps.{step}.{our}"
    return names


BLOCK_PARTS = [
    f"{leaf}.{part}"
    for leaf in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    for part in ("weight", "bias")
]


def _lst_options(hyper: Hyper) -> dict[str, Any]:
    return {
        "bottleneck": hyper["side_width"],
        "heads": hyper["side_heads"],
        "temperature": hyper["gate_temperature"],
        "side_norm": False,
        "projection_bias": False,
    }


def _lst_names(hyper: Hyper, backbone: Backbone) -> Names:
    names = {
        "side.side_first_downsample_r.weight": "trunk.downs.0.weight",
        "side.side_final_upsample_r.weight": "trunk.up.weight",
    }
    for i in range(len(backbone.blocks)):
        names[f"side.side_downsamples_r.{i}.weight"] = f"trunk.downs.{i + 1}.weight"
        names[f"side.side_gate_params_r.{i}"] = f"trunk.gates.{i}"
        for part in BLOCK_PARTS:
            names[f"side.side_block_r.{i}.{part}"] = f"trunk.blocks.{i}.{part}"
    return names


def _lst_other_sizes(meta: dict[str, Any]) -> None:
    meta["hyper"] |= {"side_heads": 2, "side_width": 10, "gate_temperature": 0.3}


def _hst_options(hyper: Hyper) -> dict[str, Any]:
    return {
        "prompt_length": hyper["metaG_num"],
        "channels": hyper["m_embed_dims"],
        "heads": hyper["m_c_num_heads"],
    }


def _hst_names(hyper: Hyper, backbone: Backbone) -> Names:
    depth, stages = len(backbone.blocks), len(hyper["m_embed_dims"])
    stem = "trunk.stages.0.entry.convolution"
    names = {
        "m_patch_embed1.conv.0.weight": f"{stem}.0.weight",
        "head.weight": "head.weight",
        "head.bias": "head.bias",
    }
    statistics = ("running_mean", "running_var")
    parts = {
        "m_patch_embed1.conv.1": (f"{stem}.1", ("weight", "bias", *statistics)),
        "m_patch_embed1.conv.3": (f"{stem}.3", ("weight", "bias")),
        "fc_norm": ("trunk.out_norm", statistics),
    }
    block_of_stage = [0] * stages
    for stage in range(stages):
        ours, one = f"trunk.stages.{stage}", stage + 1
        pairs = {
            f"m_patch_embed{one}.norm": f"{ours}.entry.norm",
            f"T_Bridge_{one}": f"{ours}.bridge",
            f"m_norm{one}": f"{ours}.norm",
        }
        if stage:
            pairs[f"m_patch_embed{one}.proj"] = f"{ours}.entry.convolution"
        parts |= {theirs: (our, ("weight", "bias")) for theirs, our in pairs.items()}
    for i in range(depth):
        stage = i * stages // depth
        ours = f"trunk.stages.{stage}.blocks.{block_of_stage[stage]}"
        theirs = f"m_block{stage + 1}.{block_of_stage[stage]}"
        block_of_stage[stage] += 1
        names[f"m_embeddings.{i}"] = f"blocks.{i}.stream_in.tokens"
        pairs = {f"m_proj_norm{i + 1}": f"{ours}.meta_norm"}
        for leaf in ("norm1", "attn.q", "attn.k", "attn.v", "attn.proj", "norm2"):
            pairs[f"{theirs}.{leaf}"] = f"{ours}.{leaf}"
        for leaf in ("fc1", "fc2"):
            pairs[f"{theirs}.mlp.{leaf}"] = f"{ours}.{leaf}"
        parts |= {name: (our, ("weight", "bias")) for name, our in pairs.items()}
    return names | {
        f"{theirs}.{part}": f"{ours}.{part}"
        for theirs, (ours, each) in parts.items()
        for part in each
    }


def _synqt_options(hyper: Hyper) -> dict[str, Any]:
    scales = ("attn_scale", "ffn_scale", "feat_scale")
    sizes = ("prompt_length", "bottleneck", "attn_bottleneck")
    return {key: hyper[key] for key in (*sizes, *scales, "head_norm_eps")}


def _synqt_names(hyper: Hyper, backbone: Backbone) -> Names:
    depth = len(backbone.blocks)
    parts = ("weight", "bias")
    adapters = {"synqt.mlp": "trunk.head.adapter"}
    modules = {
        "synqt.out_norm": "trunk.head.norm",
        "synqt.head_norm": "trunk.norm",
        "synqt.out_combine.get_weight.fc1": "trunk.head.weights",
    }
    names: dict[str, str | list[str]] = {
        "synqt.q": [f"trunk.synthesis.{i}.queries" for i in range(depth)],
        "synqt.feat_scale": "trunk.feat_scale",
        "synqt.out_combine.weight": [],
    }
    for i in range(depth):
        theirs, ours = f"synqt.qsm_block.{i}", f"trunk.synthesis.{i}"
        names |= {f"synqt.pre_norm.{i}.{part}": [] for part in parts}
        names |= {f"{theirs}.{scale}": f"{ours}.{scale}" for scale in ("attn_scale", "ffn_scale")}
        adapters |= {f"synqt.prompt_ffn.{i}": f"{ours}.entry", f"{theirs}.mlp": f"{ours}.ffn"}
        adapters |= {f"{theirs}.attn.{p}_proj": f"{ours}.attn.{p}" for p in ("q", "k", "v")}
        adapters[f"{theirs}.attn.proj"] = f"{ours}.attn.proj"
        modules |= {f"{theirs}.{norm}": f"{ours}.{norm}" for norm in ("norm1", "norm2")}
        modules |= {f"{theirs}.attn.{n}": f"{ours}.attn.{n}" for n in ("q_norm", "kv_norm")}
    for their, our in adapters.items():
        modules |= {f"{their}.mlp.fc1": f"{our}.down", f"{their}.mlp.fc2": f"{our}.up"}
    return names | {f"{t}.{part}": f"{o}.{part}" for t, o in modules.items() for part in parts}


SYNQT = Entry("synqt", _synqt_options, whole=_synqt_names)


ENTRIES: dict[str, Entry] = {
    "sidetune": Entry("sidetune", whole=_sidetune_names),
    "dtl": Entry("dtl", _dtl_options, whole=_dtl_names),
    "dtl_plus": Entry("dtl", _dtl_options, whole=_dtl_names),
    "swin_dtl": Entry("dtl", _dtl_options, whole=_dtl_names),
    "swin_dtl_plus": Entry("dtl", _dtl_options, whole=_dtl_names),
    "synqt": SYNQT,
    "synqt_one": SYNQT,
    "hst": Entry("hst", _hst_options, whole=_hst_names),
    "lst": Entry(
        "lst", _lst_options, whole=_lst_names, head="vit.head", other_sizes=_lst_other_sizes
    ),
    "snf": Entry("snf", lambda hyper: {"flow_length": hyper["flow_length"]}, _snf_names),
}
