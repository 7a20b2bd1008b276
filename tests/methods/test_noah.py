"""NOAH: where its parts stand, and a search that keeps to its budget and survives interruptions."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import CLASSES, build, images
from torch import Tensor, nn

import vpeft_bench
from vpeft_bench.backbones import block_map
from vpeft_bench.errors import MethodOptionError, NotSelectedError, UnsupportedBackboneError
from vpeft_bench.methods.data_pass import BatchData, Selection, same_selection
from vpeft_bench.methods.noah import search as noah_search
from vpeft_bench.methods.noah.network import Subnetwork, Widths, live_parameters
from vpeft_bench.methods.noah.search import Search, SearchOptions, evolve, learning_rate
from vpeft_bench.methods.registry import build_method

TINY = {
    "supernet_epochs": 3,
    "supernet_warmup": 1,
    "supernet_lr": 0.01,
    "generations": 3,
    "population": 4,
    "parents": 2,
    "mutations": 2,
    "crossovers": 1,
    "part_probability": 0.7,
    "depth_probability": 0.9,
    "widths": [1, 3],
    "budget": 3000,
}


def randomise(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


# ---- the parts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("stale", ["replace", "keep"])
@pytest.mark.parametrize(
    ("lengths", "seen"),
    [  # tokens behind the image's own in each block
        ([2, 3, 1], {"replace": [2, 3, 1], "keep": [2, 3, 1]}),
        ([2, 0, 3], {"replace": [2, 2, 3], "keep": [2, 2, 5]}),
        ([2, 0, 0], {"replace": [2, 2, 2], "keep": [2, 2, 2]}),
        ([0, 2, 1], {"replace": [0, 2, 1], "keep": [0, 2, 1]}),
    ],
)
def test_prompts_stand_behind_all_other_tokens(
    lengths: list[int], seen: dict[str, list[int]], stale: str
) -> None:
    model = build("vit")
    attached = vpeft_bench.attach(model, "noah", prompt_length=lengths, stale_prompts=stale)
    randomise(model)
    learned = dict(attached.named_trainable_parameters())
    plain = build("vit")
    plain.load_state_dict({n: t for n, t in model.state_dict().items() if "trunk" not in n})
    x = plain._pos_embed(plain.patch_embed(images()))
    own = x.shape[1]
    for index, block in enumerate(plain.blocks):
        if lengths[index]:
            fresh = learned[f"trunk.prompts.{index}"].expand(2, -1, -1)
            before = x[:, own:]
            kept = before[:, : seen[stale][index] - lengths[index]]
            x = torch.cat([x[:, :own], kept, fresh], dim=1)
        assert x.shape[1] == own + seen[stale][index]
        x = block(x)
    torch.testing.assert_close(model(images()), plain.forward_head(plain.norm(x)))


def test_streams_hold_the_images_own_tokens() -> None:
    model = build("vit_avg_reg")
    vpeft_bench.attach(model, "noah", prompt_length=[2, 0, 0])
    maps = model.forward_intermediates(images(), intermediates_only=True)
    assert [tuple(m.shape) for m in maps] == [(2, 32, 4, 4)] * 3


class Threefold(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * x


def test_the_adapter_reads_what_drop_path_lets_through() -> None:
    model, plain = build("vit"), build("vit")
    vpeft_bench.attach(model, "noah", bottleneck=[0, 2, 0])
    for either in (model, plain):
        either.blocks[1].drop_path2 = Threefold()
    randomise(model)
    adapter = model.blocks[1].mlp_added
    x = torch.randn(2, 5, 32)
    middle = plain.blocks[1].attn(plain.blocks[1].norm1(x)) + x
    m = 3 * plain.blocks[1].mlp(plain.blocks[1].norm2(middle))
    hidden = adapter.down(m)
    expected = middle + m + adapter.up(hidden * torch.sigmoid(1.702 * hidden))
    torch.testing.assert_close(model.blocks[1](x), expected)


def test_starts() -> None:
    torch.manual_seed(0)
    wide = {"prompt_length": [40], "rank": [40], "bottleneck": [40]}
    starts = {}
    for init in ("standard", "noah"):
        attached = vpeft_bench.attach(build("vit"), "noah", init=init, **wide)
        found = dict(attached.named_trainable_parameters())
        starts[init] = {n: p for n, p in found.items() if ".1." in n}
    up = "blocks.1.attn.qkv.delta.B.qkv"
    assert not starts["standard"][up].any()
    assert 0.017 < starts["noah"][up].std() < 0.023
    bound = (6 / (32 + 40)) ** 0.5
    down = "blocks.1.mlp_added.down."
    assert 0.97 * bound < starts["standard"][f"{down}weight"].abs().max() <= bound
    assert 0 < starts["standard"][f"{down}bias"].abs().max() < 1e-5
    assert 0.017 < starts["noah"][f"{down}weight"].std() < 0.023
    assert not starts["noah"][f"{down}bias"].any()


def test_every_subnetwork_is_slices_of_the_supernet() -> None:
    model = build("vit")
    widths: Widths = ((2, 3, 0), (0, 1, 4), (3, 0, 2))
    supernet = Subnetwork(block_map(model), ((4,) * 3,) * 3, "noah", 0.0, "replace")
    randomise(model)
    tensors = model.state_dict()
    supernet.resize(widths)
    small = build("vit")
    Subnetwork(block_map(small), widths, "noah", 0.0, "replace")
    with torch.no_grad():
        for name, tensor in small.state_dict().items():
            tensor.copy_(tensors[name][tuple(slice(size) for size in tensor.shape)])
    torch.testing.assert_close(model(images()), small(images()))
    assert sum(p.numel() for p in small.parameters()) == live_parameters(32, widths) + sum(
        p.numel() for p in build("vit").parameters()
    )


# ---- candidates ---------------------------------------------------------------------------------


def space(**options: Any) -> Search:
    return Search(SearchOptions(**options), channels=32, blocks=4)


def legal(search: Search, candidate: Widths) -> bool:
    for part in candidate:
        depth = sum(width > 0 for width in part)
        if depth not in search.depths or any(part[depth:]):
            return False
        if not set(part[:depth]) <= set(search.options.widths):
            return False
    return len(candidate) == 3


def test_depths_are_quarters() -> None:
    assert Search(SearchOptions(), 768, 12).depths == [3, 6, 9, 12]
    assert Search(SearchOptions(), 32, 3).depths == [1, 2, 3]
    assert Search(SearchOptions(depths=[5]), 768, 12).depths == [5]


def test_candidates_are_legal_and_vary() -> None:
    search = space(depths=[2, 4])
    rng = random.Random(0)
    drawn = [search.draw(rng) for _ in range(200)]
    mutants = [search.mutate(rng.choice(drawn), rng) for _ in range(200)]
    crossed = [search.cross(drawn[i], drawn[-i], rng) for i in range(1, 100)]
    assert all(legal(search, c) for c in [*drawn, *mutants, *crossed])
    assert len(set(drawn)) > 150
    for i, child in enumerate(crossed, start=1):
        assert all(c in (a, b) for c, a, b in zip(child, drawn[i], drawn[-i], strict=True))


def test_a_mutation_never_draws_an_existing_width_again() -> None:
    search = space(depths=[1, 2, 3, 4], part_probability=1.0, depth_probability=1.0)
    rng = random.Random(1)
    parent = ((5, 1, 10, 0), (1, 0, 0, 0), (10, 10, 1, 5))
    depths = set()
    for _ in range(100):
        for part, before in zip(search.mutate(parent, rng), parent, strict=True):
            both = [(w, b) for w, b in zip(part, before, strict=True) if w and b]
            assert all(w == b for w, b in both)
            depths.add(sum(w > 0 for w in part))
    assert depths == {1, 2, 3, 4}


@pytest.mark.parametrize("seed", range(5))
def test_candidates_keep_the_budget_and_are_tried_once(seed: int) -> None:
    search = space(budget=2500, search_seed=seed, generations=6, population=20)
    tried: list[Widths] = []

    def score(candidate: Widths) -> float:
        tried.append(candidate)
        return random.Random(str(candidate)).random()

    best = evolve(search, score)
    assert len(tried) == len(set(tried)) > 40
    assert all(live_parameters(32, c) <= 2500 and legal(search, c) for c in tried)
    assert best == max(tried, key=lambda c: random.Random(str(c)).random())


@pytest.mark.parametrize("seed", range(3))
def test_a_planted_best_is_found(seed: int) -> None:
    """Without the evolution, as many random candidates do not find it."""
    planted = ((2, 1, 0, 0), (1, 1, 2, 1), (1, 0, 0, 0))
    search = space(
        widths=[1, 2], depths=[1, 2, 4], generations=20, population=50, search_seed=seed,
        part_probability=0.5, depth_probability=0.9,
    )  # fmt: skip
    tried: list[Widths] = []

    def score(candidate: Widths) -> float:
        tried.append(candidate)
        pairs = zip(sum(candidate, ()), sum(planted, ()), strict=True)
        return -float(sum(abs(a - b) for a, b in pairs))

    assert evolve(search, score) == planted
    assert len(tried) < 22**3 / 8
    rng = random.Random(seed)
    assert planted not in {search.draw(rng) for _ in range(tried.index(planted) + 1)}


def test_nothing_left_to_try_ends_the_search() -> None:
    search = space(widths=[2], depths=[4], generations=5)
    tried: list[Widths] = []
    assert evolve(search, lambda c: tried.append(c) or 0.5) == ((2,) * 4,) * 3  # type: ignore[func-returns-value]
    assert len(tried) == 1


def test_learning_rate() -> None:
    search = space(supernet_lr=1e-3, supernet_epochs=100, supernet_warmup=10)
    rates = [learning_rate(search, epoch) for epoch in (0, 1, 9, 10, 99)]
    assert rates == pytest.approx([1e-6, 1.009e-4, 9.001e-4, 9.7577e-4, 1.0244e-5], rel=1e-4)


# ---- the whole search ---------------------------------------------------------------------------


class Stopped(Exception):
    """In place of a process that is killed."""


class Data(BatchData):
    """Counts the batches that were asked for, and stops when there have been so many."""

    def __init__(self, resume_path: Path | None = None, stop_at: int | None = None) -> None:
        batches = [(images(6, seed=2), torch.arange(6) % CLASSES), (images(4), torch.arange(4))]
        super().__init__(batches, [(images(10, seed=9), torch.arange(10) % CLASSES)], resume_path)
        self.stop_at = stop_at
        self.given = 0
        self.asked: list[dict[str, Any]] = []

    def _count(self) -> None:
        if self.given == self.stop_at:
            raise Stopped
        self.given += 1

    def training(self, **kwargs: Any) -> Iterator[tuple[Tensor, ...]]:
        self.asked.append(kwargs)
        for batch in super().training(views=1):
            self._count()
            yield batch

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in super().validation():
            self._count()
            yield batch


def search(data: Data, **options: Any) -> Selection:
    torch.manual_seed(data.given)  # the search must not depend on it
    attached = vpeft_bench.attach(build("vit").train(), "noah", **{**TINY, **options})
    attached.select(data)
    assert attached.selection is not None
    return attached.selection


@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param(0.0, id="saved always"),
        pytest.param(30.0, id="never saved", marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_search_ends_as_it_would_have(
    seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(noah_search, "SECONDS_BETWEEN_SAVES", seconds)
    whole = Data()
    expected = search(whole)
    assert whole.given > 15
    for stop_at in range(whole.given):
        path = tmp_path / f"state-{stop_at}"
        with pytest.raises(Stopped):
            search(Data(path, stop_at))
        again = Data(path)
        assert same_selection(search(again), expected)
        saved = stop_at > 6 and seconds == 0  # behind the training of the supernet
        assert (again.given <= whole.given - stop_at + 2) if saved else again.given <= whole.given
    assert path.exists() == (seconds == 0)


def test_interrupted_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run gets three batches further; the state is that of an uninterrupted one."""
    monkeypatch.setattr(noah_search, "SECONDS_BETWEEN_SAVES", 0.0)
    scores: dict[str, Any] = {}
    original = noah_search.evolve

    def watched(search: Search, score: Any) -> Widths:
        return original(search, lambda c: scores.setdefault(name, {}).setdefault(c, score(c)))

    monkeypatch.setattr(noah_search, "evolve", watched)
    name = "whole"
    expected = search(Data())
    name = "pieces"
    for _ in range(100):
        try:
            found = search(Data(tmp_path / "state", stop_at=3))
        except Stopped:
            continue
        break
    assert same_selection(found, expected)
    assert scores["pieces"] == scores["whole"]


