"""A picture of what a run predicts, beside the truth.

Detections and label maps of some pictures of the split that the run was scored on; of a classifier,
its most confident mistakes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from omegaconf.errors import OmegaConfBaseException

from vpeft_bench.config.schema import RunConfig, from_plain
from vpeft_bench.data.dataset import Dataset, open_dataset
from vpeft_bench.data.findings import Inspection
from vpeft_bench.data.inspect_pictures import data_identity, inspect_pictures
from vpeft_bench.drawing import CELL, class_name, save, sheet
from vpeft_bench.errors import VpeftBenchError
from vpeft_bench.files import write_atomically
from vpeft_bench.formats import Row, to_csv
from vpeft_bench.records.run_record import RECORD_NAME
from vpeft_bench.runs.build import device_of
from vpeft_bench.runs.finished import finished_model, finished_run
from vpeft_bench.tasks.base import Model, Task
from vpeft_bench.tasks.kind import Mistake
from vpeft_bench.tasks.names import kind_of
from vpeft_bench.tasks.writers import paths_below

FILE, MISTAKES = "predictions.png", "mistakes.csv"
NEAREST = "nearest"  # of retrieval: the picture that a query was taken for
_COLUMNS = ("index", "image", "true", "predicted", "confidence", NEAREST)
PICTURES = 12
COLUMNS = 3  # of pairs


@dataclass(frozen=True)
class Reopened:
    """A finished run with its model, as it was scored.

    Attributes:
        directory: of the run.
        split: the pictures that it was scored on.
    """

    directory: Path
    config: RunConfig
    dataset: Dataset
    model: Model
    task: Task
    split: str


def reopen(run: Path, root: str | None = None) -> Reopened:
    """Build the model of a finished run again.

    Args:
        run: its directory, or its record.
        root: where its data set lies now.

    Raises:
        VpeftBenchError: there is no finished run, its data are others now, or its files belong to
            other weights.
    """
    directory = run.parent if run.name == RECORD_NAME else run
    record = finished_run(directory)
    try:
        config = from_plain(record.asked)
    except OmegaConfBaseException as error:
        what = " ".join(str(error).split())
        raise VpeftBenchError(f"{directory} is of another version: {what}") from error
    if root is not None:
        config.data.root = os.path.expanduser(root)
    dataset = open_dataset(config.data)
    looked = Inspection()
    if record.where.data is not None and record.where.data.pixels:
        inspect_pictures(dataset, config.data, looked)
    if data_identity(dataset, looked) != record.where.data_fingerprint:
        raise VpeftBenchError(
            f"data={config.data.name} are not what {directory} was run on; --root DIR names others"
        )
    model, task = finished_model(config, dataset, directory, record)
    assert record.happened.last_epoch is not None
    split = record.happened.last_epoch.split.value
    return Reopened(directory, config, dataset, model, task, split)


@dataclass(frozen=True)
class Shown:
    """What was drawn of a run.

    Attributes:
        picture: its path.
        table: path of the mistakes as CSV; None where no mistake can be named.
        mistakes: the rows of that table: of each picture its number, its file below the root of
            the data set, its class, what it was taken for, and how surely.
    """

    picture: Path
    table: Path | None = None
    mistakes: Sequence[Row] = ()


def show(run: Reopened, pictures: int = PICTURES, out: Path | None = None) -> Shown:
    """Draw what a run predicts, beside its record or at ``out``.

    Raises:
        OSError: a file cannot be written.
    """
    path = out or run.directory / FILE
    return draw(run.config, run.dataset, run.split, run.model, run.task, path, pictures)


def draw(
    config: RunConfig,
    dataset: Dataset,
    split: str,
    model: Model,
    task: Task,
    path: Path,
    pictures: int = PICTURES,
) -> Shown:
    """Write a contact sheet of what ``task`` predicts on ``split``, and its mistakes as a table."""
    kind = kind_of(config)
    if kind.any_size:  # only some pictures are looked at
        config = replace(
            config,
            data=replace(config.data, cache_gib=0.0),
            hardware=replace(config.hardware, workers=0),
        )
    batches = kind.batches(config, dataset, model.preprocessing, split, train=False)
    task.to(device_of(config.hardware.accelerator)).eval()
    with torch.no_grad():
        drawn = kind.drawn(task, dataset, split, batches, pictures)
    panels = drawn.panels
    name = f"{config.method['name']} on {config.data.name}, {config.backbone.name}"
    title = f"{name}: {drawn.heading}"
    pairs = any(len(panel.versions) > 1 for panel in panels)
    columns = COLUMNS if pairs else 2 * COLUMNS
    sides = [side for panel in panels for version in panel.versions for side in version.size]
    save(sheet(panels, title, dataset, columns, max(sides, default=CELL)), path)
    if drawn.mistakes is None:
        return Shown(path)
    rows = _rows(drawn.mistakes, dataset, paths_below(config.data.root, dataset.split(split)))
    table = beside(path, MISTAKES)
    named = [name for name in _COLUMNS if name != NEAREST or any(row[NEAREST] for row in rows)]
    kept = [{name: row[name] for name in named} for row in rows]
    write_atomically(table, to_csv(kept, named).encode())
    return Shown(path, table, rows)


def beside(picture: Path, name: str) -> Path:
    """Where a file lies that is written with the picture of predictions: under its own name.

    With another picture than the one that a run has it begins with the name of that.
    """
    return picture.with_name(name if picture.name == FILE else f"{picture.stem}_{name}")


def _rows(mistakes: Sequence[Mistake], dataset: Dataset, files: Sequence[str]) -> list[Row]:
    return [
        {
            "index": str(one.index),
            "image": files[one.index],
            "true": class_name(dataset, one.true),
            "predicted": class_name(dataset, one.predicted),
            "confidence": f"{one.confidence:.6f}",
            NEAREST: "" if one.nearest is None else files[one.nearest],
        }
        for one in mistakes
    ]
