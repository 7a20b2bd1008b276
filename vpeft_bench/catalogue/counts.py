"""Published parameter counts beside ours: quoted there, computed here."""

from __future__ import annotations

import csv
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from torch import nn

from vpeft_bench.attaching.attachment import attach_method
from vpeft_bench.backbones import block_map
from vpeft_bench.config.choices import config_dir
from vpeft_bench.methods.registry import build_method, list_methods

BACKBONES = {
    "vit_b16": ("ViT-B/16", "vit_base_patch16_224"),
    "swin_b": ("Swin-B", "swin_base_patch4_window7_224"),
    "swin_l": ("Swin-L", "swin_large_patch4_window7_224"),
}
NOT_COMPUTED = "-"
"""In the column ``options``: nothing of ours corresponds to the row."""


@dataclass(frozen=True)
class Published:
    """One line of ``results/published/parameters.csv``, as printed.

    Attributes:
        method: ours.
        row: what the table calls it.
        backbone: key of :data:`BACKBONES`.
        table: which table of the source.
        params_m: millions, as printed.
        options: ours that the row corresponds to, ``key=value key=value``. Several sets, separated
            by ``;`` and each with an optional ``n*`` in front, are averaged: per-task options.
        head: benchmark whose mean head the row includes, or empty.
        explanation: what a reader has to know; for a mismatch, where it comes from.
        source: letter of the source in ``results/published/README.md``, or an arXiv id.
    """

    method: str
    row: str
    backbone: str
    table: str
    params_m: str
    options: str
    head: str
    explanation: str
    source: str

    def ours(self) -> int | None:
        """What our method trains with the same options, and the mean head where it is included."""
        if self.method not in list_methods() or self.options == NOT_COMPUTED:
            return None
        counts = [
            (times, _count(self.method, self.backbone, options))
            for times, options in self.option_sets()
        ]
        total = sum(times for times, _ in counts)
        method = sum(times * count.method for times, count in counts) / total
        head = counts[0][1].head_per_class * mean_classes(self.head) if self.head else 0.0
        return round(method + head)

    def option_sets(self) -> Iterator[tuple[int, str]]:
        """How often, and which options."""
        for part in self.options.split(";"):
            times, star, options = part.rpartition("*")
            yield int(times) if star else 1, options.strip()

    def agrees(self) -> bool:
        """Whether ours, rounded as the table is, is the printed number."""
        ours = self.ours()
        digits = len(self.params_m.partition(".")[2])
        return ours is not None and abs(ours - float(self.params_m) * 1e6) <= 0.5 * 10 ** (
            6 - digits
        )


@dataclass(frozen=True)
class _Count:
    method: int
    head_per_class: int


def read_published(path: Path) -> list[Published]:
    """The rows of ``results/published/parameters.csv``."""
    with path.open(newline="") as file:
        return [Published(**row) for row in csv.DictReader(file)]


@functools.cache
def _count(method: str, backbone: str, options: str) -> _Count:
    model = _model(backbone)
    built = build_method(method, _parse(options))
    if built.selects:
        count = built.parameter_count(block_map(model))
        assert count is not None, f"{method}: the data decide, so there is nothing to compute"
        return _Count(count, sum(p.numel() for p in block_map(model).head.parameters()))
    attached = attach_method(model, built)
    counts = attached.parameter_counts()
    attached.detach()
    return _Count(counts.method, counts.head)


def _parse(options: str) -> dict[str, Any]:
    pairs = (pair.partition("=") for pair in options.split())
    return {key: yaml.safe_load(value) for key, _, value in pairs}


@functools.cache
def _model(backbone: str) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(BACKBONES[backbone][1], num_classes=1)  # type: ignore[no-any-return]


@functools.cache
def mean_classes(benchmark: str) -> float:
    """Classes per data set, averaged over those of ``configs/data/<benchmark>``."""
    paths = (config_dir() / "data" / benchmark).glob("[!_]*.yaml")
    classes = [yaml.safe_load(path.read_text())["num_classes"] for path in paths]
    return float(sum(classes) / len(classes))
