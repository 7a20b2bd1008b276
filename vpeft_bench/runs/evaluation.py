"""What a run's score is made of: scores of single classes and who was taken for whom.

One JSON file beside the record, so that a reader of the record can compute its numbers again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from vpeft_bench.data.dataset import Dataset
from vpeft_bench.files import write_atomically
from vpeft_bench.records.run_record import Metrics
from vpeft_bench.tasks.base import Task

SCHEMA_VERSION = 1


def write_evaluation(task: Task, dataset: Dataset, metrics: Metrics, path: Path) -> None:
    """Write what ``task`` has just scored.

    The file holds ``split``, ``epoch``, ``images`` and ``values`` as the record has them;
    ``classes``, for each class ``class`` (from 0), ``name`` where the data set has one and what
    :meth:`Task.per_class` says; and ``confusion``, a list of ``[true class, predicted class,
    count]`` without the pairs that do not occur, null for detection.

    Raises:
        OSError: the file cannot be written; nothing of it is left.
    """
    pairs = task.confusion()
    content = {
        "schema_version": SCHEMA_VERSION,
        "split": metrics.split.value,
        "epoch": metrics.epoch,
        "images": metrics.images,
        "values": metrics.values,
        "classes": [
            {"class": label, "name": _name(dataset, label), **scores}
            for label, scores in enumerate(task.per_class())
        ],
        "confusion": None if pairs is None else _occurring(pairs),
    }
    write_atomically(path, _text(content).encode())


def _name(dataset: Dataset, label: int) -> str | None:
    return None if dataset.class_names is None else dataset.class_names[label]


def _occurring(pairs: Tensor) -> list[list[int]]:
    places = pairs.nonzero()
    counts = pairs[places[:, 0], places[:, 1]]
    return [[*place, count] for place, count in zip(places.tolist(), counts.tolist(), strict=True)]


def _text(content: dict[str, Any]) -> str:
    """As JSON with one line for each class and each pair."""
    lines = ",\n".join(f' "{key}": {_value(value)}' for key, value in content.items())
    return f"{{\n{lines}\n}}\n"


def _value(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str) and value:
        return "[\n" + ",\n".join(f"  {_json(item)}" for item in value) + "\n ]"
    return _json(value)


def _json(value: Any) -> str:
    return json.dumps(value, allow_nan=False)
