"""What a classifier is shown by: its mistakes."""

from __future__ import annotations

from typing import Any

import torch

from vpeft_bench.data.splits import Dataset
from vpeft_bench.drawing import Panel, class_name, enlarged
from vpeft_bench.tasks.classification.module import Classification


def mistakes(
    task: Classification, dataset: Dataset, split: str, batches: Any, pictures: int
) -> tuple[list[Panel], str]:
    """The mistakes that it is most confident of; and what they are."""
    probabilities, labels = [], []
    for images, truth in batches:
        probabilities.append(task(images.to(task.device)).softmax(1).cpu())
        labels.append(truth)
    confidence, predicted = torch.cat(probabilities).max(1)
    truth = torch.cat(labels)
    wrong = torch.nonzero(predicted != truth).flatten()
    order = wrong[confidence[wrong].argsort(descending=True, stable=True)]
    panels = []
    for index in order[:pictures].tolist():
        told = class_name(dataset, int(predicted[index]))
        caption = (
            f"{class_name(dataset, int(truth[index]))}, taken for {told} ({confidence[index]:.0%})"
        )
        panels.append(Panel([enlarged(dataset.split(split).image(index))], caption))
    return panels, f"the most confident of {len(wrong)} mistakes in {len(truth)} {split} images"
