"""What a method does, found out by doing it, and where that contradicts what it says of itself.

Each method is attached with its default options to a small model of every family: logits are
compared before and after, its tensors are changed at random to see which features stay the same,
it is saved and merged. Sizes are those of ViT-B/16 and Swin-B, attached without memory for weights.
"""

from __future__ import annotations

import copy
import functools
import importlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from vpeft_bench.attaching.attachment import Attached, attach
from vpeft_bench.backbones import block_map
from vpeft_bench.backbones.families import families
from vpeft_bench.backbones.family import Family
from vpeft_bench.backbones.features import StageFeatures
from vpeft_bench.errors import NotMergeableError, NotSelectedError, UnsupportedBackboneError
from vpeft_bench.methods.base import MergeableModule, Method
from vpeft_bench.methods.data_pass import BatchData
from vpeft_bench.methods.registry import build_method

_CLASSES = 4
_MERGED = 1e-6
"""Largest relative difference between the logits of a merged model and those before, in float64."""


@dataclass(frozen=True)
class Size:
    """What a method costs on the backbone that its family shows.

    Attributes:
        parameters: trainable without the head; None where the data decide.
        stored_bytes: tensors of the delta checkpoint; None where a data pass comes first.
        reads: the frozen features that training reads.
    """

    parameters: int | None
    stored_bytes: int | None
    reads: tuple[str, ...]


@dataclass(frozen=True)
class Facts:
    """What probing a method showed.

    Attributes:
        families: those it attaches to, as it says; it was tried on those with a small model.
        identity_at_start: the logits stay the same, bit for bit.
        mergeable: the merged model is a plain one with the same logits.
        selects: nothing is placed before a data pass.
        dense: under a dense head all that it trains learns.
        sizes: by title of the backbone.
        contradictions: claims of the method that do not hold.
    """

    name: str
    families: tuple[str, ...]
    identity_at_start: bool
    mergeable: bool
    selects: bool
    dense: bool
    sizes: dict[str, Size]
    contradictions: tuple[str, ...]


@functools.cache
def probe(name: str) -> Facts:
    """Attach the method ``name`` wherever it can be, and see."""
    method = build_method(name, {})
    seen, contradictions = {}, []
    for family in families():
        if family.small is None:
            continue
        claimed = family.name in method.supported()
        try:
            seen[family] = _observe(name, family)
        except UnsupportedBackboneError as error:
            if claimed:
                contradictions.append(f"{family.name}: said to be supported, but {error}")
            continue
        if not claimed:
            contradictions.append(f"{family.name}: said to be unsupported, but it attaches")
        contradictions += [f"{family.name}: {text}" for text in seen[family].against(method)]
    observed = list(seen.values())
    sizes = {}
    for family in seen:
        if family.shown is not None:
            title, model = family.shown
            sizes[title], wrong = _size(method, model)
            contradictions += [f"{title}: {text}" for text in wrong]
    return Facts(
        name=name,
        families=method.supported(),
        identity_at_start=all(o.identity_at_start for o in observed),
        mergeable=all(o.mergeable for o in observed),
        selects=any(o.selects for o in observed),
        dense=method.dense_refusal is None and all(o.feeds_maps for o in observed),
        sizes=sizes,
        contradictions=tuple(contradictions),
    )


@dataclass(frozen=True)
class _Observation:
    """One method on one small model."""

    identity_at_start: bool
    mergeable: bool
    foldable: bool
    selects: bool
    feeds_maps: bool
    parameters: int
    expected_parameters: int | None
    frozen: set[str]
    deepest_frozen: str
    reads: tuple[str, ...]
    file_is_header_and_tensors: bool

    def against(self, method: Method) -> Iterator[str]:
        """What of the method's claims does not hold."""
        if self.identity_at_start != method.identity_at_start:
            yield f"identity_at_start is {self.identity_at_start}"
        if not self.mergeable and method.merge_refusal is None:
            yield "merging fails"
        if self.foldable and method.merge_refusal is not None:
            yield "said not to be mergeable, though all that it places can be folded"
        if self.selects != method.selects:
            yield f"selects is {self.selects}"
        if self.feeds_maps != (method.not_dense is None):
            yield f"under a dense head it {'learns' if self.feeds_maps else 'does not learn'}"
        if self.expected_parameters not in (None, self.parameters):
            yield f"trains {self.parameters:,} parameters, not {self.expected_parameters:,}"
        if moving := [name for name in self.reads if name not in self.frozen]:
            yield f"reads {', '.join(moving)}, which training changes"
        if len(self.reads) == 1 and self.reads[0] != self.deepest_frozen:
            yield f"reads {self.reads[0]}, while {self.deepest_frozen} stays the same"
        if not self.file_is_header_and_tensors:
            yield "the delta checkpoint holds more than header and tensors"