def test_the_supernet_learns_and_dropout_repeats(tmp_path: Path, monkeypatch: Any) -> None:
    """The tensors behind an interruption are those without, to the last bit."""
    monkeypatch.setattr(noah_search, "SECONDS_BETWEEN_SAVES", 0.0)
    states = {}
    for stops in ((), (4,), (2, 5)):
        path = tmp_path / str(stops)
        for stop_at in (*stops, None):
            try:
                search(Data(path, stop_at), generations=1)
            except Stopped:
                continue
        progress = noah_search.Progress(
            path,
            Search(build_method("noah", {**TINY, "generations": 1}), 32, 3),  # type: ignore[arg-type]
        )
        assert progress.epochs == 3
        states[stops] = progress.tensors
    whole = states.pop(())
    assert any(t.any() for n, t in whole.items() if ".B.qkv" in n and "optimizer" not in n)
    for tensors in states.values():
        assert set(tensors) == set(whole)
        assert all(torch.equal(tensors[name], whole[name]) for name in whole)


def test_the_state_of_another_search_is_not_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(noah_search, "SECONDS_BETWEEN_SAVES", 0.0)
    path = tmp_path / "state"
    search(Data(path))
    assert same_selection(search(Data(path), search_seed=1), search(Data(), search_seed=1))


