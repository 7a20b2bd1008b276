"""What a run predicted on the split that it was scored on, for others to score it again.

``predictions=true`` fills the folder ``predictions`` of the run directory with what the task
stores, see :meth:`vpeft_bench.tasks.kind.TaskKind.writer`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from lightning_fabric.utilities import move_data_to_device

from vpeft_bench.config.schema import RunConfig
from vpeft_bench.data.dataset import Dataset
from vpeft_bench.errors import VpeftBenchError
from vpeft_bench.files import replacing_folder
from vpeft_bench.records.run_record import RunRecord
from vpeft_bench.runs.build import autocast, device_of
from vpeft_bench.runs.finished import finished_model
from vpeft_bench.runs.run_files import PREDICTIONS
from vpeft_bench.tasks.base import Task
from vpeft_bench.tasks.names import kind_of


@contextmanager
def storing(
    task: Task, config: RunConfig, dataset: Dataset, split: str, directory: Path
) -> Iterator[None]:
    """Store what ``task`` predicts for the batches that it scores meanwhile: all of ``split``.

    Raises:
        OSError: the files cannot be written; what was there before is still there.
    """
    with replacing_folder(directory / PREDICTIONS) as folder:
        writer = kind_of(config).writer(config, dataset, split, folder)
        before, task.on_prediction = task.on_prediction, writer.add
        try:
            yield
        finally:
            task.on_prediction = before
            writer.close()
        if writer.count != len(dataset.split(split)):
            pictures = f"{writer.count} of {len(dataset.split(split))} pictures"
            raise VpeftBenchError(f"predictions of {pictures} were stored")


def store_again(config: RunConfig, dataset: Dataset, record: RunRecord, directory: Path) -> str:
    """Predict with the stored weights of a finished run; what is to be said about it, or nothing.

    Raises:
        VpeftBenchError: its files are damaged or belong to other weights.
        OSError: the predictions cannot be written.
    """
    assert record.happened.last_epoch is not None
    recorded, split = record.happened.last_epoch, record.happened.last_epoch.split.value
    model, task = finished_model(config, dataset, directory, record)
    batches = kind_of(config).batches(config, dataset, model.preprocessing, split, train=False)
    device = device_of(config.hardware.accelerator)
    task.to(device).eval()
    task.forget()
    with (
        storing(task, config, dataset, split, directory),
        torch.no_grad(),
        autocast(config.hardware.precision, device),
    ):
        for batch in batches:
            task.score(move_data_to_device(batch, device))
    now, then = task.metrics()[recorded.headline], recorded.value
    if now is None or then is None or abs(now - then) < 0.005:
        return ""
    return f"; they score {now:.2f}, the record says {then:.2f}: other hardware computes otherwise"
