"""``python -m vpeft_bench runs``: where runs stand, and what to do about those that failed."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

from rich.live import Live

from vpeft_bench.cli.arguments import typed_count
from vpeft_bench.cli.flags import refuse_config_dir
from vpeft_bench.cli.runs_tables import overview
from vpeft_bench.errors import ConfigError, Problem
from vpeft_bench.files import typed_path
from vpeft_bench.runs.status import damaged_plans, statuses
from vpeft_bench.terminal import to_output

RECORDS = "results/runs"
EVERY = 5
ACTIONS = ("why", "retry", "clean", "summary")


def main(arguments: Sequence[str], own: Path | None = None) -> int:
    """Show where runs stand, or do what the first argument says; the process's exit status.

    Raises:
        ConfigError: there is no such folder, run or sweep.
    """
    refuse_config_dir(own, "runs")
    if arguments and not arguments[0].startswith("-") and arguments[0] not in ACTIONS:
        typed = arguments[0].removeprefix("results_dir=")
        fix = f"--records {typed}\nor one of {', '.join(ACTIONS)}"
        raise ConfigError([Problem(arguments[0], "is nothing that runs can do", fix)])
    options = _parser().parse_args(arguments)
    options.records = Path(os.path.normpath(options.records))
    if not options.records.is_dir():
        fix = "--records DIR names the results_dir of the runs"
        raise ConfigError([Problem(str(options.records), "no such folder", fix)])
    if options.action is None:
        return _show(options.records, options.every if options.watch else None)
    from vpeft_bench.cli import runs_actions

    action = getattr(runs_actions, options.action)
    status: int = action(options.records, options)
    return status


def _parser() -> argparse.ArgumentParser:
    # Before or after the action, and never undone by the other one's default.
    shared = _with_records(argparse.SUPPRESS)
    parser = argparse.ArgumentParser(
        prog="python -m vpeft_bench runs",
        parents=[_with_records(Path(RECORDS))],
        description="Where runs stand: done, running (where, which epoch, until when), failed and "
        "diverged (why), stopped and waiting, by method and data set.",
    )
    parser.add_argument("--watch", action="store_true", help="again and again, until Ctrl-C")
    parser.add_argument("--every", type=typed_count, default=EVERY, help="seconds; default: 5")
    actions = parser.add_subparsers(dest="action", metavar=f"{{{','.join(ACTIONS)}}}")
    why = actions.add_parser("why", parents=[shared], help="all that is known of one run")
    why.add_argument("run", metavar="RUN", help="as listed, or the end or a part of it")
    retry = actions.add_parser("retry", parents=[shared], help="run again what failed")
    what = "of these only, such as those that diverged; default: all that failed otherwise"
    retry.add_argument("run", metavar="RUN", nargs="*", help=what)
    what = "list what killed processes have left; nothing that is finished, or can be resumed"
    clean = actions.add_parser("clean", parents=[shared], help=what)
    clean.add_argument("--yes", action="store_true", help="remove it")
    what = "the closing table of a sweep, as things stand now"
    summary = actions.add_parser("summary", parents=[shared], help=what)
    summary.add_argument("sweep", metavar="SWEEP", nargs="?", help="its directory; default: latest")
    return parser


def _with_records(default: object) -> argparse.ArgumentParser:
    parent = argparse.ArgumentParser(add_help=False)
    what = f"the results_dir of the runs; default: {RECORDS}"
    parent.add_argument("--records", metavar="DIR", type=typed_path, default=default, help=what)
    return parent


def _show(results_dir: Path, every: int | None) -> int:
    """Once, or every so many seconds until the process is interrupted."""
    console = to_output()
    for what in damaged_plans(results_dir):
        console.print(f"left aside: {what}", soft_wrap=True)
    if every is None or not console.is_terminal:
        console.print(overview(statuses(results_dir), results_dir, console))
        while every is not None:
            time.sleep(every)
            console.print(overview(statuses(results_dir), results_dir, console))
        return 0
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(overview(statuses(results_dir), results_dir, console), refresh=True)
            time.sleep(every)
