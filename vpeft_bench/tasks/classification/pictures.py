"""What a classifier is shown by: its mistakes."""

from __future__ import annotations

from typing import Any

import torch

from vpeft_bench.data.splits import Dataset
from vpeft_bench.drawing import Panel, class_name, enlarged
from vpeft_bench.tasks.classification.module import Classification
from vpeft_bench.tasks.kind import Drawn, Mistake


def mistakes(
    task: Classification, dataset: Dataset, split: str, batches: Any, pictures: int
) -> Drawn:
    """The mistakes that it is most confident of."""
    probabilities, labels = [], []
    for images, truth in batches:
        probabilities.append(task(images.to(task.device)).softmax(1).cpu())
        labels.append(truth)
    confidence, predicted = torch.cat(probabilities).max(1)
    truth = torch.cat(labels)
    wrong = torch.nonzero(predicted != truth).flatten()
    order = wrong[confidence[wrong].argsort(descending=True, stable=True)]
    found = [
        Mistake(index, int(truth[index]), int(predicted[index]), float(confidence[index]))
        for index in order.tolist()
    ]
    panels = []
    for one in found[:pictures]:
        true, told = (class_name(dataset, label) for label in (one.true, one.predicted))
        picture = enlarged(dataset.split(split).image(one.index))
        panels.append(Panel([picture], f"{true}, taken for {told} ({one.confidence:.0%})"))
    heading = f"the most confident of {len(found)} mistakes in {len(truth)} {split} images"
    return Drawn(panels, heading, found)
