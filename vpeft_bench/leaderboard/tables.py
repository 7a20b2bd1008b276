"""From cells to tables of metrics, by data set and by benchmark."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from vpeft_bench.config.benchmarks import CUSTOM, FOLDER, Benchmark, known
from vpeft_bench.errors import nearest
from vpeft_bench.formats import (
    KIB,
    MIB,
    MISSING,
    Row,
    exact,
    fraction,
    percent,
    quantity,
    short_options,
    span,
)
from vpeft_bench.leaderboard.cells import PROTOCOL_SPLIT, Cell, Entry
from vpeft_bench.leaderboard.costs import card_columns, card_csv_columns
from vpeft_bench.leaderboard.departures import departures, short_keys
from vpeft_bench.leaderboard.scores import Scored, Scores
from vpeft_bench.metrics.names import METRICS, beside, heading, title
from vpeft_bench.records.cost_card import CostCard
from vpeft_bench.records.run_record import Split, Status

_SHORT_HASH = 8
_SPLIT_WORD = {Split.TEST: "test", Split.VAL: "validation"}


@dataclass(frozen=True)
class SummaryRow:
    """One entry over all data sets of a benchmark.

    Attributes:
        entry: what is compared.
        benchmark: the data sets it is compared on.
        configurations: cells by data set; a data set without any run has no key.
    """

    entry: Entry
    benchmark: Benchmark
    configurations: dict[str, tuple[Cell, ...]]

    @property
    def cells(self) -> list[Cell]:
        """All cells, data set after data set."""
        names = [name for name in self.benchmark.datasets if name in self.configurations]
        return [cell for name in names for cell in self.configurations[name]]

    @property
    def complete(self) -> str:
        """How many data sets have a value, out of how many."""
        datasets = self.benchmark.datasets
        return f"{sum(self.value(name) is not None for name in datasets)}/{len(datasets)}"

    @property
    def name(self) -> str:
        """The variant's name, or what the runs are called without one."""
        return self.entry.variant or next((c.name for c in self.cells if c.name), "")

    @property
    def chosen(self) -> str:
        """How the settings of a variant were chosen; else empty."""
        return "; ".join(sorted({cell.chosen for cell in self.cells if cell.chosen}))

    @property
    def labels(self) -> list[str]:
        """Notices that any run of the row carries."""
        return sorted({label for cell in self.cells for label in cell.labels})

    @property
    def parameters(self) -> list[int]:
        """Parameters that the method trains, by run."""
        return [count for cell in self.cells for count in _parameters(cell)]

    @property
    def card(self) -> CostCard | None:
        """The cost card, if all cells share one."""
        first, *others = (cell.card for cell in self.cells)
        return first if all(card == first for card in others) else None

    def value(self, dataset: str) -> float | None:
        """The headline metric, percent; None where not exactly one configuration has one."""
        cells = self.configurations.get(dataset, ())
        return cells[0].score.mean if len(cells) == 1 else None

    def lines(self, dataset: str) -> tuple[str, ...]:
        """What the table says of a data set, in the pieces it may be broken into."""
        cells = self.configurations.get(dataset, ())
        if not cells:
            return (MISSING,)
        if len(cells) > 1:
            return ("ambiguous", f"({len(cells)} configurations)")
        (cell,) = cells
        if cell.diverged:
            return ("diverged", f"({len(cell.diverged)} of {len(cell.records)})")
        interrupted = all(run.status is Status.INTERRUPTED for run in cell.unfinished)
        word = str(Status.INTERRUPTED if interrupted else Status.FAILED)
        if not cell.finished:
            return (word,)
        deviation = "" if cell.score.std is None else f"± {percent(cell.score.std)} "
        lost = (f"{len(cell.unfinished)} {word}",) if cell.unfinished else ()
        return (percent(cell.score.mean), f"{deviation}({cell.score.n})", *lost)

    def mean(self, datasets: Sequence[str]) -> float | None:
        """Plain mean over data sets, percent; None unless every one of them has a value."""
        return _mean([self.value(dataset) for dataset in datasets])

    def means(self) -> dict[str, float | None]:
        """The benchmark's means by name, if it has any; the first one orders the table."""
        if not self.benchmark.averaged:
            return {}
        datasets = self.benchmark.datasets
        means = {f"mean over {len(datasets)} datasets": self.mean(datasets)}
        if groups := self.group_means():
            means[f"mean over {len(groups)} groups"] = _mean(list(groups.values()))
        return means

    def group_means(self) -> dict[str, float | None]:
        """Mean over the data sets of each group, for a benchmark of several groups."""
        groups = self.benchmark.groups
        if len(groups) == 1 or not self.benchmark.averaged:
            return {}
        return {f"mean of {name}": self.mean(members) for name, members in groups.items()}

    def scored(self, scores: Scores) -> Scored | None:
        """The scores of the plain mean over all data sets, for a benchmark that has one."""
        if not self.benchmark.averaged:
            return None
        parameters = _mean([_mean(_parameters(cell)) for cell in self.cells])
        return scores.of(self.mean(self.benchmark.datasets), parameters, self.card)


