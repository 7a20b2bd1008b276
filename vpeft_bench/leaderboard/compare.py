"""Our cells beside published numbers: cell by cell, never in one column."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from vpeft_bench.config.benchmarks import Benchmark, columns_of, known
from vpeft_bench.config.identity import setting_of
from vpeft_bench.config.variants import find, settings_on
from vpeft_bench.errors import ConfigError
from vpeft_bench.formats import option_text
from vpeft_bench.leaderboard.cells import ENTRY
from vpeft_bench.leaderboard.compared_columns import (
    compared_columns,
    left_out_columns,
    pair_columns,
)
from vpeft_bench.leaderboard.published import Numbers
from vpeft_bench.leaderboard.tables import Table, named, pairs_of
from vpeft_bench.metric_names import title

PROTOCOL = "final"
"""Published numbers are of test images; so are ours that they are compared with."""
PARAMETERS = "parameters.csv"


@dataclass(frozen=True)
class Comparison:
    """What stands beside what.

    Attributes:
        tables: one for each benchmark, cell by cell.
        pairs: the same, in the same order: the means of two rows over the data sets of both.
        notes: for each of them what a reader must know first.
        left_out: rows, ours or published, that are beside nothing, and why.
    """

    tables: list[Table]
    pairs: list[Table]
    notes: list[list[str]]
    left_out: Table


def compare(cells: pd.DataFrame, numbers: Numbers) -> Comparison:
    """Set cells beside the numbers of the same method, data set, backbone and kind of weights.

    Of several rows that one source has of a method, a cell stands beside those that it departs
    from least.

    Args:
        cells: of any protocol and backbone.
        numbers: published ones.
    """
    every = known()
    ours = cells.reset_index(drop=True)
    texts = ["benchmark", "data", "method", "name", "backbone", "weights", "protocol", "metric"]
    ours = ours.assign(**{name: ours[name].astype(object) for name in texts})
    theirs = numbers.values.assign(number=range(len(numbers.values)))
    beside = _beside(ours, theirs, every)
    barred = beside["barred"] != ""
    matched = _nearest(beside[~barred])
    tables, pairs, notes = [], [], []
    for benchmark, rows in _by_benchmark(matched, every):
        table = _table(benchmark, rows, every)
        tables.append(table)
        pairs.append(_pairs(benchmark, table.rows))
        notes.append(_notes(table.rows, numbers.protocols))
    left_out = _left_out(ours, theirs, numbers.left_out, beside, matched, every)
    return Comparison(tables, pairs, notes, left_out)


# ---- what belongs together -----------------------------------------------------------------------


_OF_A_CELL = [
    *ENTRY,
    *("benchmark", "data", "name", "own_options", "settings", "head", "label_list"),
    *("metric", "mean", "std", "n", "diverged"),
]


def _beside(
    ours: pd.DataFrame, theirs: pd.DataFrame, every: Mapping[str, Benchmark]
) -> pd.DataFrame:
    """Every cell with every number of its method and data set; ``barred`` says why it must not be.

    Returns:
        the columns of a cell; those of a number, ``their_`` before names that a cell has.
    """
    places = _places(ours, every)
    others = {f"{metric}_mean" for metric in theirs["metric"].unique()} & set(ours)
    left = ours[[*_OF_A_CELL, *sorted(others)]].assign(cell=ours.index)
    known_as = pd.concat(
        [left[["cell", "data"]].assign(called=left[name]) for name in ("method", "name", "variant")]
    )
    known_as = known_as[known_as["called"].astype(str) != ""].drop_duplicates()
    right = theirs.assign(place=theirs["data"].map(lambda name: places.get(name)))
    found = known_as.merge(
        right[["number", "method", "place"]],
        left_on=["called", "data"],
        right_on=["method", "place"],
    )
    found = found[["cell", "number"]].drop_duplicates()
    theirs = theirs.rename(columns={name: f"their_{name}" for name in theirs if name in left})
    found = found.merge(left, on="cell").merge(theirs, on="number")
    records = _records(found)
    found["barred"] = [_bar(row) for row in records]
    values = [_ours(row) for row in records]
    found["ours"] = pd.Series([mean for mean, _ in values], found.index, dtype=float)
    found["std"] = pd.Series([std for _, std in values], found.index, dtype=float)
    return found


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {str(name): value for name, value in row.items()} for row in frame.to_dict("records")
    ]
    return rows


def _places(ours: pd.DataFrame, every: Mapping[str, Benchmark]) -> dict[str, str]:
    """The data set of ours that a name means: its own, or one that only it has in a benchmark."""
    data = {(str(b), str(d)) for b, d in pairs_of(ours[["benchmark", "data"]].drop_duplicates())}
    found: dict[str, set[str]] = {}
    for benchmark, name in data:
        for alias in {name, *columns_of(benchmark, name, every).values()}:
            found.setdefault(alias, set()).add(name)
    own = {name: name for _, name in data}
    return {alias: next(iter(of)) for alias, of in found.items() if len(of) == 1} | own


def _bar(row: Mapping[str, Any]) -> str:
    """Why a cell and a number of one method and data set do not compare; empty where they do."""
    if row["protocol"] != PROTOCOL:
        return f"protocol {row['protocol']}: published numbers are of test images"
    if row["their_backbone"] and row["their_backbone"] != row["backbone"]:
        return f"backbone {row['backbone']}: the published number has {row['their_backbone']}"
    if row["their_weights"] and row["their_weights"] != row["weights"]:
        return f"{row['weights']} weights: the published number has {row['their_weights']} ones"
    if few := row["per_class"]:
        return f"{few} pictures of each class: the published number is of all"
    if row["their_weights"] and (said := _own_labels(row["label_list"])):
        return said
    if pd.isna(_ours(row)[0]):
        return "diverged" if row["diverged"] else "no value"
    return ""


def _own_labels(labels: Sequence[str]) -> str:
    """What the runs say of themselves; not what a card says."""
    return ", ".join(label for label in labels if not label.startswith("card: "))


def _ours(row: Mapping[str, Any]) -> tuple[float, float]:
    """Mean and deviation of the metric of a number; only a headline has a deviation."""
    if row["their_metric"] in ("", row["metric"]):
        return row["mean"], row["std"]
    return row.get(f"{row['their_metric']}_mean", float("nan")), float("nan")


def _nearest(beside: pd.DataFrame) -> pd.DataFrame:
    """Of the rows that one table has of a method those that our row departs from least."""
    told = [_departs(row) for row in _records(beside)]
    beside = beside.assign(
        published_settings=[settings for settings, _ in told],
        departs=[", ".join(of) for _, of in told],
        shown_departs=[_shortly(settings, of) for settings, of in told],
        departures=[len(of) for _, of in told],
    )
    ours = [*ENTRY, "source", "table"]
    keyed = beside.assign(**{name: beside[name].astype(str) for name in ours})
    mean = keyed.groupby([*ours, "row"])["departures"].transform("mean")
    fewest = keyed.assign(mean=mean).groupby(ours)["mean"].transform("min")
    return beside[mean == fewest]


def _departs(row: Mapping[str, Any]) -> tuple[str, list[str]]:
    """What the published settings are known from, and what a cell does otherwise."""
    head = row["their_head"]
    other = [f"head={row['head']} not {head}"] if head and row["head"] != head else []
    if row["their_variant"] and (wanted := _settings(row["their_variant"], row["data"])):
        return row["their_variant"], [*other, *_differing(row, wanted)]
    sets = [dict(_pair(text) for text in of.split()) for of in _option_sets(row["their_options"])]
    if not any(sets):
        return "", other
    differing = [_differing(row, {f"method.{key}": of for key, of in one.items()}) for one in sets]
    return PARAMETERS, [*other, *min(differing, key=len)]


def _shortly(settings: str, departs: Sequence[str]) -> str:
    """Names alone, and what cannot be told."""
    names = [re.split("[= ]", text)[0] for text in departs]
    unknown = {"": ["settings unknown"], PARAMETERS: ["only options known"]}.get(settings, [])
    return ", ".join([*names, *unknown])


def _option_sets(text: str) -> Iterator[str]:
    """``6*rank=16; 13*rank=32``: each set may hold, whatever the number before it."""
    for part in text.split(";"):
        yield part.rpartition("*")[2].strip()


def _pair(text: str) -> tuple[str, Any]:
    key, _, value = text.partition("=")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


@functools.cache
def _settings(variant: str, data: str) -> dict[str, Any]:
    """What a variant sets on a data set; nothing where it is not for it."""
    found = find(variant)
    try:
        return {} if found is None else settings_on(found, data)
    except ConfigError:
        return {}


def _differing(row: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Settings of a cell that are not the wanted ones, as ``lr=0.01 not 0.001``."""
    settings = json.loads(row["settings"])
    options = dict(text.partition("=")[::2] for text in row["own_options"].split())
    found = []
    for key, value in wanted.items():
        short = key.rpartition(".")[2]
        published = option_text({short: value})
        if key.startswith("method."):
            own = f"{short}={options[short]}" if short in options else ""
        elif key == "data.normalization":
            own = option_text({short: row["normalization"]})
        else:
            setting = setting_of(key)
            own = option_text({short: settings.get(key, setting and setting.neutral)})
        if own != published:
            found.append(f"{own or f'{short}=default'} not {published.partition('=')[2]}")
    return found


