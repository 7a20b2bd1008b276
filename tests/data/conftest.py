"""What the tests of the data sets share: real folders where present, and small made-up ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vpeft_bench.data.dataset import Dataset, open_dataset
from vpeft_bench.data.inspection import Inspection, inspect
from vpeft_bench.data.schema import DataConfig
from vpeft_bench.errors import MissingDataError, Problem
from vpeft_bench.tasks.names import TASKS

REPOSITORY = Path(__file__).parents[2]
SHARED_DATA = REPOSITORY.parent / "shared" / "data"

torch.set_num_threads(1)


def inspected(dataset: Dataset, config: DataConfig, **options: Any) -> Inspection:
    """What is found in a data set for the task that it is for."""
    return inspect(dataset, config, TASKS.get(dataset.task).inspectors(), **options)


@pytest.fixture(scope="session")
def config_dir() -> Path:
    return REPOSITORY / "configs"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the real data sets are not at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of the tests' own: what other runs left in the user's does not count."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VPEFT_BENCH_CACHE", str(folder))
        yield folder


@pytest.fixture
def image_list(tmp_path: Path) -> Callable[..., DataConfig]:
    """Makes a data set of 12 pictures and 3 classes in VTAB-1k's layout.

    Pictures are of several shapes; ``lists`` replaces the text of a list file, or leaves the file
    out where it is None.
    """

    def make(lists: dict[str, str | None] | None = None) -> DataConfig:
        folder = tmp_path / "toy"
        (folder / "images").mkdir(parents=True)
        rng = np.random.default_rng(0)
        for number in range(12):
            shape = (40 + 7 * (number % 3), 50 - 9 * (number % 2), 3)
            pixels = rng.integers(0, 256, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        lines = [f"images/{number}.png {number % 3}\n" for number in range(12)]
        texts: dict[str, str | None] = {
            "train800.txt": "".join(lines[:6]),
            "val200.txt": "".join(lines[6:9]),
            "train800val200.txt": "".join(lines[:9]),
            "test.txt": "".join(lines[9:]),
        }
        for file, text in (texts | (lists or {})).items():
            if text is not None:
                (folder / file).write_text(text)
        return DataConfig(name="toy", title="a toy", folders=["toy"], root=str(tmp_path))

    return make


def check(config: DataConfig) -> list[Problem]:
    """Everything that keeps the data set from being opened; empty when all is well."""
    try:
        open_dataset(config)
    except MissingDataError as error:
        return list(error.problems)
    return []