@dataclass(frozen=True)
class Summary:
    """One benchmark under one protocol; best mean first, rows without a mean last."""

    benchmark: Benchmark
    protocol: str
    rows: tuple[SummaryRow, ...]

    @property
    def cells(self) -> list[Cell]:
        """All cells, row after row."""
        return [cell for row in self.rows for cell in row.cells]

    @property
    def what_is_shown(self) -> str:
        """What its numbers are, in a few words."""
        return what_is_shown(self.protocol, self.cells)


def summaries(cells: Iterable[Cell], benchmark: str | None = None) -> list[Summary]:
    """One summary for each benchmark and protocol that has cells, in a fixed order.

    Args:
        cells: of any data sets.
        benchmark: only this one.
    """
    every = known()
    tables: dict[tuple[str, str], dict[Entry, dict[str, list[Cell]]]] = defaultdict(dict)
    for cell in cells:
        for name, column in columns(cell, every).items():
            if benchmark in (None, name):
                rows = tables[name, cell.entry.protocol]
                rows.setdefault(cell.entry, defaultdict(list))[column].append(cell)
    return [
        _summary(every[name], protocol, tables[name, protocol]) for name, protocol in sorted(tables)
    ]


def columns(cell: Cell, every: Mapping[str, Benchmark]) -> dict[str, str]:
    """The benchmarks that a cell is part of, and its column in each.

    That is the one that its data set says it belongs to, where that one names it; and all that name
    it word for word, such as a user's own choice of data sets.
    """
    found = {n: b.members[cell.data] for n, b in every.items() if cell.data in b.members}
    own = every.get(cell.benchmark)
    if own is not None and (column := own.member(cell.data)) is not None:
        found[cell.benchmark] = column
    return found


def strangers(cells: Iterable[Cell]) -> list[str]:
    """Data sets that claim a benchmark that does not name them, or that there is not."""
    every = known()
    claimed = sorted({(c.data, c.benchmark) for c in cells if c.benchmark not in columns(c, every)})
    told = []
    for data, benchmark in claimed:
        if benchmark in every:
            told.append(f"{data}: {benchmark} has no such data set")
        elif benchmark != CUSTOM:
            close = nearest(benchmark, every)
            meant = f"; did you mean {close}?" if close else ""
            what = f"no file {FOLDER}/{benchmark}.yaml says what {benchmark} is{meant}"
            told.append(f"{data}: {what} (--config-dir names the folder that holds it)")
    return told


def best_first(cells: Iterable[Cell]) -> list[Cell]:
    """Cells with those of one data set together, best headline metric first."""
    every = known()

    def place(cell: Cell) -> int:
        column = columns(cell, every).get(cell.benchmark)
        return every[cell.benchmark].datasets.index(column) if column else -1

    return sorted(
        cells,
        key=lambda cell: (
            cell.benchmark,
            place(cell),
            cell.data,
            _best_first(cell.gain),
            cell.entry,
            cell.config_hash,
        ),
    )


