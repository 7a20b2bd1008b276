"""The model of a finished run, built again from its record and its files."""

from __future__ import annotations

import shlex
from itertools import islice
from pathlib import Path

import pytorch_lightning as pl

from vpeft_bench.config.schema import RunConfig
from vpeft_bench.data.dataset import Dataset
from vpeft_bench.errors import ConfigError, Problem, VpeftBenchError
from vpeft_bench.records.run_record import RECORD_NAME, RunRecord, Status, read
from vpeft_bench.runs.build import build_model, build_task, load_head
from vpeft_bench.runs.run_files import DELTA, HEAD, require_unaltered
from vpeft_bench.tasks.base import Model, Task


def finished_run(directory: Path) -> RunRecord:
    """The record of a run that ended well.

    Raises:
        VpeftBenchError: there is none.
    """
    path = directory / RECORD_NAME
    if not path.is_file():
        below = (each.parent for each in sorted(directory.rglob(RECORD_NAME)))
        runs = [f"such as {shlex.quote(str(run))}" for run in islice(below, 3)]
        fix = "\n".join(["RUN is the directory that a run names at its end", *runs])
        what = f"holds no {RECORD_NAME}" if directory.is_dir() else "no such directory"
        raise ConfigError([Problem(str(directory), what, fix)])
    record = read(path)
    if record.outcome != Status.OK:
        raise VpeftBenchError(f"{directory}: the run is {record.outcome}: {record.error}")
    return record


def finished_model(
    config: RunConfig, dataset: Dataset, directory: Path, record: RunRecord
) -> tuple[Model, Task]:
    """The trained model of the run in ``directory``, and the task that scores it.

    Args:
        config: the run's.
        dataset: the run's.
        directory: where the delta and the head lie.
        record: the run's; it vouches for both.

    Raises:
        RecordError: a file is gone, or is not the one that the record vouches for.
        VpeftBenchError: its files are damaged or belong to other weights.
    """
    pl.seed_everything(config.seed, verbose=False)  # random weights are those of the run again
    model = build_model(config, dataset)
    model.attached.load(require_unaltered(directory, record, DELTA))
    task = build_task(config, dataset, model)
    load_head(model.attached, task.model, require_unaltered(directory, record, HEAD))
    return model, task
