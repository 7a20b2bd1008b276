"""The readers of data sets by name: what a data set's ``reader`` may be.

A reader is a function from a :class:`~vpeft_bench.data.schema.DataConfig` to a
:class:`~vpeft_bench.data.splits.Dataset`. It reads lists and annotations, decodes no picture, and
raises MissingDataError with every problem that it finds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from vpeft_bench.data.schema import DataConfig
from vpeft_bench.registry import Registry

if TYPE_CHECKING:
    from vpeft_bench.data.splits import Dataset

ReadDataset: TypeAlias = "Callable[[DataConfig], Dataset]"

READERS: Registry[ReadDataset] = Registry(
    "data.reader",
    {
        "image_list": "vpeft_bench.data.image_list:read_image_list",
        "image_folder": "vpeft_bench.data.image_folder:read_image_folder",
        "csv": "vpeft_bench.data.csv_list:read_csv",
        "json_splits": "vpeft_bench.data.json_splits:read_json_splits",
        "digits": "vpeft_bench.data.demo:read_digits",
        "sprites": "vpeft_bench.data.demo:read_sprites",
        "scenes": "vpeft_bench.data.demo:read_scenes",
        "glyphs": "vpeft_bench.data.demo:read_glyphs",
        "coco": "vpeft_bench.data.coco:read_coco",
        "voc_boxes": "vpeft_bench.data.voc:read_voc_boxes",
        "voc_masks": "vpeft_bench.data.voc:read_voc_masks",
        "ade20k": "vpeft_bench.data.ade20k:read_ade20k",
    },
)

register_reader = READERS.register
