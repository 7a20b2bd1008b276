"""``python -m vpeft_bench show RUN``: what a finished run predicts, and how it came to that."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from vpeft_bench.cli.arguments import typed_count, typed_picture
from vpeft_bench.cli.flags import refuse_config_dir
from vpeft_bench.errors import VpeftBenchError
from vpeft_bench.files import typed_path
from vpeft_bench.formats import Row, printable
from vpeft_bench.records.run_record import RECORD_NAME
from vpeft_bench.runs.finished import finished_run
from vpeft_bench.runs.shown import FILE, NEAREST, PICTURES, Reopened, beside, reopen, show
from vpeft_bench.terminal import Terminal, to_output

CURVES, CONFUSION = "curves", "confusion"
RELIABILITY = "reliability"
DRIFT, FEATURES, ATTENTION = "drift", "features", "attention"
WEAKEST = 10
"""Classes that are printed."""


def main(arguments: Sequence[str], own: Path | None = None) -> int:
    """Draw what a run predicts, its curves and its confusion; print its weakest classes.

    Raises:
        VpeftBenchError: as :func:`reopen`.
        OSError: a picture cannot be written.
    """
    refuse_config_dir(own, "show")
    parser = argparse.ArgumentParser(
        prog="python -m vpeft_bench show",
        description="Draw what a finished run predicts beside the truth, its learning curves and "
        "its confusion matrix, and print the classes that it knows least.",
    )
    parser.add_argument(
        "run", type=typed_path, metavar="RUN", help="run directory, or its record.json"
    )
    parser.add_argument(
        "--pictures", type=typed_count, default=PICTURES, help=f"default: {PICTURES}"
    )
    parser.add_argument(
        "--out",
        type=typed_picture,
        help=f"default: {FILE} in the run directory; the other pictures lie beside it",
    )
    parser.add_argument(
        f"--{DRIFT}",
        action="store_true",
        help="also how far the features of each block have moved from the frozen model's",
    )
    parser.add_argument(
        f"--{FEATURES}",
        action="store_true",
        help="also a map of pictures by t-SNE, before and after tuning",
    )
    parser.add_argument(
        f"--{ATTENTION}",
        action="store_true",
        help="also the attention rollout of some pictures, before and after tuning",
    )
    parser.add_argument("--root", help="where the data set lies now: data.root of the run")
    options = parser.parse_args(arguments)
    directory = options.run.parent if options.run.name == RECORD_NAME else options.run
    run = reopen(options.run, options.root)
    console, shown = to_output(), show(run, options.pictures, options.out)
    print(shown.picture)

    def place(name: str) -> Path:
        return beside(shown.picture, f"{name}.png")

    _show_recorded(directory, place, console)
    if shown.table is not None:
        print(shown.table)
        console.print(_mistakes(shown.mistakes, options.pictures))
    asked = {
        DRIFT: lambda path: _show_drift(run, path, console),
        FEATURES: lambda path: _show_features(run, path),
        ATTENTION: lambda path: _show_attention(run, path),
    }
    refused = False
    for name, draw in asked.items():
        if getattr(options, name):
            try:
                draw(place(name))
            except VpeftBenchError as error:  # what else was asked for is drawn
                print(f"error: {error}", file=sys.stderr)
                refused = True
    return int(refused)


def _show_drift(run: Reopened, place: Path, console: Terminal) -> None:
    from vpeft_bench.runs.drift import draw, measure

    found = measure(run)
    print(draw(run, found, place))
    table = Table(title="drift from the frozen model", title_justify="left")
    table.add_column("block")
    for heading in ("linear CKA", "cosine", "effective rank, frozen", "trained"):
        table.add_column(heading, justify="right")
    for one in found:
        table.add_row(
            one.name,
            f"{one.cka:.4f}",
            f"{one.cosine:.4f}",
            f"{one.rank_before:.1f}",
            f"{one.rank_after:.1f}",
        )
    console.print_whole(table)


def _show_features(run: Reopened, place: Path) -> None:
    from vpeft_bench.runs.feature_map import draw, measure

    print(draw(run, measure(run), place))


def _show_attention(run: Reopened, place: Path) -> None:
    from vpeft_bench.runs.attention import draw

    print(draw(run, place))


def _mistakes(rows: Sequence[Row], most: int) -> Table:
    """The most confident mistakes, with the files that show them."""
    several = any(row[NEAREST] for row in rows)
    table = Table(title=f"most confident of {len(rows)} mistakes", title_justify="left")
    table.add_column("picture", overflow="fold")
    table.add_column("class")
    table.add_column("taken for")
    table.add_column("cosine" if several else "sure", justify="right")
    if several:
        table.add_column("nearest picture", overflow="fold")
    for row in rows[:most]:
        sure = float(row["confidence"])
        cells = [row["image"], row["true"], row["predicted"]]
        cells += [f"{sure:.3f}", row[NEAREST]] if several else [f"{sure:.1%}"]
        table.add_row(*map(printable, cells))
    return table


def _show_recorded(run: Path, place: Callable[[str], Path], console: Console) -> None:
    from vpeft_bench.runs.plots import (
        draw_confusion,
        draw_curves,
        draw_reliability,
        read_evaluation,
    )

    print(draw_curves(finished_run(run), place(CURVES)))
    if (path := draw_reliability(run, place(RELIABILITY))) is not None:
        print(path)
    if (evaluation := read_evaluation(run)) is None:
        return
    if (path := draw_confusion(evaluation, place(CONFUSION))) is not None:
        print(path)
    console.print(weakest_classes(evaluation))


def weakest_classes(evaluation: dict[str, Any]) -> Table:
    """The classes with the lowest scores, and what each is most often taken for."""
    classes = evaluation["classes"]
    keys = [key for key in classes[0] if key not in ("class", "name")]
    count = keys[0]  # of the truth; then come other counts, then the scores
    score = next(key for key in keys if not all(isinstance(each[key], int) for each in classes))
    known = sorted(
        (each for each in classes if each[score] is not None),
        key=lambda each: (each[score], each["class"]),
    )
    names = {each["class"]: each["name"] or str(each["class"]) for each in classes}
    table = Table(title=f"weakest of {len(known)} classes", title_justify="left")
    table.add_column("class")
    table.add_column(score.replace("_", " "), justify="right")
    table.add_column(count, justify="right")
    table.add_column("most often taken for")
    for each in known[:WEAKEST]:
        mistakes = [
            (times, predicted)
            for true, predicted, times in evaluation["confusion"] or []
            if true == each["class"] != predicted
        ]
        times, wrong = max(mistakes, default=(0, -1))
        taken = f"{names[wrong]} ({times})" if times else ""
        table.add_row(names[each["class"]], f"{each[score]:.1f}", f"{each[count]:,}", taken)
    return table
