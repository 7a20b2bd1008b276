"""What a run predicted on the split that it was scored on, for others to score it again.

``predictions=true`` fills the folder ``predictions`` of the run directory:

detection
    ``bbox.json`` and, where masks are predicted, ``segm.json``: results in COCO's format, with the
    ids of the data set's own annotation file. Entry n of both is the same detection. They are two
    files because COCO's code, given both in one, takes the size of a mask from its box.
segmentation
    ``label_maps``: one PNG for each picture, with values as in the data set's own files.
classification
    ``logits.parquet``: a row for each picture, in the order of the split: ``index``, ``image``,
    ``label``, ``predicted`` and ``logits``; the names of the classes are in the file's metadata.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric.utilities import move_data_to_device
from PIL import Image
from torch import Tensor

from vpeft_bench.build import autocast, build_batches, device_of
from vpeft_bench.config import RunConfig
from vpeft_bench.data.dataset import Dataset, Split
from vpeft_bench.data.splits import LabelledSplit, LabelMapSplit, ObjectSplit
from vpeft_bench.errors import VpeftBenchError
from vpeft_bench.files import replacing_folder
from vpeft_bench.finished import finished_model
from vpeft_bench.metrics.coco import run_lengths, widths_and_heights
from vpeft_bench.record import RunRecord
from vpeft_bench.run_files import PREDICTIONS
from vpeft_bench.tasks.base import Task

BOXES, MASKS, MAPS, LOGITS = "bbox.json", "segm.json", "label_maps", "logits.parquet"
_ROWS = 4096  # of a Parquet file that are written together


@contextmanager
def storing(
    task: Task, config: RunConfig, dataset: Dataset, split: str, directory: Path
) -> Iterator[None]:
    """Store what ``task`` predicts for the batches that it scores meanwhile: all of ``split``.

    Raises:
        OSError: the files cannot be written; what was there before is still there.
    """
    with replacing_folder(directory / PREDICTIONS) as folder:
        writer = _writer(config, dataset, dataset.split(split), folder)
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
    batches = build_batches(config, dataset, model.preprocessing, split, train=False)
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


def _writer(config: RunConfig, dataset: Dataset, split: Split, folder: Path) -> _Writer:
    if isinstance(split, ObjectSplit):
        return _Detections(dataset, split, folder)
    if isinstance(split, LabelMapSplit):
        return _LabelMaps(split, folder)
    assert isinstance(split, LabelledSplit)
    return _Logits(config, dataset, split, folder)


class _Writer(ABC):
    """Gets the predictions of a split batch by batch, in order.

    Attributes:
        count: of the pictures so far.
    """

    count = 0

    def add(self, prediction: Any) -> None:
        """Store what was predicted for a batch."""
        self.write(prediction)
        self.count += len(prediction)

    @abstractmethod
    def write(self, prediction: Any) -> None:
        """Store what was predicted for the pictures from ``count`` on."""

    @abstractmethod
    def close(self) -> None:
        """There are no more."""


class _Detections(_Writer):
    """COCO's result files."""

    def __init__(self, dataset: Dataset, split: ObjectSplit, folder: Path) -> None:
        self.ids: Sequence[int | str] = split.image_ids() or picture_names(split)
        self.categories: Sequence[int | str] = dataset.category_ids or range(dataset.num_classes)
        self.boxes = _JsonList(folder / BOXES)
        self.masks: _JsonList | None = None
        self.folder = folder

    def write(self, prediction: list[dict[str, Tensor]]) -> None:
        """Store the detections of pictures."""
        for id_, picture in zip(self.ids[self.count :], prediction, strict=False):
            found = {name: values.detach().cpu() for name, values in picture.items()}
            known = [
                {"image_id": id_, "category_id": self.categories[label], "score": score}
                for label, score in zip(
                    found["labels"].tolist(), found["scores"].double().tolist(), strict=True
                )
            ]
            boxes = widths_and_heights(found["boxes"].double().numpy()).tolist()
            for record, box in zip(known, boxes, strict=True):
                self.boxes.add(record | {"bbox": box})
            if "masks" not in found:
                continue
            self.masks = self.masks or _JsonList(self.folder / MASKS)
            masks = run_lengths(found["masks"].bool().numpy())
            for record, mask in zip(known, masks, strict=True):
                self.masks.add(record | {"segmentation": mask})

    def close(self) -> None:
        """End the lists."""
        self.boxes.close()
        if self.masks is not None:
            self.masks.close()


