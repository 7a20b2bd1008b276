"""What a single run prints at its end."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from vpeft_bench.config.recipes import UNTUNED, how_chosen
from vpeft_bench.formats import option_text
from vpeft_bench.metric_names import beside, shown, title
from vpeft_bench.records.run_record import Metrics, RunRecord, leaderboard_command
from vpeft_bench.runs.run import Outcome, Result
from vpeft_bench.runs.run_files import PREDICTIONS


def print_outcome(outcome: Outcome, console: Console) -> None:
    """The table of a finished run, or one line saying why there is none."""
    if outcome.record is None or outcome.result is Result.FAILED:
        console.print(
            f"{outcome.result.value}: {outcome.reason} ({outcome.directory})", soft_wrap=True
        )
        return
    if outcome.result is Result.SKIPPED:
        console.print(
            f"skipped: {outcome.reason}; rerun=true runs it again and replaces it", soft_wrap=True
        )
    console.print(run_table(outcome.record))
    path = outcome.directory / "record.json"
    command = leaderboard_command(outcome.record.asked["results_dir"])
    console.print(f"record:      {path}", soft_wrap=True)
    if (stored := outcome.directory / PREDICTIONS).is_dir():
        console.print(f"predictions: {stored}", soft_wrap=True)
    console.print(f"leaderboard: {command}", soft_wrap=True)


def run_table(record: RunRecord) -> Table:
    """One run as a two-column table; what was not measured says why."""
    asked, happened = record.asked, record.happened
    assert happened.last_epoch is not None
    table = Table(
        title=" · ".join(["run", *record.labels]), title_justify="left", show_header=False
    )
    table.add_column("quantity", style="bold")
    table.add_column("value")
    parameters, stored, seconds = happened.parameters, happened.stored_bytes, happened.seconds
    options = option_text({k: v for k, v in asked["method"].items() if k != "name"})
    rows = {
        "task": ", ".join(asked[k]["name"] for k in ("task", "data", "head") if asked.get(k))
        + f", protocol {asked['protocol']['name']}",
        "backbone": asked["backbone"]["name"],
        "method": asked["method"]["name"] + (f" ({options})" if options else ""),
        "seed": str(asked["seed"]),
    }
    if (chosen := how_chosen(asked)) == UNTUNED:
        backbone = asked["backbone"]["name"]
        chosen = f"untuned: no rate of {asked['method']['name']} on {backbone} is known here"
    if chosen:
        rows["settings"] = chosen
    headline = title(happened.last_epoch.headline)
    rows[f"{headline}, last epoch"] = _reached(happened.last_epoch)
    if happened.selected_epoch is not None:
        rows[f"{headline}, best val epoch"] = _reached(happened.selected_epoch)
    if parameters is not None:
        rows["trainable parameters"] = (
            f"{parameters.method:,} method + {parameters.head:,} head = {parameters.total:,} total"
        )
    rows["stored bytes"] = _number(stored.delta, "delta checkpoint")
    if seconds.selection is not None:
        rows["selection time"] = f"{seconds.selection:.1f} s before training"
    rows["train time"] = f"{seconds.train:.1f} s" if seconds.train is not None else "not measured"
    speed = happened.train_images_per_second
    rows["training speed"] = f"{speed:,.0f} images/s" if speed is not None else "not measured"
    if (kept := happened.frozen_features) is not None:
        rows["training speed"] += ", from kept features"
        how = "found" if kept.found else f"{seconds.features:.1f} s before training"
        rows["frozen features"] = f"{kept.bytes / 2**20:,.1f} MiB in {kept.storage}, {how}"
    peak = happened.peak_memory_bytes
    rows["peak allocated memory"] = (
        f"{peak / 2**20:,.0f} MiB" if peak is not None else f"null: {happened.peak_memory_note}"
    )
    if happened.resumed:
        rows["resumed"] = f"{happened.resumed} time(s)"
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _reached(metrics: Metrics) -> str:
    where = f"{metrics.images:,} {metrics.split.value} images (epoch {metrics.epoch}"
    others = "".join(
        f"; {title(name)} {_shown(name, metrics.values[name])}"
        for name in beside(metrics.headline)
        if name in metrics.values
    )
    return f"{_shown(metrics.headline, metrics.value)} on {where}{others})"


def _shown(name: str, value: float | None) -> str:
    return "not defined" if value is None else shown(name, value)


def _number(value: int | None, what: str) -> str:
    return "not measured" if value is None else f"{value:,} ({what})"
