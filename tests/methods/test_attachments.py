"""Several attachments on one model: stacked, switched, merged, detached, saved one by one."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import CLASSES, build, images, targets
from torch import Tensor, nn

import vpeft_bench
from vpeft_bench.attaching.attachment import Attached, attach_method
from vpeft_bench.errors import (
    AlreadyAttachedError,
    DeltaMismatchError,
    NotMergeableError,
    NotSelectedError,
    NotStackableError,
)
from vpeft_bench.methods.data_pass import BatchData
from vpeft_bench.methods.registry import build_method

# One of each kind: beside a linear, in the branch, in the attention, on the model's own biases,
# behind every leaf, shared over all blocks, on weights and their norms, tokens, around the trunk,
# chosen from data, and in the place of the linears.
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 3},
    "adapter": {},
    "prefix": {"prompt_length": 2},
    "bitfit": {},
    "ssf": {},
    "fact_tk": {},
    "lora_dora": {"dora": True},
    "vpt_deep": {"prompt_length": 2},
    "lst": {},
    "sct": {"channels": 6},
    "hf/lora": {"r": 2},
}
# What cannot be there together, and a word of the reason.
APART = {
    ("hf/lora", "lora"): "in the place of",
    ("hf/lora", "lora_dora"): "in the place of",
    ("hf/lora", "ssf"): "in the place of",
    ("hf/lora", "fact_tk"): "in the place of",
    ("hf/lora", "hf/lora"): "peft library",
    ("bitfit", "bitfit"): "both change the model's own parameter",
    ("lst", "lst"): "both run the blocks",
    ("vpt_deep", "vpt_deep"): "number of tokens that a block sees",
}
SMALL = {
    "attn_scale": {"granularity": "head"},
    "hst": {"channels": [8, 12], "heads": [2, 3]},
    "kadaptation": {"terms": 4},
    "noah": {"prompt_length": [3, 0, 2], "rank": [0, 2, 2], "bottleneck": [4, 0, 1]},
    "sct": {"channels": 6},
    "vpt_shallow": {"prompt_length": 4},
}


def put_on(model: nn.Module, key: str, as_: str, options: Mapping[str, Any]) -> Attached:
    batches = [(images(10, seed=5), torch.arange(10) % CLASSES)]
    data = BatchData(batches, validation=batches)
    name = "lora" if key == "lora_dora" else key
    return vpeft_bench.attach(model, name, as_=as_, data=data, **options)


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(images())
    return found


def randomise(attached: Attached, seed: int = 7) -> Attached:
    """Move whatever the method trains well away from its start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in attached.trainable_parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return attached


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_plain(model: nn.Module, before: dict[str, Tensor], kind: str = "vit") -> None:
    """The very model it was: classes, names, values, what is trained."""
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert [type(m) for m in model.modules()] == [type(m) for m in build(kind).modules()]
    assert all(p.requires_grad for p in model.parameters())
    assert not any("vpeft" in name for name in vars(model))


# ---- every pair ----------------------------------------------------------------------------------


