"""Numbers that others published, as one long frame: ``results/published``, or a user's own table.

Nothing here was measured with this package. Which of our methods a published row corresponds to,
where its numbers come from and on what evidence is in ``rows.csv``, beside the tables.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import pandas as pd

from vpeft_bench.errors import ConfigError, Problem, nearest
from vpeft_bench.statistics.reading import numbers_of, read_csv

PUBLISHED = "published"
"""What to ask for: the tables of ``results/published``."""
REQUIRED, OPTIONAL = ("method", "data", "value"), ("backbone", "source", "provenance")
"""Columns of a user's own table."""
FIX = f"--compare FILE.csv takes columns {','.join(REQUIRED)}, and may have {','.join(OPTIONAL)}"
EVERY_ROW = "*"


class Provenance(StrEnum):
    """Where a published number comes from."""

    QUOTED = "quoted"
    """Its source took it from another paper."""
    RE_RUN = "re-run"
    """Its source ran the official code of the method, as its authors do."""
    RE_IMPLEMENTED = "re-implemented"
    """Its source ran an implementation of its own."""
    UNKNOWN = "unknown"
    """No source says it."""


@dataclass(frozen=True)
class Numbers:
    """Published numbers.

    Attributes:
        values: a row per number: ``source`` and ``table`` it stands in, the ``row`` as printed,
            ``method`` of ours, ``data``, ``metric`` (empty: that which
            runs on the data set are ranked by), ``head``, ``backbone`` and ``weights`` (empty: not
            said), ``value``; ``variant`` with the published settings, else the ``options`` that are
            known; ``provenance`` and its ``evidence``.
        left_out: ``source``, ``table``, ``row`` and ``reason`` of rows that have no number above.
        protocols: by source how its numbers were made.
    """

    values: pd.DataFrame
    left_out: pd.DataFrame
    protocols: Mapping[str, str]


def read(asked: Iterable[str]) -> Numbers:
    """The numbers of ``published``, of CSV files, or of several of them.

    Raises:
        ConfigError: a file is not there, or is no such table.
    """
    found = [_published() if what == PUBLISHED else _own(Path(what)) for what in asked]
    return Numbers(
        pd.concat([one.values for one in found], ignore_index=True),
        pd.concat([one.left_out for one in found], ignore_index=True),
        {source: text for one in found for source, text in one.protocols.items()},
    )


_VALUES = [
    *("source", "table", "row", "method", "data", "metric", "head", "backbone"),
    *("weights", "value", "variant", "options", "provenance", "evidence"),
]
_LEFT_OUT = ["source", "table", "row", "reason"]


# ---- results/published ---------------------------------------------------------------------------


def folder() -> Path:
    """``results/published`` of a checkout, else the copy in the package."""
    package = Path(__file__).resolve().parents[1]
    checkout = package.parent / "results" / PUBLISHED
    return checkout if checkout.is_dir() else package / PUBLISHED


def lines(name: str) -> list[dict[str, str]]:
    """The lines of one of the tables, as printed."""
    with (folder() / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _published() -> Numbers:
    columns: dict[str, list[dict[str, str]]] = {}
    for named in lines("columns"):
        columns.setdefault(named["table"], []).append(named)
    options = {
        (line["table"], line["row"]): "" if line["options"] == "-" else line["options"]
        for line in lines("parameters")
    }
    sources = {line["source"]: line for line in lines("sources")}
    values, left_out = [], []
    for row in lines("rows"):
        source = f"{row['source']}, {sources[row['source']]['title']}"
        told = {"source": source, "table": row["table"], "row": row["row"]}
        if row["not_compared"]:
            name = "every row" if row["row"] == EVERY_ROW else row["row"]
            left_out.append({**told, "row": name, "reason": row["not_compared"]})
            continue
        known = row["options"] or options.get((columns[row["table"]][0]["parameters"], row["row"]))
        done = set()
        for column, value, note in _cells(row, columns[row["table"]]):
            if column["column"] in done:  # another experiment, which the note names
                left_out.append({**told, "reason": f"a second value on {column['data']}: {note}"})
                continue
            done.add(column["column"])
            values.append(
                {
                    **told,
                    "method": row["method"],
                    **{name: column[name] for name in ("data", "metric", "head")},
                    "backbone": row["backbone"],
                    "weights": "pretrained",
                    "value": float(value),
                    "variant": row["variant"],
                    "options": known or "",
                    "provenance": row["provenance"],
                    "evidence": row["evidence"],
                }
            )
    return Numbers(
        pd.DataFrame(values, columns=_VALUES),
        pd.DataFrame(left_out, columns=_LEFT_OUT),
        {f"{name}, {of['title']}": of["protocol"] for name, of in sources.items()},
    )


def _cells(
    row: Mapping[str, str], columns: Iterable[Mapping[str, str]]
) -> Iterator[tuple[Mapping[str, str], str, str]]:
    """The cells of a row: column, value as printed, and what the source notes on it."""
    for line in lines(row["table"]):
        if line["method"] != row["row"]:
            continue
        if "dataset" not in line:
            yield from ((column, line[column["column"]], "") for column in columns)
        elif line["paper"] == row["paper"]:
            place = next(column for column in columns if column["column"] == line["dataset"])
            yield place, line["acc"], line["note"]


# ---- a user's own table --------------------------------------------------------------------------


def _own(path: Path) -> Numbers:
    if not path.exists() and (close := nearest(str(path), [PUBLISHED])):
        what = "is no file and no name of published tables"
        fix = f"did you mean --compare {close}\n{FIX}"
        raise ConfigError([Problem(f"--compare {path}", what, fix)])
    frame = read_csv(path)
    if missing := [name for name in REQUIRED if name not in frame]:
        what = f"has no column {' and no column '.join(missing)}"
        have = ", ".join(map(str, frame.columns))
        raise ConfigError([Problem(str(path), what, f"{FIX}\nthere are: {have}")])
    values = pd.DataFrame("", frame.index, _VALUES, dtype=object)
    given = [name for name in (*REQUIRED, *OPTIONAL) if name in frame]
    values[given] = frame[given]
    values["value"] = numbers_of(frame, "value")
    values["row"], values["table"] = values["method"], path.name
    values["source"] = values["source"].where(values["source"] != "", path.name)
    values["provenance"] = values["provenance"].where(values["provenance"] != "", "unknown")
    if problems := [*_wrong_words(path, values), *_repeated(path, values)]:
        raise ConfigError(problems)
    return Numbers(values[values["value"].notna()], pd.DataFrame(columns=_LEFT_OUT), {})


def _wrong_words(path: Path, values: pd.DataFrame) -> Iterator[Problem]:
    words = ", ".join(Provenance)
    for line, word in values["provenance"].items():
        if word not in list(Provenance):
            yield Problem(f"{path}, line {line}", f"provenance is {word!r}", f"one of: {words}")


def _repeated(path: Path, values: pd.DataFrame) -> Iterator[Problem]:
    keys = ["source", "method", "data", "backbone"]
    for line, row in values[values.duplicated(keys)].iterrows():
        what = f"{row['method']} on {row['data']} has a value already"
        yield Problem(f"{path}, line {line}", what, "tell them apart by source or backbone")
