"""What is known of a row: its runs, where they come from, and how to make them again."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd

from vpeft_bench.formats import MISSING, percent, short_options
from vpeft_bench.leaderboard.origin import commands
from vpeft_bench.leaderboard.page.standings import runs_of
from vpeft_bench.leaderboard.page.view import OnData, number_of
from vpeft_bench.leaderboard.tables import Summary


def details(
    summary: Summary, rows: pd.DataFrame, cells: pd.DataFrame, runs: pd.DataFrame
) -> dict[int, dict[str, Any]]:
    """Of each row its runs and where they come from."""
    values = runs_of(cells, runs)
    told = {tuple(map(str, at)): _by_seed(of) for at, of in values.groupby(["row", "config_hash"])}
    keys = [runs[name].astype(str) for name in ("config_hash", "variant")]
    origins = {tuple(map(str, at)): of for at, of in runs.groupby(keys)}
    order = {name: n for n, name in enumerate(summary.benchmark.datasets)}
    place = cells["column"].map(order)
    ordered = cells.assign(place=place).sort_values(["place", "config_hash"])
    found = {}
    for row, fact in zip(map(int, rows.index), rows.to_dict("records"), strict=True):
        of_row = ordered[ordered["row"] == row]
        keys_of_row = zip(of_row["config_hash"], of_row["variant"], strict=True)
        made = [origins[str(name), str(variant)] for name, variant in keys_of_row]
        found[row] = {
            "facts": _facts(fact, pd.concat(made).drop_duplicates("run_id")),
            "on_data": [_on_data(cell, told) for cell in of_row.to_dict("records")],
            "commands": commands(
                (str(data), str(of["overrides"].iloc[0]), map(int, of["seed"]))
                for data, of in zip(of_row["data"], made, strict=True)
            ),
        }
    return found


def _by_seed(runs: pd.DataFrame) -> str:
    pairs = sorted(zip(runs["seed"], runs["value"], strict=True))
    return " · ".join(f"{seed}: {percent(value)}" for seed, value in pairs)


def _facts(row: Mapping[Hashable, Any], runs: pd.DataFrame) -> dict[str, str]:
    def each(column: str) -> str:
        texts = {str(text) for text in runs[column].dropna() if str(text)}
        return "; ".join(sorted(texts))

    facts = {
        "method and options": f"{row['method']} {short_options(str(row['options']))}".strip(),
        "settings were chosen": str(row["chosen"] or "") or "not said",
        "departs from other rows": str(row["departs"] or "") if pd.notna(row["departs"]) else "",
        "backbone": f"{row['backbone']}, {row['shown_weights']}",
        "weights fingerprint": str(row["weights_fingerprint"]),
        "device": each("device"),
        "commit": each("commit") or "not known",
        "versions": each("versions"),
        "cost card": str(row["card_device"] or "") if pd.notna(row["card_device"]) else "",
        "notes": str(row["labels"] or ""),
    }
    return {name: text for name, text in facts.items() if text and text != "nan"}


def _on_data(cell: Mapping[Hashable, Any], told: Mapping[tuple[str, ...], str]) -> OnData:
    mean, std = number_of(cell["mean"]), number_of(cell["std"])
    low, high = number_of(cell["ci_low"]), number_of(cell["ci_high"])
    shown = percent(mean) + (f" ± {percent(std)}" if std is not None else "")
    alone = low is not None and high is not None
    return OnData(
        data=str(cell["column"]),
        shown=f"{shown} ({cell['n']})",
        interval=f"{percent(low)} to {percent(high)}" if alone else MISSING,
        runs=told.get((str(cell["row"]), str(cell["config_hash"])), ""),
        config=str(cell["config_hash"]),
        why=str(cell["failed_reasons"] or ""),
    )