def _pairs() -> Iterator[Any]:
    """Each method is at once the first of four others and the second of four; all by .ci/run."""
    place = {name: index for index, name in enumerate(METHODS)}
    for first, second in itertools.product(METHODS, METHODS):
        if (first, second) not in APART and (second, first) not in APART:
            at_once = (place[second] - place[first]) % len(METHODS) in (0, 1, 3, 4, 9)
            marks = [] if at_once else pytest.mark.slow
            yield pytest.param(first, METHODS[first], second, METHODS[second], "vit", marks=marks)
    for first, second in (
        ("lora", "ssf"),
        ("prefix", "lora"),
        ("bitfit", "adapter"),
        ("prefix", "vpt_deep"),
    ):
        for kind in ("swin", "eva02_split"):
            yield pytest.param(first, METHODS[first], second, METHODS[second], kind)
    others = [name for name in vpeft_bench.list_methods() if name not in METHODS]
    every = {**METHODS, **{name: SMALL.get(name, {}) for name in others}}
    for first, second in itertools.product(others, ("lora", "bitfit", "ssf", "prefix", "lst")):
        for one, other in ((first, second), (second, first)):
            yield pytest.param(one, every[one], other, every[other], "vit", marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("first", "first_options", "second", "second_options", "kind"), list(_pairs())
)
def test_two_are_stacked_switched_and_detached(
    first: str,
    first_options: dict[str, Any],
    second: str,
    second_options: dict[str, Any],
    kind: str,
    tmp_path: Path,
) -> None:
    model = build(kind)
    before, frozen = state(model), logits(model)
    one = randomise(put_on(model, first, "one", first_options))
    alone = logits(model)
    try:
        two = put_on(model, second, "two", second_options)
    except NotStackableError:  # among all methods; those that must go together are above
        assert {first, second} - set(METHODS)
        assert torch.equal(logits(model), alone)
        one.detach()
        assert_plain(model, before, kind)
        return
    if two.method.identity_at_start and "dora" not in second_options:
        torch.testing.assert_close(logits(model), alone, rtol=1e-4, atol=1e-5)
    randomise(two, 8)
    both = logits(model)
    for attached in (one, two):
        if not attached.method.selects or attached.method.name == "sct":  # SPT's depends on data
            counted = attached.method.parameter_count(build_map(kind))
            assert attached.parameter_counts().method == counted

    carried = vpeft_bench.attachments(model)
    carried.only()
    assert torch.equal(logits(model), frozen)
    carried.only("one")
    assert torch.equal(logits(model), alone)
    carried.only("two")
    other = logits(model)
    if "linear" not in (first, second):
        assert not torch.equal(other, both)
        assert not torch.equal(alone, both)
    carried.only("two", "one")  # in the order of attaching, whatever is typed
    assert torch.equal(logits(model), both)
    one.disable()
    assert (one.enabled, two.enabled) == (False, True)
    assert torch.equal(logits(model), other)
    one.enable()
    assert torch.equal(logits(model), both)

    # Saved while stacked, each is the file of that method alone, and fills a model of its own.
    for name, attached, expected in (("one", one, alone), ("two", two, other)):
        attached.save(tmp_path / name)
        options = first_options if name == "one" else second_options
        fresh_model = build(kind)
        fresh = put_on(fresh_model, first if name == "one" else second, name, options)
        fresh.load(tmp_path / name)
        if attached.method.name == "hst":  # whose head is its own, and a head is in no such file
            fresh.backbone.head.load_state_dict(attached.backbone.head.state_dict())
        assert torch.equal(logits(fresh_model), expected)
        fresh.save(tmp_path / "again")
        assert (tmp_path / "again").read_bytes() == (tmp_path / name).read_bytes()
    twin = copy.deepcopy(model)

    one.detach()
    assert torch.equal(logits(model), other)
    two.detach()
    assert_plain(model, before, kind)
    twins = vpeft_bench.attachments(twin)
    assert torch.equal(logits(twin), both)
    twins["two"].detach()
    assert torch.equal(logits(twin), alone)
    twins["one"].detach()
    assert_plain(twin, before, kind)


def build_map(kind: str) -> Any:
    from vpeft_bench.backbones import block_map

    return block_map(build(kind))


@pytest.mark.parametrize(("pair", "reason"), APART.items(), ids=lambda x: str(x))
def test_what_cannot_be_stacked_says_why_and_can_be_switched(
    pair: tuple[str, str], reason: str
) -> None:
    for first, second in {pair, pair[::-1]}:
        model = build("vit")
        before = state(model)
        one = randomise(put_on(model, first, "one", METHODS[first]))
        alone = logits(model)
        with pytest.raises(NotStackableError, match=reason) as error:
            put_on(model, second, "two", METHODS[second])
        assert "'one'" in str(error.value)
        assert "only(name)" in str(error.value)
        assert torch.equal(logits(model), alone)
        assert list(vpeft_bench.attachments(model)) == ["one"]

        one.disable()
        two = randomise(put_on(model, second, "two", METHODS[second]), 8)
        other = logits(model)
        with pytest.raises(NotStackableError, match=reason):
            one.enable()
        with pytest.raises(NotStackableError, match=reason):
            vpeft_bench.attachments(model).only("one", "two")
        assert torch.equal(logits(model), other)
        vpeft_bench.attachments(model).only("one")
        assert torch.equal(logits(model), alone)
        two.detach()
        one.detach()
        assert_plain(model, before)


# ---- against sums done by hand -------------------------------------------------------------------


def lora_update(attached: Attached, block: int = 0) -> Tensor:
    """s B A of query and value as one matrix, written out."""
    module: Any = attached.backbone.placements[block].module
    parts = {t: module.B[t].double() @ module.A[t].double() for t in ("q", "v")}
    return attached.method.scale * torch.cat([parts["q"], 0 * parts["q"], parts["v"]])  # type: ignore[attr-defined]


