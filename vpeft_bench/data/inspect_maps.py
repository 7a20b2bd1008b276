"""What a data set with label maps is looked at for."""

from __future__ import annotations

from vpeft_bench.data.findings import Inspection
from vpeft_bench.data.schema import DataConfig
from vpeft_bench.data.splits import Dataset


def inspect_maps(dataset: Dataset, config: DataConfig, inspection: Inspection) -> None:
    """Look at the label maps of a sample of every split, or at all of them."""
