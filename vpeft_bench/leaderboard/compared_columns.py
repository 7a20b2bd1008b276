"""Columns of the tables that set our rows beside published ones; part of the one list."""

from __future__ import annotations

from vpeft_bench.formats import percent
from vpeft_bench.leaderboard.column import Column, In, Once, if_known, number, text, whole
from vpeft_bench.leaderboard.columns import NAME, SHOWN_NAME, VARIANT

_IN_FILES = In.FILES | In.PAGES
_OURS = (
    NAME,
    VARIANT,
    text("method", "name of the method"),
    text("options", "its options"),
    *SHOWN_NAME,
)
_MADE = (
    text("backbone", "name of the backbone", "backbone", In.ALL, once=Once.SAME, left=True),
    text(
        "normalization", "name of the normalisation of ours", "normalization", _IN_FILES, left=True
    ),
)
_THEIRS = (
    text("source", "where the number stands", "source", _IN_FILES, left=True),
    text("shown_source", "", "source", In.TERMINAL, left=True),
    text("table", "its file in `results/published`, or the file that was named"),
    text("row", "the row there, as printed", "published row", In.ALL, left=True),
    text(
        "provenance",
        "`quoted` from another paper, `re-run` by the source with the official code, "
        "`re-implemented` by it, or `unknown`: no source says it",
        "provenance",
        In.ALL,
        left=True,
    ),
)
_HOW = (
    text(
        "settings",
        "what `departs` is relative to: the variant that has the published settings, "
        "`parameters.csv` where only the options are known that give the printed number of "
        "parameters; empty: nothing is published",
        "published settings",
        _IN_FILES,
        left=True,
    ),
    text(
        "departs",
        "what ours does otherwise, as `rank=4 not 8, lr=0.01 not 0.001`",
        "departs",
        _IN_FILES,
        left=True,
    ),
    text("shown_departs", "", "departs", In.TERMINAL, left=True),
)


def compared_columns() -> list[Column]:
    """Of a table with one row per cell of ours and published number."""
    return [
        text("data", "name of the data set", "data", In.ALL, left=True),
        *_OURS,
        *_MADE,
        text("metric", "what is compared"),
        text("shown_metric", "", "metric", In.READERS, once=Once.SAME, left=True),
        number("mean", "ours, over the runs that finished", "ours", In.ALL, shown=percent),
        number(
            "std",
            "sample deviation of ours; none for one run",
            "± std",
            In.ALL,
            shown=percent,
            once=Once.NEVER,
        ),
        whole("n", "runs of ours that finished", "n", In.ALL, shown=str, once=Once.NEVER),
        number("published", "the published number, as printed", "published", In.ALL, shown=percent),
        number("difference", "ours minus published", "ours - published", In.ALL, shown=_signed),
        *_THEIRS,
        *_HOW,
        text("evidence", "on what the word of provenance rests"),
    ]


def pair_columns() -> list[Column]:
    """Of a table with one row per row of ours and published row: means over what both have."""
    return [
        *SHOWN_NAME,
        *_MADE,
        whole("data_sets", "", "data sets", In.READERS, shown=if_known),
        number("mean", "", "ours", In.READERS, shown=percent),
        number("published", "", "published", In.READERS, shown=percent),
        number("difference", "", "ours - published", In.READERS, shown=_signed),
        *_THEIRS,
    ]


def left_out_columns() -> list[Column]:
    """Of a table with one row per row, ours or published, that is set beside nothing."""
    return [
        text("whose", "`ours` or `published`", "whose", In.ALL, left=True),
        text("source", "where it stands; empty for ours", "source", In.ALL, left=True),
        text("table", "its file", "table", _IN_FILES, left=True),
        text("row", "the row", "row", In.ALL, left=True),
        text(
            "data",
            "those of its data sets that this holds for; empty: all",
            "data",
            In.ALL,
            left=True,
        ),
        text("reason", "why it is not compared", "reason", In.ALL, left=True),
    ]


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.2f}"
