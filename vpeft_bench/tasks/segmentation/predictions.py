"""What a segmenter predicted: one PNG for each picture, with values as in the data set's files."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image
from torch import Tensor

from vpeft_bench.data.splits import Dataset, LabelMapSplit
from vpeft_bench.tasks.writers import PredictionWriter, picture_names

MAPS = "label_maps"


class LabelMaps(PredictionWriter):
    """One PNG for each picture."""

    def __init__(self, dataset: Dataset, split: str, folder: Path) -> None:
        self.split = cast(LabelMapSplit, dataset.split(split))
        self.names = picture_names(self.split)
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
