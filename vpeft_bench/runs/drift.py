"""How far a finished run has moved the features of each block from those of the frozen model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from vpeft_bench.formats import printable
from vpeft_bench.metrics.drift import effective_rank, linear_cka, mean_cosine
from vpeft_bench.runs.before_after import (
    drawn_at_random,
    frozen,
    passed,
    pictures,
    require_one_size,
)
from vpeft_bench.runs.plots import save
from vpeft_bench.runs.shown import Reopened
from vpeft_bench.tasks.base import Model

PICTURES = 512
"""Of the scored split, drawn with a fixed seed."""


@dataclass(frozen=True)
class BlockDrift:
    """Of the outputs of one block, each the mean over all tokens: prompts count as others do.

    Attributes:
        name: of the block in the backbone.
        cka, cosine: between frozen and trained; 1 where nothing has moved.
        rank_before, rank_after: effective ranks.
    """

    name: str
    cka: float
    cosine: float
    rank_before: float
    rank_after: float


def measure(run: Reopened, most: int = PICTURES) -> list[BlockDrift]:
    """One for each block, in their order.

    Raises:
        VpeftBenchError: the run's pictures have no common size.
    """
    require_one_size(run, "drift is measured on")
    batches = pictures(run, drawn_at_random(run, most))
    before, after = (_features(run, model, batches) for model in (frozen(run), run.model))
    return [
        BlockDrift(
            name,
            linear_cka(before[name], after[name]),
            mean_cosine(before[name], after[name]),
            effective_rank(before[name]),
            effective_rank(after[name]),
        )
        for name in before
    ]


def _features(
    run: Reopened, model: Model, batches: Sequence[tuple[Tensor, Tensor]]
) -> dict[str, Tensor]:
    """The outputs of each block, ``(N, D)``, by its name."""
    blocks = model.attached.backbone.blocks
    found: dict[str, list[Tensor]] = {block.path: [] for block in blocks}

    def keep(name: str) -> Any:
        def hook(module: Any, inputs: Any, output: Tensor) -> None:
            found[name].append(output.flatten(1, -2).mean(dim=1).double().cpu())

        return hook

    hooks = [block.module.register_forward_hook(keep(block.path)) for block in blocks]
    try:
        for _ in passed(run, model, batches):
            pass
    finally:
        for hook in hooks:
            hook.remove()
    return {name: torch.cat(parts) for name, parts in found.items()}


def draw(run: Reopened, found: Sequence[BlockDrift], path: Path) -> Path:
    """CKA and cosine by block, and the effective ranks beside them.

    Raises:
        OSError: the picture cannot be written.
    """
    figure = Figure(figsize=(8.0, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    at = range(1, len(found) + 1)
    left.plot(at, [one.cka for one in found], marker=".", color="#0072b2", label="linear CKA")
    left.plot(at, [one.cosine for one in found], marker=".", color="#d55e00", label="cosine")
    left.set(
        xlabel="block",
        ylabel="likeness to the frozen model",
        ylim=(min(0.0, *(one.cosine for one in found)), 1.05),
    )
    right.plot(at, [one.rank_before for one in found], marker=".", color="0.6", label="frozen")
    right.plot(at, [one.rank_after for one in found], marker=".", color="#009e73", label="trained")
    right.set(xlabel="block", ylabel="effective rank")
    for panel in (left, right):
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(visible=True, color="0.92")
        panel.legend(fontsize=8, frameon=False)
    config = run.config
    title = f"{config.method['name']} on {config.data.name}, {config.backbone.name}, {run.split}"
    figure.suptitle(printable(title), fontsize=9, x=0.01, ha="left", parse_math=False)
    return save(figure, path)