# ---- tables --------------------------------------------------------------------------------------


def _by_benchmark(
    matched: pd.DataFrame, every: Mapping[str, Benchmark]
) -> Iterator[tuple[str, pd.DataFrame]]:
    """The rows of each benchmark that their data sets are of; of none: what they say."""
    pairs = pairs_of(matched[["benchmark", "data"]].drop_duplicates())
    of = {pair: {**columns_of(*pair, every)} or {pair[0]: pair[1]} for pair in pairs}
    for benchmark in sorted({name for names in of.values() for name in names}):
        columns = {pair: names[benchmark] for pair, names in of.items() if benchmark in names}
        at = list(zip(matched["benchmark"], matched["data"], strict=True))
        here = matched[[pair in columns for pair in at]]
        yield benchmark, here.assign(column=[columns[pair] for pair in at if pair in columns])


def _table(benchmark: str, found: pd.DataFrame, every: Mapping[str, Benchmark]) -> Table:
    datasets = every[benchmark].datasets if benchmark in every else ()
    place = found["column"].map(lambda name: datasets.index(name) if name in datasets else -1)
    metric = found["their_metric"].where(found["their_metric"] != "", found["metric"])
    rows = found.assign(
        place=place,
        options=found["own_options"],
        metric=metric,
        shown_metric=[title(name) if name else "" for name in metric],
        mean=found["ours"],
        published=found["value"].astype(float),
        shown_source=found["source"].str.partition(",")[0],
        difference=found["ours"] - found["value"].astype(float),
        settings=found["published_settings"],
        **named(found, found["own_options"]),
    )
    order = ["place", "column", "metric", "name", "own_options", "source", "table", "row"]
    keys = rows[order].astype(dict.fromkeys(order[1:], str))
    rows = rows.loc[keys.sort_values(order, kind="stable").index].reset_index(drop=True)
    return Table(
        name=f"compare_{benchmark}",
        title=f"{benchmark}: ours beside published numbers, cell by cell",
        rows=rows,
        columns=compared_columns(),
    )


