"""From runs to cells: the runs of one configuration on one data set, over seeds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vpeft_bench.leaderboard.runs import METRIC
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
    "per_class",
)
"""What a leaderboard compares: everything that must be equal within a row.

The options of a variant may differ between data sets, and are no part of it. Random weights have no
fingerprint, as they differ by seed.
"""
PLACE = ("benchmark", "data", "config_hash")
CONFIDENCE = 0.95
"""Of the interval of a mean over seeds: Student's t, n - 1 degrees of freedom."""

TUNING = ("tuning_budget", "tuning_space", "tuning_failed", "tuning_seconds", "tuning_device")
"""What the search was and cost that the settings come from, on one data set."""
_SAME = ["name", "head", "head_options", "network", "settings", "chosen", *TUNING]
"""Of all runs of a cell."""
_TEXTS = ("device", "data_fingerprint", "image_format")
_LARGEST = ("parameters_method", "parameters_head", "parameters_total", "stored_delta_bytes")
_NUMBERS = {
    "value",
    *_LARGEST,
    "train_seconds",
    "train_images_per_second",
    "peak_memory_bytes",
}


def cells_of(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per configuration and data set, in the order of the entries' names.

    A measurement has no mean where a finished run lacks it, and a metric none where a run
    diverged: the other seeds alone would be a choice.

    Args:
        runs: those that are shown.
    """
    original, own = runs, runs["options"]
    if "" not in own.cat.categories:
        own = own.cat.set_categories(["", *own.cat.categories])
    keys = [*ENTRY, *PLACE]
    keyed = runs[keys].assign(options=own.where(runs["variant"] == "", ""))
    cell = _numbered(keyed)
    order = np.lexsort((runs["seed"].to_numpy(np.int64), cell))
    numbers = [n for n in map(str, runs) if n in _NUMBERS or n.startswith(METRIC)]
    needed = ["seed", "status", "error", "metric", "labels", *_TEXTS, *numbers]
    runs = runs[needed].assign(cell=cell).iloc[order]
    first = order[~runs.duplicated("cell").to_numpy()]
    cells: pd.DataFrame = pd.concat(
        [keyed.iloc[first], own.iloc[first].rename("own_options"), original[_SAME].iloc[first]],
        axis=1,
    ).set_axis(pd.RangeIndex(len(first), name="cell"))
    named = cells["variant"].astype(object)
    finished = runs[runs["status"] == Status.OK]
    columns = {
        "name": named.where(cells["variant"] != "", cells["name"].astype(object)),
        "seeds": _seeds(finished),
        **_measured(runs, finished, numbers),
        **{name: _texts(finished, name) for name in _TEXTS},
        "label_list": _texts(runs, "labels", json.loads, tuple),
        **_unfinished(runs[runs["status"] != Status.OK]),
    }
    cells = cells.assign(**columns)
    counts = ["failed", "diverged", "interrupted"]
    cells[counts] = cells[counts].fillna(0).astype("Int64")
    texts = ["seeds", *_TEXTS, "not_finished", "failed_reasons"]
    cells[texts] = cells[texts].astype(object).fillna("")
    return cells


def in_order(runs: pd.DataFrame, most: int = 50_000) -> Iterator[pd.DataFrame]:
    """Runs in an order that does not depend on where their records lie, ``most`` at a time."""
    place = _numbered(runs[[*PLACE, *ENTRY]])
    order = np.lexsort((runs["seed"].to_numpy(np.int64), place))
    for start in range(0, len(order), most):
        yield runs.iloc[order[start : start + most]].reset_index(drop=True)


def _numbered(keys: pd.DataFrame) -> NDArray[np.int64]:
    """Of each row the number of its combination of categories, in the order of their names."""
    number = np.zeros(len(keys), np.int64)
    most = 1
    for name in keys:
        codes, count = keys[name].cat.codes.to_numpy(np.int64), len(keys[name].cat.categories)
        if most > _LARGEST_NUMBER // (count + 1):
            number = np.unique(number, return_inverse=True)[1]
            most = len(keys)
        number, most = number * (count + 1) + codes + 1, most * (count + 1)
    return np.unique(number, return_inverse=True)[1]


_LARGEST_NUMBER = 2**62


def _measured(
    runs: pd.DataFrame, finished: pd.DataFrame, numbers: Sequence[str]
) -> dict[str, pd.Series]:
    """Numbers of the runs that ended well, by cell."""
    # By value, so that the sum does not depend on which seed had which.
    order = np.lexsort((finished["value"].to_numpy(), finished["cell"].to_numpy()))
    floats = {name: finished[name].to_numpy(float, na_value=np.nan)[order] for name in numbers}
    by_value = pd.DataFrame(floats)
    grouped = by_value.groupby(finished["cell"].to_numpy()[order])
    metrics = [name for name in numbers if name.startswith(METRIC)]
    every = runs["cell"].unique()
    n = finished.groupby("cell").size().reindex(every, fill_value=0)
    known = grouped.count().reindex(every, fill_value=0).eq(n, axis=0)
    sound = ~pd.Series(every, every).isin(runs.loc[runs["status"] == "diverged", "cell"])
    mean, largest = (
        each.reindex(every).astype(float).where(known) for each in (grouped.mean(), grouped.max())
    )
    values = grouped["value"]
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
    """The seeds of each cell as text; many cells have the same."""
    cells, starts = np.unique(finished["cell"].to_numpy(), return_index=True)
    texts: dict[bytes, str] = {}
    told = []
    for seeds in np.split(finished["seed"].to_numpy(np.int64), starts[1:]):
        key = seeds.tobytes()
        if key not in texts:
            texts[key] = " ".join(map(str, seeds))
        told.append(texts[key])
    return pd.Series(told[: len(cells)], cells, dtype=object)


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
    codes, names = runs[column].cat.codes.to_numpy(np.int64), runs[column].cat.categories
    pairs = pd.unique((runs["cell"].to_numpy() * len(names) + codes)[codes >= 0])
    found = pd.DataFrame({"cell": pairs // max(1, len(names)), "code": pairs % max(1, len(names))})
    told = [together(sorted(set(parts(text)))) for text in names]
    first = found.drop_duplicates("cell")
    alone = pd.Series([told[code] for code in first["code"]], first["cell"], dtype=object)
    several = found[found.duplicated("cell", keep=False)]
    for cell, group in several.groupby("cell"):
        texts = {part for code in group["code"] for part in parts(names[code])}
        alone.at[cell] = together(sorted(texts))
    return alone
