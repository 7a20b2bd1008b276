"""Memory-efficient methods keep no activation of the frozen trunk for the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from detector_models import attached
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from vpeft_bench.attaching.attachment import Attached
from vpeft_bench.backbones.features import StageFeatures

OUTSIDE = -1


def saved_by_block(method: Attached, monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """How many tensors each block, and what lies outside of all blocks, keeps for backward.

    Parameters are not counted: they are there anyway.
    """
    count: dict[int, int] = {}
    inside: list[int] = []

    @contextmanager
    def block_entered(index: int) -> Any:
        inside.append(index)
        yield
        inside.pop()

    def marked(forward: Callable[..., Any], index: int) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with block_entered(index):
                return forward(*args, **kwargs)

        return wrapper

    def pack(tensor: Tensor) -> Tensor:
        storages = {p.untyped_storage().data_ptr() for p in method.model.parameters()}
        if tensor.untyped_storage().data_ptr() not in storages:
            place = inside[-1] if inside else OUTSIDE
            count[place] = count.get(place, 0) + 1
        return tensor

    for block in method.backbone.blocks:
        wrapper = marked(block.module.forward, block.index)
        monkeypatch.setattr(block.module, "forward", wrapper)
    features = StageFeatures(method.backbone)
    method.model.train()
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        maps = features(torch.randn(2, 3, 64, 64))
    loss = torch.stack([m.square().mean() for m in maps]).sum()
    if loss.requires_grad:
        loss.backward()
        assert all(p.grad is not None for p in method.trainable_parameters())
    return count


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_linear_keeps_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert saved_by_block(attached(kind, "linear"), monkeypatch) == {}


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_partial_keeps_the_last_block(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what the frozen final norm behind it needs."""
    count = saved_by_block(attached(kind, "partial", last_blocks=1), monkeypatch)
    assert set(count) == {5, OUTSIDE}, "both backbones have six blocks"
    assert count[OUTSIDE] <= 3


def test_e3va_keeps_nothing_of_the_trunk(monkeypatch: pytest.MonkeyPatch) -> None:
    count = saved_by_block(attached("swin", "e3va"), monkeypatch)
    assert set(count) == {OUTSIDE}, "its adapters lie beside the blocks"
    assert count[OUTSIDE] > 0


def test_adapters_inside_keep_the_trunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The measure sees what the others avoid."""
    count = saved_by_block(attached("swin", "adapter"), monkeypatch)
    assert set(range(6)) <= set(count)
