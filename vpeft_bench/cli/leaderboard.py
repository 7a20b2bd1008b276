"""``python -m vpeft_bench leaderboard``: run records and cost cards in, tables out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from vpeft_bench.cli.arguments import typed_folder
from vpeft_bench.config.benchmarks import Benchmark, known
from vpeft_bench.config.choices import use_folders
from vpeft_bench.errors import Problem
from vpeft_bench.files import typed_path, write_atomically
from vpeft_bench.formats import (
    Row,
    markdown,
    printable,
    printable_lines,
    shortest,
    to_csv,
    to_markdown,
)
from vpeft_bench.leaderboard.cards import Joined, Measurement, chosen, collect_cards, join
from vpeft_bench.leaderboard.cells import PROTOCOL_SPLIT, Cell, collect
from vpeft_bench.leaderboard.costs import cost_csv_rows, cost_rows
from vpeft_bench.leaderboard.departures import departures
from vpeft_bench.leaderboard.scores import Scores
from vpeft_bench.leaderboard.tables import (
    best_first,
    columns,
    dataset_csv_rows,
    dataset_rows,
    strangers,
    summaries,
    summary_csv_rows,
    summary_rows,
    what_is_shown,
)
from vpeft_bench.leaderboard.terminal import (
    print_costs,
    print_datasets,
    print_notes,
    print_summary,
)
from vpeft_bench.records.cost_card import find as find_cards
from vpeft_bench.records.run_record import find
from vpeft_bench.terminal import to_output

DEFAULT_RECORDS = Path("results/runs")
DEFAULT_CARDS = Path("results/cost")
DEFAULT_OUT = Path("results/leaderboard")

_DEFAULTS = Scores()
_SEVERAL_SETTINGS = "the cost cards that fit differ in more than a row shows"


def main(argv: Sequence[str], own: Path | None = None) -> int:
    """Read run records and cost cards, print their tables and write them as CSV and Markdown.

    Args:
        argv: what follows the command's name.
        own: a further folder of configs (``--config-dir``), for its benchmarks.

    Returns:
        the exit status: 0, or 1 if there is nothing to show or nothing that was asked for, or
        under ``--strict`` if anything was set aside.
    """
    options, scores = _parsed(argv)
    use_folders([own] if own else [])
    every = known()
    found, found_cards = find(options.records), find_cards(options.cards)
    collection, cards = collect(found.records), collect_cards(found_cards.cards)
    problems = [*found.problems, *collection.left_out, *found_cards.problems, *cards.left_out]
    wanted = [cell for cell in collection.cells if _wanted(cell, options, every)]
    candidates = chosen(cards.measurements, options.device, options.batch)
    if not wanted and (collection.cells or not cards.measurements):
        print(_nothing_to_show(options, collection.cells, problems), file=sys.stderr)
        return 1
    if not candidates and (options.device is not None or options.batch is not None):
        have = sorted({one.setting for one in cards.measurements})
        print("no cost card was measured on that device with that batch size", file=sys.stderr)
        print(_listing("there are:", have), end="", file=sys.stderr)
        return 1

    console = to_output()
    joined = join(wanted, candidates)
    written = _cost_tables(console, cards.measurements, options.out)
    written += _metric_tables(console, joined, scores, options)

    shown = sum(len(cell.records) for cell in wanted)
    filtered = sum(len(cell.records) for cell in collection.cells) - shown
    print(f"records: {len(found.records)} read, {shown} shown")
    if found_cards.cards:
        print(f"cost cards: {len(found_cards.cards)} read, {len(cards.measurements)} shown")
    if copies := collection.copies + cards.copies:
        print(f"{copies} left out: the same as another, in every value")
    if filtered:
        print(f"{filtered} left out: not asked for")
    for name in strangers(wanted):
        print(f"not in the summary: {printable(name)}")
    if wanted and candidates and not joined.settings:
        print("no card columns: no cost card has a run's method, options, network and precision")
    print(_listing(f"no card columns: {_SEVERAL_SETTINGS}; choose:", joined.choices), end="")
    print(_listing("not shown:", problems), end="")
    print(_listing("written:", written), end="")
    return int(options.strict and bool(problems))


def _cost_tables(console: Console, measurements: Sequence[Measurement], out: Path) -> list[Path]:
    """Print and write what the cards say."""
    if not measurements:
        return []
    print_costs(console, measurements)
    title = "Costs: one row per cost card"
    exact, readable = cost_csv_rows(measurements), cost_rows(measurements)
    return _write(out / "costs", [title], exact, readable)


def _metric_tables(
    console: Console, joined: Joined, scores: Scores, options: argparse.Namespace
) -> list[Path]:
    """Print and write what the runs reached, and the cost of each where there is a card."""
    written: list[Path] = []
    cells, out = joined.cells, options.out
    print_notes(console, _notes(cells, joined, scores))
    for protocol in sorted({cell.entry.protocol for cell in cells}):
        scored = best_first(cell for cell in cells if cell.entry.protocol == protocol)
        print_datasets(console, scored, scores)
        title = f"Every data set; {what_is_shown(protocol, scored)}"
        written += _write(
            out / f"datasets_{protocol}",
            [title, _settings([[cell] for cell in scored]), *_notes(scored, joined, scores)],
            dataset_csv_rows(scored, scores),
            dataset_rows(scored, scores),
        )
    for table in summaries(cells, options.benchmark):
        print_summary(console, table, scores)
        title = f"{table.benchmark.name}; {table.what_is_shown}"
        written += _write(
            out / f"{table.benchmark.name}_{table.protocol}_summary",
            [
                title,
                _settings([row.cells for row in table.rows]),
                *_notes(table.cells, joined, scores),
            ],
            summary_csv_rows(table, scores),
            summary_rows(table, scores),
        )
    return written


def _settings(rows: Sequence[Sequence[Cell]]) -> str:
    """What every row does that does not say otherwise under ``departs``."""
    return f"settings: {departures(rows).shared}"


def _notes(cells: Sequence[Cell], joined: Joined, scores: Scores) -> list[str]:
    """What stands beside a table of ``cells``: the scores' constants and the cards' setting."""
    if not cells:
        return []
    if joined.setting is not None and any(cell.card for cell in cells):
        setting = joined.setting
        return [
            scores.ppt_formula,
            scores.pscp_formula,
            f"card columns: {setting}; peak: {setting.peak}",
            f"card hardware: {setting.switches}",
        ]
    if joined.choices:
        return [scores.ppt_formula, f"no card columns: {_SEVERAL_SETTINGS}"]
    return [scores.ppt_formula]


def _parsed(argv: Sequence[str]) -> tuple[argparse.Namespace, Scores]:
    """The options and the constants among them; ends the process where they make no sense."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.cards is None:
        options.cards = [DEFAULT_CARDS] if DEFAULT_CARDS.is_dir() else []
    try:
        scores = Scores(
            options.ppt_parameters,
            options.pscp_parameters,
            options.pscp_gflops,
            options.pscp_gib,
            *options.pscp_beta,
        )
    except ValueError as error:
        parser.error(str(error))
    return options, scores


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vpeft_bench leaderboard",
        description="Compare runs: print leaderboards of run records and cost cards and write them "
        "as CSV and Markdown. The tables depend on nothing but the records and cards.",
    )
    parser.add_argument(
        "--records",
        nargs="+",
        type=typed_path,
        default=[DEFAULT_RECORDS],
        metavar="DIR",
        help=f"directories to search for run records (default: {DEFAULT_RECORDS})",
    )
    parser.add_argument(
        "--cards",
        nargs="+",
        type=typed_path,
        metavar="DIR",
        help=f"directories to search for cost cards (default: {DEFAULT_CARDS}, if it is there)",
    )
    parser.add_argument(
        "--out",
        type=typed_folder,
        default=DEFAULT_OUT,
        metavar="DIR",
        help=f"where the tables are written (default: {DEFAULT_OUT})",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="exit with 1 where any record or card was set aside, after the tables are written",
    )
    parser.add_argument(
        "--benchmark", metavar="NAME", help="only this benchmark, such as vtab1k or demo"
    )
    parser.add_argument("--protocol", choices=sorted(PROTOCOL_SPLIT), help="only this protocol")
    joining = parser.add_argument_group(
        "card columns",
        "Cards are joined to runs only where all that fit were measured in one setting.",
    )
    joining.add_argument(
        "--device", metavar="NAME", help="only cards of this device; a part of its name will do"
    )
    joining.add_argument(
        "--batch", type=int, metavar="N", help="only cards of this training batch size"
    )
    constants = parser.add_argument_group(
        "constants of the scores", "See docs/leaderboard.md; they are printed with the tables."
    )
    for flag, what in (
        ("ppt_parameters", "C of PPT"),
        ("pscp_parameters", "trained parameters that halve the PSCP-style score"),
        ("pscp_gflops", "GFLOPs of a training step per image that halve it"),
        ("pscp_gib", "GiB of peak memory that halve it"),
    ):
        constants.add_argument(
            f"--{flag.replace('_', '-')}",
            type=float,
            default=getattr(_DEFAULTS, flag),
            metavar="X",
            help=f"{what} (default: {shortest(getattr(_DEFAULTS, flag))})",
        )
    constants.add_argument(
        "--pscp-beta",
        nargs=3,
        type=float,
        default=(
            _DEFAULTS.pscp_beta_parameters,
            _DEFAULTS.pscp_beta_flops,
            _DEFAULTS.pscp_beta_memory,
        ),
        metavar=("PARAMETERS", "FLOPS", "MEMORY"),
        help="weights of the three; 0 leaves one out (default: 1 1 1)",
    )
    return parser


