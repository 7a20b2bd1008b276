"""All that is computed of one table."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from vpeft_bench.statistics.bootstrap import Bootstrap
from vpeft_bench.statistics.family import Family, family
from vpeft_bench.statistics.pairs import Pair, compare
from vpeft_bench.statistics.summary import MethodSummary, summarise
from vpeft_bench.statistics.table import Table, tables_of


@dataclass(frozen=True)
class Report:
    """One table and its statistics.

    Attributes:
        table: the cells.
        bootstrap: how was resampled.
        summaries: each method; the means and intervals are its own, the rest is among all.
        pairs: each pair by itself; no third method changes one.
        family: the tests over all methods.
    """

    table: Table
    bootstrap: Bootstrap
    summaries: tuple[MethodSummary, ...]
    pairs: tuple[Pair, ...]
    family: Family


def analyse(
    frame: pd.DataFrame,
    bootstrap: Bootstrap | None = None,
    *,
    lower_is_better: bool = False,
    mix: bool = False,
    unlike_scales: bool = False,
) -> list[Report]:
    """The statistics of every table in a frame: of each benchmark under each settings.

    Args:
        frame: one row per run; :func:`~vpeft_bench.statistics.table.tables_of` says its columns.
        bootstrap: how to resample.
        lower_is_better: whether a smaller value is the better one.
        mix: rank rows of unlike settings together.
        unlike_scales: do not take values from 0 to 1 among larger ones for a mistake.

    Raises:
        ConfigError: with everything wrong with the frame.
    """
    tables = tables_of(frame, lower_is_better=lower_is_better, mix=mix, unlike_scales=unlike_scales)
    return [report(table, bootstrap or Bootstrap()) for table in tables]


def report(table: Table, bootstrap: Bootstrap) -> Report:
    """The statistics of one table."""
    summaries, pairs = summarise(table, bootstrap), compare(table, bootstrap)
    by_mean = [row.method for row in summaries if not row.missing]
    return Report(table, bootstrap, summaries, pairs, family(table, pairs, by_mean))
