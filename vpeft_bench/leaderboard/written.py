"""Tables as files: CSV, Markdown, LaTeX, and all of them as JSON with its schema."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow.csv import CSVWriter, write_csv

from vpeft_bench.files import replacing, write_atomically
from vpeft_bench.formats import each, harmless, markdown, markdown_of, printable
from vpeft_bench.leaderboard.cells import in_order
from vpeft_bench.leaderboard.column import Column, In
from vpeft_bench.leaderboard.columns import cell_columns, cost_columns, run_columns, summary_columns
from vpeft_bench.leaderboard.compare import Comparison
from vpeft_bench.leaderboard.compared_columns import compared_columns, left_out_columns
from vpeft_bench.leaderboard.summaries import Summary
from vpeft_bench.leaderboard.tables import Table, run_table

SCHEMA_VERSION = 2
JSON_NAME, SCHEMA_NAME = "leaderboard.json", "leaderboard.schema.json"
_LATEX = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        '"': r"\textquotedbl{}",
        "–": "--",
        "±": r"$\pm$",
        "×": r"$\times$",
    }
)


def write_table(table: Table, notes: Sequence[str], out: Path) -> list[Path]:
    """Write a table as CSV, exact, and as Markdown and LaTeX, for readers; the paths.

    Raises:
        OSError: a file cannot be written.
    """
    texts = {
        ".csv": to_csv(table),
        ".md": to_markdown(table, notes).encode(),
        ".tex": to_latex(table, notes).encode(),
    }
    for suffix, text in texts.items():
        write_atomically(out / f"{table.name}{suffix}", text)
    return [out / f"{table.name}{suffix}" for suffix in texts]


def to_csv(table: Table) -> bytes:
    """Everything that is known: numbers as numbers, nothing where there is none.

    A text that a spreadsheet would take for a formula gets an apostrophe before it, which
    spreadsheets hide.
    """
    out = io.BytesIO()
    write_csv(_for_csv(table), out)
    return out.getvalue()


def write_seeds(runs: pd.DataFrame, path: Path) -> None:
    """Write every run as a row of its own, some at a time: there may be a million.

    Raises:
        OSError: the file cannot be written.
    """
    parts = (_for_csv(run_table(part)) for part in in_order(runs))
    first = next(parts)
    with replacing(path) as temporary, CSVWriter(temporary, first.schema) as file:
        for part in itertools.chain([first], parts):
            file.write_table(part)


def _for_csv(table: Table) -> pa.Table:
    values = _exact(table)
    columns = [
        _harmless(column) if pa.types.is_string(column.type) else column
        for column in values.itercolumns()
    ]
    return pa.table(columns, [harmless(name) for name in values.column_names])


def _exact(table: Table) -> pa.Table:
    columns = table.of(In.FILES)
    return pa.table(
        [column.exact(table.rows) for column in columns], [column.key for column in columns]
    )


def _harmless(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Texts that have no effect where they are shown; nearly all are as they were."""
    odd = pc.match_substring_regex(texts, _ODD)
    if not pc.any(odd).as_py():
        return texts
    changed = [harmless(text.as_py()) for text in texts.filter(odd)]
    return pc.replace_with_mask(texts.combine_chunks(), odd.combine_chunks(), pa.array(changed))


_ODD = r"^[=+\-@]|[^ -~]"
"""What begins as a formula, or holds anything but printable ASCII."""


def to_markdown(table: Table, notes: Sequence[str]) -> str:
    """The table for a reader: rounded, units in the names of the columns."""
    heading = [f"# {markdown(table.title)}", *map(markdown, notes)]
    return "\n\n".join([*heading, markdown_of(table.for_readers())])


# ---- LaTeX ---------------------------------------------------------------------------------------


