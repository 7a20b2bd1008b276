"""A map of pictures by what the head reads of them, before and after tuning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from vpeft_bench.drawing import class_name
from vpeft_bench.errors import VpeftBenchError
from vpeft_bench.formats import printable
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

PICTURES = 1000
"""At most, of the scored split, drawn with a fixed seed."""
PERPLEXITY = 30
"""Of t-SNE, as in scikit-learn; less where there are fewer than 91 pictures."""
SEED = 0
MOST_CLASSES = 20
"""With a colour and a name of their own."""
_FEWEST = 8  # pictures
_COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00"),
    *("#56b4e9", "#000000", "#8c564b", "#7f3fbf", "#7a9a01"),
)
_MARKERS = ("o", "^")


@dataclass(frozen=True)
class FeatureMap:
    """Pictures as points.

    Attributes:
        labels: ``(N,)`` their classes.
        before, after: ``(N, 2)`` where t-SNE lays them.
        alike_before, alike_after: percent of the pictures whose nearest other is of their class, by
            the features themselves and not by the map.
        perplexity: of t-SNE.
    """

    labels: NDArray[np.int64]
    before: NDArray[np.float32]
    after: NDArray[np.float32]
    alike_before: float
    alike_after: float
    perplexity: float


def measure(run: Reopened, most: int = PICTURES) -> FeatureMap:
    """Lay out pictures of the split that a run was scored on.

    Raises:
        VpeftBenchError: there are too few of them, or they have no one feature.
    """
    require_one_size(run, "a feature map is of")
    chosen = drawn_at_random(run, most)
    if len(chosen) < _FEWEST:
        raise VpeftBenchError(
            f"a feature map needs {_FEWEST} pictures, {run.split} has {len(chosen)}"
        )
    from sklearn.manifold import TSNE

    batches = pictures(run, chosen)
    labels = torch.cat([of for _, of in batches])
    perplexity = min(PERPLEXITY, (len(chosen) - 1) / 3)
    laid, alike = [], []
    for model in (frozen(run), run.model):
        features = read_by_head(run, model, batches)
        alike.append(nearest_alike(features, labels))
        layout = TSNE(perplexity=perplexity, init="pca", random_state=SEED)
        laid.append(layout.fit_transform(features.numpy()))
    return FeatureMap(labels.numpy(), laid[0], laid[1], alike[0], alike[1], perplexity)


def read_by_head(run: Reopened, model: Model, batches: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The features ``(N, D)`` that the classifier gets; the first, where there are several."""
    found: list[Tensor] = []

    def keep(module: Any, inputs: Any) -> None:
        found.append(inputs[0].float().cpu())

    hook = model.attached.backbone.heads[0].register_forward_pre_hook(keep)
    try:
        for _ in passed(run, model, batches):
            pass
    finally:
        hook.remove()
    return torch.cat(found)


def nearest_alike(features: Tensor, labels: Tensor) -> float:
    """Percent of features ``(N, D)`` whose nearest other, by Euclid, is of their class."""
    apart = torch.cdist(features.double(), features.double()).fill_diagonal_(torch.inf)
    return 100.0 * float((labels[apart.argmin(dim=1)] == labels).double().mean())


# ---- drawing -------------------------------------------------------------------------------------


def draw(run: Reopened, found: FeatureMap, path: Path) -> Path:
    """Both maps side by side, a colour for each class; of many, for the most frequent.

    Raises:
        OSError: the picture cannot be written.
    """
    figure = Figure(figsize=(11.0, 5.2), layout="constrained")
    panels = figure.subplots(1, 2)
    labels, counts = np.unique(found.labels, return_counts=True)
    shown = sorted(labels[np.argsort(-counts, kind="stable")][:MOST_CLASSES].tolist())
    rest = ~np.isin(found.labels, shown)
    sides = (
        ("frozen", found.before, found.alike_before),
        ("tuned", found.after, found.alike_after),
    )
    for axes, (title, points, alike) in zip(panels, sides, strict=True):
        if rest.any():
            others = f"{len(labels) - len(shown)} other classes"
            axes.scatter(*points[rest].T, s=9, color="0.8", label=others, linewidths=0)
        for place, label in enumerate(shown):
            axes.scatter(
                *points[found.labels == label].T,
                s=16,
                color=_COLOURS[place % len(_COLOURS)],
                marker=_MARKERS[place // len(_COLOURS)],
                label=_fitted(printable(class_name(run.dataset, label))),
                linewidths=0,
                alpha=0.8,
            )
        text = f"{title}: the nearest picture is of the same class for {alike:.1f} %"
        axes.set_title(text, fontsize=9, loc="left")
        axes.set(xticks=[], yticks=[])
        axes.set_aspect("equal", "datalim")
    handles, names = panels[0].get_legend_handles_labels()
    legend = figure.legend(handles, names, loc="outside right center", fontsize=8, frameon=False)
    for entry in legend.get_texts():
        entry.set_parse_math(False)
    config, count = run.config, len(run.dataset.split(run.split))
    title = (
        f"{config.method['name']} on {config.data.name}, {config.backbone.name}: what the head "
        f"reads of {len(found.labels):,} of {count:,} {run.split} pictures, by t-SNE (perplexity "
        f"{found.perplexity:.3g}, seed {SEED}); gaps between clusters and their sizes mean little"
    )
    figure.suptitle(printable(title), fontsize=9, x=0.01, ha="left", parse_math=False)
    return save(figure, path)


def _fitted(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:23]}…"
