"""Tables to compute with: published results, and small ones made from a seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest

from tests.conftest import REPOSITORY
from vpeft_bench.statistics.reading import kept, parse_condition, read_csv, with_roles

PUBLISHED = REPOSITORY / "results" / "published" / "vtab1k_other_sources_long.csv"


def long(values: dict[str, Sequence[float]], **columns: Sequence[str]) -> pd.DataFrame:
    """One row per method and data set: ``{"lora": [90, 80]}`` is lora on d0 and d1."""
    rows = [
        {"method": method, "data": f"d{number}", "value": value}
        | {name: texts[number] for name, texts in columns.items()}
        for method, row in values.items()
        for number, value in enumerate(row)
    ]
    return pd.DataFrame(rows)


def drawn(
    methods: int = 6, datasets: int = 12, seeds: int = 3, *, seed: int = 0, ties: bool = True
) -> pd.DataFrame:
    """A table of percentages; with ties, differences and values come up more than once."""
    random = np.random.default_rng(seed)
    level = random.uniform(30, 90, size=datasets)
    rows = [
        {
            "method": f"m{m}",
            "data": f"d{d:02d}",
            "seed": s,
            "value": float(
                np.round(level[d] + 0.6 * m + random.normal(scale=1.5), 0 if ties else 4)
            ),
        }
        for m in range(methods)
        for d in range(datasets)
        for s in range(seeds)
    ]
    return pd.DataFrame(rows)


@pytest.fixture(scope="session")
def published() -> pd.DataFrame:
    """The tuned table of Mai et al. (arXiv 2409.16434): 13 methods on 19 data sets, last epoch."""
    conditions = [
        parse_condition("paper=Lessons and Insights (arXiv 2409.16434)"),
        parse_condition("note=,default run directory"),
        parse_condition("method!=Full fine-tuning,Linear probing,VPT-Shallow"),
    ]
    columns = {"data": "dataset", "value": "acc"}
    frame, _ = with_roles(kept(read_csv(PUBLISHED), conditions), columns)
    return frame