def _observe(name: str, family: Family) -> _Observation:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, pictures, before = copy.deepcopy(_small_model(family))
        attached = attach(model, build_method(name, {}).shortened())
        selects = _awaits_data(attached)
        if selects:
            attached.select(_training_data(pictures.shape[1:]))
        identity = torch.equal(_logits(model, pictures), before)
        start = _features(attached, pictures)
        _randomise(attached)
        later = _features(attached, pictures)
        frozen = _frozen(start, later)
        method, backbone = attached.method, attached.backbone
        return _Observation(
            identity_at_start=identity,
            selects=selects,
            parameters=attached.parameter_counts().method,
            expected_parameters=method.parameter_count(backbone),
            feeds_maps=_feeds_maps(attached, pictures),
            frozen=frozen,
            deepest_frozen=_deepest(frozen, len(backbone.blocks)),
            reads=method.reads(backbone),
            file_is_header_and_tensors=_saves_what_it_says(attached),
            foldable=_foldable(attached),
            mergeable=_merges(attached, pictures),
        )


@functools.cache
def _small_model(family: Family) -> tuple[nn.Module, Tensor, Tensor]:
    """A small model in float64, two pictures, and their logits.

    No weight is left at a value that hides mistakes, such as a norm's ones and zeros.
    """
    assert family.small is not None
    name, overrides = family.small
    model: nn.Module = timm.create_model(name, num_classes=_CLASSES, **overrides)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.double().eval()
    side = overrides["img_size"]
    pictures = torch.randn(2, 3, side, side, dtype=torch.float64)
    return model, pictures, _logits(model, pictures)


def _training_data(shape: torch.Size) -> BatchData:
    """Two pictures per class, in two views, for methods that look at data first."""
    pictures = torch.randn(2 * _CLASSES, *shape, dtype=torch.float64)
    labels = torch.arange(2 * _CLASSES) % _CLASSES
    return BatchData([(pictures, pictures.flip(3), labels)], validation=[(pictures, labels)])


def _logits(model: nn.Module, pictures: Tensor) -> Tensor:
    with torch.no_grad():
        return model(pictures)  # type: ignore[no-any-return]


def _awaits_data(attached: Attached) -> bool:
    try:
        attached.trainable_parameters()
    except NotSelectedError:
        return True
    return False


def _randomise(attached: Attached) -> None:
    with torch.no_grad():
        for parameter in attached.trainable_parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def _features(attached: Attached, pictures: Tensor) -> dict[str, Tensor]:
    """What the blocks really receive and give in a pass, named as in ``trunk.read_features``.

    ``out.i`` is what block i gives; what block i + 1 receives may be something else. Where a module
    runs several times, it is the first: a network around the trunk reads the frozen features before
    it uses parts of the trunk for something else.
    """
    found = {"images": pictures}
    model: Any = attached.model
    blocks = attached.backbone.blocks

    def given(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            found.setdefault(name, inputs[0])

        return hook

    def output(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], result: Tensor) -> None:
            found.setdefault(name, result)

        return hook

    hooks = []
    for block in blocks:
        module: Any = block.module
        hooks += [
            module.register_forward_pre_hook(given(f"tokens.{block.index}")),
            # where a block is taken apart to read its branches, it is not called as a whole
            block.leaf("norm1").register_forward_pre_hook(given(f"tokens.{block.index}")),
            block.attention.register_forward_hook(output(f"attn.{block.index}")),
            module.mlp.register_forward_hook(output(f"mlp.{block.index}")),
            module.register_forward_hook(output(f"out.{block.index}")),
        ]
    _logits(model, pictures)
    for hook in hooks:
        hook.remove()
    if (last := f"out.{len(blocks) - 1}") in found:
        with torch.no_grad():
            found["features"] = model.forward_head(model.norm(found[last]), pre_logits=True)
    return found