@pytest.mark.parametrize("order", [("one", "two"), ("two", "one")])
def test_two_loras_are_the_weight_and_both_updates(order: tuple[str, str]) -> None:
    model = build("vit")
    weights = [block.attn.qkv.weight.detach().double() for block in model.blocks]
    one = randomise(vpeft_bench.attach(model, "lora", as_="one", rank=2, alpha=3.0))
    two = randomise(vpeft_bench.attach(model, "lora", as_="two", rank=5), 8)
    stacked = logits(model)
    by_hand = build("vit")
    sums = [w + lora_update(one, i) + lora_update(two, i) for i, w in enumerate(weights)]
    with torch.no_grad():
        for block, weight in zip(by_hand.blocks, sums, strict=True):
            block.attn.qkv.weight.copy_(weight)
    torch.testing.assert_close(stacked, logits(by_hand))

    carried = vpeft_bench.attachments(model)
    for name in order:
        carried[name].merge()
        torch.testing.assert_close(logits(model), stacked, rtol=1e-4, atol=1e-5)
    for block, weight in zip(model.blocks, sums, strict=True):
        torch.testing.assert_close(block.attn.qkv.weight.double(), weight, rtol=1e-5, atol=1e-6)
    assert [type(m) for m in model.modules()] == [type(m) for m in by_hand.modules()]
    assert all(p.requires_grad for p in model.parameters())


def test_scale_and_shift_after_lora_by_hand() -> None:
    """y = (x (W + d)^T + b) * gamma + beta: the second reads what the first gave."""
    model = build("vit")
    lora = randomise(vpeft_bench.attach(model, "lora", as_="lora", rank=2))
    ssf = randomise(vpeft_bench.attach(model, "ssf", as_="ssf"), 8)
    qkv: Any = model.blocks[0].attn.qkv
    x = images()[:, 0, :, :].reshape(-1, 32)[:20]
    pair: Any = next(p.module for p in ssf.backbone.placements if p.host is qkv)
    expected = x @ (qkv.weight + lora_update(lora).float()).T + qkv.bias
    torch.testing.assert_close(qkv(x), expected * pair.scale + pair.shift)


def test_branches_beside_the_mlp_are_added() -> None:
    model = build("vit")
    for name, seed in (("one", 7), ("two", 8)):
        randomise(vpeft_bench.attach(model, "adaptformer", as_=name), seed)
    carried = vpeft_bench.attachments(model)
    x = torch.randn(2, 17, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        both = model.blocks[0](x)
        carried.only()
        plain = model.blocks[0](x)
        single = []
        for name in ("one", "two"):
            carried.only(name)
            single.append(model.blocks[0](x) - plain)
    torch.testing.assert_close(both, plain + single[0] + single[1])


# ---- merging -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "where"),
    [
        ("lora", "ssf", r"blocks\.0\.attn\.qkv\.delta"),  # y changes in the order of attaching
        ("ssf", "lora", r"blocks\.0\.attn\.qkv\.delta"),
        ("lora_dora", "ssf", r"blocks\.0\.attn\.qkv\.weight_update"),
        ("ssf", "lora_dora", None),  # what changes the weight is nearest to it, whenever it came
        ("bitfit", "ssf", r"attn\.qkv\.bias|patch_embed\.proj\.bias"),
        ("lora", "repadapter", r"blocks\.0\.attn\.qkv\.delta"),  # the input is changed last
        ("repadapter", "repadapter", None),
        ("gps", "lora_dora", r"weight_update"),
        ("lora", "bitfit", "free"),  # one changes weights, the other biases
    ],
)
def test_merging_goes_from_the_weight_outwards(first: str, second: str, where: str | None) -> None:
    model = build("vit")
    options = METHODS | {"repadapter": {}, "gps": {}}
    randomise(put_on(model, first, "one", options[first]))
    randomise(put_on(model, second, "two", options[second]), 8)
    carried = vpeft_bench.attachments(model)
    expected, before = logits(model), state(model)
    inner, outer = ("one", "two") if where else ("two", "one")
    if where == "free":
        carried["one"].merge()
        merged = logits(model)
        torch.testing.assert_close(merged, expected, rtol=1e-3, atol=1e-4)
        carried["two"].disable()
        carried["two"].enable()
        assert torch.equal(logits(model), merged)
        return
    with pytest.raises(NotMergeableError, match=f"merge or detach '{inner}' first") as error:
        carried[outer].merge()
    if where:
        assert error.match(where)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    carried[inner].merge()
    torch.testing.assert_close(logits(model), expected, rtol=1e-3, atol=1e-4)
    assert list(carried) == [outer]
    carried[outer].merge()
    torch.testing.assert_close(logits(model), expected, rtol=1e-3, atol=1e-4)
    assert [type(m) for m in model.modules()] == [type(m) for m in build("vit").modules()]