def what_is_shown(protocol: str, cells: Iterable[Cell]) -> str:
    """What the numbers of a table of ``cells`` under ``protocol`` are, in a few words."""
    split = _SPLIT_WORD[PROTOCOL_SPLIT[protocol]]
    headlines = {cell.headline for cell in cells if cell.headline}
    units = {METRICS.get(headline).unit for headline in headlines}
    what = title(headlines.pop()) if len(headlines) == 1 else "headline metric"
    unit = f", {units.pop()}" if len(units) == 1 else ""
    return f"protocol {protocol}: {what} on {split} images{unit}, last epoch, mean ± std (n seeds)"


def summary_csv_rows(summary: Summary, scores: Scores) -> list[Row]:
    """A summary for a file: all that tells rows apart, and one column per data set."""
    return [
        {
            "protocol": summary.protocol,
            "split": PROTOCOL_SPLIT[summary.protocol],
            "variant": row.name,
            "chosen": row.chosen,
            "method": row.entry.method,
            "options": row.entry.options,
            "backbone": row.entry.backbone,
            "weights": row.entry.weights,
            "weights_fingerprint": row.entry.weights_fingerprint,
            "normalization": row.entry.normalization,
            "precision": row.entry.precision,
            "parameters_method": span(row.parameters),
            **{name: exact(mean) for name, mean in {**row.means(), **row.group_means()}.items()},
            "complete": row.complete,
            **{
                name: " ".join(row.lines(name)) if name in row.configurations else ""
                for name in summary.benchmark.datasets
            },
            **_score_csv_columns(scores, row.scored(scores)),
            **card_csv_columns(row.card),
            "departs": departs,
            "labels": ", ".join(row.labels),
        }
        for row, departs in zip(
            summary.rows, departures([row.cells for row in summary.rows]).rows, strict=True
        )
    ]


def summary_rows(summary: Summary, scores: Scores) -> list[Row]:
    """A summary for a reader: two decimals, short names, one column per data set."""
    with_cards = any(row.card for row in summary.rows)
    named = _distinctly_named((row.name, row.entry.options, row.entry) for row in summary.rows)
    departing = [short_keys(row) for row in departures([row.cells for row in summary.rows]).rows]
    return [
        {
            **_entry_columns(row.entry, row.entry.options, row.name if named else ""),
            "chosen": row.chosen,
            "departs": departs,
            "params": quantity(_largest(row.parameters)),
            **{name: percent(mean) for name, mean in {**row.means(), **row.group_means()}.items()},
            "complete": row.complete,
            **_score_columns(row.scored(scores), with_cards),
            **(card_columns(row.card) if with_cards else {}),
            **{name: " ".join(row.lines(name)) for name in summary.benchmark.datasets},
            "notes": ", ".join(row.labels),
        }
        for row, departs in zip(summary.rows, departing, strict=True)
    ]


def dataset_csv_rows(cells: Sequence[Cell], scores: Scores) -> list[Row]:
    """Every cell with all that is known of it, for a file; metrics are percentages."""
    metrics = _metrics(cells)
    return [
        {
            "benchmark": cell.benchmark,
            "data": cell.data,
            "protocol": cell.entry.protocol,
            "split": PROTOCOL_SPLIT[cell.entry.protocol],
            "variant": cell.name,
            "chosen": cell.chosen,
            "method": cell.entry.method,
            "options": cell.options,
            "backbone": cell.entry.backbone,
            "departs": departs,
            "head": cell.head,
            "weights": cell.entry.weights,
            "weights_fingerprint": cell.entry.weights_fingerprint,
            "normalization": cell.entry.normalization,
            "precision": cell.entry.precision,
            "config_hash": cell.config_hash,
            "n": str(len(cell.finished)),
            "seeds": " ".join(map(str, cell.seeds)),
            "metric": cell.headline or "",
            "metric_mean": exact(cell.score.mean),
            "metric_std": exact(cell.score.std),
            "metric_min": exact(cell.score.low),
            "metric_max": exact(cell.score.high),
            **{f"{name}_mean": exact(cell.value(name)) for name in metrics},
            "parameters_method": span(_parameters(cell)),
            "parameters_head": span(_head_parameters(cell)),
            "parameters_total": span(_all_parameters(cell)),
            "stored_delta_bytes": span(_delta_bytes(cell)),
            "train_seconds_mean": exact(_train_seconds(cell)),
            "train_images_per_second_mean": exact(_throughput(cell)),
            "peak_memory_bytes_max": exact(_peak_memory(cell)),
            "device": ", ".join(sorted(set(cell.each(lambda run: run.where.device)))),
            **_score_csv_columns(scores, _scored(cell, scores)),
            **card_csv_columns(cell.card),
            "data_fingerprint": ", ".join(cell.data_versions),
            "image_format": ", ".join(cell.image_formats),
            "failed": str(len(cell.unfinished)),
            "failed_reasons": "; ".join(_reasons(cell)),
            "labels": ", ".join(cell.labels),
        }
        for cell, departs in zip(cells, departures([[c] for c in cells]).rows, strict=True)
    ]


