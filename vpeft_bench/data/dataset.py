"""Opening a data set from its configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from vpeft_bench.data.ade20k import read_ade20k
from vpeft_bench.data.coco import read_coco
from vpeft_bench.data.demo import read_digits, read_scenes, read_sprites
from vpeft_bench.data.image_list import read_image_list
from vpeft_bench.data.json_splits import read_json_splits
from vpeft_bench.data.schema import DataConfig, Reader
from vpeft_bench.data.splits import SPLITS, Dataset, PictureFiles, Split
from vpeft_bench.data.voc import read_voc_boxes, read_voc_masks

__all__ = ["SPLITS", "Dataset", "Split", "open_dataset"]

_READERS: dict[Reader, Callable[[DataConfig], Dataset]] = {
    Reader.image_list: read_image_list,
    Reader.json_splits: read_json_splits,
    Reader.digits: read_digits,
    Reader.sprites: read_sprites,
    Reader.scenes: read_scenes,
    Reader.coco: read_coco,
    Reader.voc_boxes: read_voc_boxes,
    Reader.voc_masks: read_voc_masks,
    Reader.ade20k: read_ade20k,
}


def open_dataset(config: DataConfig) -> Dataset:
    """Read and check the lists of a data set; no picture is decoded or rendered.

    Raises MissingDataError with every problem found, where the data set was looked for, where to
    get it and what to type.
    """
    dataset = _READERS[config.reader](config)
    splits = {name: _on(config.background, split) for name, split in dataset.splits.items()}
    return replace(dataset, splits=splits)


def _on(background: str | None, split: Split) -> Split:
    """``split`` with its transparent pictures on ``background``."""
    return replace(split, background=background) if isinstance(split, PictureFiles) else split
