"""Golden files of the unified methods."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn

from entries.entry import Entry, Hyper, Names
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

ENTRIES: dict[str, Entry] = {"patt_kv": PATT, "patt_qv": PATT, "patt_qkv": PATT}
