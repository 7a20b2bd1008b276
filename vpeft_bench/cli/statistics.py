"""``python -m vpeft_bench statistics``: what a table of results supports, and what it does not."""

from __future__ import annotations

import argparse
from argparse import ArgumentTypeError
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from vpeft_bench.cli.arguments import typed_folder
from vpeft_bench.errors import ConfigError, Problem
from vpeft_bench.files import sha256, typed_path
from vpeft_bench.formats import printable
from vpeft_bench.statistics.bootstrap import Bootstrap
from vpeft_bench.statistics.output import write_files
from vpeft_bench.statistics.reading import (
    ROLES,
    Condition,
    kept,
    parse_condition,
    read_csv,
    with_roles,
)
from vpeft_bench.statistics.report import Report, analyse
from vpeft_bench.statistics.terminal import print_report
from vpeft_bench.terminal import to_output

MATRIX, CRITICAL_DIFFERENCE = "matrix", "cd"
_FEWEST_RESAMPLES, _MOST_RESAMPLES = 1_000, 1_000_000


def main(arguments: Sequence[str], own: Path | None = None) -> int:
    """Print the statistics of a CSV file, and write them where ``--out`` names a folder.

    Args:
        arguments: what follows the command's name.
        own: a further folder of configs (``--config-dir``); nothing here reads configs.

    Raises:
        ConfigError: the table does not say what the statistics need, or cannot mean what it says.
    """
    options = _parser().parse_args(arguments)
    _require_drawable(options.figures, options.out)
    columns = {role: name for role in ROLES if (name := getattr(options, f"{role}_column"))}
    frame, unused = with_roles(kept(read_csv(options.table), options.where), columns)
    reports = analyse(
        frame,
        Bootstrap(options.resamples, options.seed),
        lower_is_better=options.lower_is_better,
        mix=options.mix,
        unlike_scales=options.unlike_scales,
    )
    console = to_output()
    for report in reports:
        print_report(console, report)
    if unused:
        print(f"columns not used: {printable(', '.join(unused))}")
    if len(reports) > 1 and all(len(report.table.methods) == 1 for report in reports):
        print("every table has one method: --mix ranks rows of unlike settings together")
    if options.out is not None:
        written = write_files(reports, _source(options, columns), options.out)
        written += _draw(reports, options.figures, options.out)
        print("\n  ".join(["written:", *(printable(str(path)) for path in written)]))
    return 0


def _require_drawable(figures: Sequence[str], out: Path | None) -> None:
    where = f"--figures {','.join(figures)}"
    if figures and out is None:
        raise ConfigError([Problem(where, "needs a folder to draw into", "add --out DIR")])
    if CRITICAL_DIFFERENCE in figures and find_spec("scikit_posthocs") is None:
        fix = "pip install 'vpeft-bench[posthocs]'"
        raise ConfigError([Problem(where, "is drawn by scikit-posthocs, which is missing", fix)])


def _draw(reports: Sequence[Report], figures: Sequence[str], out: Path) -> list[Path]:
    from vpeft_bench.statistics import figures as draw  # matplotlib: only where something is drawn

    written = draw.matrices(reports, out)
    if CRITICAL_DIFFERENCE in figures:
        written += draw.critical_differences(reports, out)
    return written


def _source(options: argparse.Namespace, columns: Mapping[str, str]) -> dict[str, str]:
    """What was read, and all that was typed to choose from it."""
    typed = [f"--{role}-column {name}" for role, name in columns.items()]
    typed += [f"--where {condition.text}" for condition in options.where]
    typed += [
        f"--{name.replace('_', '-')}"
        for name in ("lower_is_better", "mix", "unlike_scales")
        if getattr(options, name)
    ]
    return {
        "table": options.table.name,
        "content": sha256(options.table),
        "options": " ".join(typed) or "none",
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vpeft_bench statistics",
        description="Read a long table, one row per run with the columns method, data, seed and "
        "value, and say what it supports: means with intervals, ranks, tiers, every pair of "
        "methods, tests over all. benchmark, group and settings are columns it may have, too.",
    )
    parser.add_argument("table", type=typed_path, metavar="TABLE.csv", help="the long table")
    parser.add_argument(
        "--out",
        type=typed_folder,
        metavar="DIR",
        help="write summary.csv, pairs.csv, statements.md, statistics.json and figures here",
    )
    parser.add_argument(
        "--where",
        type=_typed_condition,
        action="append",
        default=[],
        metavar="COLUMN=VALUE[,VALUE]",
        help="only rows with one of these values; COLUMN!=VALUE[,VALUE] leaves them out; "
        "may be given several times",
    )
    parser.add_argument(
        "--lower-is-better", action="store_true", help="of errors, losses, times ..."
    )
    parser.add_argument(
        "--mix",
        action="store_true",
        help="rank rows of unlike settings (backbone, protocol, variant, budget ...) together",
    )
    parser.add_argument(
        "--unlike-scales",
        action="store_true",
        help="values from 0 to 1 among larger ones are meant",
    )
    parser.add_argument(
        "--resamples",
        type=_typed_resamples,
        default=Bootstrap.resamples,
        metavar="N",
        help=f"of every bootstrap (default: {Bootstrap.resamples})",
    )
    parser.add_argument(
        "--seed",
        type=_typed_seed,
        default=Bootstrap.seed,
        metavar="N",
        help=f"of the resamples (default: {Bootstrap.seed})",
    )
    parser.add_argument(
        "--figures",
        type=_typed_figures,
        default=(),
        metavar="NAME[,NAME]",
        help=f"what to draw into DIR: {MATRIX} (always drawn), "
        f"{CRITICAL_DIFFERENCE} (critical-difference diagram)",
    )
    naming = parser.add_argument_group("columns of the table that have other names")
    for role in ROLES:
        naming.add_argument(f"--{role}-column", metavar="NAME")
    return parser


def _typed_condition(text: str) -> Condition:
    try:
        return parse_condition(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from error


def _typed_figures(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in (MATRIX, CRITICAL_DIFFERENCE):
            valid = f"{MATRIX}, {CRITICAL_DIFFERENCE}"
            raise ArgumentTypeError(f"there is no figure {name}; valid: {valid}")
    return names


def _typed_resamples(text: str) -> int:
    if not (text.isdecimal() and _FEWEST_RESAMPLES <= int(text) <= _MOST_RESAMPLES):
        span = f"{_FEWEST_RESAMPLES} to {_MOST_RESAMPLES}"
        raise ArgumentTypeError(f"{text} is no whole number from {span}")
    return int(text)


def _typed_seed(text: str) -> int:
    if not text.isdecimal():
        raise ArgumentTypeError(f"{text} is no whole number from 0")
    return int(text)