def dataset_rows(cells: Sequence[Cell], scores: Scores) -> list[Row]:
    """Every cell for a reader: rounded, short names, units in the column names."""
    headlines = {cell.headline for cell in cells if cell.headline}
    score = heading(next(iter(headlines))) if len(headlines) == 1 else "value"
    others = {name for headline in headlines for name in beside(headline)}
    shown_beside = [name for name in _metrics(cells) if name in others]
    with_cards = any(cell.card for cell in cells)
    named = _distinctly_named((cell.name, cell.options, cell.entry) for cell in cells)
    departing = [short_keys(row) for row in departures([[cell] for cell in cells]).rows]
    alike = Counter(
        (cell.benchmark, cell.data, cell.entry, departs)
        for cell, departs in zip(cells, departing, strict=True)
    )
    versions: dict[tuple[str, str], set[str]] = defaultdict(set)
    formats: dict[tuple[str, str], set[str]] = defaultdict(set)
    for cell in cells:
        versions[cell.benchmark, cell.data].update(cell.data_versions)
        formats[cell.benchmark, cell.data].update(cell.image_formats)
    return [
        {
            "data": cell.data,
            "data version": " ".join(map(_short, cell.data_versions))
            if len(versions[cell.benchmark, cell.data]) > 1
            else "",
            "pictures": ", ".join(cell.image_formats)
            if len(formats[cell.benchmark, cell.data]) > 1
            else "",
            **_entry_columns(cell.entry, cell.options, cell.name if named else ""),
            "chosen": cell.chosen,
            "departs": departs,
            "head": cell.head,
            "config": cell.config_hash[:_SHORT_HASH]
            if alike[cell.benchmark, cell.data, cell.entry, departs] > 1
            else "",
            "metric": heading(cell.headline) if cell.headline and len(headlines) > 1 else "",
            score: "diverged" if cell.diverged else percent(cell.score.mean),
            "± std": percent(cell.score.std),
            "n": str(len(cell.finished)),
            **{heading(name): percent(cell.value(name)) for name in shown_beside},
            "params": quantity(_largest(_parameters(cell))),
            "head params": quantity(_largest(_head_parameters(cell))),
            "delta KiB": quantity(_largest(_delta_bytes(cell)), KIB),
            "train s": quantity(_train_seconds(cell)),
            "images/s": quantity(_throughput(cell)),
            "peak MiB": quantity(_peak_memory(cell), MIB),
            **_score_columns(_scored(cell, scores), with_cards),
            **(card_columns(cell.card) if with_cards else {}),
            "not finished": ", ".join(_statuses(cell)),
            "notes": ", ".join(cell.labels),
        }
        for cell, departs in zip(cells, departing, strict=True)
    ]


def _summary(
    benchmark: Benchmark, protocol: str, entries: dict[Entry, dict[str, list[Cell]]]
) -> Summary:
    rows = [
        SummaryRow(entry, benchmark, {name: tuple(cells) for name, cells in datasets.items()})
        for entry, datasets in entries.items()
    ]
    rows.sort(key=lambda row: (_best_first(row.mean(benchmark.datasets)), row.entry))
    return Summary(benchmark, protocol, tuple(rows))


