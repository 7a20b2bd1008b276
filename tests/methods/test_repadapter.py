"""RepAdapter: groups that fit, biases that a merge needs, the start of its down-projection."""

from __future__ import annotations

from math import sqrt

import pytest
import torch
from tiny_models import build, images

import vpeft_bench
from vpeft_bench.errors import MethodOptionError, NotMergeableError, UnsupportedBackboneError


def test_groups_must_divide_the_hidden_width() -> None:
    with pytest.raises(MethodOptionError, match=r"groups=3.*bottleneck=8\n.*method\.groups=2"):
        vpeft_bench.attach(build("vit"), "repadapter", groups=3)


def test_groups_must_divide_the_blocks_width() -> None:
    with pytest.raises(UnsupportedBackboneError, match=r"width 32 .*method\.groups=4"):
        vpeft_bench.attach(build("vit"), "repadapter", bottleneck=12, groups=6)


def test_groups_are_separate() -> None:
    """Each half of the output reads its own half of the hidden units."""
    attached = vpeft_bench.attach(build("vit"), "repadapter", bottleneck=4, groups=2)
    adapter = attached.backbone.placements[0].module
    adapter.up.data.fill_(1.0)
    adapter.down.weight.data.zero_()
    adapter.down.bias.data.copy_(torch.tensor([1.0, 1.0, 0.0, 0.0]))
    added = adapter.eval()(torch.zeros(1, 1, 32))[0, 0]
    assert added.tolist() == [2.0] * 16 + [0.0] * 16


@pytest.mark.parametrize(("name", "leaf"), [("repadapter", "qkv"), ("hydra", "proj")])
def test_merging_needs_a_bias(name: str, leaf: str) -> None:
    model = build("vit")
    getattr(model.blocks[1].attn, leaf).register_parameter("bias", None)
    attached = vpeft_bench.attach(model, name)
    before = model(images())
    with pytest.raises(NotMergeableError, match=rf"blocks\.1\.attn\.{leaf}.*it has no bias"):
        attached.merge()
    assert torch.equal(model(images()), before)


@pytest.mark.parametrize("name", ["repadapter", "hydra"])
def test_down_projections_start_xavier_uniform(name: str) -> None:
    attached = vpeft_bench.attach(build("vit"), name)
    seen = 0
    for parameter_name, parameter in attached.named_trainable_parameters():
        if parameter_name.endswith("down.weight"):
            bound = sqrt(6 / sum(parameter.shape))
            assert 0.8 * bound < parameter.abs().max() <= bound
            seen += 1
        else:
            assert not parameter.any()
    assert seen == {"repadapter": 6, "hydra": 12}[name]
