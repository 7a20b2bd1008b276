"""Opening a data set from its configuration."""

from __future__ import annotations

from dataclasses import replace

from vpeft_bench.data.readers import READERS
from vpeft_bench.data.schema import DataConfig
from vpeft_bench.data.splits import SPLITS, Dataset, PictureFiles, Split

__all__ = ["SPLITS", "Dataset", "Split", "open_dataset"]


def open_dataset(config: DataConfig) -> Dataset:
    """Read and check the lists of a data set; no picture is decoded or rendered.

    Raises MissingDataError with every problem found, where the data set was looked for, where to
    get it and what to type.
    """
    dataset = READERS.get(config.reader)(config)
    splits = {name: _on(config.background, split) for name, split in dataset.splits.items()}
    return replace(dataset, splits=splits)


def _on(background: str | None, split: Split) -> Split:
    """``split`` with its transparent pictures on ``background``."""
    return replace(split, background=background) if isinstance(split, PictureFiles) else split