_PAIR = [
    *("variant", "method", "shown_name", "shown_method", "shown_options", "backbone"),
    *(
        "weights_fingerprint",
        "normalization",
        "precision",
        "source",
        "shown_source",
        "table",
        "row",
    ),
    "provenance",
]


def _pairs(benchmark: str, rows: pd.DataFrame) -> Table:
    keys = [*_PAIR, "shown_metric"]
    keyed = rows.assign(**{name: rows[name].astype(str) for name in keys})
    grouped = keyed.groupby(keys, sort=False)
    means = grouped[["mean", "published", "difference"]].mean()
    # Of a data set with several configurations none is the row's, and their mean neither.
    ambiguous = keyed.duplicated([*keys, "column"], keep=False)
    blocked = ambiguous.groupby([keyed[name] for name in keys], sort=False).any()
    means = means.mask(blocked.reindex(means.index))
    means["data_sets"] = grouped["column"].nunique()
    return Table(
        name=f"compare_{benchmark}",
        title=f"{benchmark}: ours beside published rows, means over the data sets of both",
        rows=means.reset_index(),
        columns=pair_columns(),
    )


def _notes(rows: pd.DataFrame, protocols: Mapping[str, str]) -> list[str]:
    said = [
        f"{source}: {protocols[source]}"
        for source in sorted(set(rows["source"]))
        if source in protocols
    ]
    return [
        "ours: the last epoch, mean over seeds. A published number was made under another protocol,"
        " and a difference below one point on one data set is noise",
        "provenance: quoted from another paper; re-run by the source with the official code; "
        "re-implemented by the source; unknown: no source says it",
        *said,
    ]


