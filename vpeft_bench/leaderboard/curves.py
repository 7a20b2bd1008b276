"""How rows came to their scores, as pictures.

Learning curves; what a budget of tuning buys; and what pictures of each class are worth.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from vpeft_bench.formats import printable
from vpeft_bench.leaderboard.cells import ENTRY
from vpeft_bench.leaderboard.figures import GREY, names_of, save
from vpeft_bench.leaderboard.standings import runs_of
from vpeft_bench.leaderboard.summaries import Summary
from vpeft_bench.metric_names import METRICS, heading
from vpeft_bench.records.run_record import RECORD_NAME, RunRecord, read
from vpeft_bench.records.strict_json import read_or_say

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Told apart by the colour-blind (Okabe and Ito, 2008), without their yellow."""
MOST_ROWS, MOST_DATA = 40, 25
"""Of one picture."""


@dataclass(frozen=True)
class Curve:
    """One row on one data set.

    Attributes:
        row: of the summary.
        data: the data set.
        at, mean, low, high: ``(points,)``; NaN of ``low`` and ``high`` where nothing is known of
            how values spread.
    """

    row: int
    data: str
    at: NDArray[np.float64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @classmethod
    def over_seeds(cls, row: int, data: str, values: NDArray[np.float64]) -> Curve:
        """The mean of ``(seeds, points)`` values at 1, 2, ..., and their range."""
        unknown = np.full(values.shape[1], np.nan)
        low, high = (values.min(0), values.max(0)) if len(values) > 1 else (unknown, unknown)
        at = np.arange(1.0, values.shape[1] + 1)
        return cls(row, data, at, values.mean(0), low, high)


@dataclass(frozen=True)
class _Picture:
    """What one picture shows.

    Attributes:
        title: above it.
        curves: each row of ``rows`` at most once per data set.
        rows: rows in the order of the legend, each with its colour; grey where it is one of many.
        names: of rows.
        across, up: what its axes are.
        ticks: texts below places of the axis across, which is then logarithmic.
    """

    title: str
    curves: Sequence[Curve]
    rows: Mapping[int, str]
    names: Mapping[int, str]
    across: str
    up: str
    ticks: Mapping[float, str] = field(default_factory=dict)


def write_curves(
    summaries: Sequence[Summary],
    runs: pd.DataFrame,
    points: pd.DataFrame,
    highlight: Sequence[str],
    out: Path,
) -> list[Path]:
    """Draw the learning curves, the searches and the numbers of pictures of every benchmark.

    Each where there are any.

    The best rows and those of ``highlight`` have colours, the others are grey.

    Args:
        summaries: pictures for each.
        runs: those that are shown; their records are read again, where each lies in a file of its
            own.
        points: the runs among which those of searches are.
        highlight: names of methods, or of rows, that are marked.
        out: their folder is ``figures`` below it.

    Raises:
        OSError: a file cannot be written.
    """
    written = []
    for summary in summaries:
        name = f"{summary.benchmark.name}_{summary.protocol}"
        rows, names = _coloured(summary.rows, highlight), _called(summary.rows)
        records = _Records(runs_of(summary.cells, runs))
        quantity, learned = _learning(records, [*rows])
        metric, searched = _searches(records, points, [*rows])
        pictures = {
            "curves": _Picture(summary.title, learned, rows, names, "epoch", quantity),
            "budget": _Picture(
                summary.title, searched, rows, names, "points tried", f"best val {heading(metric)}"
            )
            if searched
            else None,
            "per_class": _few(summary, highlight),
        }
        for what, picture in pictures.items():
            if picture is not None and picture.curves:
                written += save(_drawn(picture), out, f"{name}_{what}")
    return written


def expected_best(gains: Sequence[float]) -> NDArray[np.float64]:
    """The expected best of k of n points, drawn without replacement, for k = 1 .. n.

    The i-th smallest is the best of k in C(i - 1, k - 1) of C(n, k) draws: the curve of Dodge et
    al. (arXiv 1909.03004) without its bias, for points whose order does not matter.
    """
    ordered, n = sorted(gains), len(gains)
    return np.array(
        [
            sum(value * math.comb(i, k - 1) for i, value in enumerate(ordered)) / math.comb(n, k)
            for k in range(1, n + 1)
        ]
    )


class _Records:
    """The records of the finished runs of a summary, read when they are asked for.

    Not those of a cell with several configurations, which no line stands for, nor those that lie in
    one file together.
    """

    def __init__(self, runs: pd.DataFrame) -> None:
        alone = runs.groupby(["row", "data"])["config_hash"].transform("nunique") == 1
        self.runs = runs[alone & runs["file"].astype(str).str.endswith(RECORD_NAME)]

    def by_cell(self, rows: Iterable[int]) -> Iterator[tuple[int, str, list[RunRecord]]]:
        """Row, data set and its readable records, of some rows."""
        wanted = self.runs[self.runs["row"].isin([*rows])]
        for (row, data), files in wanted.groupby(["row", "data"], sort=False)["file"]:
            found = [read_or_say(Path(file), read) for file in files]
            yield cast(int, row), str(data), [one for one in found if isinstance(one, RunRecord)]


def _learning(records: _Records, rows: Sequence[int]) -> tuple[str, list[Curve]]:
    """The score on val by epoch where every run has it, else the training loss."""
    cells = [cell for cell in records.by_cell(rows) if cell[2]]
    names = {
        f"val_{record.happened.last_epoch.headline}"
        for _, _, found in cells
        for record in found
        if record.happened.last_epoch is not None
    }
    score = names.pop() if len(names) == 1 else ""
    scored = all(score in record.happened.curves for *_, found in cells for record in found)
    key = score if score and scored else "train_loss"
    title = f"val {heading(score.removeprefix('val_'))}" if key == score else "training loss"
    curves = []
    for row, data, found in cells:
        lines = [record.happened.curves.get(key, []) for record in found]
        if (length := min(map(len, lines))) > 1:
            values = np.array([line[:length] for line in lines], float)
            curves.append(Curve.over_seeds(row, data, values))
    return title, curves


def _searches(
    records: _Records, runs: pd.DataFrame, rows: Sequence[int]
) -> tuple[str, list[Curve]]:
    """The expected best score on val by number of points, from the runs that a search names."""
    select = runs[runs["protocol"].astype(str) == "select"].drop_duplicates("config_hash")
    known: Mapping[str, tuple[str, float]] = {
        str(run): (str(metric), float(value))
        for run, metric, value in zip(
            select["config_hash"], select["metric"], select["value"], strict=True
        )
        if pd.notna(value)
    }
    curves, metrics = [], set()
    for row, data, found in records.by_cell(rows):
        points = _points_of(found[0], data) if found else []
        scored = [known[point] for point in points if point is not None and point in known]
        metrics |= {metric for metric, _ in scored}
        if len(points) < 2 or len(scored) < 2 or len(metrics) > 1:
            continue
        gain = METRICS.get(scored[0][0]).gain
        gains = [gain(value) for _, value in scored]
        gains += [min(gains)] * (len(points) - len(gains))  # tried, and no score
        sign = 1.0 if gain(1.0) > 0 else -1.0
        curves.append(Curve.over_seeds(row, data, sign * expected_best(gains)[None]))
    return (metrics.pop(), curves) if len(metrics) == 1 else ("", [])


def _points_of(record: RunRecord, data: str) -> list[str | None]:
    """The hashes of the points of the search that a run's settings come from."""
    variant: Any = record.asked.get("variant") or {}
    per_data: Any = (variant.get("tuning") or {}).get("per_data") or {}
    name = (record.asked.get("data") or {}).get("name", data)
    return list((per_data.get(name) or {}).get("runs") or [])


def _few(summary: Summary, highlight: Sequence[str]) -> _Picture | None:
    """The score by pictures of each class, of rows that differ in nothing else."""
    rows = summary.rows
    counts = sorted({int(count) for count in rows["per_class"] if count})
    if not counts:
        return None
    others = [rows[key].astype(str) for key in ENTRY if key != "per_class"]
    first = rows.index.to_series().groupby(others).transform("first")
    every = 2.0 * counts[-1]
    at = rows["per_class"].astype(object).map(lambda count: float(count) if count else every)
    cells = summary.cells[~summary.cells.duplicated(["row", "column"], keep=False)]
    cells = cells.assign(first=cells["row"].map(first), at=cells["row"].map(at).astype(float))
    cells = cells[cells["mean"].notna()].sort_values("at")
    metrics = cells["metric"].dropna().unique()
    known = METRICS.get(metrics[0]) if len(metrics) == 1 else None
    if known is not None:  # an interval of two seeds may reach beyond what there is
        ends = ["ci_low", "ci_high"]
        cells = cells.assign(**cells[ends].clip(known.minimum, known.maximum))
    curves = [
        Curve(
            cast(int, row),
            str(data),
            *(of[name].to_numpy(float) for name in ("at", "mean", "ci_low", "ci_high")),
        )
        for (row, data), of in cells.groupby(["first", "column"], sort=False)
        if len(of) > 1
    ]
    kept = rows.loc[first.unique()]
    return _Picture(
        f"{summary.title}; 95 % intervals over seeds",
        curves,
        _coloured(kept, highlight),
        _called(kept, without="per_class"),
        "training pictures of each class",
        heading(metrics[0]) if len(metrics) == 1 else "headline metric",
        {**{float(count): str(count) for count in counts}, every: "all"},
    )


def _coloured(rows: pd.DataFrame, highlight: Sequence[str]) -> dict[int, str]:
    """Rows that are drawn, best first, each with its colour; grey where it is one of many."""
    named = zip(rows.index, names_of(rows), rows["method"].astype(str), strict=True)
    wanted = [int(row) for row, *names in named if {*names} & {*highlight}]
    wanted = wanted or [int(row) for row in rows.index[: len(COLOURS)]]
    colours = dict(zip(wanted, COLOURS, strict=False))
    kept = [*wanted, *(int(row) for row in rows.index if row not in wanted)][:MOST_ROWS]
    return {row: colours.get(row, GREY) for row in kept}


def _called(rows: pd.DataFrame, without: str = "") -> dict[int, str]:
    """Names of rows; where several have one, with what tells them apart."""
    names = names_of(rows)
    for key in (key for key in ENTRY if key not in ("protocol", "variant", "method", without)):
        of = rows[key].astype(object).fillna("")
        if names.duplicated().any() and of.nunique() > 1:
            said = (f"{of_row} per class" if key == "per_class" else str(of_row) for of_row in of)
            pairs = zip(names, of, said, strict=True)
            names = pd.Series([f"{n}, {text}" if o else n for n, o, text in pairs], rows.index)
    return {int(row): str(name) for row, name in zip(rows.index, names, strict=True)}


def _drawn(picture: _Picture) -> Figure:
    """One panel for each data set."""
    curves, rows = picture.curves, picture.rows
    datasets = list(dict.fromkeys(curve.data for curve in curves))[:MOST_DATA]
    wide = min(len(datasets), 5)
    high = -(-len(datasets) // wide)
    figure = Figure(
        figsize=(6.4 if wide == 1 else 2.9 * wide, 4.2 if wide == 1 else 2.3 * high + 0.8),
        layout="constrained",
    )
    panels = figure.subplots(high, wide, squeeze=False).ravel()
    for panel, data in zip(panels, datasets, strict=False):
        _panel(panel, [curve for curve in curves if curve.data == data], picture)
        panel.set_title(printable(data), fontsize=8, parse_math=False)
    for panel in panels[len(datasets) :]:
        panel.set_visible(False)
    for panel in panels[max(0, len(datasets) - wide) : len(datasets)]:
        panel.set_xlabel(picture.across, fontsize=8)
    for panel in panels[::wide]:
        panel.set_ylabel(picture.up, fontsize=8)
    there = {curve.row for curve in curves}
    shown = [row for row, colour in rows.items() if row in there and colour != GREY]
    labels = [(rows[row], printable(picture.names[row])) for row in shown]
    if others := sum(colour == GREY for row, colour in rows.items() if row in there):
        labels.append((GREY, f"{others} others"))
    longest = max(len(label) for _, label in labels)
    figure.legend(
        handles=[Line2D([], [], color=colour) for colour, _ in labels],
        labels=[label for _, label in labels],
        loc="outside lower center",
        ncols=max(1, int(figure.get_figwidth() * 16 / (longest + 8))),
        fontsize=7,
        frameon=False,
    )
    figure.suptitle(
        printable(picture.title), fontsize=8, x=0.01, ha="left", wrap=True, parse_math=False
    )
    return figure


def _panel(panel: Axes, curves: Sequence[Curve], picture: _Picture) -> None:
    for curve in sorted(curves, key=lambda one: picture.rows[one.row] != GREY):
        colour = picture.rows[curve.row]
        marker = "." if len(curve.at) < 30 and colour != GREY else ""
        width = 0.6 if colour == GREY else 1.4
        panel.plot(curve.at, curve.mean, color=colour, linewidth=width, marker=marker)
        if colour != GREY:
            panel.fill_between(
                curve.at, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0
            )
    if picture.ticks:
        panel.set_xscale("log")
        panel.set_xticks([*picture.ticks], [*picture.ticks.values()])
        panel.minorticks_off()
    else:
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.grid(visible=True, color="0.92")
    panel.set_axisbelow(True)
    panel.tick_params(labelsize=7)
    panel.spines[["top", "right"]].set_visible(False)
