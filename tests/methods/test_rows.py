"""A batch whose pictures use different attachments gives each what it gets alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny_models import CLASSES, FURTHER, MODELS, build, images, targets
from torch import Tensor, nn

import vpeft_bench
from vpeft_bench.backbones import block_map
from vpeft_bench.backbones.rows import Rows
from vpeft_bench.errors import AlreadyAttachedError, NotStackableError
from vpeft_bench.methods.registry import method_class

BY_ROW: dict[str, dict[str, Any]] = {
    "adapter": {},
    "adaptformer": {},
    "arc": {},
    "attn_scale": {"granularity": "head"},
    "bapat": {},
    "compacter": {},
    "convpass": {},
    "fact_tk": {},
    "hydra": {},
    "kadaptation": {"terms": 4},
    "lora": {},
    "mona": {},
    "patt": {},
    "prefix": {"prompt_length": 3},
    "repadapter": {},
    "sct": {"channels": 6},
    "snf": {},
    "ssf": {},
    "u_tuning": {"prompt_length": 2},
    "vpt_deep": {"prompt_length": 3},
    "vpt_shallow": {"prompt_length": 3},
}
# These have no effect on some pictures only where all have as many tokens or keys.
LONGER = ("prefix", "u_tuning", "vpt_deep", "vpt_shallow")
WHOLE = {
    "bitfit": "changes weights or biases",
    "gps": "changes weights or biases",
    "full": "changes weights or biases",
    "lst": "runs the blocks of the model itself",
    "dtl": "runs the blocks of the model itself",
    "hf/lora": "in the place of the model's",
}


def put_on(model: nn.Module, method: str, as_: str, seed: int, **options: Any) -> None:
    batches = [(images(10, seed=5).to(next(model.parameters())), torch.arange(10) % CLASSES)]
    attached = vpeft_bench.attach(model, method, as_=as_, data=batches, **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in attached.trainable_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(0.1 * noise)
    attached.disable()


def one_by_one(model: nn.Module, names: list[str | None], x: Tensor) -> Tensor:
    carried = vpeft_bench.attachments(model)
    found = []
    for index, name in enumerate(names):
        carried.only(*([] if name is None else [name]))
        found.append(model(x[index : index + 1]))
    carried.only()
    return torch.cat(found)


# A few on every kind of model, the others on tokens and on a map.
EVERYWHERE = ("adapter", "lora", "prefix", "ssf", "vpt_deep")


def _supported() -> Iterator[tuple[str, str]]:
    for kind in (*MODELS, *FURTHER):
        family = block_map(build(kind)).family.name
        for method in BY_ROW if kind in ("vit", "swin") else EVERYWHERE:
            if family in method_class(method).supported():
                yield method, kind


@pytest.mark.parametrize(("method", "kind"), list(_supported()))
@torch.no_grad()
def test_rows_are_what_each_is_alone(method: str, kind: str) -> None:
    model = build(kind).double()
    for seed, name in enumerate("ab"):
        put_on(model, method, name, seed, **BY_ROW[method])
    third = "a" if method in LONGER else None
    names = ["a", "b", third, "a", "b"]
    x = images(5).double()
    expected = one_by_one(model, names, x)
    frozen = model(x)
    with vpeft_bench.attachments(model).rows(names):
        found = model(x)
        assert torch.equal(model(x), found)
    assert (found - expected).abs().max() < 1e-10
    assert not torch.allclose(found, frozen)
    assert torch.equal(model(x), frozen)


@torch.no_grad()
def test_different_methods_in_one_batch() -> None:
    model = build("vit")
    methods = {"lora": {}, "wide": {"rank": 12}, "ssf": {}, "adapter": {}, "convpass": {}}
    for seed, (name, options) in enumerate(methods.items()):
        put_on(model, "lora" if name == "wide" else name, name, seed, **options)
    names = ["adapter", "lora", None, "ssf", "ssf", "wide", "convpass", None]
    x = images(8)
    expected = one_by_one(model, names, x)
    carried = vpeft_bench.attachments(model)
    carried.only("lora")  # what is enabled outside plays no part inside
    before = model(x)
    with carried.rows(names):
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
        features = model.forward_features(x)
    assert len(features) == 8
    assert torch.equal(model(x), before)


@torch.no_grad()
def test_one_batch_of_one_attachment_is_that_attachment() -> None:
    model = build("vit")
    put_on(model, "lora", "a", 0)
    carried = vpeft_bench.attachments(model)
    with carried.rows(["a", "a"]):
        found = model(images())
    carried.only("a")
    assert torch.equal(found, model(images()))


def test_each_learns_from_its_own_rows() -> None:
    model = build("vit")
    for seed, name in enumerate("ab"):
        put_on(model, "lora", name, seed)
    carried = vpeft_bench.attachments(model)
    with carried.rows(["a", "b", "a"]):
        loss = nn.functional.cross_entropy(model(images(3)), targets(3), reduction="none")
        loss[1].backward()
    first, second = (carried[name].trainable_parameters() for name in "ab")
    assert all(p.grad is None or not p.grad.any() for p in first)
    assert all(p.grad is not None and p.grad.any() for p in second)


@pytest.mark.parametrize(("method", "reason"), WHOLE.items())
def test_methods_that_need_whole_batches_say_so(method: str, reason: str) -> None:
    model = build("vit")
    put_on(model, method, "whole", 0)
    put_on(model, "lora", "fine", 0)
    carried = vpeft_bench.attachments(model)
    with (
        pytest.raises(NotStackableError, match=rf"'whole' \({method}\).*{reason}.*only\('whole'\)"),
        carried.rows(["fine", "whole"]),
    ):
        pass
    assert carried.enabled == ()


def test_dora_and_lora_are_told_apart() -> None:
    model = build("vit")
    put_on(model, "lora", "dora", 0, dora=True)
    with (
        pytest.raises(NotStackableError, match="changes weights or biases"),
        vpeft_bench.attachments(model).rows(["dora"]),
    ):
        pass


@torch.no_grad()
def test_rows_of_different_length_are_refused() -> None:
    model = build("vit")
    for name, length in (("two", 2), ("three", 3)):
        put_on(model, "prefix", name, 0, prompt_length=length)
        put_on(model, "vpt_shallow", f"shallow {name}", 0, prompt_length=length)
    carried = vpeft_bench.attachments(model)
    with (
        pytest.raises(NotStackableError, match=r"equally long.*'two' \(2, 19, 16\), 'three'"),
        carried.rows(["two", "three"]),
    ):
        model(images())
    for names in (["shallow two", "shallow three"], ["shallow two", None]):
        with pytest.raises(NotStackableError, match="as many prompts"), carried.rows(names):
            pass
    with carried.rows(["two", "two"]):  # nothing is left of what failed
        model(images())


@torch.no_grad()
def test_the_stack_is_left_alone_while_rows_differ() -> None:
    """Nothing is folded in, put on or taken off halfway."""
    model = build("vit")
    one = vpeft_bench.attach(model, "lora", as_="a")
    carried = vpeft_bench.attachments(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with carried.rows(["a", None]):
        for change in (one.merge, one.detach, lambda: vpeft_bench.attach(model, "ssf", as_="b")):
            with pytest.raises(AlreadyAttachedError, match=r"leave rows\(\) first"):
                change()
    assert list(carried) == ["a"]
    assert all(torch.equal(model.state_dict()[name], kept) for name, kept in before.items())
    with pytest.raises(ValueError, match="a list of names"), carried.rows("a"):
        pass


def test_what_is_typed_is_checked() -> None:
    model = build("vit")
    put_on(model, "lora", "a", 0)
    carried = vpeft_bench.attachments(model)
    with pytest.raises(KeyError, match="no attachment 'b'; there are: a"), carried.rows(["a", "b"]):
        pass
    with pytest.raises(ValueError, match="no names"), carried.rows([]):
        pass
    for count in (1, 4):
        with (
            carried.rows(["a", None]),
            pytest.raises(ValueError, match=f"2 names, the batch has {count} pictures"),
        ):
            model.forward_features(images(count))
    with carried.rows(["a", None]):
        for action in (carried["a"].enable, carried["a"].detach, carried.only):
            with pytest.raises(AlreadyAttachedError, match=r"leave rows\(\) first"):
                action()
    assert carried.enabled == ()
    model(images(4))


@pytest.mark.parametrize("keys", ["abab", "aabb", "aba", "a", "cbaabc"])
@pytest.mark.parametrize("windows", [1, 3])
def test_what_is_split_is_joined(keys: str, windows: int) -> None:
    rows = Rows(list(keys))
    x = torch.arange(len(keys) * windows * 2).view(len(keys) * windows, 2)
    parts = rows.split(x)
    owners = [key for key in keys for _ in range(windows)]
    for key, part in zip(rows.keys, parts, strict=True):
        assert torch.equal(part, x[[owner == key for owner in owners]])
    assert torch.equal(rows.join(parts, x), x)
