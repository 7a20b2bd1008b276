"""Errors of loader processes come as they were raised."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from torch.utils.data import Dataset

from vpeft_bench.data.dataset import open_dataset
from vpeft_bench.data.loading import EpochSampler, build_loader, preprocessing_for
from vpeft_bench.data.schema import DataConfig
from vpeft_bench.data.splits import LabelledSplit
from vpeft_bench.data.workers import Loader, hands_over_errors
from vpeft_bench.errors import Problem, UnsoundDataError, VpeftBenchError

PLAIN = preprocessing_for(
    DataConfig(), {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic"}, 28
)


@pytest.mark.parametrize(("workers", "cache_gib"), [(0, 0), (2, 0), (0, 1)])
def test_a_damaged_picture_is_one_line(
    image_list: Callable[..., DataConfig], workers: int, cache_gib: float
) -> None:
    config = image_list()
    damaged = Path(config.root) / "toy" / "images" / "4.png"
    damaged.write_bytes(damaged.read_bytes()[:300])
    split = open_dataset(config).split("train")
    assert isinstance(split, LabelledSplit)

    def read() -> None:
        loader = build_loader(
            split,
            PLAIN,
            train=False,
            sampler=EpochSampler(len(split), 2, 0, shuffle=False),
            seed=0,
            workers=workers,
            cache_gib=cache_gib,
        )
        list(loader)

    with pytest.raises(VpeftBenchError) as caught:
        read()
    assert type(caught.value) is VpeftBenchError
    assert str(caught.value).startswith(f"{damaged} cannot be read as a picture: ")
    assert "\n" not in str(caught.value)


class Fails(Dataset[int]):
    """Fails at its third item."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __len__(self) -> int:
        return 4

    @hands_over_errors
    def __getitem__(self, index: int) -> int:
        if index == 2:
            raise self.error
        return index


@pytest.mark.parametrize("workers", [0, 1])
def test_type_and_problems_arrive(workers: int) -> None:
    error = UnsoundDataError([Problem("a.png", "is wrong", "write it anew")])
    items = iter(Loader(Fails(error), batch_size=None, num_workers=workers))
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(UnsoundDataError) as caught:
        next(items)
    assert caught.value.problems == error.problems


def test_mistakes_of_the_code_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError, match="Original Traceback"):
        list(Loader(Fails(ZeroDivisionError("x")), batch_size=None, num_workers=1))
