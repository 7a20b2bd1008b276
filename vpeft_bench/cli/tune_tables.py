"""What a search prints: its points before they are run, and what became of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vpeft_bench.formats import counted
from vpeft_bench.metric_names import heading, shown
from vpeft_bench.runs.sweep import BUSY, NOT_RUN
from vpeft_bench.tuning.choice import GIVEN_UP, OK, Choice, Point
from vpeft_bench.tuning.search import Outcome, Search
from vpeft_bench.tuning.space import Settings

COLOURS = {OK: "green", BUSY: "yellow", NOT_RUN: "yellow", GIVEN_UP: "cyan"}


def print_points(searches: Sequence[Search], console: Console) -> None:
    """The points of each search."""
    for search in searches:
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for column in ("point", *map(_heading, search.space.keys)):
            table.add_column(column, justify="right")
        budget, unknown = search.config.tune.budget, 0
        for number in range(budget):
            if settings := search.settings(number, search.coordinates(number)):
                table.add_row(str(number), *map(_text, settings.values()))
            else:
                unknown += 1
        console.print(f"\n{_title(search)}", soft_wrap=True)
        console.print(table)
        if unknown:
            console.print(f"the other {unknown} follow from the scores of those before them")


def print_outcome(outcome: Outcome, console: Console) -> None:
    """One row per point, the chosen one marked; what was chosen and why; what it cost."""
    search, choice = outcome.search, outcome.choice
    if all(point.result == NOT_RUN for point in outcome.points):
        console.print(f"\n{_title(search)}: {NOT_RUN}", soft_wrap=True)
        return
    scored = next((point.metrics for point in outcome.points if point.metrics), None)
    score = "val" if scored is None else f"val {heading(scored.headline)}"
    counts = {point.parameters for point in outcome.points} - {None}
    columns = [*map(_heading, search.space.keys), score, "from default", "seconds"]
    columns += ["parameters"] * (len(counts) > 1)
    rows = []
    for point in outcome.points:
        parameters = "" if point.parameters is None else f"{point.parameters:,}"
        rows.append(
            [
                str(point.number),
                *(_text(point.settings.get(key, "")) for key in search.space.keys),
                _score(point),
                f"{point.distance:.2f}",
                f"{point.seconds:.1f}" if point.record is not None else "",
                *[parameters] * (len(counts) > 1),
            ]
        )
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, column in enumerate(("point", *columns)):
        width = max(len(row[number]) for row in rows)  # heads may break, numbers may not
        table.add_column(column, justify="right", min_width=width)
    table.add_column("result")
    for row, point in zip(rows, outcome.points, strict=True):
        table.add_row(*row, _result(point, choice))
    console.print(f"\n{_title(search)}", soft_wrap=True)
    console.print(table)
    for point in outcome.points:
        if point.metrics is None and point.reason:
            why = point.reason.removeprefix(f"{point.result}: ")
            console.print(f"point {point.number} {point.result}: {why}", soft_wrap=True)
    console.print(_conclusion(outcome), soft_wrap=True)
    console.print(_cost(outcome), soft_wrap=True)


def settings_text(settings: Settings) -> str:
    """Settings in one line, as they are typed."""
    return ", ".join(f"{key}={_text(value)}" for key, value in settings.items())


def _title(search: Search) -> str:
    config, space = search.config, search.space
    fixed = f", fixed: {', '.join(config.tune.fixed)}" if config.tune.fixed else ""
    return (
        f"{search.name} on {config.data.name}, {config.backbone.name}: space {space.hash}{fixed}, "
        f"seed {config.seed}"
    )


def _conclusion(outcome: Outcome) -> str:
    if outcome.missing:
        counts = {
            p.result: sum(q.result == p.result for q in outcome.missing) for p in outcome.missing
        }
        told = ", ".join(f"{count} {result}" for result, count in counts.items())
        return f"not chosen yet: {told}; the same command goes on from there"
    choice = outcome.choice
    if choice is None:
        return "nothing to choose: no point has a score"
    point, best = choice.point, choice.best
    error = "" if choice.error is None else f" (standard error {choice.error:.2f})"
    told = f"chosen: point {point.number} ({settings_text(point.settings)}), {_value(point)}"
    if point is best:
        return f"{told}, the best{error}"
    as_good = "as good as" if choice.error is None else "within one standard error of"
    central = round(point.distance, 2) < round(best.distance, 2)
    why = "nearer to the default" if central else "cheaper"
    return f"{told}: {as_good} the best, {_value(best)} at point {best.number}{error}, and {why}"


def _cost(outcome: Outcome) -> str:
    tried = len(outcome.points) - len(outcome.missing) - len(outcome.given_up)
    reused = sum(point.reused for point in outcome.points)
    points = counted(len(outcome.points), "point")
    told = f"budget: {tried} of {points} tried, {len(outcome.failed)} failed"
    if outcome.given_up:
        told += f", {len(outcome.given_up)} given up"
    if reused:
        told += f", {reused} run before"
    devices = {p.record.where.device for p in outcome.points if p.record and p.record.where.device}
    where = f" on {', '.join(sorted(devices))}" if devices else ""
    return f"{told}; {outcome.seconds:,.0f} s{where}"


def _result(point: Point, choice: Choice | None) -> Text:
    marks = []
    if choice is not None and point.number == choice.point.number:
        marks.append("chosen")
    if choice is not None and point.number == choice.best.number and choice.tied > 1:
        marks.append("best")
    return Text(", ".join(marks or [point.result]), COLOURS.get(point.result, "red"))


def _heading(key: str) -> str:
    """A key as the head of a column, which may break between words."""
    return key.rpartition(".")[2].replace("_", " ")


def _score(point: Point) -> str:
    return "" if point.metrics is None else f"{point.metrics.value:.2f}"


def _value(point: Point) -> str:
    metrics = point.metrics
    assert metrics is not None
    assert metrics.value is not None
    return shown(metrics.headline, metrics.value)


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