def test_nothing_is_merged_below_what_is_disabled() -> None:
    model = build("vit")
    one = randomise(vpeft_bench.attach(model, "lora", as_="one"))
    two = randomise(vpeft_bench.attach(model, "adapter", as_="two"), 8)
    two.disable()
    with pytest.raises(NotMergeableError, match=r"'two' \(adapter\), which is disabled"):
        one.merge()
    two.enable()
    expected = logits(model)
    one.merge()
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)
    merged = model.blocks[0].attn.qkv.weight.clone()
    two.detach()  # gives back what it stands on, the merged weights
    assert torch.equal(model.blocks[0].attn.qkv.weight, merged)
    assert all(p.requires_grad for p in model.parameters())


# ---- names ---------------------------------------------------------------------------------------


def test_a_second_one_needs_a_name_of_its_own() -> None:
    model = build("vit")
    with pytest.raises(AlreadyAttachedError, match=r"call attach\(\) first"):
        vpeft_bench.attachments(model)
    vpeft_bench.attach(model, "lora")
    with pytest.raises(AlreadyAttachedError, match=r'carries lora.*as_="NAME"'):
        vpeft_bench.attach(model, "adapter")
    with pytest.raises(AlreadyAttachedError, match="an attachment 'lora'"):
        vpeft_bench.attach(model, "adapter", as_="lora")
    vpeft_bench.attach(model, "adapter", as_="second")
    carried = vpeft_bench.attachments(model)
    assert (list(carried), carried.enabled, len(carried)) == (
        ["lora", "second"],
        ("lora", "second"),
        2,
    )
    carried["lora"].disable()
    assert repr(carried) == "Attachments([lora=lora], second=adapter)"
    with pytest.raises(KeyError, match=r"no attachment 'thrd'; there are: lora, second"):
        carried.only("thrd")


def test_spent_ones_touch_nothing() -> None:
    model = build("vit")
    one = vpeft_bench.attach(model, "lora", as_="one")
    vpeft_bench.attach(model, "adapter", as_="two")
    one.detach()
    for action in (one.detach, one.merge, one.enable, one.disable):
        with pytest.raises(AlreadyAttachedError, match="merged or detached"):
            action()
    assert not one.enabled
    vpeft_bench.attach(model, "ssf", as_="one")  # the name is free again
    assert list(vpeft_bench.attachments(model)) == ["two", "one"]


def test_a_method_that_fails_leaves_the_others() -> None:
    class Broken(type(build_method("bitfit", {}))):  # type: ignore[misc]  # a class made here
        def place(self, backbone: Any) -> None:
            backbone.blocks[0].place("qkv", nn.Identity())
            raise ValueError("broken")

    model = build("vit")
    before = state(model)
    randomise(vpeft_bench.attach(model, "lora", as_="one"))
    expected = logits(model)
    with pytest.raises(ValueError, match="broken"):
        attach_method(model, Broken(), "two")
    assert torch.equal(logits(model), expected)
    vpeft_bench.attachments(model)["one"].detach()
    assert_plain(model, before)


# ---- training ------------------------------------------------------------------------------------


def steps(model: nn.Module, parameters: list[nn.Parameter]) -> None:
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images()), targets()).backward()
        optimizer.step()


def test_one_is_trained_and_then_another_on_top_of_it(tmp_path: Path) -> None:
    model = build("vit")
    before = state(model)
    first = vpeft_bench.attach(model, "prefix", as_="first", prompt_length=2)
    steps(model, first.trainable_parameters())
    first.save(tmp_path / "first")
    second = vpeft_bench.attach(model, "lora", as_="second", rank=2)
    steps(model, second.trainable_parameters())
    first.save(tmp_path / "again")
    assert (tmp_path / "first").read_bytes() == (tmp_path / "again").read_bytes()
    assert all(b.any() for n, b in second.named_trainable_parameters() if ".B." in n)
    first.detach()
    second.detach()
    assert_plain(model, before)


