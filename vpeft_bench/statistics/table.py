"""A long table as cells: the runs of every method on every data set, checked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np
import pandas as pd

from vpeft_bench.errors import ConfigError, Problem
from vpeft_bench.statistics import checks

OPTIONAL = ("seed", "benchmark", "group")
SETTINGS = ("backbone", "weights", "protocol", "split", "variant", "budget", "settings")
"""Columns that say under which conditions a row was made: unlike ones are never ranked together."""

_DIGITS = 12
"""Significant digits of a cell: what differs by less is equal, and differs by rounding alone."""


@dataclass(frozen=True)
class Table:
    """The runs of some methods on some data sets, all made under like conditions.

    Attributes:
        benchmark: what the data sets are together; empty where the frame does not say.
        settings: the conditions that all rows share, by column.
        mixed: the conditions in which rows differ, by column; empty unless they were to be mixed.
        methods: sorted by name.
        datasets: sorted by name.
        groups: the group of each data set; empty where the frame has none.
        runs: ``runs[m][d]`` are the values of one cell in rising order, none where the cell is
            missing.
        lower_is_better: whether a smaller value is the better one.
        seeded: whether the frame tells seeds apart; else a row may be a run or a mean of some.
        notes: what a reader should know of the frame.
    """

    benchmark: str
    settings: dict[str, str]
    mixed: dict[str, tuple[str, ...]]
    methods: tuple[str, ...]
    datasets: tuple[str, ...]
    groups: tuple[str, ...]
    runs: tuple[tuple[np.ndarray, ...], ...]
    lower_is_better: bool
    seeded: bool
    notes: tuple[str, ...]

    @cached_property
    def cells(self) -> np.ndarray:
        """Mean over the runs of each cell, ``(methods, datasets)``; NaN where it is missing."""
        means = [[np.mean(cell) if cell.size else np.nan for cell in row] for row in self.runs]
        return significant(np.array(means, dtype=float))

    @cached_property
    def gains(self) -> np.ndarray:
        """:attr:`cells`, of which more is better."""
        return -self.cells if self.lower_is_better else self.cells

    @cached_property
    def better(self) -> np.ndarray:
        """Probability that a run of one method is better than a run of another, ties half.

        ``(methods, methods, data sets)``; NaN where one of the cells is missing.
        """
        count = len(self.methods)
        found = np.full((count, count, len(self.datasets)), np.nan)
        for data in range(len(self.datasets)):
            there = np.flatnonzero(~np.isnan(self.cells[:, data]))
            for first, second in combinations(there, 2):
                share = _share(self.runs[first][data], self.runs[second][data])
                share = 1 - share if self.lower_is_better else share
                found[first, second, data], found[second, first, data] = share, 1 - share
        return found

    @cached_property
    def complete(self) -> np.ndarray:
        """The methods that have every data set, as indices."""
        return np.flatnonzero(~np.isnan(self.cells).any(axis=1))

    @cached_property
    def top(self) -> float | None:
        """The best possible value: 1 of fractions, 100 of percentages; None of anything else."""
        return scale(self.runs)[0]

    @property
    def group_names(self) -> tuple[str, ...]:
        """The groups, sorted by name; empty where there are fewer than two."""
        names = tuple(sorted(set(self.groups)))
        return names if len(names) > 1 else ()

    def run_count(self, method: int, datasets: Sequence[int] | np.ndarray | None = None) -> int:
        """The runs of a method, on all data sets or on some."""
        chosen = range(len(self.datasets)) if datasets is None else datasets
        return sum(self.runs[method][data].size for data in chosen)

    def per_cell(
        self, method: int, datasets: Sequence[int] | np.ndarray | None = None
    ) -> tuple[int, int]:
        """Fewest and most runs of a method in a cell that is there; on all data sets or some."""
        chosen = range(len(self.datasets)) if datasets is None else datasets
        return _span(self.runs[method][data].size for data in chosen)

    @property
    def per_cell_of_all(self) -> tuple[int, int]:
        """Fewest and most runs in a cell that is there, over the whole table."""
        return _span(cell.size for row in self.runs for cell in row)


def scale(runs: Sequence[Sequence[np.ndarray]]) -> tuple[float | None, float]:
    """The best possible value of some runs, as :attr:`Table.top`; and how large they get."""
    values = np.concatenate([cell for row in runs for cell in row])
    top = next((top for top in (1.0, 100.0) if values.min() >= 0 and values.max() <= top), None)
    return top, float(np.abs(values).max())


def _share(first: np.ndarray, second: np.ndarray) -> float:
    """Share of pairs of runs in which that of ``first`` is larger, equal ones half."""
    difference = first[:, None] - second[None, :]
    return float(((difference > 0).mean() + (difference >= 0).mean()) / 2)


def significant(values: np.ndarray) -> np.ndarray:
    """Values without the digits that sums of the same numbers in another order differ in."""
    rounded = [float(f"{value:.{_DIGITS}g}") for value in values.flat]
    return np.array(rounded).reshape(values.shape)


def tables_of(
    frame: pd.DataFrame,
    *,
    lower_is_better: bool = False,
    mix: bool = False,
    unlike_scales: bool = False,
) -> list[Table]:
    """The tables in a frame: one for each benchmark, and for each of its settings.

    Args:
        frame: columns ``method``, ``data`` and ``value``, one row per run. A ``seed`` tells the
            runs of a cell apart; without it each cell has one row. ``benchmark`` and those of
            :data:`SETTINGS` part the rows into tables, ``group`` is the data set's. The
            variant ``lora/tuned@8`` counts as ``tuned@8``; one that begins with its method's name
            otherwise, as ``lora rank=16``, is the name of a row. A value that is not there (NaN)
            is a run without a result, and its cell is missing.
        lower_is_better: whether a smaller value is the better one.
        mix: rank rows of unlike settings together; the settings are added to the method's name.
        unlike_scales: do not take values from 0 to 1 among larger ones for a mistake.

    Raises:
        ConfigError: with everything wrong with the frame.
    """
    if problems := list(checks.missing_columns(frame)):
        raise ConfigError(problems)
    if frame.empty:
        raise ConfigError([Problem("table", "has no rows")])
    if not pd.api.types.is_numeric_dtype(frame["value"]):
        raise ConfigError([Problem("column value", "holds text", "make it numbers")])
    present = [name for name in SETTINGS if name in frame]
    names = [name for name in ("method", "data", *OPTIONAL) if name in frame]
    # A place names one row: frames that were put together have some of them twice.
    frame = frame.copy() if frame.index.is_unique else frame.reset_index(drop=True)
    frame["value"] = frame["value"].astype(float)
    for name in [*names, *present]:
        frame[name] = [_text(value) for value in frame[name]]
    if "variant" in frame:
        pairs = zip(frame["method"], frame["variant"], strict=True)
        frame[["method", "variant"]] = [_row_and_condition(*pair) for pair in pairs]
    parts = ["benchmark"] if "benchmark" in frame else []
    key = [*parts, *present, "method", "data", *(["seed"] if "seed" in frame else [])]
    problems = [
        *checks.empty_names(frame, [name for name in ("benchmark",) if name in frame]),
        *checks.infinite(frame),
        *checks.duplicates(frame, key),
        *checks.changing_groups(frame, parts),
    ]
    if problems:
        raise ConfigError(problems)
    by = parts if mix else [*parts, *present]
    pieces = [frame] if not by else [piece for _, piece in frame.groupby(by, sort=True)]
    if empty := [piece for piece in pieces if piece["value"].isna().all()]:
        raise ConfigError(
            [Problem(checks.rows_of(piece), "hold no value at all") for piece in empty]
        )
    tables = [_table(piece, present, lower_is_better) for piece in pieces]
    if not unlike_scales and (
        found := [p for piece in pieces for p in checks.unlike_scales(piece)]
    ):
        raise ConfigError(found)
    return tables


def _row_and_condition(method: str, variant: str) -> tuple[str, str]:
    """What a row is called, and under which condition it was made.

    ``lora/tuned@8`` is lora under tuned@8, as ``tuned@8`` is; ``lora rank=16`` is a row's name.
    """
    if variant.startswith(f"{method}/"):
        return method, variant.removeprefix(f"{method}/")
    return (variant, "") if variant.startswith(method) else (method, variant)


def _table(frame: pd.DataFrame, present: Sequence[str], lower_is_better: bool) -> Table:
    values = {name: tuple(sorted(set(frame[name]))) for name in present}
    mixed = {name: found for name, found in values.items() if len(found) > 1}
    if mixed:
        rows = zip(*(frame[name] for name in ["method", *mixed]), strict=True)
        methods_made = [
            f"{method} [{', '.join(v or 'none' for v in made)}]" for method, *made in rows
        ]
        frame = frame.assign(method=methods_made)
    methods, datasets = (tuple(sorted(set(frame[name]))) for name in ("method", "data"))
    cells = {(m, d): cell.to_numpy() for (m, d), cell in frame.groupby(["method", "data"])["value"]}
    none = np.empty(0)
    lost = {(str(m), str(d)) for (m, d), cell in cells.items() if np.isnan(cell).any()}
    runs = tuple(
        tuple(none if (m, d) in lost else np.sort(cells.get((m, d), none)) for d in datasets)
        for m in methods
    )
    in_groups = "group" in frame and frame["group"].any()
    grouped = dict(zip(frame["data"], frame["group"], strict=True)) if in_groups else {}
    shared = {name: found[0] for name, found in values.items() if len(found) == 1}
    return Table(
        benchmark=frame["benchmark"].iloc[0] if "benchmark" in frame else "",
        settings={name: value for name, value in shared.items() if value},
        mixed=mixed,
        methods=methods,
        datasets=datasets,
        groups=tuple(grouped[name] for name in datasets) if grouped else (),
        runs=runs,
        lower_is_better=lower_is_better,
        seeded="seed" in frame,
        notes=tuple(checks.notes(frame, sorted(lost))),
    )


def _text(value: object) -> str:
    """A name as text; whole numbers that pandas made floating stay whole."""
    if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _span(sizes: Iterable[int]) -> tuple[int, int]:
    there = [size for size in sizes if size] or [0]
    return min(there), max(there)
