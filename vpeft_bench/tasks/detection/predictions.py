"""What a detector found, as COCO's result files.

``bbox.json`` and, where masks are predicted, ``segm.json``, with the ids of the data set's own
annotation file. Entry n of both is the same detection. They are two files because COCO's code,
given both in one, takes the size of a mask from its box.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from vpeft_bench.data.splits import Dataset, ObjectSplit
from vpeft_bench.metrics.coco import run_lengths, widths_and_heights
from vpeft_bench.tasks.writers import PredictionWriter, picture_names

BOXES, MASKS = "bbox.json", "segm.json"


class Detections(PredictionWriter):
    """COCO's result files."""

    def __init__(self, dataset: Dataset, split: str, folder: Path) -> None:
        pictures = cast(ObjectSplit, dataset.split(split))
        self.ids: Sequence[int | str] = pictures.image_ids() or picture_names(pictures)
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