def test_what_is_out_of_the_model_is_not_trained() -> None:
    model = build("vit")
    bitfit = vpeft_bench.attach(model, "bitfit", as_="bitfit")
    lora = vpeft_bench.attach(model, "lora", as_="lora", rank=2)
    trained = bitfit.trainable_parameters() + lora.trainable_parameters()
    steps(model, trained)
    with_both = logits(model)
    bitfit.disable()
    alone = logits(model)
    steps(model, bitfit.trainable_parameters())  # has no gradient to follow
    assert torch.equal(logits(model), alone)
    bitfit.enable()
    assert torch.equal(logits(model), with_both)
    assert all(p.requires_grad for p in bitfit.trainable_parameters())


# ---- what happens to the model meanwhile ---------------------------------------------------------


@pytest.mark.parametrize("key", ["lora", "bitfit", "fact_tk", "hf/lora", "lst", "sct"])
def test_what_is_out_follows_the_model(key: str) -> None:
    model = build("vit")
    one = randomise(put_on(model, key, "one", METHODS[key]))
    expected = logits(model)
    one.disable()
    model.double().train()
    one.enable()
    placed = [p.module for p in one.backbone.placements]
    assert all(m.training for module in placed for m in module.modules())
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images().double()).float(), expected)


def test_saved_and_loaded_while_it_is_out(tmp_path: Path) -> None:
    model = build("vit")
    for name in ("one", "two"):
        randomise(vpeft_bench.attach(model, "bitfit", as_=name), 7 if name == "one" else 8)
        vpeft_bench.attachments(model)[name].disable()
    frozen = logits(model)
    one, two = vpeft_bench.attachments(model).values()
    one.save(tmp_path / "one")
    two.save(tmp_path / "two")
    assert load_file(tmp_path / "one").keys() == load_file(tmp_path / "two").keys()
    two.enable()
    expected = logits(model)
    one.load(tmp_path / "two")
    assert torch.equal(logits(model), expected)
    vpeft_bench.attachments(model).only()
    assert torch.equal(logits(model), frozen)
    one.enable()
    assert torch.equal(logits(model), expected)
    with pytest.raises(DeltaMismatchError, match="method"):
        vpeft_bench.attach(model, "lora", as_="three").load(tmp_path / "one")


# ---- methods that look at data -------------------------------------------------------------------


def test_one_that_chooses_comes_to_its_place_later(tmp_path: Path) -> None:
    model = build("vit")
    before = state(model)
    chooser = vpeft_bench.attach(model, "sct", as_="chooser", channels=6)
    lora = randomise(vpeft_bench.attach(model, "lora", as_="lora", rank=2))
    expected = logits(model)
    carried = vpeft_bench.attachments(model)
    for action in (chooser.enable, chooser.disable, lambda: carried.only("chooser")):
        with pytest.raises(NotSelectedError):
            action()
    batches = [(images(10, seed=5), torch.arange(10) % CLASSES)]
    torch.manual_seed(0)
    chooser.select(batches)
    assert carried.enabled == ("chooser", "lora")
    assert not torch.equal(logits(model), expected)
    chooser.save(tmp_path / "chooser")
    lora.disable()
    alone = build("vit")
    twin = vpeft_bench.attach(alone, "sct", channels=6)
    torch.manual_seed(0)
    twin.select(batches)
    twin.save(tmp_path / "alone")  # what it saw was the plain model
    assert (tmp_path / "alone").read_bytes() == (tmp_path / "chooser").read_bytes()
    chooser.disable()
    chooser.load(tmp_path / "alone")
    assert not chooser.enabled
    chooser.detach()
    lora.detach()
    assert_plain(model, before)


def test_a_search_leaves_the_others_in_the_model() -> None:
    """NOAH places a supernet while it searches."""
    model = build("vit")
    before = state(model)
    lora = randomise(vpeft_bench.attach(model, "lora", as_="lora", rank=2))
    expected = logits(model)
    options = {"supernet_epochs": 1, "generations": 1, "population": 2, "parents": 1}
    noah = put_on(model, "noah", "noah", {**options, "widths": [1, 3]})
    assert noah.enabled
    noah.disable()
    assert torch.equal(logits(model), expected)
    noah.detach()
    lora.detach()
    assert_plain(model, before)


def test_without_originals_it_stays_where_it_is() -> None:
    model = build("vit")
    attached = attach_method(model, build_method("bitfit", {}), detachable=False)
    for action in (attached.disable, vpeft_bench.attachments(model).only):
        with pytest.raises(AlreadyAttachedError, match="detachable=False"):
            action()
    with pytest.raises(AlreadyAttachedError, match="detachable=False"):
        vpeft_bench.attach(model, "lora", as_="second")
    assert list(vpeft_bench.attachments(model)) == ["bitfit"]
    assert attached.enabled
