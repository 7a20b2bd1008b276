"""``python -m vpeft_bench data check``: everything about a data set that can be known beforehand.

Every picture is decoded and every annotation read: the whole of the inspection, of which a run
does the cheap part at its start.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from vpeft_bench.cli.data_asked import EXIT_FAILED, answered, asked, parser
from vpeft_bench.config.schema import RunConfig
from vpeft_bench.config.sections import evaluated_split
from vpeft_bench.data.dataset import open_dataset
from vpeft_bench.data.inspection import Inspection, inspect
from vpeft_bench.data.splits import SPLITS, Dataset
from vpeft_bench.errors import MissingDataError
from vpeft_bench.files import typed_path, write_atomically
from vpeft_bench.formats import counted
from vpeft_bench.tasks.names import kind_of
from vpeft_bench.terminal import Terminal

MINIMUM_COLUMNS = 100  # narrower tables would cut numbers short
SHOWN = 20
"""Problems that are printed; the JSON file has all of them."""


def main(arguments: Sequence[str], own: Path | None = None) -> int:
    """Look at a data set in full; 0 if it is sound, 1 if not, 2 for a wrong command line.

    Args:
        arguments: what follows ``data check``.
        own: a further folder of configs (``--config-dir``).
    """
    made = parser("check", "Decode every picture, read every annotation, tell what is wrong.")
    made.add_argument("--out", type=typed_path, help="default: data-check-NAME.json, here")
    options = made.parse_intermixed_args(arguments)
    return answered(lambda: check(asked(options.overrides, own), options.out, Terminal()))


def check(config: RunConfig, out: Path | None, console: Console) -> int:
    """Print what was found and write it as JSON; 0 if the data set is sound, else 1.

    Raises:
        OSError: the JSON file cannot be written.
    """
    dataset = None
    try:
        dataset = open_dataset(config.data)
        most = config.head.max_detections if config.head else None
        found = inspect(
            dataset,
            config.data,
            kind_of(config).inspectors(),
            full=True,
            max_detections=most,
            evaluated=evaluated_split(config.protocol.name),
            track=_tracked,
        )
    except MissingDataError as error:
        found = Inspection(full=True, problems=list(error.problems))
    path = out or Path(f"data-check-{config.data.name.replace('/', '-')}.json")
    content = json.dumps(report(config, dataset, found), indent=1, ensure_ascii=False)
    write_atomically(path, f"{content}\n".encode())

    if dataset is not None:
        console.width = max(console.width, MINIMUM_COLUMNS)
        console.print(_heading(config, dataset, found), soft_wrap=True)
        console.print(_table(dataset, found))
    for notice in found.notices:
        console.print(f"note: {notice}", soft_wrap=True)
    for problem in found.problems[:SHOWN]:
        console.print(f"problem: {problem}", soft_wrap=True)
    if (more := len(found.problems) - SHOWN) > 0:
        console.print(f"... and {more:,} more in {path}", soft_wrap=True)
    verdict = counted(len(found.problems), "problem") if found.problems else "sound"
    told = f", {counted(len(found.notices), 'note')}" if found.notices else ""
    console.print(f"{config.data.name}: {verdict}{told}; {path}", soft_wrap=True)
    return EXIT_FAILED if found.problems else 0


def report(config: RunConfig, dataset: Dataset | None, found: Inspection) -> dict[str, Any]:
    """What is written: the data set, and all that was found in it."""
    return {
        "data": config.data.name,
        "root": config.data.root,
        "task": config.task["name"],
        "fingerprint": dataset and dataset.fingerprint,
        "lists": dict(dataset.lists) if dataset else {},
        "sound": not found.problems,
        "problems": [asdict(problem) for problem in found.problems],
        "notices": found.notices,
        "facts": asdict(found.facts),
    }


def _heading(config: RunConfig, dataset: Dataset, found: Inspection) -> str:
    classes = counted(dataset.num_classes, "class", "classes")
    of_pictures = f", {found.facts.image_format}" if found.facts.image_format else ""
    return f"{dataset.name}: {config.task['name']}, {classes}{of_pictures}"


def _table(dataset: Dataset, found: Inspection) -> Table:
    """Splits and what was counted in them."""
    facts = found.facts
    counted = dict.fromkeys(what for counts in facts.counts.values() for what in counts)
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("split", no_wrap=True)
    for what in ("pictures", *counted):
        table.add_column(what.replace("_", " "), justify="right", no_wrap=True)
    table.add_column("listed in", overflow="fold")
    for split in SPLITS:
        counts = facts.counts.get(split, {})
        numbers = (facts.pictures[split], *(counts.get(what) for what in counted))
        cells = ("" if number is None else f"{number:,}" for number in numbers)
        table.add_row(split, *cells, dataset.lists.get(split, ""))
    return table


def _tracked(items: Iterable[Any], what: str, total: int) -> Iterable[Any]:
    """The items, with a bar on the terminal while they come."""
    console = Terminal(stderr=True)
    return track(
        items, what, total, console=console, transient=True, disable=not console.is_terminal
    )
