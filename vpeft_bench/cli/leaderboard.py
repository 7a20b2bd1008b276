"""``python -m vpeft_bench leaderboard``: run records and cost cards in, tables out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from vpeft_bench.cli.arguments import typed_folder
from vpeft_bench.config.benchmarks import columns_of, known
from vpeft_bench.config.choices import use_folders
from vpeft_bench.errors import ConfigError, Problem, unknown_name
from vpeft_bench.files import typed_path
from vpeft_bench.formats import printable, printable_lines, shortest
from vpeft_bench.leaderboard.admitted import admitted
from vpeft_bench.leaderboard.cards import Joined, cards_of, chosen, join
from vpeft_bench.leaderboard.cells import cells_of
from vpeft_bench.leaderboard.compare import Comparison, compare
from vpeft_bench.leaderboard.published import PUBLISHED
from vpeft_bench.leaderboard.published import read as read_published
from vpeft_bench.leaderboard.reading import find_runs, write_runs
from vpeft_bench.leaderboard.runs import PROTOCOL_SPLIT
from vpeft_bench.leaderboard.scores import Scores
from vpeft_bench.leaderboard.summaries import Summary, strangers, summaries
from vpeft_bench.leaderboard.tables import Table, cost_table, dataset_table
from vpeft_bench.leaderboard.terminal import (
    print_comparison,
    print_costs,
    print_datasets,
    print_notes,
    print_summary,
)
from vpeft_bench.leaderboard.written import write_json, write_seeds, write_table
from vpeft_bench.records.cost_card import find as find_cards
from vpeft_bench.terminal import Terminal, to_output

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
    published = read_published(options.compare) if options.compare else None
    found, found_cards = find_runs(options.records), find_cards(options.cards)
    runs, cards = admitted(found.runs), cards_of(found_cards.cards)
    problems = [*found.problems, *runs.left_out, *found_cards.problems, *cards.left_out]
    wanted = _wanted(runs.rows, options)
    candidates = chosen(cards.rows, options.device, options.batch)
    if wanted.empty and (len(runs.rows) or cards.rows.empty):
        print(_nothing_to_show(options, runs.rows, problems), file=sys.stderr)
        return 1
    if candidates.empty and (options.device is not None or options.batch is not None):
        have = sorted(set(cards.rows["measured_with"])) if len(cards.rows) else []
        print("no cost card was measured on that device with that batch size", file=sys.stderr)
        print(_listing("there are:", have), end="", file=sys.stderr)
        return 1

    console = to_output()
    joined = join(cells_of(wanted), candidates)
    costs = cost_table(cards.rows) if len(cards.rows) else None
    written = []
    if costs is not None:
        print_costs(console, costs)
        written += write_table(costs, [], options.out)
    if len(wanted):
        beside = compare(joined.cells, published) if published is not None else None
        written += _metric_tables(
            console, wanted, runs.rows, joined, costs, beside, scores, options
        )
        if beside is not None:
            written += _compared(console, beside, options.out)
    elif costs is not None:
        written.append(_page([], [], costs, wanted, [], options.out))

    print(f"records: {len(found.runs)} read, {len(wanted)} shown")
    if found_cards.cards:
        print(f"cost cards: {len(found_cards.cards)} read, {len(cards.rows)} shown")
    if copies := runs.copies + cards.copies:
        print(f"{copies} left out: the same as another, in every value")
    if filtered := len(runs.rows) - len(wanted):
        print(f"{filtered} left out: not asked for")
    for name in strangers(joined.cells):
        print(f"not in the summary: {printable(name)}")
    if len(wanted) and len(candidates) and not joined.settings:
        print("no card columns: no cost card has a run's method, options, network and precision")
    print(_listing(f"no card columns: {_SEVERAL_SETTINGS}; choose:", joined.choices), end="")
    print(_listing("not shown:", problems), end="")
    print(_listing("written:", written), end="")
    return int(options.strict and bool(problems))


def _metric_tables(
    console: Terminal,
    runs: pd.DataFrame,
    every: pd.DataFrame,
    joined: Joined,
    costs: Table | None,
    beside: Comparison | None,
    scores: Scores,
    options: argparse.Namespace,
) -> list[Path]:
    """Print and write what the runs reached, and the cost of each where there is a card.

    Args:
        runs: those that were asked for.
        every: those that could have been.
        beside: published numbers, where they were asked for.
    """
    written: list[Path] = []
    cells, out = joined.cells, options.out
    notes = _notes(cells, joined, scores)
    print_notes(console, notes)
    datasets = [
        dataset_table(cells, protocol, scores) for protocol in sorted(cells["protocol"].unique())
    ]
    for table in datasets:
        print_datasets(console, table, scores)
        written += _write(table, joined, scores, out)
    overviews = summaries(cells, scores, options.benchmark)
    for summary in overviews:
        print_summary(console, summary)
        written += _write(summary, joined, scores, out)
    write_seeds(runs, out / "seeds.csv")
    write_runs(runs, out / "runs.parquet")
    written += [out / "seeds.csv", out / "runs.parquet"]
    written += write_json(datasets, overviews, costs, notes, out, beside)
    written.append(_page(datasets, overviews, costs, runs, notes, out, beside))
    if options.statistics:
        written += _statistics(overviews, runs, out / "statistics")
    if options.figures or options.highlight:
        from vpeft_bench.leaderboard.curves import write_curves
        from vpeft_bench.leaderboard.figures import write_figures

        written += write_figures(overviews, options.highlight, out)
        written += write_curves(overviews, runs, every, options.highlight, out)
    return written


def _compared(console: Terminal, comparison: Comparison, out: Path) -> list[Path]:
    """Print and write what the cells are beside published numbers."""
    print_comparison(console, comparison)
    written = []
    for table, notes in zip(comparison.tables, comparison.notes, strict=True):
        written += write_table(table, notes, out)
    return [*written, *write_table(comparison.left_out, [], out)]


def _page(
    datasets: Sequence[Table],
    summaries_: Sequence[Summary],
    costs: Table | None,
    runs: pd.DataFrame,
    notes: Sequence[str],
    out: Path,
    beside: Comparison | None = None,
) -> Path:
    from vpeft_bench.leaderboard.page import write_page  # statistics take a second to import

    return write_page(datasets, summaries_, costs, runs, notes, out, beside)


def _statistics(summaries: Sequence[Summary], runs: pd.DataFrame, out: Path) -> list[Path]:
    """What the statistics say of the rows of every summary that were made alike."""
    from vpeft_bench.leaderboard.standings import reports
    from vpeft_bench.statistics.figures import matrices
    from vpeft_bench.statistics.output import write_files

    found = [report for summary in summaries for report in reports(summary, runs)]
    if not found:
        return []
    return [*write_files(found, {"table": "run records"}, out), *matrices(found, out)]


def _write(table: Table, joined: Joined, scores: Scores, out: Path) -> list[Path]:
    notes = [f"settings: {table.settings}", *_notes(table.cells, joined, scores)]
    return write_table(table, notes, out)


def _notes(cells: pd.DataFrame, joined: Joined, scores: Scores) -> list[str]:
    """What stands beside a table of ``cells``: the scores' constants and the cards' setting."""
    if joined.setting is not None and cells["card_id"].notna().any():
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
    parser.add_argument(
        "--figures",
        action="store_true",
        help="draw what methods reach against what they cost, into DIR/figures",
    )
    parser.add_argument(
        "--statistics",
        action="store_true",
        help="say what the tables of benchmarks support, into DIR/statistics",
    )
    parser.add_argument(
        "--compare",
        nargs="+",
        default=[],
        metavar="WHAT",
        help=f"set the rows beside published numbers: `{PUBLISHED}` for those of "
        "results/published, or a CSV file with columns method,data,value",
    )
    parser.add_argument(
        "--highlight",
        nargs="+",
        default=[],
        metavar="METHOD",
        help="draw, with these methods marked",
    )
    for flag in _FILTERS:
        parser.add_argument(
            f"--{flag}", nargs="+", default=[], metavar="NAME", help=f"only runs of this {flag}"
        )
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


_FILTERS = {"method": "method", "data": "data", "backbone": "backbone", "variant": "name"}
"""Options that keep the runs of some names, and the columns that have these."""


def _wanted(runs: pd.DataFrame, options: argparse.Namespace) -> pd.DataFrame:
    """The runs that were asked for.

    Raises:
        ConfigError: no run has one of the names.
    """
    problems = []
    for flag, column in _FILTERS.items():
        asked = getattr(options, flag)
        have = set(map(str, runs[column].dropna().unique())) - {""}
        problems += [unknown_name(f"--{flag}", name, have) for name in asked if name not in have]
    have = {*map(str, runs["method"].dropna().unique()), *map(str, runs["name"].dropna().unique())}
    wrong = [name for name in options.highlight if name not in have]
    problems += [unknown_name("--highlight", name, have - {""}) for name in wrong]
    if len(runs) and problems:
        raise ConfigError(problems)
    kept = pd.Series(True, runs.index)
    for flag, column in _FILTERS.items():
        if asked := getattr(options, flag):
            kept &= runs[column].isin(asked)
    if options.protocol:
        kept &= runs["protocol"] == options.protocol
    if options.benchmark:
        every = known()
        pairs = runs[["benchmark", "data"]].drop_duplicates().astype(str)
        of = {
            pair
            for pair in zip(pairs["benchmark"], pairs["data"], strict=True)
            if options.benchmark in {pair[0], *columns_of(*pair, every)}
        }
        at = pd.MultiIndex.from_frame(runs[["benchmark", "data"]].astype(str))
        kept &= at.isin(of)
    return runs[kept]


def _nothing_to_show(
    options: argparse.Namespace, runs: pd.DataFrame, problems: Sequence[Problem]
) -> str:
    places = ", ".join(printable(str(directory)) for directory in options.records)
    if len(runs):
        pairs = runs[["benchmark", "protocol"]].drop_duplicates()
        have = sorted(f"{b} ({p})" for b, p in pairs.itertuples(index=False, name=None))
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
