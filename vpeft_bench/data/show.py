"""``python -m vpeft_bench data show``: pictures with their truth drawn, before any training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vpeft_bench.arguments import typed_count, typed_picture
from vpeft_bench.config import IGNORED_LABEL, RunConfig
from vpeft_bench.data.asked import answered, asked, parser
from vpeft_bench.data.dataset import open_dataset
from vpeft_bench.data.splits import Dataset, LabelledSplit, LabelMapSplit, ObjectSplit, Split
from vpeft_bench.drawing import Panel, class_name, coloured, enlarged, save, sheet, with_objects

PICTURES = 16
COLUMNS = 4
CELL = 320  # longer side of a drawn picture, pixels


def main(arguments: Sequence[str], own: Path | None = None) -> int:
    """Draw pictures of a data set; 0, or 1 where that fails, 2 for a wrong command line or data.

    Args:
        arguments: what follows ``data show``.
        own: a further folder of configs (``--config-dir``).
    """
    made = parser("show", "Draw pictures and their truth: classes, boxes, masks, label maps.")
    made.add_argument("--split", default="train", help="default: train")
    made.add_argument("--count", type=typed_count, default=PICTURES, help=f"default: {PICTURES}")
    made.add_argument("--out", type=typed_picture, help="default: data-NAME-SPLIT.png, here")
    options = made.parse_intermixed_args(arguments)

    def command() -> int:
        config = asked(options.overrides, own)
        name = f"data-{config.data.name.replace('/', '-')}-{options.split}.png"
        print(show(config, options.split, options.count, options.out or Path(name)))
        return 0

    return answered(command)


def show(config: RunConfig, split: str, count: int, path: Path) -> Path:
    """Write a sheet of ``count`` pictures, spread evenly over the split; its path.

    Raises:
        ConfigError: there is no such split.
        VpeftBenchError: the data set is not there or cannot be read.
        OSError: the sheet cannot be written.
    """
    dataset = open_dataset(config.data)
    pictures = dataset.split(split)
    size = len(pictures)
    places = np.linspace(0, size - 1, min(count, size)).round().astype(int).tolist()
    panels = [_panel(dataset, pictures, split, index) for index in places]
    paired = isinstance(pictures, LabelMapSplit)
    what = "pixels without a class are black" if paired else "boxes in grey are ignored"
    title = f"{dataset.name}, {split}: {len(panels)} of {size:,} pictures"
    if not isinstance(pictures, LabelledSplit):
        title += f"; {what}"
    drawn = sheet(panels, title, dataset, COLUMNS // 2 if paired else COLUMNS, CELL)
    save(drawn, path)
    return path


def _panel(dataset: Dataset, pictures: Split, split: str, index: int) -> Panel:
    """Picture ``index`` with what belongs to it."""
    picture = pictures.image(index)
    place = f"{split} {index}"
    if isinstance(pictures, LabelledSplit):
        label = int(pictures.labels[index])
        return Panel([enlarged(picture, CELL)], f"{place}: {class_name(dataset, label)}")
    if isinstance(pictures, ObjectSplit):
        objects = pictures.objects(index)
        labels = objects.labels.tolist()
        drawn = with_objects(
            picture,
            objects.boxes,
            labels,
            objects.masks,
            objects.ignored.tolist(),
            [class_name(dataset, label) for label in labels],
            CELL,
        )
        ignored = int(objects.ignored.sum())
        caption = f"{place}: {_counted(len(labels), 'object', 'objects')}" + (
            f", {ignored} ignored" if ignored else ""
        )
        return Panel([drawn], caption, set(labels))
    assert isinstance(pictures, LabelMapSplit)
    label_map = pictures.label_map(index)
    classes = set(np.unique(label_map).tolist()) - {IGNORED_LABEL}
    share = float((label_map == IGNORED_LABEL).mean())
    caption = f"{place}: {_counted(len(classes), 'class', 'classes')}" + (
        f", {share:.1%} of the pixels without" if share else ""
    )
    return Panel([enlarged(picture, CELL), coloured(label_map, CELL)], caption, classes)


def _counted(number: int, one: str, several: str) -> str:
    return f"{number} {one if number == 1 else several}"
