"""Golden files of the unified methods."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn

from entries.entry import Entry, Hyper, Names
from vpeft_bench.backbones import Backbone
from vpeft_bench.backbones.sites import open_module, opened_leaf_class
from vpeft_bench.methods.patt import ParallelAttention


class WindowAttention(nn.Module):
    """Attention within a window of T x H x W tokens, as the reference has it, with our branch."""

    def __init__(self, hyper: Hyper) -> None:
        super().__init__()
        width, self.heads, window = hyper["width"], hyper["num_heads"], hyper["window"]
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.table = nn.Parameter(torch.zeros(math.prod(2 * n - 1 for n in window), self.heads))
        self.index = _relative_positions(window)
        branch = ParallelAttention(
            width, hyper["mid_dim"], hyper["mode"].removeprefix("patt_"), hyper["scale"], bias=True
        )
        open_module(self.qkv, opened_leaf_class(nn.Linear))
        self.qkv.delta = branch

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        attention = (scores + self.table[self.index].permute(2, 0, 1)).softmax(-1)
        out: Tensor = self.proj((attention @ v).transpose(1, 2).flatten(2))
        return out


def _relative_positions(window: list[int]) -> Tensor:
    """Row of the bias table for every pair of tokens."""
    tokens = torch.tensor(list(itertools.product(*map(range, window))))
    offsets = tokens[:, None] - tokens[None] + torch.tensor(window) - 1
    rows = torch.zeros_like(offsets[..., 0])
    for axis, size in enumerate(window):
        rows = rows * (2 * size - 1) + offsets[..., axis]
    return rows


def _patt_names(*_: object) -> Names:
    names = {"qkv": "qkv", "proj": "proj", "qkv_adapter.0": "qkv.delta.down"}
    names |= {"qkv_adapter.2": "qkv.delta.up"}
    parts = ("weight", "bias")
    whole = {f"{theirs}.{p}": f"{ours}.{p}" for theirs, ours in names.items() for p in parts}
    return {**whole, "relative_position_bias_table": "table"}


def _other_window(meta: dict[str, Any]) -> None:
    meta["hyper"] |= {"width": 20, "num_heads": 5, "mid_dim": 7, "window": [3, 2, 4], "scale": 1.5}


PATT = Entry("patt", whole=_patt_names, module=WindowAttention, other_sizes=_other_window)


def _subnetwork(hyper: Hyper) -> dict[str, Any]:
    widths = hyper["subnet"]
    assert not any(widths["prefix_dim"]), "the reference cannot run with prefixes"
    return {
        "prompt_length": widths["visual_prompt_dim"],
        "rank": widths["lora_dim"],
        "bottleneck": widths["adapter_dim"],
    }


def _in_block(hyper: Hyper) -> Names:
    update, adapter = "attn.qkv.delta", "mlp_added"
    names = {f"attn.LoRA_{side.lower()}.weight": f"{update}.{side}.qkv" for side in "AB"}
    for theirs, ours in (("ln1", "down"), ("ln2", "up")):
        names |= {f"adapter.{theirs}.{p}": f"{adapter}.{ours}.{p}" for p in ("weight", "bias")}
    return names


def _all_prompts(hyper: Hyper, backbone: Backbone) -> Names:
    own = {f"{b.path}.visual_prompt_token": f"trunk.prompts.{b.index}" for b in backbone.blocks}
    dead: list[str] = []  # the first block replaces those of the root
    return {**own, "visual_prompt_token": dead, "visual_prompt_token_pos_embed": dead}


def _another_block(meta: dict[str, Any]) -> None:
    """One without LoRA, in front of the others."""
    for part, widths in meta["hyper"]["subnet"].items():
        widths[:] = [3 * (widths[0] > 0 and part != "lora_dim"), *widths]


def _bapat_options(hyper: Hyper) -> dict[str, Any]:
    return {
        "bottleneck": hyper["mid_dim"],
        "scale": hyper["scale"],
        "mode": hyper["mode"].removeprefix("patt_"),
        "ffn_bottleneck": hyper["ffn_num"],
        "ffn_scale": hyper["ffn_scale"],
    }


def _bapat_names(hyper: Hyper) -> Names:
    modules = {
        "attn.qkv_adapter.0": "attn.qkv.delta.down",
        "attn.qkv_adapter.2": "attn.qkv.delta.up",
        "mlp.adaptmlp.down_proj": "mlp_parallel_normed.0.down",
        "mlp.adaptmlp.up_proj": "mlp_parallel_normed.0.up",
    }
    return {f"{t}.{p}": f"{o}.{p}" for t, o in modules.items() for p in ("weight", "bias")}


BAPAT = Entry("bapat", _bapat_options, _bapat_names)

NOAH = Entry("noah", _subnetwork, _in_block, _all_prompts, leading=True, other_sizes=_another_block)

ENTRIES: dict[str, Entry] = {
    "patt_kv": PATT,
    "patt_qv": PATT,
    "patt_qkv": PATT,
    "bapat": BAPAT,
    "swin_bapat": BAPAT,
    "noah": NOAH,
    "noah_super": NOAH,
}