def test_seeds_decide() -> None:
    assert same_selection(search(Data()), search(Data()))
    found = [search(Data(), search_seed=seed) for seed in range(4)]
    assert any(not same_selection(found[0], other) for other in found[1:])


def test_the_winner_is_what_is_placed() -> None:
    model = build("vit")
    attached = vpeft_bench.attach(model, "noah", data=Data(), **TINY)
    selection = attached.selection or {}
    widths = tuple(tuple(selection[part].tolist()) for part in noah_search.PARTS)
    count = attached.parameter_counts().method
    assert count == live_parameters(32, widths) <= TINY["budget"]
    for index, lengths in enumerate(widths[0]):
        if lengths:
            assert model.trunk.prompts[str(index)].shape == (1, lengths, 32)


def test_the_search_leaves_the_model_as_it_was() -> None:
    for stop_at in (None, 0, 5, 12):
        model = build("vit").train()
        model.blocks[1].eval()
        before = {n: t.clone() for n, t in model.state_dict().items()}
        modes = [m.training for m in model.modules()]
        attached = vpeft_bench.attach(model, "noah", **TINY)
        random_state = torch.get_rng_state()
        try:
            attached.select(Data(stop_at=stop_at))
            attached.detach()
        except Stopped:
            assert torch.equal(torch.get_rng_state(), random_state)
        assert [m.training for m in model.modules()] == modes
        assert [type(m) for m in model.modules()] == [type(m) for m in build("vit").modules()]
        assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
        assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_a_stored_selection_starts_as_a_fresh_one() -> None:
    starts = []
    selection: Selection = {}
    for stored in (False, True):
        torch.manual_seed(5)
        attached = vpeft_bench.attach(build("vit"), "noah", **TINY)
        if stored:
            attached.place_selection(selection)
        else:
            attached.select(Data())
            selection = attached.selection or {}
        starts.append(dict(attached.named_trainable_parameters()))
    assert all(torch.equal(p, starts[1][n]) for n, p in starts[0].items())


