"""The statistics as files: two CSVs, sentences as Markdown, everything as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vpeft_bench.files import write_atomically
from vpeft_bench.formats import Row, markdown, shortest, to_csv
from vpeft_bench.statistics.bootstrap import Interval
from vpeft_bench.statistics.report import Report
from vpeft_bench.statistics.statements import sections
from vpeft_bench.statistics.summary import Mean
from vpeft_bench.statistics.wording import mean_names, name_of, remarks

SCHEMA_VERSION = 1
_DIGITS = 10
"""Significant digits: what sums in another order would change is left out."""


def write_files(reports: Sequence[Report], source: Mapping[str, str], out: Path) -> list[Path]:
    """Write what was computed below ``out``; the paths.

    Args:
        reports: one for each table.
        source: what was read and how, by name; it is written along.
        out: a folder, made where it is not there.

    Raises:
        OSError: a file cannot be written.
    """
    texts = {
        "summary.csv": to_csv([row for report in reports for row in summary_rows(report)]),
        "statements.md": statements(reports, source),
        "statistics.json": to_json(reports, source),
    }
    if pairs := [row for report in reports for row in pair_rows(report)]:
        texts["pairs.csv"] = to_csv(pairs)
    for name, text in texts.items():
        write_atomically(out / name, text.encode())
    return [out / name for name in sorted(texts)]


def summary_rows(report: Report) -> list[Row]:
    """Each method of a table; numbers are numbers, what is not known is empty."""
    tiers = {name: number for number, t in enumerate(report.family.tiers, 1) for name in t.methods}
    return [
        {
            **_of_table(report),
            "method": row.method,
            "datasets": str(row.datasets),
            "datasets_of_table": str(len(report.table.datasets)),
            "missing": ", ".join(row.missing),
            "runs": str(row.runs),
            **_span_columns("runs_per_cell", row.per_cell),
            **_mean_columns("mean_datasets", row.mean),
            **_mean_columns("mean_groups", row.group_mean),
            "tier": str(tiers.get(row.method, "")),
            "average_rank": _number(row.average_rank),
            "place_low": _number(None if row.places is None else row.places.low),
            "place_high": _number(None if row.places is None else row.places.high),
            "win_rate": _number(row.win_rate),
            "borda": _number(row.borda),
            "probability_of_improvement": _number(row.improvement),
            "improvability": _number(row.improvability),
        }
        for row in report.summaries
    ]


def pair_rows(report: Report) -> list[Row]:
    """Each pair of a table; ``holm_...`` are the family's, all other columns the pair's own."""
    holm = report.family.holm
    return [
        {
            **_of_table(report),
            "first": pair.first,
            "second": pair.second,
            "common_datasets": str(pair.datasets),
            "runs_first": str(pair.runs[0]),
            "runs_second": str(pair.runs[1]),
            **_span_columns("runs_per_cell_first", pair.per_cell[0]),
            **_span_columns("runs_per_cell_second", pair.per_cell[1]),
            "mean_first": _number(pair.means and pair.means[0]),
            "mean_second": _number(pair.means and pair.means[1]),
            "difference": _number(pair.difference),
            **_interval_columns("over_datasets", pair.over_datasets),
            **_interval_columns("over_seeds", pair.over_seeds),
            "wins": str(pair.wins),
            "ties": str(pair.ties),
            "losses": str(pair.losses),
            "probability_of_improvement": _number(pair.improvement),
            "wilcoxon_p": _number(pair.wilcoxon),
            "bootstrap_p": _number(pair.bootstrap_p),
            "holm_wilcoxon_p": _number(None if holm is None else holm.corrected.get(pair.names)),
            "holm_pairs": "" if holm is None else str(holm.count),
        }
        for pair in sorted(report.pairs, key=lambda pair: (pair.first, pair.second))
    ]


def statements(reports: Sequence[Report], source: Mapping[str, str]) -> str:
    """Every sentence that a statistic supports, as Markdown."""
    parts = ["# What the table supports"]
    parts.append("\n".join(f"- {name}: {markdown(value)}" for name, value in source.items()))
    for report in reports:
        if name := name_of(report.table):
            parts.append(f"## {markdown(name)}")
        for section in sections(report):
            parts.append(f"{'###' if name else '##'} {markdown(section.title)}")
            if section.about:
                parts.append(markdown(section.about))
            parts.append("\n".join(f"- {markdown(sentence)}" for sentence in section.sentences))
    return "\n\n".join(parts) + "\n"


def to_json(reports: Sequence[Report], source: Mapping[str, str]) -> str:
    """All numbers, nested as the classes of this package are."""
    whole = {
        "schema_version": SCHEMA_VERSION,
        "source": dict(source),
        "tables": [_as_json(report) for report in reports],
    }
    return json.dumps(whole, indent=1, allow_nan=False) + "\n"


def _as_json(report: Report) -> dict[str, Any]:
    table, family, bootstrap = report.table, report.family, report.bootstrap
    plain, grouped = mean_names(table)
    names = {"mean": plain} | ({"group_mean": grouped} if table.group_names else {})
    whole = {
        "benchmark": table.benchmark,
        "settings": table.settings,
        "mixed": table.mixed,
        "lower_is_better": table.lower_is_better,
        "methods": table.methods,
        "datasets": table.datasets,
        "groups": dict(zip(table.datasets, table.groups, strict=False)),
        "remarks": remarks(report),
        "means": names,
        "bootstrap": {
            "resamples": bootstrap.resamples,
            "seed": bootstrap.seed,
            "confidence": bootstrap.confidence,
        },
        "summaries": [asdict(row) for row in report.summaries],
        "pairs": [asdict(pair) for pair in report.pairs],
        "family": {
            "methods": family.methods,
            "average_ranks": family.ranks,
            "datasets": family.datasets,
            "friedman": family.friedman and asdict(family.friedman),
            "nemenyi": family.nemenyi and asdict(family.nemenyi),
            "holm": family.holm
            and {
                "pairs": family.holm.count,
                "significant": family.holm.significant,
                "corrected": [
                    [*sorted(names), p] for names, p in sorted_pairs(family.holm.corrected)
                ],
            },
            "tiers": [asdict(tier) for tier in family.tiers],
        },
    }
    rounded: dict[str, Any] = _rounded(whole)
    return rounded


def sorted_pairs(corrected: Mapping[frozenset[str], float]) -> list[tuple[frozenset[str], float]]:
    """Pairs and their p, the smallest first."""
    return sorted(corrected.items(), key=lambda item: (item[1], sorted(item[0])))


def _of_table(report: Report) -> Row:
    table = report.table
    mixed = dict.fromkeys(table.mixed, "mixed")
    settings = " ".join(f"{name}={value}" for name, value in (table.settings | mixed).items())
    return {"benchmark": table.benchmark, "settings": settings}


def _mean_columns(name: str, mean: Mean) -> Row:
    return {
        name: _number(mean.value),
        **_interval_columns(f"{name}_over_datasets", mean.over_datasets),
        **_interval_columns(f"{name}_over_seeds", mean.over_seeds),
    }


def _interval_columns(name: str, interval: Interval | None) -> Row:
    return {
        f"{name}_low": _number(None if interval is None else interval.low),
        f"{name}_high": _number(None if interval is None else interval.high),
    }


def _span_columns(name: str, span: tuple[int, int]) -> Row:
    return {f"{name}_min": str(span[0]), f"{name}_max": str(span[1])}


def _number(value: float | None) -> str:
    return shortest(None if value is None else float(f"{value:.{_DIGITS}g}"))


def _rounded(value: Any) -> Any:
    """``value`` with all its floats rounded to the digits that count."""
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value
