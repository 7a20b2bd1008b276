"""From cells and cards to tables: rows with the columns that are shown, and what stands beside."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from vpeft_bench.config.benchmarks import columns_of, known
from vpeft_bench.formats import MIB, percent, quantity, short_options
from vpeft_bench.leaderboard.cards import told_apart
from vpeft_bench.leaderboard.cells import ENTRY
from vpeft_bench.leaderboard.column import Column, In, plain
from vpeft_bench.leaderboard.columns import cell_columns, cost_columns, run_columns
from vpeft_bench.leaderboard.departures import departures, short_keys
from vpeft_bench.leaderboard.runs import METRIC, PROTOCOL_SPLIT
from vpeft_bench.leaderboard.scores import Scores
from vpeft_bench.metric_names import METRICS, title
from vpeft_bench.records.run_record import Split

_SHORT_HASH = 8
_SPLIT_WORD = {Split.TEST: "test", Split.VAL: "validation"}


@dataclass(frozen=True)
class Table:
    """Rows, and the columns that are shown of them.

    Attributes:
        name: of its files.
        title: what its numbers are, in a line.
        rows: the values, by key of the column.
        columns: in the order in which they are shown.
        settings: what every row does that does not say otherwise under ``departs``.
        cells: the cells that it is made of.
        gains: by title of a column the numbers that are compared in it, so that more is better.
        by_data: whether they are compared on each data set for itself, not throughout the column.
        more: rows that are not among these.
    """

    name: str
    title: str
    rows: pd.DataFrame
    columns: list[Column]
    settings: str = ""
    cells: pd.DataFrame = field(default_factory=pd.DataFrame)
    gains: Mapping[str, pd.Series] = field(default_factory=dict)
    by_data: bool = False
    more: int = 0

    def of(self, where: In) -> list[Column]:
        """The columns that are shown there."""
        return [c for c in self.columns if where in c.where and (where is In.FILES or c.title)]

    def for_readers(self, where: In = In.PAGES) -> dict[str, list[str]]:
        """Texts by title of the column, without the columns that are empty throughout."""
        texts = {column.title: column.texts(self.rows) for column in self.of(where)}
        return {name: of for name, of in texts.items() if any(of)}


# ---- data set by data set ------------------------------------------------------------------------


def by_data(table: Table, scores: Scores, most: int) -> Iterator[Table]:
    """A table of data sets in pieces, one for each: the best rows, told apart among themselves.

    Args:
        table: of :func:`dataset_table`.
        scores: with the constants that are asked for.
        most: rows of a piece.
    """
    protocol = table.rows["protocol"].iloc[0]
    for data, cells in table.cells.groupby("data", observed=True, sort=False):
        piece = _dataset_table(cells.head(most).reset_index(drop=True), protocol, scores)
        title = f"{data}; {what_is_shown(protocol, cells)}"
        yield replace(piece, title=title, more=max(0, len(cells) - most))


def dataset_table(cells: pd.DataFrame, protocol: str, scores: Scores) -> Table:
    """Every cell of a protocol; those of one data set together, best headline metric first."""
    ordered = best_first(cells[cells["protocol"] == protocol]).reset_index(drop=True)
    return _dataset_table(ordered, protocol, scores)


def _dataset_table(cells: pd.DataFrame, protocol: str, scores: Scores) -> Table:
    told = departures(cells, cells.index.to_series())
    departs = told.rows.reindex(cells.index)
    score = [_score_of(*row) for row in zip(cells["mean"], cells["metric"], strict=True)]
    shown = departs.map(short_keys)
    keys = ["benchmark", "data", *ENTRY]
    alike = cells.assign(shown=shown).duplicated([*keys, "shown"], keep=False)
    rows = cells.assign(
        split=str(PROTOCOL_SPLIT[protocol]),
        options=cells["own_options"],
        departs=departs,
        shown_departs=shown,
        shown_data_fingerprint=_where_several(cells, "data_fingerprint", _shorts),
        shown_image_format=_where_several(cells, "image_format", str),
        shown_config=cells["config_hash"].astype(object).str[:_SHORT_HASH].where(alike, ""),
        shown_metric=[title(name) if name else "" for name in plain(cells["metric"])],
        shown_score=[
            "diverged" if diverged else percent(none_of(mean))
            for mean, diverged in zip(cells["mean"], cells["diverged"], strict=True)
        ],
        labels=cells["label_list"].map(", ".join),
        **named(cells, cells["own_options"]),
        **scored(scores, score, cells["parameters_mean"], cells),
    )
    headlines = cells["metric"].dropna().unique()
    beside = {name for name in METRICS.names() if set(METRICS.get(name).beside) & set(headlines)}
    metrics = [
        name
        for name in METRICS.names()
        if f"{name}_mean" in cells
        and (name in beside.union(headlines) or cells[f"{name}_mean"].notna().any())
    ]
    columns = cell_columns(metrics, headlines, bool(cells["card_id"].notna().any()))
    return Table(
        name=f"datasets_{protocol}",
        title=f"Every data set; {what_is_shown(protocol, cells)}",
        rows=rows,
        columns=columns,
        settings=told.shared,
        cells=cells,
        gains={next(c.title for c in columns if c.key == "shown_score"): gain_of(cells)},
        by_data=True,
    )


def best_first(cells: pd.DataFrame) -> pd.DataFrame:
    """Cells with those of one data set together, best headline metric first."""
    every = known()

    def place(benchmark: str, data: str) -> int:
        column = columns_of(benchmark, data, every).get(benchmark)
        return every[benchmark].datasets.index(column) if column else -1

    pairs = cells[["benchmark", "data"]].drop_duplicates()
    places = {pair: place(*pair) for pair in pairs_of(pairs)}
    at = zip(cells["benchmark"], cells["data"], strict=True)
    keys = pd.DataFrame(index=cells.index)
    keys["benchmark"] = cells["benchmark"].astype(str)
    keys["place"] = [places[pair] for pair in at]
    keys["data"] = cells["data"].astype(str)
    keys["gain"] = -gain_of(cells).round(2)  # what is printed equal counts as equal
    keys[[*ENTRY, "config_hash"]] = cells[[*ENTRY, "config_hash"]].astype(str)
    return cells.loc[keys.sort_values([*keys.columns], na_position="last").index]


def gain_of(cells: pd.DataFrame) -> pd.Series:
    """The mean of the headline metric, so that more is better."""
    signs = {name: METRICS.get(name).gain(1.0) for name in cells["metric"].dropna().unique()}
    return cells["mean"] * cells["metric"].astype(object).map(signs).astype(float)


def what_is_shown(protocol: str, cells: pd.DataFrame) -> str:
    """What the numbers of a table of ``cells`` under ``protocol`` are, in a few words."""
    split = _SPLIT_WORD[PROTOCOL_SPLIT[protocol]]
    headlines = list(cells["metric"].dropna().unique())
    units = {METRICS.get(headline).unit for headline in headlines}
    what = title(headlines[0]) if len(headlines) == 1 else "headline metric"
    unit = f", {units.pop()}" if len(units) == 1 else ""
    return f"protocol {protocol}: {what} on {split} images{unit}, last epoch, mean ± std (n seeds)"


# ---- costs and runs ------------------------------------------------------------------------------


def cost_table(cards: pd.DataFrame) -> Table:
    """Every card with all that is known of it."""
    apart = told_apart(cards["measured_with"])
    on_cpu = cards["measured_with"].map(lambda setting: setting.on_cpu)

    def peak(name: str, way: pd.Series) -> list[str]:
        """A device measures its peak in one way, and leaves the columns of the other empty."""
        return [
            quantity(value, MIB) if fits else ""
            for value, fits in zip(plain(cards[name]), way, strict=True)
        ]

    rows = cards.assign(
        shown_options=cards["options"].map(short_options),
        shown_device=cards["measured_with"].map(lambda setting: setting.machine),
        shown_hardware=cards["measured_with"].map(lambda setting: setting.switches),
        shown_setting=cards["measured_with"].map(apart),
        shown_allocated=peak("peak_allocated_bytes", ~on_cpu),
        shown_reserved=peak("peak_reserved_bytes", ~on_cpu),
        shown_resident=peak("peak_resident_growth_bytes", on_cpu),
        finished=cards["finished"].map(lambda time: time.isoformat()),
        labels=cards["label_list"].map(", ".join),
    )
    return Table("costs", "Costs: one row per cost card", rows, cost_columns())


def run_table(runs: pd.DataFrame) -> Table:
    """Every run that is shown."""
    every = known()
    pairs = runs[["benchmark", "data"]].drop_duplicates().astype(str)
    groups = {
        (benchmark, data): every[benchmark].group_of(data) if benchmark in every else ""
        for benchmark, data in pairs_of(pairs)
    }
    told = {text: ", ".join(json.loads(text)) for text in runs["labels"].unique()}
    rows = runs.assign(
        group=[groups[pair] for pair in zip(runs["benchmark"], runs["data"], strict=True)],
        labels=runs["labels"].astype(object).map(told),
    )
    metrics = [name for name in METRICS.names() if f"{METRIC}{name}" in runs]
    return Table("seeds", "Every run", rows, run_columns(metrics))


# ---- what rows are called, and their scores ------------------------------------------------------


def named(rows: pd.DataFrame, options: pd.Series) -> dict[str, Any]:
    """What a reader is told that a row is: its name if every row has one of its own.

    Else, or where a name stands for different options or variants: method and options.
    """
    variant = rows["variant"].astype(str)
    meant = pd.DataFrame(
        {
            "name": rows["name"].astype(str),
            "variant": variant,
            "method": rows["method"].astype(str),
            "options": options.astype(str).where(variant == "", ""),
        }
    ).drop_duplicates()
    named = meant["name"].is_unique and "" not in set(meant["name"])
    names = rows["name"].astype(str) if named else pd.Series("", rows.index)
    method = [
        "" if name.startswith(method) else method
        for name, method in zip(names, rows["method"], strict=True)
    ]
    fingerprints = rows["weights_fingerprint"].astype(str).map(_short)
    return {
        "shown_name": names if named else variant,
        "shown_method": method,
        "shown_options": [""] * len(rows) if named else options.astype(str).map(short_options),
        "shown_weights": (rows["weights"].astype(str) + " " + fingerprints).str.strip(),
    }


def _score_of(mean: float, metric: str | None) -> float | None:
    """The scores are defined for percentages of which more is better."""
    known_ = METRICS.get(metric) if isinstance(metric, str) else None
    is_share = known_ is not None and known_.higher_is_better and known_.unit == "%"
    return none_of(mean) if is_share else None


def scored(
    scores: Scores, mean: Iterable[float | None], parameters: pd.Series, rows: pd.DataFrame
) -> dict[str, Any]:
    """Both scores of every row, and the constants that they were computed with."""
    costs = zip(
        mean,
        parameters,
        plain(rows["card_train_step_flops_per_image"]),
        plain(rows["card_peak"]),
        strict=True,
    )
    found = [
        (scores.ppt(none_of(m), none_of(p)), scores.pscp(none_of(m), none_of(p), flops, peak))
        for m, p, flops, peak in costs
    ]
    return {
        "ppt": pd.Series([ppt for ppt, _ in found], rows.index, dtype=float),
        "pscp_style": pd.Series([pscp for _, pscp in found], rows.index, dtype=float),
        "score_constants": scores.constants,
    }


def _where_several(cells: pd.DataFrame, column: str, shown: Callable[[str], str]) -> list[str]:
    """A column where the cells of one data set differ in it, else empty."""
    texts = cells[column].astype(object).where(cells[column].notna(), "")
    place = [cells["benchmark"], cells["data"]]
    several = texts.groupby(place, observed=True).transform(lambda of: len(set(of) - {""}) > 1)
    return [
        shown(text) if text and differ else "" for text, differ in zip(texts, several, strict=True)
    ]


def _shorts(fingerprints: str) -> str:
    return " ".join(map(_short, fingerprints.split(", ")))


def _short(fingerprint: str) -> str:
    """The first digits of a hash that may be written ``algorithm:digits``."""
    return fingerprint.rpartition(":")[2][:_SHORT_HASH]


def pairs_of(frame: pd.DataFrame) -> list[tuple[str, str]]:
    """The rows of two columns, as texts."""
    return [(str(one), str(other)) for one, other in frame.itertuples(index=False, name=None)]


def none_of(value: Any) -> Any:
    """None for what is not there, in whatever way it is said."""
    return None if value is None or pd.isna(value) else value