def test_the_supernet_never_sees_validation_pictures() -> None:
    data = Data()
    search(data)
    assert [asked["epoch"] for asked in data.asked] == [0, 1, 2]
    assert all(asked["hold_out_validation"] for asked in data.asked)
    assert all(asked["batch_size"] == 64 for asked in data.asked)


# ---- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rank": [1, 2]}, "method.rank lists 2 widths: the backbone has 3 blocks"),
        ({"depths": [3, 4]}, r"method.depths=\[3, 4\]: the backbone has 3 blocks"),
        ({"budget": 100}, "the smallest sub-network has 257 parameters"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UnsupportedBackboneError, match=says):
        vpeft_bench.attach(build("vit"), "noah", **options)


def test_without_validation_pictures_there_is_no_search() -> None:
    with pytest.raises(NotSelectedError, match="validation="):
        vpeft_bench.attach(build("vit"), "noah", data=[(images(), torch.arange(2))], **TINY)


def test_widths_may_repeat_and_depths_may_not() -> None:
    build_method("noah", {"rank": [3, 3, 3]})
    for options, says in (
        ({"depths": [3, 3]}, "names something twice"),
        ({"widths": [5, 5]}, "names something twice"),
        ({"rank": [1, -1, 0]}, "must be at least 0"),
        ({"widths": [0, 5]}, "must be at least 1"),
    ):
        with pytest.raises(MethodOptionError, match=says):
            build_method("noah", options)
