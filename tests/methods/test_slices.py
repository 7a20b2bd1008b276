"""FacT and PETAL: what their factors add to every D x D slice of the weights."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from tiny_models import build, images
from torch import Tensor

import vpeft_bench

D = 32  # width of the tiny ViT


def slices(model: Any) -> list[Tensor]:
    """The D x D slices of all weights in order: q, k, v, o, four of fc1, four of fc2, per block."""
    found: list[Tensor] = []
    for block in model.blocks:
        for weight in (block.attn.qkv.weight, block.attn.proj.weight, block.mlp.fc1.weight):
            found += weight.detach().clone().split(D)
        found += block.mlp.fc2.weight.detach().clone().split(D, dim=1)
    assert all(s.shape == (D, D) for s in found)
    return found


def merged_updates(name: str, **options: Any) -> tuple[list[Tensor], dict[str, Tensor]]:
    """What a method far from its start adds to each slice, and its tensors by their last name."""
    model = build("vit").double()
    before = slices(model)
    torch.manual_seed(3)
    attached = vpeft_bench.attach(model, name, **options)
    for parameter in attached.trainable_parameters():
        parameter.data.normal_(0, 0.3)
    named = attached.named_trainable_parameters()
    tensors = {n.replace("blocks.", ""): p.detach().clone() for n, p in named}
    expected = model(images().double())
    attached.merge()
    torch.testing.assert_close(model(images().double()), expected)
    return [a - b for a, b in zip(slices(model), before, strict=True)], tensors


def test_tensor_train_adds_the_papers_formula() -> None:
    updates, tensors = merged_updates("fact_tt", rank=3, scale=0.7)
    U, V = tensors["0.attn.qkv.delta.shared.U"], tensors["0.attn.qkv.delta.shared.V"]
    cores: list[Tensor] = []
    for block in range(3):
        own = {n.rpartition(".")[2]: t for n, t in tensors.items() if n.startswith(f"{block}.")}
        cores += [own[n] for n in ("q", "k", "v", "proj")]
        cores += [*own["fc1"].split(3), *own["fc2"].split(3, dim=1)]
    for update, core in zip(updates, cores, strict=True):
        torch.testing.assert_close(update, 0.7 * V @ core @ U)


def tucker_cores(tensors: dict[str, Tensor]) -> Tensor:
    """Sigma_j for row vectors, ``(slices, r, r)``, by its sum."""
    C, P = (tensors[f"0.attn.qkv.delta.core.shared.{name}"] for name in "CP")
    rank, columns = P.shape
    assert columns == 3 * 12
    return torch.stack([sum(C[:, :, c] * P[c, j] for c in range(rank)) for j in range(columns)])


def test_tucker_adds_the_papers_formula() -> None:
    updates, tensors = merged_updates("fact_tk", rank=3, scale=0.7)
    U, V = tensors["0.attn.qkv.delta.shared.U"], tensors["0.attn.qkv.delta.shared.V"]
    for update, core in zip(updates, tucker_cores(tensors), strict=True):
        torch.testing.assert_close(update, 0.7 * V @ core.T @ U)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fact_tk", {"slice_order": "petl_vit", "scale": 0.7}),
        ("cp", {"core": "full", "scale": 0.7}),
    ],
)
def test_the_codes_order_mixes_the_slices_of_the_mlp(name: str, options: dict[str, Any]) -> None:
    """As a reshape without a permutation does; fc2 takes its cores transposed."""
    r = 3
    updates, tensors = merged_updates(name, rank=r, **options)
    U, V = tensors["0.attn.qkv.delta.shared.U"], tensors["0.attn.qkv.delta.shared.V"]
    cores = tucker_cores(tensors)
    for block in range(3):
        own, added = cores[12 * block : 12 * block + 12], updates[12 * block : 12 * block + 12]
        for k in range(4):
            torch.testing.assert_close(added[k], 0.7 * V @ own[k].T @ U)
        F1 = torch.stack(list(own[4:8]), dim=2).reshape(r, 4 * r)
        F2 = torch.stack(list(own[8:12]), dim=2).reshape(r, 4 * r)
        for k in range(4):
            part = slice(k * r, (k + 1) * r)
            torch.testing.assert_close(added[4 + k], 0.7 * V @ F1[:, part].T @ U)
            torch.testing.assert_close(added[8 + k], 0.7 * V @ F2[:, part] @ U)


@pytest.mark.parametrize("j", [0, 2, 3, 5, 10, 12 + 1, 24 + 7, 24 + 11])
def test_cp_of_full_rank_reaches_any_update_of_a_slice(j: int) -> None:
    """By the singular vectors of the update, and its singular values in lambda or in P."""
    model = build("vit").double()
    before = slices(model)
    attached = vpeft_bench.attach(model, "cp", rank=D)
    named = {n: p.data for n, p in attached.named_trainable_parameters()}
    U, V, P, weights = (
        named[f"blocks.0.attn.qkv.delta.{name}"]
        for name in ("shared.U", "shared.V", "core.shared.P", "core.shared.C")
    )
    wanted = torch.randn(D, D, dtype=torch.float64)
    left, values, right = torch.linalg.svd(wanted)
    V.copy_(left)
    U.copy_(right)
    weights.copy_(values.sqrt())
    P.zero_()
    P[:, j] = values.sqrt()
    attached.merge()
    for index, (after, plain) in enumerate(zip(slices(model), before, strict=True)):
        torch.testing.assert_close(
            after - plain, wanted if index == j else torch.zeros_like(wanted)
        )


@pytest.mark.parametrize("name", ["fact_tt", "fact_tk", "cp"])
def test_factors_are_shared_within_a_width(name: str) -> None:
    attached = vpeft_bench.attach(build("swin"), name)
    factors = {n: p for n, p in attached.named_trainable_parameters() if n[-2:] in (".U", ".V")}
    assert [tuple(p.shape) for n, p in factors.items() if n.endswith("U")] == [
        (attached.method.options()["rank"], width) for width in (16, 32)
    ]
    placed = [p.module.shared for p in attached.backbone.placements]
    # two stages of two blocks with four linears each
    assert [a is b for a, b in pairwise(placed)] == [True] * 7 + [False] + [True] * 7


@pytest.mark.parametrize("name", ["fact_tt", "fact_tk", "cp"])
def test_a_hidden_width_that_is_no_multiple(name: str) -> None:
    """The last slice is used in part, and merging agrees."""
    import timm

    model = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=32,
        patch_size=8,
        embed_dim=32,
        depth=1,
        num_heads=2,
        mlp_ratio=2.5,
        num_classes=3,
    )
    model = model.eval().double()
    attached = vpeft_bench.attach(model, name, rank=4)
    for parameter in attached.trainable_parameters():
        parameter.data.normal_(0, 0.3)
    plain = build("vit").blocks[0].mlp.fc1.weight
    assert model.blocks[0].mlp.fc1.weight.shape == (80, 32) != plain.shape
    expected = model(images().double())
    torch.testing.assert_close(attached.merge()(images().double()), expected)
