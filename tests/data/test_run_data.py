"""What a method's data pass is given: which pictures, in which order, in which views."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from vpeft_bench.config.sections import Protocol
from vpeft_bench.data.dataset import open_dataset
from vpeft_bench.data.loading import preprocessing_for
from vpeft_bench.data.schema import Augmentation, DataConfig, Resize
from vpeft_bench.runs.selection import RunData

PLAIN = preprocessing_for(
    DataConfig(), {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic"}, 28
)
CROP_FLIP = replace(PLAIN, resize=Resize.shorter_side, augmentation=Augmentation.crop_flip)


@pytest.fixture
def run_data(image_list: Callable[..., DataConfig], tmp_path: Path) -> Callable[..., RunData]:
    config = image_list()

    def make(protocol: Protocol = Protocol.final, preprocessing: Any = PLAIN) -> RunData:
        run: Any = SimpleNamespace(
            protocol=SimpleNamespace(name=protocol),
            data=replace(config, cache_gib=1),
            train=SimpleNamespace(batch_size=4),
            hardware=SimpleNamespace(eval_batch_size=5),
            seed=3,
        )
        device = torch.device("cpu")
        return RunData(run, open_dataset(config), preprocessing, device, tmp_path / "state")

    return make


def pictures(batches: Any) -> Tensor:
    return torch.cat([batch[0] for batch in batches])


def as_set(batches: Any) -> set[tuple[float, ...]]:
    return {tuple(picture.flatten()[:50].tolist()) for picture in pictures(batches)}


def test_training_leaves_out_validation_where_asked(run_data: Callable[..., RunData]) -> None:
    for protocol in (Protocol.final, Protocol.select):
        data = run_data(protocol)
        held_out = as_set(data.validation())
        assert held_out
        assert not as_set(data.training(hold_out_validation=True)) & held_out
        assert bool(as_set(data.training()) & held_out) == (protocol is Protocol.final)


def test_order_is_shuffled_where_asked_or_augmented(run_data: Callable[..., RunData]) -> None:
    data = run_data()
    plain = pictures(data.training())
    assert torch.equal(pictures(data.training()), plain)
    shuffled = pictures(data.training(shuffle=True))
    assert not torch.equal(shuffled, plain)
    assert torch.equal(pictures(data.training(shuffle=True)), shuffled)
    assert as_set(data.training(shuffle=True)) == as_set(data.training())
    assert torch.equal(pictures(data.training(augment=True)), shuffled)  # nothing to augment
    assert not torch.equal(pictures(data.training(shuffle=True, epoch=1)), shuffled)
    assert torch.equal(pictures(data.training(augment=True, shuffle=False)), plain)
    assert torch.equal(pictures(data.training()), plain)
    sizes = [len(labels) for _, labels in data.training(batch_size=5)]
    assert sizes[:-1] == [5] * (len(plain) // 5)


def test_views_are_of_the_same_pictures(run_data: Callable[..., RunData]) -> None:
    data = run_data(preprocessing=CROP_FLIP)
    labels = torch.cat([batch[-1] for batch in data.training(views=2, augment=True)])
    first, second = (
        torch.cat([batch[view] for batch in data.training(views=2, augment=True)])
        for view in (0, 1)
    )
    assert first.shape == second.shape == (len(labels), 3, 28, 28)
    assert all(not torch.equal(a, b) for a, b in zip(first, second, strict=True))
    for one, other in data_pairs(data):
        assert torch.equal(one, other)


def data_pairs(data: RunData) -> list[tuple[Tensor, Tensor]]:
    """The unaugmented views, which are one picture twice."""
    return [(first, second) for first, second, _ in data.training(views=2)]
