"""What methods reach against what they cost, as pictures: SVG, PDF and PNG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from vpeft_bench.files import replacing
from vpeft_bench.formats import MIB, printable
from vpeft_bench.leaderboard.summaries import Summary
from vpeft_bench.metric_names import heading

FOLDER, FORMATS = "figures", ("svg", "pdf", "png")
GREY, BLUE, ORANGE = "0.6", "#0b5cad", "#b34700"


@dataclass(frozen=True)
class Cost:
    """An axis: less is better.

    Attributes:
        name: of the file.
        title: with the unit.
        column: of the rows of a summary.
        unit: what a value is divided by.
    """

    name: str
    title: str
    column: str
    unit: float = 1.0


COSTS = (
    Cost("parameters", "trained parameters without the head", "parameters_method"),
    Cost("stored", "stored bytes of a delta, KiB", "stored_delta_bytes", 1024),
    Cost("step", "training step, ms", "card_train_step_ms_median"),
    Cost("peak", "peak memory of a training step, MiB", "card_peak_allocated_bytes", MIB),
    Cost(
        "growth", "growth of memory in a training step, MiB", "card_peak_resident_growth_bytes", MIB
    ),
)


def write_figures(summaries: Sequence[Summary], highlight: Sequence[str], out: Path) -> list[Path]:
    """Draw the first mean of every benchmark against each cost that is known of two rows.

    Args:
        summaries: one picture for each and each cost.
        highlight: names of methods, or of rows, that are marked.
        out: their folder is ``figures`` below it.

    Raises:
        OSError: a file cannot be written.
    """
    written = []
    for summary in summaries:
        for cost in COSTS:
            points = _points(summary, cost)
            if len(points) >= 2:
                figure = _figure(summary, cost, points, set(highlight))
                name = f"{summary.benchmark.name}_{summary.protocol}_{cost.name}"
                written += save(figure, out, name)
    return written


def save(figure: Figure, out: Path, name: str) -> list[Path]:
    """A picture in all of ``FORMATS`` below ``out``; the same picture gives the same bytes.

    Raises:
        OSError: a file cannot be written.
    """
    written = []
    (out / FOLDER).mkdir(parents=True, exist_ok=True)
    for kind in FORMATS:
        path = out / FOLDER / f"{name}.{kind}"
        with (
            replacing(path) as fresh,
            matplotlib.rc_context({"svg.hashsalt": path.stem, "svg.fonttype": "none"}),
        ):
            bare = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
            figure.savefig(fresh, format=kind, dpi=150, metadata=bare)
        written.append(path)
    return written


def front(points: pd.DataFrame) -> pd.DataFrame:
    """Those that no other one beats in one of gain and cost without being worse in the other.

    Args:
        points: with the columns ``cost`` and ``gain``.
    """
    kept = [
        not (
            (points["cost"] <= cost)
            & (points["gain"] >= gain)
            & ((points["cost"] < cost) | (points["gain"] > gain))
        ).any()
        for cost, gain in zip(points["cost"], points["gain"], strict=True)
    ]
    return points[kept].sort_values(["cost", "gain"])


def _points(summary: Summary, cost: Cost) -> pd.DataFrame:
    """``name``, ``method``, ``cost``, ``value`` and ``gain`` of the rows that have all of them."""
    rows = summary.rows
    if not summary.means or cost.column not in rows:
        return pd.DataFrame()
    mean = summary.means[0]
    points = pd.DataFrame(
        {
            "name": names_of(rows),
            "method": rows["method"].astype(str),
            "backbone": rows["backbone"].astype(str),
            "cost": pd.to_numeric(rows[cost.column], errors="coerce").astype(float) / cost.unit,
            "value": rows[mean].astype(float),
            "gain": summary.gains[mean].astype(float),
        }
    )
    return points.dropna()


class _Named(NamedTuple):
    """A point with the text beside it."""

    name: str
    label: str
    cost: float
    value: float


def names_of(rows: pd.DataFrame) -> pd.Series:
    """As the tables have them; the method where a table has no name for each row."""
    names = rows["shown_name"].astype(str)
    return names.where(names != "", rows["method"].astype(str))


def _figure(summary: Summary, cost: Cost, points: pd.DataFrame, highlight: set[str]) -> Figure:
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    best = front(points)
    marked = points[points["name"].isin(highlight) | points["method"].isin(highlight)]
    axes.scatter(points["cost"], points["value"], color=GREY, s=18, zorder=2)
    axes.step(best["cost"], best["value"], where="post", color=BLUE, linewidth=1, zorder=1)
    axes.scatter(best["cost"], best["value"], color=BLUE, s=26, zorder=3, label="Pareto front")
    if len(marked):
        named = ", ".join(sorted(highlight))
        axes.scatter(marked["cost"], marked["value"], color=ORANGE, s=34, zorder=4, label=named)
    for point in _named(best, marked, points):
        colour = ORANGE if point.name in set(marked["name"]) else BLUE
        axes.annotate(
            printable(str(point.label)),
            (point.cost, point.value),
            xytext=(4, 4),
            textcoords="offset points",
            fontsize=7,
            color=colour,
            parse_math=False,
        )
    if points["cost"].max() > 20 * max(points["cost"].min(), 1e-9):
        smallest = points.loc[points["cost"] > 0, "cost"].min()
        axes.set_xscale("symlog", linthresh=smallest / 2) if (points["cost"] == 0).any() else (
            axes.set_xscale("log")
        )
    axes.set_xlabel(cost.title)
    metrics = summary.cells["metric"].dropna().unique()
    axes.set_ylabel(heading(metrics[0]) if len(metrics) == 1 else "headline metric")
    axes.set_title(printable(summary.title), fontsize=8, loc="left", wrap=True, parse_math=False)
    axes.grid(visible=True, color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False, loc="lower right")
    return figure


def _named(best: pd.DataFrame, marked: pd.DataFrame, points: pd.DataFrame) -> Iterator[_Named]:
    """The front and what is marked; with the backbone where there are several."""
    several = points["backbone"].nunique() > 1
    shown = pd.concat([best, marked]).drop_duplicates(["name", "backbone", "cost"])
    columns = (shown[name] for name in ("name", "backbone", "cost", "value"))
    for name, backbone, cost, value in zip(*columns, strict=True):
        yield _Named(name, f"{name} ({backbone})" if several else name, cost, value)