def _best_first(value: float | None) -> tuple[bool, float]:
    """Sorts large values first and None last. What is printed equal counts as equal."""
    return (True, 0.0) if value is None else (False, -float(percent(value)))


def _scored(cell: Cell, scores: Scores) -> Scored:
    """The scores are defined for percentages of which more is better."""
    metric = METRICS.get(cell.headline) if cell.headline else None
    is_share = metric is not None and metric.higher_is_better and metric.unit == "%"
    mean = cell.score.mean if is_share else None
    return scores.of(mean, _mean(_parameters(cell)), cell.card)


def _score_csv_columns(scores: Scores, scored: Scored | None) -> Row:
    return {
        "ppt": exact(scored and scored.ppt),
        "pscp_style": exact(scored and scored.pscp),
        "score_constants": scores.constants,
    }


def _score_columns(scored: Scored | None, with_cards: bool) -> Row:
    """For a reader; nothing where there is no mean to score, or no card in the whole table."""
    if scored is None:
        return {}
    ppt = {"PPT": fraction(scored.ppt)}
    return ppt | {"PSCP style": fraction(scored.pscp)} if with_cards else ppt


def _distinctly_named(rows: Iterable[tuple[str, str, Entry]]) -> bool:
    """Whether every row has a name, and no name stands for different options or variants.

    Args:
        rows: of each its name, its options as text, and its entry.
    """
    meant: dict[str, set[tuple[str, str, str]]] = defaultdict(set)
    for name, options, entry in rows:
        meant[name].add((entry.variant, entry.method, "" if entry.variant else options))
    return "" not in meant and all(len(one) == 1 for one in meant.values())


def _entry_columns(entry: Entry, options: str, name: str) -> Row:
    """What a row is: by the name of its variant if it has one, else by method and options."""
    return {
        "variant": name or entry.variant,
        "method": "" if name.startswith(entry.method) else entry.method,
        "options": "" if name else short_options(options),
        "backbone": entry.backbone,
        "weights": f"{entry.weights} {_short(entry.weights_fingerprint)}".strip(),
        "normalization": entry.normalization,
        "precision": entry.precision,
    }


def _short(fingerprint: str) -> str:
    """The first digits of a hash that may be written ``algorithm:digits``."""
    return fingerprint.rpartition(":")[2][:_SHORT_HASH]


def _statuses(cell: Cell) -> list[str]:
    counts = Counter(run.outcome for run in cell.unfinished)
    return [f"{counts[status]} {status}" for status in sorted(counts)]


def _reasons(cell: Cell) -> list[str]:
    counts = Counter(
        f"{run.outcome}: {' '.join((run.error or '').split())}" for run in cell.unfinished
    )
    return [f"{counts[reason]} x {reason}" for reason in sorted(counts)]


def _metrics(cells: Iterable[Cell]) -> list[str]:
    """Every metric that some run has, in the order of their list."""
    found = {name for cell in cells for metrics in cell.metrics for name in metrics.values}
    return [name for name in METRICS.names() if name in found]


def _parameters(cell: Cell) -> list[int]:
    return [counts.method for counts in cell.each(lambda run: run.happened.parameters)]


def _head_parameters(cell: Cell) -> list[int]:
    return [counts.head for counts in cell.each(lambda run: run.happened.parameters)]


def _all_parameters(cell: Cell) -> list[int]:
    return [counts.total for counts in cell.each(lambda run: run.happened.parameters)]


def _delta_bytes(cell: Cell) -> list[int]:
    return cell.each(lambda run: run.happened.stored_bytes.delta)


def _train_seconds(cell: Cell) -> float | None:
    return _mean(cell.each(lambda run: run.happened.seconds.train))


def _throughput(cell: Cell) -> float | None:
    return _mean(cell.each(lambda run: run.happened.train_images_per_second))


def _peak_memory(cell: Cell) -> int | None:
    return _largest(cell.each(lambda run: run.happened.peak_memory_bytes))


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean; None if there is no value or one of them is None."""
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None


def _largest(values: Sequence[int]) -> int | None:
    return max(values, default=None)
