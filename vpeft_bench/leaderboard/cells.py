"""From runs to cells: the runs of one configuration on one data set, over seeds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pandas as pd

from vpeft_bench.leaderboard.runs import METRIC
from vpeft_bench.metrics.names import METRICS
from vpeft_bench.records.run_record import Status

ENTRY = (
    "protocol",
    "variant",
    "method",
    "options",
    "backbone",
    "weights",
    "weights_fingerprint",
    "normalization",
    "precision",
)
"""What a leaderboard compares: everything that must be equal within a row.

The options of a variant may differ between data sets, and are no part of it. Random weights have no
fingerprint, as they differ by seed.
"""
PLACE = ("benchmark", "data", "config_hash")
CONFIDENCE = 0.95
"""Of the interval of a mean over seeds: Student's t, n - 1 degrees of freedom."""

_OF_ALL_SEEDS = ("head", "head_options", "network", "settings", "chosen")
_LARGEST = ("parameters_method", "parameters_head", "parameters_total", "stored_delta_bytes")


def cells_of(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per configuration and data set, in the order of the entries' names.

    A measurement has no mean where a finished run lacks it, and a metric none where a run
    diverged: the other seeds alone would be a choice.

    Args:
        runs: those that are shown.
    """
    own = runs["options"]
    if "" not in own.cat.categories:
        own = own.cat.set_categories(["", *own.cat.categories])
    runs = runs.assign(own_options=own, options=own.where(runs["variant"] == "", ""))
    keys = [*ENTRY, *PLACE]
    runs = runs.assign(cell=runs.groupby(keys, observed=True, sort=True, dropna=False).ngroup())
    runs = runs.sort_values(["cell", "seed", "run_id"], ignore_index=True)
    cells = runs.drop_duplicates("cell").set_index("cell")
    cells = cells[[*keys, "own_options", "name", *_OF_ALL_SEEDS]]
    named = (
        cells["variant"].astype(object).where(cells["variant"] != "", cells["name"].astype(object))
    )
    finished = runs[runs["status"] == Status.OK]
    columns = {
        "name": named,
        "seeds": _seeds(finished),
        **_measured(runs, finished),
        **{name: _texts(finished, name) for name in ("device", "data_fingerprint", "image_format")},
        "label_list": _texts(runs, "labels", json.loads, tuple),
        **_unfinished(runs[runs["status"] != Status.OK]),
    }
    cells = cells.assign(**columns)
    counts = ["failed", "diverged", "interrupted"]
    cells[counts] = cells[counts].fillna(0).astype("Int64")
    texts = [
        "seeds",
        "device",
        "data_fingerprint",
        "image_format",
        "not_finished",
        "failed_reasons",
    ]
    cells[texts] = cells[texts].astype(object).fillna("")
    return cells


def _measured(runs: pd.DataFrame, finished: pd.DataFrame) -> dict[str, pd.Series]:
    """Numbers of the runs that ended well, by cell."""
    metrics = [name for name in map(METRIC.__add__, METRICS.names()) if name in runs]
    # By value, so that the sum does not depend on which seed had which.
    numbers = ["value", *metrics, *_LARGEST, "train_seconds", "train_images_per_second"]
    numbers = [*numbers, "peak_memory_bytes"]
    by_value = finished.sort_values(["cell", "value"])
    grouped = by_value.groupby("cell")[numbers]
    every = runs["cell"].unique()
    n = finished.groupby("cell").size().reindex(every, fill_value=0)
    known = grouped.count().reindex(every, fill_value=0).eq(n, axis=0)
    sound = ~pd.Series(every, every).isin(runs.loc[runs["status"] == "diverged", "cell"])
    mean, largest = (
        each.reindex(every).astype(float).where(known) for each in (grouped.mean(), grouped.max())
    )
    values = by_value.groupby("cell")["value"]
    scored = known["value"] & sound
    std = values.std().reindex(every).where(scored)
    half = std / np.sqrt(n) * _quantile(n)
    whole = {name: largest[name].astype("Int64") for name in (*_LARGEST, "peak_memory_bytes")}
    headline = finished.drop_duplicates("cell").set_index("cell")["metric"].reindex(every)
    score = mean["value"].where(scored)
    return {
        "n": n.astype("Int64"),
        "metric": headline,
        "mean": score,
        "std": std,
        "ci_low": score - half,
        "ci_high": score + half,
        "min": values.min().reindex(every).where(scored),
        "max": largest["value"].where(scored),
        **{f"{m.removeprefix(METRIC)}_mean": mean[m].where(sound) for m in metrics},
        **{name: whole[name] for name in _LARGEST},
        "parameters_mean": mean["parameters_method"],
        "train_seconds_mean": mean["train_seconds"],
        "train_images_per_second_mean": mean["train_images_per_second"],
        "peak_memory_bytes_max": whole["peak_memory_bytes"],
    }


def _quantile(n: pd.Series) -> pd.Series:
    """Student's t at the interval's upper end; none for a single run."""
    from scipy.special import stdtrit

    several = n.where(n > 1)
    return pd.Series(stdtrit(several - 1, (1 + CONFIDENCE) / 2), n.index)


def _seeds(finished: pd.DataFrame) -> pd.Series:
    return finished["seed"].astype(str).groupby(finished["cell"]).agg(" ".join)


def _unfinished(lost: pd.DataFrame) -> dict[str, pd.Series]:
    """How many runs did not end well, and how and why, by cell."""
    status, error = lost["status"].astype(str), lost["error"].fillna("").astype(str)
    return {
        "failed": lost.groupby("cell").size(),
        "diverged": (status == "diverged").groupby(lost["cell"]).sum(),
        "interrupted": (status == Status.INTERRUPTED).groupby(lost["cell"]).sum(),
        "not_finished": _counted(lost["cell"], status, "{} {}"),
        "failed_reasons": _counted(lost["cell"], status + ": " + error, "{} x {}", "; "),
    }


def _counted(cell: pd.Series, text: pd.Series, shown: str, between: str = ", ") -> pd.Series:
    """How often each text occurs, by cell."""
    counts = text.groupby([cell, text]).size().sort_index()
    cells, texts = counts.index.get_level_values(0), counts.index.get_level_values(1)
    told = [shown.format(count, one) for count, one in zip(counts, texts, strict=True)]
    return pd.Series(told, cells, dtype=object).groupby(level=0).agg(between.join)


def _texts(
    runs: pd.DataFrame,
    column: str,
    parts: Callable[[str], Iterable[str]] = lambda text: [text],
    together: Callable[[Iterable[str]], Any] = ", ".join,
) -> pd.Series:
    """The different texts of a column by cell, in the order of their names."""
    pairs = runs[["cell", column]].dropna().drop_duplicates()
    told = {text: together(sorted(set(parts(text)))) for text in pairs[column].unique()}
    alone = pairs.drop_duplicates("cell").set_index("cell")[column].astype(object).map(told)
    several = pairs[pairs.duplicated("cell", keep=False)]
    for cell, group in several.groupby("cell"):
        texts = {part for text in group[column] for part in parts(text)}
        alone.at[cell] = together(sorted(texts))
    return alone