# ---- what stands beside nothing ------------------------------------------------------------------


def _left_out(
    ours: pd.DataFrame,
    theirs: pd.DataFrame,
    never: pd.DataFrame,
    beside: pd.DataFrame,
    matched: pd.DataFrame,
    every: Mapping[str, Benchmark],
) -> Table:
    """Rows of ours and published ones that are compared nowhere, each with its reasons."""
    barred = beside[beside["barred"] != ""].groupby("cell")["barred"]
    why = barred.agg(lambda of: "; ".join(dict.fromkeys(of))).to_dict()
    cells = ours[~ours.index.isin(matched["cell"])]
    backbones = _backbones(theirs, every)
    there = ", ".join(f"{name} ({of})" for name, of in backbones.items() if name)

    def elsewhere(backbone: str) -> str:
        if backbone in backbones or "" in backbones:
            return "no published number"
        return f"backbone {backbone}: published numbers are with {there}"

    mine = pd.DataFrame(
        {
            "whose": "ours",
            "row": _called(cells),
            "data": cells["data"],
            "reason": [
                why.get(cell)
                or (
                    "no published number"
                    if not {name, ""}.isdisjoint(backbones)
                    else elsewhere(name)
                )
                for cell, name in cells["backbone"].items()
            ],
        }
    )
    others = theirs[~theirs["number"].isin(matched["number"])]
    nearer = set(beside.loc[beside["barred"] == "", "number"])
    met = set(beside["number"])
    reasons = [
        "a run departs less from another row of the table"
        if number in nearer
        else f"no {'comparable ' if number in met else ''}run of the method"
        + (f" with {backbone}" if backbone else "")
        for number, backbone in zip(others["number"], others["backbone"], strict=True)
    ]
    published = others[["source", "table", "row", "data"]].assign(reason=reasons)
    keys = ["whose", "source", "table", "row", "reason"]
    rows = pd.concat([mine, published, never], ignore_index=True)
    rows = rows.fillna({"whose": "published"}).fillna("").astype(str)
    rows = rows.groupby(keys, sort=False)["data"].agg(_listed).reset_index()
    whole = theirs.groupby(["source", "table", "row"])["data"].agg(_listed).to_dict()
    of = zip(rows["source"], rows["table"], rows["row"], strict=True)
    rows["data"] = [
        "" if whole.get(key) == data else data for key, data in zip(of, rows["data"], strict=True)
    ]
    return Table(
        name="not_compared",
        title="Rows that are set beside nothing, and why",
        rows=rows,
        columns=left_out_columns(),
    )


def _called(cells: pd.DataFrame) -> list[str]:
    names = zip(cells["name"], cells["method"], cells["own_options"], strict=True)
    return [str(name) or f"{method} {options}".strip() for name, method, options in names]


def _listed(names: pd.Series) -> str:
    return ", ".join(dict.fromkeys(name for name in names if name))


def _backbones(theirs: pd.DataFrame, every: Mapping[str, Benchmark]) -> dict[str, str]:
    """``vit_b16``: ``vtab1k, fgvc``; empty: numbers that do not say with which backbone."""
    found: dict[str, list[str]] = {}
    for backbone, data in pairs_of(theirs[["backbone", "data"]].drop_duplicates()):
        of = [name for name, one in every.items() if one.member(data)] or [data]
        found.setdefault(backbone, []).extend(of)
    return {name: ", ".join(dict.fromkeys(of)) for name, of in found.items()}
