"""Pictures of what is recorded of a run: its curves, and who was taken for whom."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vpeft_bench.files import replacing
from vpeft_bench.formats import printable
from vpeft_bench.metric_names import heading
from vpeft_bench.records.run_record import RunRecord
from vpeft_bench.runs.run_files import EVALUATION, PREDICTIONS

LOGITS = "logits.parquet"
MOST_NAMES = 40
"""Classes whose names stand beside a confusion matrix."""
_DPI = 150


def draw_curves(record: RunRecord, path: Path) -> Path:
    """Training loss and learning rate by epoch, and the headline on ``val`` where it was scored.

    Raises:
        OSError: the picture cannot be written.
    """
    curves, last = record.happened.curves, record.happened.last_epoch
    assert last is not None
    scores = curves.get(f"val_{last.headline}")
    figure = Figure(figsize=(9.0 if scores else 6.0, 3.2), layout="constrained")
    panels = figure.subplots(1, 2 if scores else 1, squeeze=False)[0]
    epochs = curves["epoch"]
    panels[0].plot(epochs, curves["train_loss"], marker="." if len(epochs) < 30 else "")
    panels[0].set(xlabel="epoch", ylabel="training loss")
    for panel in panels:
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    rates = panels[0].twinx()
    rates.plot(epochs, curves["lr"], color="0.7", linewidth=1, linestyle="--")
    rates.set_ylabel("learning rate (dashed)", color="0.45")
    if scores:
        panels[1].plot(epochs, scores, marker="." if len(epochs) < 30 else "", color="#b34700")
        panels[1].set(xlabel="epoch", ylabel=f"val {heading(last.headline)}")
        panels[1].grid(visible=True, color="0.92")
    asked = record.asked
    name = f"{asked['method']['name']} on {asked['data']['name']}, {asked['backbone']['name']}"
    figure.suptitle(printable(name), fontsize=9, x=0.01, ha="left", parse_math=False)
    return save(figure, path)


def read_evaluation(run: Path) -> dict[str, Any] | None:
    """What the score of a run is made of; None where its folder does not hold that."""
    path = run / EVALUATION
    if not path.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def draw_confusion(evaluation: dict[str, Any], path: Path) -> Path | None:
    """Shares of each true class by predicted class; None where classes do not come in pairs.

    Raises:
        OSError: the picture cannot be written.
    """
    if evaluation["confusion"] is None:
        return None
    names = [printable(each["name"] or str(each["class"])) for each in evaluation["classes"]]
    counts = np.zeros((len(names), len(names)))
    for true, predicted, count in evaluation["confusion"]:
        counts[true, predicted] = count
    with np.errstate(invalid="ignore"):
        shares = counts / counts.sum(axis=1, keepdims=True)
    side = 4.0 + 0.16 * min(len(names), MOST_NAMES)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100)
    if len(names) <= MOST_NAMES:
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7, parse_math=False)
        axes.set_yticks(range(len(names)), names, fontsize=7, parse_math=False)
    axes.set(xlabel="predicted", ylabel="true")
    figure.colorbar(picture, ax=axes, shrink=0.7, label="% of the true class")
    return save(figure, path)


def draw_reliability(run: Path, path: Path) -> Path | None:
    """Accuracy by the probability of the predicted class, of the logits that a run has kept.

    The bins are those of the expected calibration error (Guo et al., arXiv 1706.04599); the gap of
    each bin to the diagonal, weighted by its pictures, is that error. None where none were kept.

    Raises:
        OSError: the picture cannot be written.
    """
    file = run / PREDICTIONS / LOGITS
    if not file.is_file():
        return None
    import torch
    from pyarrow import parquet

    from vpeft_bench.metrics.calibration import BINS, Calibration

    table = parquet.read_table(file, columns=["logits", "label"])
    logits = torch.from_numpy(np.stack(table["logits"].to_numpy()))
    calibration = Calibration()
    calibration.add(logits, torch.from_numpy(table["label"].to_numpy().astype(np.int64)))
    images, sure, hits = calibration.bins().numpy()
    ece, used = calibration.values()["ece"], images > 0
    middle = (np.arange(BINS) + 0.5) / BINS
    figure = Figure(figsize=(4.6, 5.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 100], [0, 100], color="0.6", linewidth=1, linestyle="--")
    upper.bar(
        100 * middle[used],
        100 * hits[used] / images[used],
        100 / BINS,
        color="#9ecae1",
        edgecolor="white",
    )
    upper.plot(
        100 * sure[used] / images[used],
        100 * hits[used] / images[used],
        "o",
        color="#b34700",
        markersize=4,
    )
    upper.set(ylabel="right, %", xlim=(0, 100), ylim=(0, 105))
    upper.set_title(
        f"ECE {ece:.2f} % of {len(table):,} pictures; dashed: calibrated; dots: mean of a bin",
        fontsize=8,
        loc="left",
    )
    lower.bar(100 * middle, images, 100 / BINS, color="0.75", edgecolor="white")
    lower.set(xlabel="probability of the predicted class, %", ylabel="pictures")
    return save(figure, path)


def save(figure: Figure, path: Path) -> Path:
    """Write a picture, whole or not at all; its path."""
    with replacing(path) as fresh:
        figure.savefig(fresh, format=path.suffix.removeprefix(".") or "png", dpi=_DPI)
    return path
