"""How retrieval is drawn: queries, and what lies nearest to each."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ImageDraw, ImageOps
from PIL.Image import Image

from vpeft_bench.data.splits import Dataset
from vpeft_bench.drawing import Panel, class_name, enlarged
from vpeft_bench.tasks.kind import Drawn, Mistake
from vpeft_bench.tasks.labelled import labelled
from vpeft_bench.tasks.retrieval.module import Retrieval

NEAREST = 4  # drawn beside each query
CELL = 120  # longer side of a drawn picture, pixels
RIGHT, WRONG = (0, 160, 60), (210, 30, 30)


def nearest_pictures(
    task: Retrieval, dataset: Dataset, split: str, batches: Any, pictures: int
) -> Drawn:
    """Queries spread evenly over a split, each with its nearest pictures."""
    task.forget()
    for images, labels in batches:
        task.score((images.to(task.device), labels.to(task.device)))
    found = task.found()
    size = len(found.queries)
    panels = []
    for place in np.linspace(0, size - 1, min(pictures, size)).round().astype(int).tolist():
        query, right = int(found.queries[place]), found.right[place, :NEAREST].tolist()
        beside = [
            _framed(dataset, split, index, RIGHT if same else WRONG)
            for index, same in zip(found.nearest[place, :NEAREST].tolist(), right, strict=True)
        ]
        name = class_name(dataset, int(labelled(dataset, split).labels[query]))
        caption = f"{split} {query}: {name}, {sum(right)} of {len(right)} right"
        panels.append(Panel([_framed(dataset, split, query, None), *beside], caption))
    heading = f"queries, and the {NEAREST} nearest {split} pictures to each"
    return Drawn(panels, heading, _mistakes(task, labelled(dataset, split).labels))


def _mistakes(task: Retrieval, labels: NDArray[np.int64]) -> list[Mistake]:
    """Queries whose nearest picture is of another class, the most alike first."""
    found, embeddings = task.found(), torch.cat(task.embeddings)
    nearest = found.nearest[:, 0]
    alike = (embeddings[found.queries] * embeddings[nearest]).sum(dim=1)
    wrong = torch.nonzero(~found.right[:, 0]).flatten()
    order = wrong[alike[wrong].argsort(descending=True, stable=True)]
    triples = zip(
        found.queries[order].tolist(), nearest[order].tolist(), alike[order].tolist(), strict=True
    )
    return [
        Mistake(query, int(labels[query]), int(labels[other]), cosine, other)
        for query, other, cosine in triples
    ]


def _framed(dataset: Dataset, split: str, index: int, colour: tuple[int, int, int] | None) -> Image:
    """An enlarged picture with a frame; all of one size, so that they stand beside each other."""
    picture = enlarged(dataset.split(split).image(index), CELL)
    square = ImageOps.pad(picture, (CELL, CELL), color="white")
    if colour is not None:
        ImageDraw.Draw(square).rectangle((0, 0, CELL - 1, CELL - 1), outline=colour, width=4)
    return square