def _frozen(start: dict[str, Tensor], later: dict[str, Tensor]) -> set[str]:
    """What stayed the same, bit for bit."""
    same = {n for n in start if n in later and torch.equal(start[n], later[n])}
    outputs = (int(name.partition(".")[2]) for name in same if name.startswith("out."))
    return same | {f"tokens.{index + 1}" for index in outputs}


def _deepest(frozen: set[str], depth: int) -> str:
    """The last of images, tokens.0, ..., tokens.L, features up to which all are frozen."""
    deepest = "images"
    for name in (*(f"tokens.{i}" for i in range(depth + 1)), "features"):
        if name not in frozen:
            break
        deepest = name
    return deepest


def _feeds_maps(attached: Attached, pictures: Tensor) -> bool:
    """Whether every trained tensor gets a gradient from the feature maps of a dense head."""
    maps = StageFeatures(attached.backbone)(pictures)
    loss = sum((x * torch.randn_like(x)).sum() for x in maps)
    trained = attached.trainable_parameters()
    if not trained or not loss.requires_grad:
        return not trained
    gradients = torch.autograd.grad(loss, trained, allow_unused=True)  # type: ignore[arg-type]
    return all(gradient is not None for gradient in gradients)


def _saves_what_it_says(attached: Attached) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "delta.safetensors")
        size = attached.save(path)
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")  # safetensors: length, header, tensors
    return size == 8 + header + attached.stored_bytes()


def _foldable(attached: Attached) -> bool:
    """Whether each placed module, and there are some, knows how to go into its leaf."""
    placed = [(p.module, p.host) for p in attached.backbone.placements]
    return bool(placed) and all(
        isinstance(module, MergeableModule) and module.obstacle(host) is None
        for module, host in placed
    )


def _merges(attached: Attached, pictures: Tensor) -> bool:
    expected = _logits(attached.model, pictures)
    try:
        merged = _logits(attached.merge(), pictures)
    except NotMergeableError:
        return False
    error = (merged - expected).abs().max() / expected.abs().max()
    return bool(error < _MERGED)


# ---- full size ----------------------------------------------------------------------------------


@functools.cache
def full_size(model: str) -> nn.Module:
    """A timm model with one class, without memory for its weights."""
    with torch.device("meta"):
        return timm.create_model(model, num_classes=1)  # type: ignore[no-any-return]


def _size(method: Method, name: str) -> tuple[Size, list[str]]:
    """The size on the large backbone, and what of it contradicts the closed form."""
    model = full_size(name)
    backbone = block_map(model)
    expected, reads = method.parameter_count(backbone), method.reads(backbone)
    if method.selects:
        return Size(expected, None, reads), []
    attached = attach(model, method.name)
    found, stored = attached.parameter_counts().method, attached.stored_bytes()
    attached.detach()
    agrees = expected is None or found == expected
    wrong = [] if agrees else [f"trains {found:,} parameters, not {expected:,}"]
    return Size(found, stored, reads), wrong


# ---- reference vectors --------------------------------------------------------------------------


def reference_vectors() -> dict[str, list[str]] | None:
    """The reference vectors that tests compare each method with; None outside a checkout."""
    tests = Path(__file__).resolve().parents[2] / "tests" / "golden"
    if not (tests / "entries").is_dir():
        return None
    sys.path.insert(0, str(tests))
    try:
        entries = importlib.import_module("entries").ENTRIES
    finally:
        sys.path.remove(str(tests))
    vectors: dict[str, list[str]] = {}
    for vector in sorted(entries):
        vectors.setdefault(entries[vector].method, []).append(vector)
    return vectors
