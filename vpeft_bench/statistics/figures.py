"""The statistics as pictures, each as SVG and PNG."""

from __future__ import annotations

import re
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import colors
from matplotlib.figure import Figure

from vpeft_bench.files import replacing
from vpeft_bench.formats import printable
from vpeft_bench.statistics.report import Report
from vpeft_bench.statistics.wording import (
    MATRIX,
    Numbers,
    mean_names,
    name_of,
    pair_lines,
    rests_on,
)

_CELL_INCHES = (0.92, 0.62)
_LETTER_INCHES = 0.075
_DPI = 150
_CHARACTERS_PER_INCH = 14
"""Of the title, at its size of letters."""
_PALEST = 0.12
"""Of the colour map that is used: its ends are too dark for black text."""


def matrices(reports: Sequence[Report], out: Path) -> list[Path]:
    """Draw the multi-comparison matrix of every table that has two methods.

    Raises:
        OSError: a file cannot be written.
    """
    drawn = [(report, matrix(report)) for report in reports if report.pairs]
    return _save("matrix", drawn, out)


def critical_differences(reports: Sequence[Report], out: Path) -> list[Path]:
    """Draw the critical-difference diagram of every table that Nemenyi's test was made on.

    Raises:
        OSError: a file cannot be written.
    """
    drawn = [
        (report, critical_difference(report))
        for report in reports
        if report.family.nemenyi is not None
    ]
    return _save("critical_difference", drawn, out)


def matrix(report: Report) -> Figure:
    """Row minus column, coloured by the difference; Ismail-Fawaz et al., arXiv 2305.11921."""
    numbers, names = Numbers(report.table), [row.method for row in report.summaries]
    pairs = {pair.names: pair for pair in report.pairs}
    size, (wide, high) = len(names), _CELL_INCHES
    differences = np.full((size, size), np.nan)
    labels = _LETTER_INCHES * max(map(len, names))  # beside the rows, and slanted above the columns
    figure = Figure(
        figsize=(size * wide + labels + 1.4, size * high + 0.65 * labels + 1.4),
        layout="constrained",
    )
    axes = figure.subplots()
    for row, first in enumerate(names):
        for column, second in enumerate(names):
            if row == column:
                continue
            pair = pairs[frozenset((first, second))].seen_from(first)
            if pair.difference is not None:
                sign = -1 if report.table.lower_is_better else 1
                differences[row, column] = sign * pair.difference
            lines = pair_lines(pair, numbers, len(report.table.datasets))
            weight = "bold" if any(line.endswith("*") for line in lines) else "normal"
            text = "\n".join(lines)
            axes.text(column, row, text, ha="center", va="center", fontsize=7, weight=weight)
    largest = float(np.nanmax(np.abs(differences), initial=0.0)) or 1.0
    palette = matplotlib.colormaps["RdBu"](np.linspace(_PALEST, 1 - _PALEST, 256))
    shades = colors.LinearSegmentedColormap.from_list("pale", [*palette])
    axes.imshow(differences, cmap=shades, vmin=-1.6 * largest, vmax=1.6 * largest, aspect="auto")
    means = [f"{printable(r.method)}  {numbers.value(r.mean.value)}" for r in report.summaries]
    axes.xaxis.tick_top()
    axes.set_yticks(range(size), means, parse_math=False)
    axes.set_xticks(
        range(size),
        [printable(name) for name in names],
        rotation=40,
        ha="left",
        rotation_mode="anchor",
        parse_math=False,
    )
    axes.tick_params(length=0, labelsize=8)
    axes.set_xticks(np.arange(size + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(size + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="minor", length=0)
    axes.spines[:].set_visible(False)
    better = "lower" if report.table.lower_is_better else "higher"
    notes = [
        f"row minus column: {MATRIX}; blue: the row is better ({better} values are)",
        f"rows: {mean_names(report.table)[0]}; {rests_on(report.table)}",
    ]
    _title(figure, report, notes)
    return figure


def critical_difference(report: Report) -> Figure:
    """Average ranks on a line; a bar joins methods that Nemenyi's test does not tell apart."""
    import pandas as pd
    import scikit_posthocs

    family = report.family
    assert family.nemenyi is not None
    ranks = pd.Series(family.ranks, index=[printable(name) for name in family.methods])
    apart = {frozenset(pair) for pair in family.nemenyi.pairs}
    together = pd.DataFrame(
        [[float(frozenset((a, b)) not in apart) for b in family.methods] for a in family.methods],
        index=ranks.index,
        columns=ranks.index,
    )
    figure = Figure(figsize=(8.5, 1.6 + 0.2 * len(ranks)), layout="constrained")
    axes = figure.subplots()
    scikit_posthocs.critical_difference_diagram(
        ranks,
        together,
        ax=axes,
        label_fmt_left="{label}  {rank:.2f} ",
        label_fmt_right=" {rank:.2f}  {label}",
        label_props={"parse_math": False, "fontsize": 8},
    )
    difference = f"critical difference {family.nemenyi.critical_difference:.2f}"
    about = f"average rank of {len(ranks)} methods on {family.datasets} data sets, 1 is best"
    bars = "a bar joins methods that Nemenyi's test does not tell apart at 5 %"
    _title(figure, report, [f"{about}; {difference}", bars])
    return figure


def _title(figure: Figure, report: Report, lines: Sequence[str]) -> None:
    wide = int(_CHARACTERS_PER_INCH * figure.get_figwidth())
    texts = [printable(line) for line in (name_of(report.table), *lines) if line]
    folded = [piece for text in texts for piece in textwrap.wrap(text, wide)]
    figure.suptitle("\n".join(folded), fontsize=8, parse_math=False)


def _save(kind: str, drawn: Sequence[tuple[Report, Figure]], out: Path) -> list[Path]:
    """Each figure as SVG and PNG; of several tables, each file has its table's name."""
    written = []
    for number, (report, figure) in enumerate(drawn, start=1):
        words = re.sub(r"[^A-Za-z0-9]+", "-", name_of(report.table)).strip("-")[:60]
        stem = "_".join([kind, str(number), words]) if len(drawn) > 1 else kind
        for suffix, metadata in (("svg", {"Date": None}), ("png", {})):
            path = out / f"{stem.rstrip('_')}.{suffix}"
            with (
                matplotlib.rc_context({"svg.hashsalt": stem}),
                warnings.catch_warnings(),
                replacing(path) as temporary,
            ):
                # A character that no font has becomes a box; the tables have the name.
                warnings.filterwarnings("ignore", message="Glyph .* missing")
                figure.savefig(temporary, format=suffix, dpi=_DPI, metadata=metadata)
            figure.set_layout_engine("none")  # as it was laid out for the first
            written.append(path)
    return written
