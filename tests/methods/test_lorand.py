"""LoRand: where it stands, how its weights are put together, kernels shared and separate."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_models import build, images
from torch import Tensor, nn

import vpeft_bench
from vpeft_bench.methods.lorand import LoRandAdapter
from vpeft_bench.methods.parts.multi_branch import MultiBranchLinear


def test_stands_behind_both_branches() -> None:
    model, plain = build("vit"), build("vit")
    attached = vpeft_bench.attach(model, "lorand")
    block, reference = model.blocks[1], plain.blocks[1]
    x = torch.randn(2, 17, 32)
    with torch.no_grad():
        middle = x + block.attn_added(reference.attn(reference.norm1(x)))
        expected = middle + block.mlp_added(reference.mlp(reference.norm2(middle)))
        torch.testing.assert_close(block(x), expected)
    assert len(attached.backbone.placements) == 6


def test_a_dropped_branch_still_passes_its_adapter() -> None:
    """The reference draws drop-path inside the branch, in front of the adapter."""
    seen: list[Tensor] = []
    model = build("vit")
    model.blocks[0].drop_path1 = Zero()
    vpeft_bench.attach(model, "lorand")
    model.blocks[0].attn_added.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    model(images())
    assert not seen[0].any()


class Zero(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def test_weight_is_the_sum_of_the_branches() -> None:
    linear = MultiBranchLinear(5, 3, branches=2, kernel_dim=4).double()
    x = torch.randn(7, 5, dtype=torch.float64)
    expected = sum(
        (x @ linear.P[i] @ linear.K[i] @ linear.Q[i] for i in range(2)), start=linear.bias
    )
    torch.testing.assert_close(linear(x), expected)


@pytest.mark.parametrize("share", [True, False])
def test_kernels_are_shared_as_asked(share: bool) -> None:
    adapter = LoRandAdapter(8, 4, branches=2, kernel_dim=3, share_kernel=share)
    for one in (adapter, copy.deepcopy(adapter)):
        pairs = zip(one.down.K, one.up.K, strict=True)
        assert all((down is up) == share for down, up in pairs)


def test_starts_where_the_reference_starts() -> None:
    torch.manual_seed(0)
    linear = MultiBranchLinear(400, 100, branches=2, kernel_dim=16)
    bounds = {"P": 16, "K": 16, "Q": 100}  # Kaiming-uniform with a = sqrt(5): 1 / sqrt(fan-in)
    for name, fan in bounds.items():
        for factor in getattr(linear, name):
            assert 0.95 * fan**-0.5 < factor.abs().max() <= fan**-0.5
    assert 0.9 * 400**-0.5 < linear.bias.abs().max() <= 400**-0.5
