"""SPT: what is sensitive, how a budget is spent on it, and what is placed where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import CLASSES, build, images
from torch import Tensor, nn

import vpeft_bench
from vpeft_bench.attaching.attachment import Attached
from vpeft_bench.backbones import block_map
from vpeft_bench.errors import NotMergeableError, UnsupportedBackboneError
from vpeft_bench.methods.registry import build_method
from vpeft_bench.methods.spt import (
    SPT,
    Group,
    SeriesAdapters,
    allocate,
    choose,
    leaves,
    sensitivities,
)

LABELS = torch.arange(9) % CLASSES
BATCHES = [(images(6, seed=2), LABELS[:6]), (images(3, seed=4), LABELS[6:])]


def attach(model: Any, **options: Any) -> Attached:
    return vpeft_bench.attach(model, "spt", data=BATCHES, **options)


def squared_gradients(model: nn.Module) -> dict[str, Tensor]:
    totals = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for pictures, labels in BATCHES:
        model.zero_grad()
        nn.functional.cross_entropy(model(pictures), labels).backward()
        for name, parameter in model.named_parameters():
            totals[name] += parameter.grad**2  # type: ignore[operator]
    return totals


def test_sensitivity_is_the_squared_gradient_of_each_batch() -> None:
    model = build("vit")
    expected = squared_gradients(build("vit"))
    names = ["blocks.1.attn.qkv.weight", "blocks.2.norm1.bias", "norm.weight"]
    parameters = [model.get_parameter(name).requires_grad_(False) for name in names]
    found = sensitivities(block_map(model), parameters, BATCHES, "eval")
    for name, sensitivity in zip(names, found, strict=True):
        torch.testing.assert_close(sensitivity, expected[name], rtol=1e-4, atol=1e-10)
    assert not any(parameter.requires_grad for parameter in parameters)


def test_sensitivity_is_measured_on_so_many_batches() -> None:
    once = attach(build("vit"), budget=2000, batches=1).selection or {}
    first = vpeft_bench.attach(build("vit"), "spt", data=BATCHES[:1], budget=2000).selection or {}
    both = attach(build("vit"), budget=2000).selection or {}
    assert all(torch.equal(once[name], first[name]) for name in first)
    assert any(not torch.equal(both.get(name, torch.empty(0)), once[name]) for name in once)


# ---- the budget ---------------------------------------------------------------------------------


def spent(scores: list[Tensor], groups: list[Group], tau: int) -> tuple[int, list[int]]:
    """As the paper says it: take the tau largest of all, then count group by group."""
    everything = torch.cat(scores)
    mask = torch.zeros(len(everything), dtype=torch.bool)
    mask[everything.argsort(descending=True)[:tau]] = True
    numbers = [int(part.sum()) for part in mask.split([len(score) for score in scores])]
    total = sum(g.cost if n >= g.limit else n for n, g in zip(numbers, groups, strict=True))
    return total, numbers


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("fit", ["within", "closest"])
def test_allocation_against_trying_every_number_of_weights(fit: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 40, (6,), generator=generator).tolist()
    scores = [torch.rand(size, generator=generator) for size in sizes]
    limits = torch.randint(1, 30, (6,), generator=generator).tolist()
    extra = torch.randint(0, 25, (6,), generator=generator).tolist()
    groups = [
        Group("", "", (0, 1), "", limit, limit + more)
        for limit, more in zip(limits, extra, strict=True)
    ]
    budget = int(torch.randint(1, sum(sizes), (1,), generator=generator))
    entries, whole = allocate(scores, groups, budget, fit)
    counted = [len(entry) for entry in entries]
    total = sum(g.cost if w else n for n, w, g in zip(counted, whole, groups, strict=True))
    tried = {tau: spent(scores, groups, tau)[0] for tau in range(sum(sizes) + 1)}
    if fit == "within":
        best = max(tau for tau, cost in tried.items() if cost <= budget)
    else:
        best = min((tau for tau in tried if tau), key=lambda tau: abs(tried[tau] - budget))
    assert total == tried[best]
    _, numbers = spent(scores, groups, best)
    assert whole == [n >= g.limit for n, g in zip(numbers, groups, strict=True)]
    for score, entry, as_a_whole, n in zip(scores, entries, whole, numbers, strict=True):
        if not as_a_whole:
            assert entry.tolist() == sorted(score.argsort(descending=True)[:n].tolist())


@pytest.mark.parametrize("form", ["lora", "adapter"])
@pytest.mark.parametrize("budget", [50, 400, 1500, 6000, 10**9])
@pytest.mark.parametrize("kind", ["vit", "vit_avg_reg", "swin"])
def test_budget_is_respected_and_used(kind: str, budget: int, form: str) -> None:
    attached = attach(build(kind), budget=budget, form=form, rank=2)
    method = attached.method
    assert isinstance(method, SPT)
    count = attached.parameter_counts().method
    groups = method.groups(block_map(build(kind)))
    everything = sum(min(g.cost, 10**9) for g in groups) + (0 if kind == "swin" else 32)
    most = max(g.cost - g.limit + 1 for g in groups)
    assert count <= budget
    assert count > min(budget, everything) - most


def test_closest_may_exceed_the_budget() -> None:
    counts = {
        fit: [
            attach(build("vit"), budget=budget, fit=fit).parameter_counts().method
            for budget in range(1500, 3000, 100)
        ]
        for fit in ("within", "closest")
    }
    off = {
        fit: [abs(count - budget) for count, budget in zip(c, range(1500, 3000, 100), strict=True)]
        for fit, c in counts.items()
    }
    assert all(c <= w for c, w in zip(off["closest"], off["within"], strict=True))
    assert any(c > b for c, b in zip(counts["closest"], range(1500, 3000, 100), strict=True))


# ---- what is chosen and placed ------------------------------------------------------------------


def test_structured_where_enough_weights_of_a_matrix_are_sensitive() -> None:
    """Against the definition, with q, k and v as matrices of their own."""
    budget, rank, alpha, beta = 4000, 2, 4.0, 3.0
    model = build("vit")
    options = {"budget": budget, "rank": rank, "alpha": alpha, "beta": beta}
    selection = attach(model, **options).selection
    assert selection is not None
    reference = build("vit")
    scores = squared_gradients(reference)
    sites = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
    parts: dict[tuple[str, int], Tensor] = {}
    for index in range(3):
        for site in ("norm1", "qkv", "proj", "norm2", "fc1", "fc2"):
            for parameter in ("weight", "bias"):
                tensor = scores[f"blocks.{index}.{sites.get(site, site)}.{parameter}"]
                pieces = tensor.chunk(3) if site == "qkv" else [tensor]
                for piece, part in enumerate(pieces):
                    parts[f"blocks.{index}.{site}.{parameter}", piece] = part
    for parameter in ("weight", "bias"):
        parts[f"final_norm.{parameter}", 0] = scores[f"norm.{parameter}"]

    def cost(part: Tensor, number: int) -> int:
        size = rank * sum(part.shape) if part.ndim == 2 else len(part)
        share = alpha if part.ndim == 2 else beta
        return size if number >= size / share else number

    ranked = torch.cat([part.flatten() for part in parts.values()]).sort(descending=True).values
    low, high = 0, len(ranked)
    while low < high:  # the largest number of weights that fits
        middle = (low + high + 1) // 2
        numbers = {key: int((part >= ranked[middle - 1]).sum()) for key, part in parts.items()}
        fits = sum(cost(parts[key], n) for key, n in numbers.items()) + 32 <= budget
        low, high = (middle, high) if fits else (low, middle - 1)
    least = ranked[low - 1]
    numbers = {key: int((part >= least).sum()) for key, part in parts.items()}
    whole = {k: n >= cost(parts[k], 10**9) / (alpha if parts[k].ndim == 2 else beta)
             for k, n in numbers.items()}  # fmt: skip
    matrices = [key for key, part in parts.items() if part.ndim == 2]
    assert selection["structured"].tolist() == [whole[key] for key in matrices]
    assert 3 < sum(whole[key] for key in matrices) < len(matrices)  # both kinds occur
    assert 0 < sum(whole[k] for k in parts if parts[k].ndim == 1) < len(parts) - len(matrices)
    expected: dict[str, set[int]] = {}
    for (name, piece), part in parts.items():
        if part.ndim == 2 and whole[name, piece]:
            continue
        mask = (part >= least).flatten() | (part.ndim == 1 and whole[name, piece])
        found = (mask.nonzero().flatten() + piece * part.numel()).tolist()
        if found:
            expected[name] = expected.get(name, set()) | set(found)
    indices = {n: set(t.tolist()) for n, t in selection.items() if n != "structured"}
    assert indices == expected


def test_a_low_rank_update_takes_the_rows_of_its_matrix() -> None:
    model = build("vit")
    attached = attach(model, budget=10**6)
    backbone = block_map(build("vit"))

    def q_and_v(parameters: Any) -> list[Tensor]:
        """As if queries and values of block 1 were all that matters."""
        wanted = leaves(backbone)["blocks.1.qkv"].weight
        scores = [torch.zeros_like(p) for p in parameters]
        for score, parameter in zip(scores, parameters, strict=True):
            if parameter is wanted:
                score[:32] = score[64:] = 1
        return scores

    method = build_method("spt", {"rank": 2, "alpha": 2.0})
    assert isinstance(method, SPT)
    selection = choose(backbone, method.groups(backbone), q_and_v, 256, "within")
    attached.detach()
    attached = vpeft_bench.attach(model, "spt", rank=2, alpha=2.0)
    attached.place_selection(selection)
    placed = {p.path: p.module for p in attached.backbone.placements}
    assert list(placed) == ["blocks.1.attn.qkv.delta"]
    assert list(placed["blocks.1.attn.qkv.delta"].rows.items()) == [
        ("q", (0, 32)),
        ("v", (64, 96)),
    ]
    assert attached.parameter_counts().method == 2 * 128 + 32  # r (in + out), and the class token


def test_single_entries_of_norms_and_biases_train() -> None:
    """The reference counts those of norms and leaves them frozen."""
    model = build("vit")
    attached = vpeft_bench.attach(model, "spt")
    structured = torch.zeros(3 * 6, dtype=torch.bool)
    chosen = {"blocks.1.norm2.weight": [3, 5], "final_norm.bias": [7], "blocks.0.qkv.bias": [40]}
    selection = {name: torch.tensor(entries).int() for name, entries in chosen.items()}
    attached.place_selection({"structured": structured, **selection})
    trained = dict(attached.named_trainable_parameters())
    paths = ["blocks.1.norm2.weight", "norm.bias", "blocks.0.attn.qkv.bias"]
    assert set(trained) == {"cls_token", *(f"{path}_update.values" for path in paths)}
    before = model(images())
    with torch.no_grad():
        trained.pop("cls_token")
        for parameter in trained.values():
            parameter.fill_(2.0)
    moved = model(images())
    plain = build("vit")
    with torch.no_grad():
        plain.blocks[1].norm2.weight[[3, 5]] += 2
        plain.norm.bias[7] += 2
        plain.blocks[0].attn.qkv.bias[40] += 2
    torch.testing.assert_close(moved, plain(images()))
    assert not torch.allclose(moved, before, atol=1e-3)


def test_adapters_stand_behind_the_linear() -> None:
    adapters = SeriesAdapters({"q": (0, 4), "v": (8, 12)}, 3, 0.0, 0.0, reads_input=False)
    for parameter in adapters.parameters():
        nn.init.normal_(parameter)
    y = torch.randn(2, 5, 12)
    found = adapters(torch.randn(2, 5, 7), y)
    for target, (low, high) in {"q": (0, 4), "v": (8, 12)}.items():
        part = y[..., low:high]
        hidden = nn.functional.gelu(adapters.down[target](part))
        torch.testing.assert_close(found[..., low:high], part + adapters.up[target](hidden))
    assert torch.equal(found[..., 4:8], y[..., 4:8])


def test_an_adapter_may_read_the_input_of_its_linear() -> None:
    adapters = SeriesAdapters({"proj": (0, 4)}, 3, 0.0, 0.0, reads_input=True)
    for parameter in adapters.parameters():
        nn.init.normal_(parameter)
    x, y = torch.randn(2, 5, 4), torch.randn(2, 5, 4)
    hidden = nn.functional.gelu(adapters.down["proj"](x))
    torch.testing.assert_close(adapters(x, y), y + adapters.up["proj"](hidden))


@pytest.mark.parametrize("proj_reads", ["input", "output"])
def test_only_the_adapter_of_the_output_projection_reads_its_input(proj_reads: str) -> None:
    attached = attach(build("vit"), form="adapter", budget=10**9, proj_reads=proj_reads)
    found = {
        placement.path
        for placement in attached.backbone.placements
        if isinstance(placement.module, SeriesAdapters) and placement.module.reads_input
    }
    every = {f"blocks.{index}.attn.proj.delta" for index in range(3)}
    assert found == (every if proj_reads == "input" else set())


def test_adapters_are_not_merged() -> None:
    attached = attach(build("vit"), form="adapter")
    with pytest.raises(NotMergeableError, match="form=adapter has a GELU"):
        attached.merge()


@pytest.mark.parametrize("form", ["lora", "adapter"])
@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_a_delta_file_alone_rebuilds_the_model(kind: str, form: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"budget": 3000, "form": form, "rank": 2}
    source = attach(build(kind), **options)
    with torch.no_grad():
        for parameter in source.trainable_parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    source.save(tmp_path / "delta")
    fresh = vpeft_bench.attach(build(kind), "spt", **options)
    fresh.load(tmp_path / "delta")
    assert torch.equal(fresh.model(images()), source.model(images()))
    assert [p.path for p in fresh.backbone.placements] == [
        p.path for p in source.backbone.placements
    ]
    assert fresh.parameter_counts() == source.parameter_counts()


def test_refusals() -> None:
    with pytest.raises(UnsupportedBackboneError, match="the class token alone has 32"):
        attach(build("vit"), budget=31)
    model = build("vit")
    model.reset_classifier(0)
    with pytest.raises(UnsupportedBackboneError, match="needs a head"):
        attach(model)
