"""Storing what is predicted on a split, batch by batch, and what several kinds of tasks store."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vpeft_bench.data.splits import Dataset, LabelledSplit, Split

_ROWS = 4096  # of a Parquet file that are written together


class PredictionWriter(ABC):
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


class Vectors(PredictionWriter):
    """A Parquet table with a vector for each picture, in the order of the split.

    Its columns are ``index``, ``image``, ``label``, the vector, and for logits ``predicted``; the
    names of the classes are in the file's metadata.

    Args:
        path: of the file.
        split: its pictures.
        root: of the data set, below which pictures are named.
        dataset: names the classes.
        name: of the column of vectors.
        predicts: whether the largest number of a vector says the class.
    """

    def __init__(
        self,
        path: Path,
        split: LabelledSplit,
        root: str,
        dataset: Dataset,
        name: str,
        predicts: bool = True,
    ) -> None:
        self.path = path
        self.split = split
        self.images = paths_below(root, split)
        self.class_names = json.dumps(dataset.class_names)
        self.name = name
        self.predicts = predicts
        self.file: Any = None
        self.waiting: list[Tensor] = []

    def write(self, prediction: Tensor) -> None:
        """Store vectors ``(B, C)``."""
        self.waiting.append(prediction.detach().float().cpu())
        if sum(map(len, self.waiting)) >= _ROWS:
            self._flush(self.count + len(prediction))

    def close(self) -> None:
        """Write what is left."""
        self._flush(self.count)
        if self.file is not None:
            self.file.close()

    def _flush(self, end: int) -> None:
        """Write what is waiting: the rows up to ``end``."""
        # Imported here because every other run can do without.
        import pyarrow as arrow
        from pyarrow import parquet

        if not self.waiting:
            return
        vectors = torch.cat(self.waiting)
        self.waiting = []
        rows = range(end - len(vectors), end)
        flat = arrow.array(vectors.numpy().ravel())
        columns = {
            "index": arrow.array(rows),
            "image": arrow.array([self.images[row] for row in rows], arrow.string()),
            "label": arrow.array(self.split.labels[rows.start : rows.stop]),
        }
        if self.predicts:
            columns["predicted"] = arrow.array(vectors.argmax(dim=1).numpy())
        columns[self.name] = arrow.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
        table = arrow.table(columns).replace_schema_metadata({"class_names": self.class_names})
        if self.file is None:
            self.file = parquet.ParquetWriter(self.path, table.schema)
        self.file.write_table(table)


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


def paths_below(root: str, split: Split) -> list[str]:
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
