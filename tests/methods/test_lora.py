"""LoRA's relatives: rsLoRA's scale, DoRA's magnitudes, and what cannot go together."""

from __future__ import annotations

from math import sqrt
from typing import Any

import pytest
import torch
from tiny_models import build, images
from torch import Tensor

import vpeft_bench
from vpeft_bench.errors import MethodOptionError
from vpeft_bench.methods.registry import build_method


def randomised(**options: Any) -> tuple[Any, dict[str, Tensor]]:
    """A model in float64 with LoRA far from its start, and the new tensors of its first block."""
    torch.manual_seed(0)
    model = build("vit").double()
    attached = vpeft_bench.attach(model, "lora", **options)
    for parameter in attached.trainable_parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    named = attached.named_trainable_parameters()
    first = {n.removeprefix("blocks.0."): p.detach().clone() for n, p in named if "blocks.0." in n}
    return attached, first


def test_rslora_scale_is_alpha_over_root_of_rank() -> None:
    plain = build("vit").double().blocks[0].mlp.fc1.weight
    attached, new = randomised(rank=4, alpha=3.0, targets=["fc1"], rslora=True)
    update = new["mlp.fc1.delta.B.fc1"] @ new["mlp.fc1.delta.A.fc1"]
    merged = attached.merge().blocks[0].mlp.fc1.weight
    torch.testing.assert_close(merged, plain + 3 / sqrt(4) * update)


def test_dora_is_the_papers_formula() -> None:
    """Rows of k and v by hand; q and the bias stay as they were."""
    plain = build("vit").double().blocks[0].attn.qkv
    attached, new = randomised(rank=3, alpha=6.0, targets=["v", "k"], dora=True)
    parts = list(plain.weight.detach().split(32))
    for index, target in ((1, "k"), (2, "v")):
        path = "attn.qkv.weight_update."
        low_rank = new[f"{path}B.{target}"] @ new[f"{path}A.{target}"]
        direction = parts[index] + 6 / 3 * low_rank
        magnitude = new[f"{path}magnitude.{target}"]
        norms = direction.pow(2).sum(1).sqrt()
        parts[index] = torch.stack([m * d / n for m, d, n in zip(magnitude, direction, norms)])  # noqa: B905
    x = torch.randn(2, 32, dtype=torch.float64)
    expected = x @ torch.cat(parts).T + plain.bias
    qkv = attached.model.blocks[0].attn.qkv
    torch.testing.assert_close(qkv(x), expected)
    attached.merge()
    torch.testing.assert_close(qkv(x), expected)


def test_dora_starts_with_the_norms_of_the_rows() -> None:
    model = build("vit")
    weight = model.blocks[1].mlp.fc2.weight
    attached = vpeft_bench.attach(model, "lora", targets=["fc2"], dora=True)
    magnitude = dict(attached.named_trainable_parameters())[
        "blocks.1.mlp.fc2.weight_update.magnitude.fc2"
    ]
    torch.testing.assert_close(magnitude, weight.norm(dim=1))


def test_dora_lets_no_gradient_through_the_norm() -> None:
    """The gradient of A and B is that of m V / c with c a constant (section 4.3)."""
    attached, new = randomised(rank=2, targets=["proj"], dora=True)
    proj = attached.model.blocks[0].attn.proj
    weight = proj.weight.detach()
    x = torch.randn(4, 32, dtype=torch.float64)
    proj(x).square().sum().backward()
    path = "attn.proj.weight_update."
    B = new[f"{path}B.proj"].requires_grad_()
    direction = weight + B @ new[f"{path}A.proj"]
    constant = new[f"{path}magnitude.proj"] / direction.detach().norm(dim=1)
    (x @ (constant[:, None] * direction).T + proj.bias).square().sum().backward()
    torch.testing.assert_close(proj.weight_update.B["proj"].grad, B.grad)


def test_dora_survives_a_row_of_zeros() -> None:
    model = build("vit")
    model.blocks[0].mlp.fc1.weight.data[3] = 0
    expected = model(images())
    attached = vpeft_bench.attach(model, "lora", targets=["fc1"], dora=True)
    assert torch.equal(model(images()), expected)
    model(images()).sum().backward()
    assert all(
        p.grad.isfinite().all() for p in attached.trainable_parameters() if p.grad is not None
    )
    torch.testing.assert_close(attached.merge()(images()), expected)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rslora": True}, ["rslora=true", "method.alpha=8"]),
        ({"dora": True, "dropout": 0.1}, ["dropout=0.1", "method.dropout=0"]),
        ({"dora": True, "init": "vpb"}, ["init=vpb", "method.init=standard"]),
        ({"dora": True, "targets": ["qkv", "k"]}, ["one magnitude", "method.targets=[qkv]"]),
    ],
)
def test_what_makes_no_sense_together_is_refused(options: dict[str, Any], says: list[str]) -> None:
    model = build("vit")
    with pytest.raises(MethodOptionError) as error:
        vpeft_bench.attach(model, "lora", **options)
    assert all(part in str(error.value) for part in says)
    vpeft_bench.attach(model, "lora")  # nothing was left on it


def test_every_conflict_is_named_at_once() -> None:
    with pytest.raises(MethodOptionError, match="3 problems"):
        build_method("lora", {"rslora": True, "dora": True, "dropout": 0.5, "init": "vpb"})
