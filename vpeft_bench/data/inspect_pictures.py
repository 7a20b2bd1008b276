"""What the pictures of a data set are looked at for, whatever belongs to them."""

from __future__ import annotations

from vpeft_bench.data.findings import Inspection
from vpeft_bench.data.schema import DataConfig
from vpeft_bench.data.splits import Dataset


def inspect_pictures(dataset: Dataset, config: DataConfig, inspection: Inspection) -> None:
    """Look at a sample of the pictures of every split, or at all of them."""