def _wanted(cell: Cell, options: argparse.Namespace, every: Mapping[str, Benchmark]) -> bool:
    benchmarks = {None, cell.benchmark, *columns(cell, every)}
    return options.benchmark in benchmarks and options.protocol in (None, cell.entry.protocol)


def _nothing_to_show(
    options: argparse.Namespace, cells: Sequence[Cell], problems: Sequence[Problem]
) -> str:
    places = ", ".join(printable(str(directory)) for directory in options.records)
    if cells:
        have = sorted({f"{cell.benchmark} ({cell.entry.protocol})" for cell in cells})
        names = ", ".join(map(printable, have))
        return f"none of the records below {places} was asked for; there are: {names}"
    return (
        f"no run records to show below {places}\n"
        f"{_listing('not shown:', problems)}"
        "make one with: python -m vpeft_bench"
    )


def _listing(heading: str, items: Sequence[object]) -> str:
    lines = (heading, *(f"  {printable_lines(str(item))}" for item in items))
    return "".join(f"{line}\n" for line in lines if items)


def _write(
    stem: Path, heading: Sequence[str], exact: Sequence[Row], readable: Sequence[Row]
) -> list[Path]:
    texts = {
        stem.with_name(f"{stem.name}.csv"): to_csv(exact),
        stem.with_name(f"{stem.name}.md"): "\n\n".join(
            [f"# {markdown(heading[0])}", *map(markdown, heading[1:]), to_markdown(readable)]
        ),
    }
    for path, text in texts.items():
        write_atomically(path, text.encode())
    return list(texts)
