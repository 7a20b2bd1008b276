"""``python -m vpeft_bench show RUN``: what a finished run predicts, beside the truth, as a picture.

Detections and label maps of some pictures of the split that the run was scored on; of a classifier,
its most confident mistakes.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf.errors import OmegaConfBaseException
from PIL import Image
from torch import Tensor

from vpeft_bench.arguments import typed_count, typed_picture
from vpeft_bench.build import Model, build_batches, device_of
from vpeft_bench.config import IGNORED_LABEL, RunConfig, from_plain
from vpeft_bench.data.dataset import Dataset, open_dataset
from vpeft_bench.data.findings import Inspection
from vpeft_bench.data.inspect_pictures import data_identity, inspect_pictures
from vpeft_bench.drawing import Panel, class_name, coloured, enlarged, save, sheet, with_objects
from vpeft_bench.errors import VpeftBenchError
from vpeft_bench.files import typed_path
from vpeft_bench.finished import finished_model, finished_run
from vpeft_bench.flags import refuse_config_dir
from vpeft_bench.record import RECORD_NAME
from vpeft_bench.tasks.base import Task
from vpeft_bench.tasks.classification import Classification
from vpeft_bench.tasks.detection import Detection
from vpeft_bench.tasks.segmentation import Segmentation

FILE = "predictions.png"
PICTURES = 12
COLUMNS = 3  # of pairs
MIN_SCORE = 0.5  # weaker detections would hide the picture


def main(arguments: Sequence[str], own: Path | None = None) -> int:
    """Draw what a run predicts; the process's exit status.

    Raises:
        VpeftBenchError: as :func:`show`.
        OSError: the picture cannot be written.
    """
    refuse_config_dir(own, "show")
    parser = argparse.ArgumentParser(
        prog="python -m vpeft_bench show",
        description="Draw what a finished run predicts, beside the truth.",
    )
    parser.add_argument(
        "run", type=typed_path, metavar="RUN", help="run directory, or its record.json"
    )
    parser.add_argument(
        "--pictures", type=typed_count, default=PICTURES, help=f"default: {PICTURES}"
    )
    parser.add_argument("--out", type=typed_picture, help=f"default: {FILE} in the run directory")
    parser.add_argument("--root", help="where the data set lies now: data.root of the run")
    options = parser.parse_args(arguments)
    print(show(options.run, options.pictures, options.out, options.root))
    return 0


def show(
    run: Path, pictures: int = PICTURES, out: Path | None = None, root: str | None = None
) -> Path:
    """Build the model of a finished run again, and draw what it predicts.

    Raises:
        VpeftBenchError: there is no finished run, its data are others now, or its files belong to
            other weights.
    """
    directory = run.parent if run.name == RECORD_NAME else run
    record = finished_run(directory)
    try:
        config = from_plain(record.asked)
    except OmegaConfBaseException as error:
        what = " ".join(str(error).split())
        raise VpeftBenchError(f"{directory} is of another version: {what}") from error
    if root is not None:
        config.data.root = os.path.expanduser(root)
    dataset = open_dataset(config.data)
    looked = Inspection()
    if record.where.data is not None and record.where.data.pixels:
        inspect_pictures(dataset, config.data, looked)
    if data_identity(dataset, looked) != record.where.data_fingerprint:
        raise VpeftBenchError(
            f"data={config.data.name} are not what {directory} was run on; --root DIR names others"
        )
    model, task = finished_model(config, dataset, directory, record)
    assert record.happened.last_epoch is not None
    split = record.happened.last_epoch.split.value
    return draw(config, dataset, split, model, task, out or directory / FILE, pictures)


def draw(
    config: RunConfig,
    dataset: Dataset,
    split: str,
    model: Model,
    task: Task,
    path: Path,
    pictures: int = PICTURES,
) -> Path:
    """Write a contact sheet of what ``task`` predicts on ``split``; its path."""
    if config.input is not None:  # only some pictures are looked at
        config = replace(
            config,
            data=replace(config.data, cache_gib=0.0),
            hardware=replace(config.hardware, workers=0),
        )
    batches = build_batches(config, dataset, model.preprocessing, split, train=False)
    task.to(device_of(config.hardware.accelerator)).eval()
    with torch.no_grad():
        if isinstance(task, Classification):
            panels, heading = _mistakes(task, dataset, split, batches, pictures)
        elif isinstance(task, Detection):
            panels, heading = _detections(task, dataset, split, batches, pictures)
        else:
            assert isinstance(task, Segmentation)
            panels, heading = _label_maps(task, dataset, split, batches, pictures)
    title = f"{config.method['name']} on {config.data.name}, {config.backbone.name}: {heading}"
    pairs = any(len(panel.versions) > 1 for panel in panels)
    columns = COLUMNS if pairs else 2 * COLUMNS
    save(sheet(panels, title, dataset, columns), path)
    return path


# ---- what each task shows -----------------------------------------------------------------------


def _mistakes(
    task: Classification, dataset: Dataset, split: str, batches: Any, pictures: int
) -> tuple[list[Panel], str]:
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


def _detections(
    task: Detection, dataset: Dataset, split: str, batches: Any, pictures: int
) -> tuple[list[Panel], str]:
    panels = []
    for index, image, target in _evenly(batches, pictures):
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
    return panels, f"truth, then detections of score {MIN_SCORE} and more"


def _label_maps(
    task: Segmentation, dataset: Dataset, split: str, batches: Any, pictures: int
) -> tuple[list[Panel], str]:
    panels = []
    for index, image, truth in _evenly(batches, pictures):
        predicted = task.segment([image.to(task.device)], [truth])[0].cpu()
        picture = dataset.split(split).image(index)
        scored = truth != IGNORED_LABEL
        right = (predicted == truth)[scored].float().mean().item() if scored.any() else float("nan")
        classes = {*truth[scored].unique().tolist(), *predicted.unique().tolist()}
        versions = [enlarged(picture), *(coloured(m.numpy()) for m in (truth, predicted))]
        panels.append(Panel(versions, f"{split} {index}: {right:.0%} of the pixels right", classes))
    return panels, "picture, truth, prediction; black is not scored"


def _evenly(batches: Any, pictures: int) -> Iterator[tuple[int, Tensor, Any]]:
    """Index, picture and truth of so many pictures, spread evenly over the split."""
    size = len(batches.dataset)
    for index in np.linspace(0, size - 1, min(pictures, size)).round().astype(np.int64):
        (image,), (target,) = batches.dataset[0, index[None]]
        yield int(index), image, target


def _with_objects(picture: Image.Image, objects: dict[str, Tensor]) -> Image.Image:
    """The enlarged picture with boxes and masks, given as the detector does."""
    masks = objects["masks"].numpy() if "masks" in objects else None
    return with_objects(picture, objects["boxes"].numpy(), objects["labels"].tolist(), masks)
