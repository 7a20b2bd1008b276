"""What a data set with boxes, and perhaps masks, is looked at for."""

from __future__ import annotations

from vpeft_bench.data.findings import Inspection
from vpeft_bench.data.schema import DataConfig
from vpeft_bench.data.splits import Dataset


def inspect_objects(dataset: Dataset, config: DataConfig, inspection: Inspection) -> None:
    """Look at the objects of every split."""