class _JsonList:
    """A JSON file with one list, written item by item: those of a split may not fit in memory."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("w", encoding="utf-8")
        self.before = "[\n"

    def add(self, item: Any) -> None:
        """One more item."""
        self.file.write(self.before + json.dumps(item, allow_nan=False))
        self.before = ",\n"

    def close(self) -> None:
        """End the list."""
        self.file.write("\n]\n" if self.before == ",\n" else "[]\n")
        self.file.close()


class _LabelMaps(_Writer):
    """One PNG for each picture."""

    def __init__(self, split: LabelMapSplit, folder: Path) -> None:
        self.split = split
        self.names = picture_names(split)
        self.folder = folder / MAPS
        self.folder.mkdir()

    def write(self, prediction: list[Tensor]) -> None:
        """Store maps of classes ``(H, W)``."""
        for name, label_map in zip(self.names[self.count :], prediction, strict=False):
            path = self.folder / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            values = label_map.cpu().numpy().astype(np.uint8)
            Image.fromarray(self.split.file_values(values)).save(path)

    def close(self) -> None:
        """Each file is whole already."""


class _Logits(_Writer):
    """A table with a row for each picture."""

    def __init__(
        self, config: RunConfig, dataset: Dataset, split: LabelledSplit, folder: Path
    ) -> None:
        # Imported here because every other run can do without.
        import pyarrow as arrow
        from pyarrow import parquet

        self.split = split
        self.images = _below(config.data.root, split)
        columns = [
            ("index", arrow.int64()),
            ("image", arrow.string()),
            ("label", arrow.int64()),
            ("predicted", arrow.int64()),
            ("logits", arrow.list_(arrow.float32(), dataset.num_classes)),
        ]
        names = json.dumps(dataset.class_names)
        self.schema = arrow.schema(columns, metadata={"class_names": names})
        self.file = parquet.ParquetWriter(folder / LOGITS, self.schema)
        self.waiting: list[Tensor] = []

    def write(self, prediction: Tensor) -> None:
        """Store logits ``(B, C)``."""
        self.waiting.append(prediction.detach().float().cpu())
        if sum(map(len, self.waiting)) >= _ROWS:
            self._flush(self.count + len(prediction))

    def close(self) -> None:
        """Write what is left."""
        self._flush(self.count)
        self.file.close()

    def _flush(self, end: int) -> None:
        """Write what is waiting: the rows up to ``end``."""
        import pyarrow as arrow

        if not self.waiting:
            return
        logits = torch.cat(self.waiting)
        self.waiting = []
        rows = range(end - len(logits), end)
        flat = arrow.array(logits.numpy().ravel())
        columns = [
            arrow.array(rows),
            arrow.array([self.images[row] for row in rows], arrow.string()),
            arrow.array(self.split.labels[rows.start : rows.stop]),
            arrow.array(logits.argmax(dim=1).numpy()),
            arrow.FixedSizeListArray.from_arrays(flat, logits.shape[1]),
        ]
        self.file.write_table(arrow.table(columns, schema=self.schema))


def picture_names(split: Split) -> list[str]:
    """A name for every picture of a split: its path without the folders that all have in common.

    The suffixes are left out if that leaves all names different. Rendered pictures have numbers.
    """
    files = [split.file(index) for index in range(len(split))]
    paths = [file for file in files if file is not None]
    if len(paths) < len(files) or not paths:
        return [f"{index:0{len(str(len(files) - 1))}d}" for index in range(len(files))]
    common = os.path.commonpath([os.path.dirname(path) for path in paths])
    names = [os.path.relpath(path, common or os.curdir) for path in paths]
    stems = [os.path.splitext(name)[0] for name in names]
    return stems if len(set(stems)) == len(stems) else names


def _below(root: str, split: Split) -> list[str]:
    """The path of every picture below ``root``, as it is where it lies elsewhere, or its number."""
    names = []
    for index in range(len(split)):
        file = split.file(index)
        if file is None:
            names.append(str(index))
            continue
        relative = os.path.relpath(file, root or os.curdir)
        names.append(file if relative.startswith(os.pardir) else relative)
    return names