def to_latex(table: Table, notes: Sequence[str]) -> str:
    """The table for a paper: booktabs, the best of each column bold.

    A score stands as mean ± deviation where it has one. The packages that it needs are named in a
    comment at its head.
    """
    columns = {column.title: each(latex, column.texts(table.rows)) for column in table.of(In.PAGES)}
    columns = {name: texts for name, texts in columns.items() if any(texts)}
    for title, gains in table.gains.items():
        columns[title] = _best_bold(
            columns[title], gains, table.rows["data"] if table.by_data else None
        )
    kinds = {column.title: column for column in table.of(In.PAGES)}
    align = "".join("l" if kinds[name].left else "r" for name in columns)
    lines = [" & ".join(map(latex, columns)), *map(" & ".join, zip(*columns.values(), strict=True))]
    head, *body = (rf"{line} \\" for line in lines)
    return "\n".join(
        [
            *(f"% {printable(note)}" for note in [table.title, *notes]),
            r"% \usepackage[T1]{fontenc}, \usepackage{booktabs}",
            rf"\begin{{tabular}}{{{align}}}",
            r"\toprule",
            head,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def latex(text: str) -> str:
    """``text`` as LaTeX shows it word for word."""
    return printable(text).translate(_LATEX)


def _best_bold(texts: Sequence[str], gains: pd.Series, within: pd.Series | None) -> list[str]:
    """The best of a column bold, or of each data set's rows; what is printed equal is as good."""
    shown = gains.round(2)
    best = shown.max() if within is None else shown.groupby(within, observed=True).transform("max")
    marks = shown.notna() & (shown == best)
    return [
        rf"\textbf{{{text}}}" if mark else text for text, mark in zip(texts, marks, strict=True)
    ]


# ---- JSON ----------------------------------------------------------------------------------------


def write_json(
    datasets: Sequence[Table],
    summaries: Sequence[Summary],
    costs: Table | None,
    notes: Sequence[str],
    out: Path,
    comparison: Comparison | None = None,
) -> list[Path]:
    """Write all tables as one JSON file with the values of the CSV files, and its schema."""
    content = {
        "$schema": SCHEMA_NAME,
        "schema_version": SCHEMA_VERSION,
        "made_by": f"vpeft-bench {version('vpeft-bench')}",
        "notes": list(notes),
        "datasets": [_json(table) for table in datasets],
        "summaries": [
            {"benchmark": one.benchmark.name, "protocol": one.protocol, **_json(one)}
            for one in summaries
        ],
        "costs": _json(costs) if costs is not None else None,
        "beside_published": _compared(comparison) if comparison is not None else None,
    }
    for name, value in ((JSON_NAME, content), (SCHEMA_NAME, schema())):
        text = msgspec.json.format(msgspec.json.encode(value), indent=1)
        write_atomically(out / name, text + b"\n")
    return [out / JSON_NAME, out / SCHEMA_NAME]


def _compared(comparison: Comparison) -> dict[str, Any]:
    """Ours beside published numbers, apart from all other tables."""
    tables = zip(comparison.tables, comparison.notes, strict=True)
    return {
        "cells": [{**_json(table), "notes": notes} for table, notes in tables],
        "not_compared": _json(comparison.left_out),
    }


def _json(table: Table) -> dict[str, Any]:
    return {
        "title": table.title,
        "settings": table.settings,
        "rows": _exact(table).to_pylist(),
    }


def schema() -> dict[str, Any]:
    """The JSON schema (2020-12) of the file, from the list of columns."""

    def table(columns: Iterable[Column], more: Mapping[str, Any], **heads: Any) -> dict[str, Any]:
        fixed = {c.key: _type(c) for c in columns if In.FILES in c.where}
        row = {
            "type": "object",
            "properties": fixed,
            "required": list(fixed),
            "additionalProperties": more,
        }
        heads = {"title": _TEXT, "settings": _TEXT, **heads}
        return _object({**heads, "rows": {"type": "array", "items": row}})

    number = {"type": ["number", "null"]}
    texts = {"type": "array", "items": _TEXT}
    compared = {
        "cells": {"type": "array", "items": table(compared_columns(), {"not": {}}, notes=texts)},
        "not_compared": table(left_out_columns(), {"not": {}}),
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Leaderboard",
        **_object(
            {
                "$schema": _TEXT,
                "schema_version": {"const": SCHEMA_VERSION},
                "made_by": _TEXT,
                "notes": texts,
                "datasets": {"type": "array", "items": table(cell_columns([], [], True), number)},
                "summaries": {
                    "type": "array",
                    "items": table(
                        summary_columns([], [], True), number, benchmark=_TEXT, protocol=_TEXT
                    ),
                },
                "costs": {"anyOf": [{"type": "null"}, table(cost_columns(), {"not": {}})]},
                "beside_published": {"anyOf": [{"type": "null"}, _object(compared)]},
            }
        ),
    }


_TEXT = {"type": "string"}


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def _type(column: Column) -> dict[str, Any]:
    unit = f"; unit: {column.unit}" if column.unit else ""
    return {"type": [column.kind.value, "null"], "description": f"{column.what}{unit}"}


# ---- the docs ------------------------------------------------------------------------------------


def column_docs() -> str:
    """The page on columns: every column of every file."""
    tables = {
        "`datasets_<protocol>`: one row per configuration and data set": cell_columns(
            ["<metric>"], [], True
        ),
        "`<benchmark>_<protocol>_summary`: one row per method and setting": summary_columns(
            ["mean over ..."], ["<data set>"], True
        ),
        "`seeds`, `runs.parquet`: one row per run": run_columns(["<metric>"]),
        "`costs`: one row per cost card": cost_columns(),
        "`compare_<benchmark>`: one row per cell of ours and published number": compared_columns(),
        "`not_compared`: one row per row that is beside nothing": left_out_columns(),
    }
    parts = ["# Columns of a leaderboard's files", "", _HEAD, ""]
    for title, columns in tables.items():
        parts += [f"## {title}", "", "| column | unit | in print | content |", "|---|---|---|---|"]
        parts += [
            f"| `{c.key}` | {c.unit} | {c.title} | {c.what} |"
            for c in columns
            if In.FILES in c.where
        ]
        parts.append("")
    return "\n".join(parts)


_HEAD = """
Written by `scripts/generate_docs.py` from `vpeft_bench/leaderboard/columns.py`, the one list
of columns. The terminal, CSV, Markdown, LaTeX and JSON are made from it. CSV and JSON have the
values as they are, empty or null where they are not known; the others have them
rounded. *metric's* is the unit of the metric, mostly percent.""".strip()
