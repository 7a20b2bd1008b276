"""What is known of a row: its runs, where they come from, and how to make them again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from vpeft_bench.formats import MISSING, percent, short_options
from vpeft_bench.leaderboard.origin import commands
from vpeft_bench.leaderboard.page.view import OnData, number_of
from vpeft_bench.leaderboard.summaries import Summary

_OF_RUNS = ("seed", "overrides", "device", "commit", "versions")
_OF_CELLS = ("data", "column", "config_hash", "variant", "mean", "std", "n", "ci_low", "ci_high")
_WHY = "failed_reasons"
_SEARCH = {
    "tuning_budget": "points tried to find them",
    "tuning_failed": "of them without a score",
    "tuning_seconds": "seconds of all points",
    "tuning_device": "where the points ran",
    "tuning_space": "hash of the space searched",
}
"""What a search for settings was and cost, by column."""


Origins = Mapping[tuple[str, str], Sequence[Any]]
"""By hash and variant, of each run what `_OF_RUNS` names."""


def origins_of(runs: pd.DataFrame) -> Origins:
    """Where runs come from."""
    origins: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for name, variant, *of in _tuples(runs[["config_hash", "variant", *_OF_RUNS]]):
        origins[name, variant].append(of)
    return origins


def details(
    summary: Summary,
    rows: pd.DataFrame,
    cells: pd.DataFrame,
    scored: pd.DataFrame,
    origins: Origins,
) -> dict[int, dict[str, Any]]:
    """Of each row its runs and where they come from, as the fields of a line of the page.

    Args:
        scored: of :func:`vpeft_bench.leaderboard.standings.runs_of`.
        origins: of all runs.
    """
    values: dict[tuple[int, str], list[tuple[int, float]]] = defaultdict(list)
    found = scored.loc[scored["row"].isin(rows.index), ["row", "config_hash", "seed", "value"]]
    for row, name, seed, value in _tuples(found):
        values[row, name].append((seed, value))
    order = {name: n for n, name in enumerate(summary.benchmark.datasets)}
    by_row: dict[int, list[dict[str, Any]]] = defaultdict(list)
    names = ["row", *_OF_CELLS, _WHY]
    for line in _tuples(cells[names]):
        by_row[line[0]].append(dict(zip(names, line, strict=True)))
    facts = ["method", "options", "chosen", "departs", "backbone", "shown_weights"]
    facts += ["weights_fingerprint", "card_device", "labels", *_SEARCH]
    told = {}
    for row, *of_facts in zip(map(int, rows.index), *(rows[name] for name in facts), strict=True):
        of_row = sorted(by_row[row], key=lambda cell: (order[cell["column"]], cell["config_hash"]))
        made = [origins.get((cell["config_hash"], cell["variant"]), ()) for cell in of_row]
        runs_of_row = [dict(zip(_OF_RUNS, one, strict=True)) for of in made for one in of]
        told[row] = {
            "facts": _facts(dict(zip(facts, of_facts, strict=True)), runs_of_row),
            "on_data": [_on_data(cell, values[row, cell["config_hash"]]) for cell in of_row],
            "commands": commands(
                (str(cell["data"]), str(of[0][1]), [one[0] for one in of])
                for cell, of in zip(of_row, made, strict=True)
            ),
        }
    return told


def _tuples(frame: pd.DataFrame) -> Iterable[tuple[Any, ...]]:
    """The rows of a frame in Python's own values: pandas is slow row by row."""
    return zip(*(frame[name].astype(object).tolist() for name in frame), strict=True)


def _facts(row: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    def each(name: str) -> str:
        return "; ".join(sorted({str(run[name]) for run in runs if _text(run[name])}))

    facts = {
        "method and options": f"{row['method']} {short_options(str(row['options']))}".strip(),
        "settings were chosen": _text(row["chosen"]) or "not said",
        **{title: _text(row[name]) for name, title in _SEARCH.items()},
        "departs from other rows": _text(row["departs"]),
        "backbone": f"{row['backbone']}, {row['shown_weights']}",
        "weights fingerprint": _text(row["weights_fingerprint"]),
        "device": each("device"),
        "commit": each("commit") or "not known",
        "versions": each("versions"),
        "cost card": _text(row["card_device"]),
        "notes": _text(row["labels"]),
    }
    return {name: text for name, text in facts.items() if text}


def _text(value: Any) -> str:
    """A text of a frame; empty where there is none."""
    return "" if value is None or pd.isna(value) else str(value)


def _on_data(cell: Mapping[str, Any], runs: Iterable[tuple[int, float]]) -> OnData:
    mean, std = number_of(cell["mean"]), number_of(cell["std"])
    low, high = number_of(cell["ci_low"]), number_of(cell["ci_high"])
    shown = percent(mean) + (f" ± {percent(std)}" if std is not None else "")
    known = low is not None and high is not None
    return OnData(
        data=str(cell["column"]),
        shown=f"{shown} ({cell['n']})",
        interval=f"{percent(low)} to {percent(high)}" if known else MISSING,
        runs=" · ".join(f"{seed}: {percent(number_of(value))}" for seed, value in sorted(runs)),
        config=str(cell["config_hash"]),
        why=_text(cell[_WHY]),
    )
