"""How boxes and masks are drawn: the truth, and beside it what was found."""

from __future__ import annotations

from typing import Any, cast

from PIL import Image
from torch import Tensor

from vpeft_bench.data.splits import Dataset, ObjectSplit
from vpeft_bench.drawing import Panel, class_name, evenly, with_objects
from vpeft_bench.formats import counted
from vpeft_bench.tasks.detection.module import Detection
from vpeft_bench.tasks.kind import Drawn

MIN_SCORE = 0.5  # weaker detections would hide the picture


def truth(dataset: Dataset, split: str, index: int, cell: int) -> Panel:
    """A picture with its objects."""
    pictures = cast(ObjectSplit, dataset.split(split))
    objects = pictures.objects(index)
    labels = objects.labels.tolist()
    drawn = with_objects(
        pictures.image(index),
        objects.boxes,
        labels,
        objects.masks,
        objects.ignored.tolist(),
        [class_name(dataset, label) for label in labels],
        cell,
    )
    ignored = int(objects.ignored.sum())
    caption = f"{split} {index}: {counted(len(labels), 'object', 'objects')}" + (
        f", {ignored} ignored" if ignored else ""
    )
    return Panel([drawn], caption, set(labels))


def detections(task: Detection, dataset: Dataset, split: str, batches: Any, pictures: int) -> Drawn:
    """Truth and detections of some pictures; and what is what."""
    panels = []
    for index, image, target in evenly(batches, pictures):
        (found,) = task.model.detect([image.to(task.device)])
        found = {name: value.cpu() for name, value in found.items()}
        strong = {name: value[found["scores"] >= MIN_SCORE] for name, value in found.items()}
        truth = {
            name: value for name, value in target.items() if name in ("boxes", "labels", "masks")
        }
        picture = dataset.split(split).image(index)
        classes = {*truth["labels"].tolist(), *strong["labels"].tolist()}
        versions = [_with_objects(picture, truth), _with_objects(picture, strong)]
        caption = f"{split} {index}: {len(truth['labels'])} there, {len(strong['labels'])} found"
        panels.append(Panel(versions, caption, classes))
    return Drawn(panels, f"truth, then detections of score {MIN_SCORE} and more")


def _with_objects(picture: Image.Image, objects: dict[str, Tensor]) -> Image.Image:
    """The enlarged picture with boxes and masks, given as the detector does."""
    masks = objects["masks"].numpy() if "masks" in objects else None
    return with_objects(picture, objects["boxes"].numpy(), objects["labels"].tolist(), masks)
