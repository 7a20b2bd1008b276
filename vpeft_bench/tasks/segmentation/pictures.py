"""How label maps are drawn: picture, truth, and what was predicted."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from vpeft_bench.config.sections import IGNORED_LABEL
from vpeft_bench.data.splits import Dataset, LabelMapSplit
from vpeft_bench.drawing import Panel, coloured, enlarged, evenly
from vpeft_bench.formats import counted
from vpeft_bench.tasks.kind import Drawn
from vpeft_bench.tasks.segmentation.module import Segmentation


def truth(dataset: Dataset, split: str, index: int, cell: int) -> Panel:
    """A picture and its label map."""
    pictures = cast(LabelMapSplit, dataset.split(split))
    label_map = pictures.label_map(index)
    classes = set(np.unique(label_map).tolist()) - {IGNORED_LABEL}
    share = float((label_map == IGNORED_LABEL).mean())
    caption = f"{split} {index}: {counted(len(classes), 'class', 'classes')}" + (
        f", {share:.1%} of the pixels without" if share else ""
    )
    return Panel(
        [enlarged(pictures.image(index), cell), coloured(label_map, cell)], caption, classes
    )


def label_maps(
    task: Segmentation, dataset: Dataset, split: str, batches: Any, pictures: int
) -> Drawn:
    """Truth and prediction of some pictures; and what is what."""
    panels = []
    for index, image, truth in evenly(batches, pictures):
        predicted = task.segment([image.to(task.device)], [truth])[0].cpu()
        picture = dataset.split(split).image(index)
        scored = truth != IGNORED_LABEL
        right = (predicted == truth)[scored].float().mean().item() if scored.any() else float("nan")
        classes = {*truth[scored].unique().tolist(), *predicted.unique().tolist()}
        versions = [enlarged(picture), *(coloured(m.numpy()) for m in (truth, predicted))]
        panels.append(Panel(versions, f"{split} {index}: {right:.0%} of the pixels right", classes))
    return Drawn(panels, "picture, truth, prediction; black is not scored")
