"""What every method owes, on every family of backbones; a new method is checked by existing."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import CLASSES, FURTHER, MODELS, build, images, targets
from torch import Tensor, nn

import vpeft_bench
from vpeft_bench.attaching.attachment import Attached, attach_method
from vpeft_bench.attaching.delta import HEADER_KEY
from vpeft_bench.backbones import Backbone, block_map
from vpeft_bench.backbones.families import FAMILIES
from vpeft_bench.backbones.trunk import OpenedModel, SideNetwork, resumes
from vpeft_bench.catalogue.wording import sentences
from vpeft_bench.errors import (
    AlreadyAttachedError,
    DeltaMismatchError,
    MethodOptionError,
    NotMergeableError,
    UnsupportedBackboneError,
)
from vpeft_bench.methods.base import Method
from vpeft_bench.methods.data_pass import BatchData
from vpeft_bench.methods.registry import build_method, method_class

# Options a method needs on models this small; every other method runs with its defaults.
SMALL: dict[str, dict[str, Any]] = {
    "hst": {"channels": [8, 12], "heads": [2, 3]},
    "kadaptation": {"terms": 4},
    "noah": {
        "supernet_epochs": 2,
        "generations": 2,
        "population": 3,
        "parents": 2,
        "mutations": 1,
        "crossovers": 1,
        "widths": [1, 3],
    },
    "sct": {"channels": 6},
    "vpt_shallow": {"prompt_length": 4},
}

# Options that take another path through a method than its defaults do.
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("arc", {"bottleneck": 6, "init": "xavier"}),
    ("arc", {"placement": "attn"}),
    ("arc", {"mlp_site": "stream"}),
    ("attn_scale", {"granularity": "head"}),
    ("attn_scale", {"dra": False}),
    ("partial", {"last_blocks": 2, "final_norm": True}),
    ("ssb", {"targets": ["fc1", "proj"]}),
    ("fact_tk", {"rank": 5, "scale": 0.1, "slice_order": "petl_vit"}),
    ("cp", {"rank": 6, "core": "full"}),
    ("adapter", {"placement": "houlsby", "last_blocks": 1}),
    ("adapter", {"init": "vpb"}),
    ("adaptformer", {"layer_norm": "in", "activation": "gelu", "init": "vpb"}),
    ("bitfit", {"relative_position_bias": False}),
    ("convpass", {"placement": "attn", "scale": 0.1, "conv_init": "xavier"}),
    ("compacter", {"placement": "pfeiffer", "terms": 2, "rank": 3, "init": "compacter"}),
    ("compacter", {"unfreeze_layer_norms": True, "activation": "gelu_tanh"}),
    ("compacter", {"phm_init_range": 1e-4, "init": "compacter"}),
    ("kadaptation", {"terms": 4, "rank": 2, "scale": 1.0, "dropout": 0.0, "init": "pevit"}),
    ("lora", {"targets": ["k", "proj", "fc1", "fc2"], "alpha": 3.0, "dropout": 0.1}),
    ("lora", {"targets": ["qkv"], "rank": 3, "init": "vpb"}),
    ("lora", {"targets": ["q", "v", "fc2"], "alpha": 4.0, "rslora": True, "dora": True}),
    ("dtl", {"fusion_kernel": 4, "beta": 2.0, "injecting_blocks": [1]}),
    ("hst", {"prompt_length": 2, "channels": [6, 8, 12], "heads": [1, 2, 4]}),
    ("hst", {"channels": [8, 8, 8], "heads": [2, 2, 2]}),
    ("synqt", {"prompt_length": 2, "bottleneck": 3, "feat_scale": 0.1, "dropout": 0.0}),
    ("lst", {"init": "pruned", "side_norm": False, "projection_bias": False}),
    ("last", {"gap": 3, "repeats": 2, "bias": True, "rank": 3}),
    ("snf", {"flow_length": 0, "targets": ["mlp"]}),
    ("gps", {"per_neuron": 2, "loss": "ce", "mode": "train"}),
    ("hydra", {"rank": 3, "scale": 0.5, "dropout": 0.1}),
    ("bapat", {"mode": "qkv", "ffn_scale": 1.0}),
    ("e3va", {"share_kernel": False, "bottleneck": 5, "train_norm": True}),
    ("lorand", {"branches": 4, "kernel_dim": 16, "share_kernel": False, "bottleneck": 6}),
    ("patt", {"mode": "qv", "bottleneck": 5, "scale": 2.0}),
    ("mona", {"bottleneck": 3, "dropout": 0.0}),
    ("noah", {"prompt_length": [3, 0, 2], "rank": [0, 2, 2], "bottleneck": [4, 0, 1]}),
    ("noah", {"rank": [2], "init": "noah", "stale_prompts": "keep"}),
    ("noah", {"prompt_length": [0, 2, 0], "dropout": 0.0}),
    ("noah", {"rank": [0, 0, 4]}),
    ("repadapter", {"placement": "attn", "groups": 1, "bottleneck": 3, "scale": 5.0}),
    ("sct", {"channels": 6, "placement": "mlp", "scale": 0.4}),
    ("sct", {"channels": 6, "placement": "qkv", "scale": 0.4, "scale_on": "stream"}),
    ("spt", {"form": "adapter", "fit": "closest", "rank": 3, "drop_path": 0.0}),
    ("spt", {"form": "adapter", "rank": 3, "drop_path": 0.0, "proj_reads": "output"}),
    ("spt", {"budget": 2500, "rank": 2, "mode": "train"}),
    ("ssf", {"init_std": 0.0}),
    ("ssf", {"merge_norms": True}),
    ("u_tuning", {"attn": "adapter", "block": "adapter", "init": "modelscope"}),
    ("u_tuning", {"mlp": "none", "prompt_length": 2}),
    ("vfpt", {"depth": "shallow", "prompt_length": 4, "transform": "sequence"}),
    ("vfpt", {"projection_width": 6, "ratio": 1.0, "dropout": 0.1}),
    ("vpt_shallow", {"prompt_length": 3, "projection_width": 6, "init": "vpb"}),
    ("vpt_deep", {"projection_width": 6, "dropout": 0.1}),
    ("vpt_deep", {"position": "append"}),
]


# What a method refuses on single backbones of a family that it supports, and why.
POSITIONS = ("beit", "dinov3", "eva02", "eva02_split")
OF_ITS_OWN: list[tuple[str, dict[str, Any], tuple[str, ...], str]] = [
    ("vpt_deep", {"position": "append"}, (*POSITIONS, "swin"), "take tokens at the end for"),
    ("vpt_deep", {"projection_width": 6}, ("swin",), "needs blocks of one width"),
    ("vfpt", {"projection_width": 6}, ("swin",), "needs blocks of one width"),
    ("spt", {}, ("eva02_split",), "ranks the entries of a whole weight"),
    ("lst", {"init": "pruned"}, ("eva02", "eva02_split"), "MLPs have a gate"),
]
# What a method adds to the qkv linear has no bias to go into: of the keys, or of any.
NO_KEY_BIAS = ("dinov3", "eva02", "eva02_split", "swinv2")
SHIFTS_KEYS = ("arc", "repadapter", "ssf")
NO_BIAS = ("dinov3",)
SHIFTS = ("kadaptation", "sct")
# Of the further families here: single weights, a linear, inside attention, all leaves, tokens.
QUICK = ("gps", "lora", "prefix", "ssf", "vpt_deep")


# The further families that are least like the others: there methods take their other paths, too.
VARIED = ("eva02_split", "swinv2")


@dataclass(frozen=True)
class Case:
    """A method with options, on a kind of model."""

    method: str
    options: Mapping[str, Any]
    kind: str

    def attach(self, model: nn.Module) -> Attached:
        batches = [(images(10, seed=5).to(_dtype(model)), torch.arange(10) % CLASSES)]
        data = BatchData(batches, validation=batches)
        return vpeft_bench.attach(model, self.method, data=data, **self.options)

    def __str__(self) -> str:
        options = ",".join(f"{k}={v}" for k, v in self.options.items())
        return f"{self.kind}-{self.method}({options})"


def _dtype(model: nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype


@functools.cache
def _outline(kind: str) -> Backbone:
    return block_map(build(kind))


def _cases(found: Iterable[tuple[str, Mapping[str, Any]]], kinds: Iterable[str]) -> Iterator[Case]:
    for name, options in found:
        for kind in kinds:
            supported = _outline(kind).family.name in method_class(name).supported()
            if supported and not _refused(name, options, kind):
                yield Case(name, options, kind)


def _refused(name: str, options: Mapping[str, Any], kind: str) -> bool:
    """Whether a method that the family supports refuses this very backbone, see OF_ITS_OWN."""
    return any(
        name == refused and kind in kinds and set(given.items()) <= set(options.items())
        for refused, given, kinds, _ in OF_ITS_OWN
    )


def _of_variants() -> Iterator[tuple[Case, bool]]:
    """Each variant on one of the MODELS, in turn; on the others it is left to .ci/run."""
    for turn, variant in enumerate(VARIANTS):
        on_models = list(_cases([variant], MODELS))
        for index, case in enumerate(on_models):
            yield case, index != turn % len(on_models)
        yield from ((case, True) for case in _cases([variant], VARIED))


DEFAULTS = [(name, SMALL.get(name, {})) for name in vpeft_bench.list_methods()]
# Whole matrices of the further families are run by .ci/run; a few methods of each here.
CASES = [
    *((case, False) for case in _cases(DEFAULTS, MODELS)),
    *((case, case.method not in QUICK) for case in _cases(DEFAULTS, FURTHER)),
    *_of_variants(),
]


def _parametrize(cases: Iterable[tuple[Case, bool]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "case",
        [
            pytest.param(case, id=str(case), marks=[pytest.mark.slow] if long else [])
            for case, long in cases
        ],
    )


def _of_case(case: Case) -> Method:
    return build_method(case.method, case.options)


def _is_default(case: Case) -> bool:
    return case.options == SMALL.get(case.method, {})


def _also_on(*kinds: str) -> Iterator[tuple[Case, bool]]:
    """Each method at once on the plain ViT and on these kinds; on the others by .ci/run."""
    for case, long in CASES:
        left = _is_default(case) and case.kind in MODELS and case.kind not in ("vit", *kinds)
        yield case, long or left


def _of_one_path() -> Iterator[tuple[Case, bool]]:
    """As EVERY_PLACE, without the variants: what they place is loaded, merged and counted there."""
    for case, long in _also_on("swin"):
        yield case, long or not _is_default(case)


def _of_torch() -> Iterator[tuple[Case, bool]]:
    """Each method at once on the plain ViT, a few of them elsewhere; all else by .ci/run."""
    for case, long in CASES:
        few = case.method in QUICK and case.kind in ("swin", *VARIED)
        yield case, long or not (_is_default(case) and (case.kind == "vit" or few))


# What a check can find is not the same everywhere. What a method places, and where: each method
# with each of its options, and again where blocks have windows and stages of several widths.
EVERY_PLACE = _parametrize(_also_on("swin"))
EVERY_DEFAULT_PLACE = _parametrize(_of_one_path())
# Which stream is changed by what: again where tokens stand before and are left out at the end.
EVERY_STREAM = tuple(_also_on("vit_avg_reg"))
# What torch does with modules, wherever they were placed.
EVERY_MODULE = _parametrize(_of_torch())
EVERY_OPTION = _parametrize((case, long) for case, long in _of_torch() if case.kind in MODELS)
EVERY_METHOD = pytest.mark.parametrize("name", vpeft_bench.list_methods())
EVERY_DEFAULT = _parametrize((case, False) for case in _cases(DEFAULTS, ["vit"]))


# ---- helpers ------------------------------------------------------------------------------------


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return cast(Tensor, model(images()))


def gradients(model: Any) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    nn.functional.cross_entropy(model(images()), targets()).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def train(attached: Attached, steps: int = 2) -> list[dict[str, Tensor]]:
    """AdamW on method and head; the gradients of each step."""
    parameters = attached.trainable_parameters() + attached.head_parameters()
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)
    history = []
    for _ in range(steps):
        history.append(gradients(attached.model))
        optimizer.step()
    return history


def randomise(attached: Attached) -> None:
    """Move whatever the method trains well away from its start."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in attached.trainable_parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> None:
    assert list(left) == list(right)
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def running_statistics(model: nn.Module) -> set[str]:
    """Names of the buffers that a pass in training mode moves."""
    return {
        f"{name}.{buffer}"
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for buffer, _ in module.named_buffers(recurse=False)
    }


def relative_error(value: Tensor, expected: Tensor) -> float:
    return ((value - expected).abs().max() / expected.abs().max()).item()


# ---- where it runs ------------------------------------------------------------------------------


REFUSED = [
    (name, kind)
    for name in vpeft_bench.list_methods()
    for kind in MODELS | FURTHER
    if _outline(kind).family.name in method_class(name).unsupported()
]


@pytest.mark.parametrize(("name", "kind"), REFUSED)
def test_unsupported_family_is_refused(name: str, kind: str) -> None:
    model = build(kind)
    before = state(model)
    with pytest.raises(UnsupportedBackboneError, match=name) as error:
        vpeft_bench.attach(model, name)
    assert method_class(name).unsupported()[_outline(kind).family.name] in str(error.value)
    assert_same(state(model), before)


@pytest.mark.parametrize(("name", "options", "kinds", "reason"), OF_ITS_OWN)
def test_single_backbones_are_refused(
    name: str, options: dict[str, Any], kinds: tuple[str, ...], reason: str
) -> None:
    for kind in kinds:
        model = build(kind)
        before = state(model)
        with pytest.raises(UnsupportedBackboneError, match=reason):
            vpeft_bench.attach(model, name, **options)
        assert_same(state(model), before)


@EVERY_METHOD
def test_states_its_facts(name: str) -> None:
    found = method_class(name)
    assert found.title
    assert found.source
    assert found.category
    assert "vit" in found.supported()
    assert set(found.unsupported()) == set(FAMILIES.names()) - set(found.supported())
    assert all(found.needs.values())
    assert all(field.metadata["help"] for field in fields(found))
    assert sentences(found.idea) == 2
    assert all(isinstance(deviation, str) and deviation for deviation in found.deviations)


# ---- the start ----------------------------------------------------------------------------------


@EVERY_PLACE
def test_function_and_counts_at_the_start(case: Case) -> None:
    """The function is that of the plain model where it is said; counts are those of the formula."""
    model = build(case.kind)
    before = logits(model)
    expected = build_method(case.method, case.options).parameter_count(block_map(model))
    attached = case.attach(model)
    assert torch.equal(logits(model), before) == attached.method.identity_at_start
    head = sum(p.numel() for p in attached.backbone.head.parameters())  # it may be a new one
    counts = attached.parameter_counts()
    assert counts.method == (counts.method if expected is None else expected)
    assert counts.method == sum(p.numel() for p in attached.trainable_parameters())
    assert (counts.head, counts.total) == (head, counts.method + head)
    assert counts.model == sum(p.numel() for p in model.parameters())


@EVERY_OPTION
def test_placed_modules_follow_the_model(case: Case) -> None:
    """Type, device and mode; what is placed later must not be the odd one out."""
    model = build(case.kind).to(torch.float64).eval()
    attached = case.attach(model)
    assert {p.dtype for p in attached.trainable_parameters()} <= {torch.float64}
    assert not any(module.training for module in model.modules())
    model.train()
    assert all(module.training for module in model.modules())


# ---- training -----------------------------------------------------------------------------------


@EVERY_PLACE
def test_everything_trainable_learns(case: Case) -> None:
    attached = case.attach(build(case.kind))
    names = {name for name, _ in attached.named_trainable_parameters()}
    history = train(attached)
    alive = {name for step in history for name, gradient in step.items() if gradient.any()}
    assert names - alive == set()


@EVERY_DEFAULT_PLACE
def test_only_what_is_declared_changes(case: Case) -> None:
    attached = case.attach(build(case.kind).train())
    model = attached.model
    declared = {id(p) for p in attached.trainable_parameters() + attached.head_parameters()}
    assert {id(p) for p in model.parameters() if p.requires_grad} == declared
    before = state(model)
    train(attached)
    parameters = model.state_dict(keep_vars=True)
    changed = {name for name, tensor in state(model).items() if not tensor.equal(before[name])}
    assert changed - running_statistics(model) == {
        n for n, p in parameters.items() if id(p) in declared
    }


@EVERY_MODULE
def test_train_and_eval_modes(case: Case) -> None:
    attached = case.attach(build(case.kind))
    randomise(attached)
    model = attached.model
    expected = logits(model)
    before = state(model)
    model.train()
    assert logits(model).isfinite().all()
    model.eval()
    after = state(model)
    assert {n for n in after if not after[n].equal(before[n])} <= running_statistics(model)
    model.load_state_dict(before)  # a pass in training mode moves the statistics of a BatchNorm
    assert torch.equal(logits(model), expected)


@_parametrize(EVERY_STREAM)
def test_first_changed_block(case: Case) -> None:
    """Blocks before it put out what they do in the plain model, and so does all that is read."""
    model = build(case.kind)
    plain = block_streams(model, block_map(model))
    attached = case.attach(model)
    reads = attached.method.reads(attached.backbone)
    trunk = getattr(attached.model, "trunk", None)
    if isinstance(trunk, SideNetwork):
        assert set(trunk.reads) == set(reads)
    start = block_streams(model, attached.backbone)
    randomise(attached)
    found = block_streams(model, attached.backbone)
    depth = len(attached.backbone.blocks)
    first = attached.method.first_changed_block(attached.backbone)
    same = [torch.equal(a, b) for a, b in zip(start, found, strict=True)]
    assert same[1:] == [index < first for index in range(depth)]
    for name in reads:
        kind, _, index = name.partition(".")
        # images are everybody's; a branch follows from the stream that enters its block
        streams = {"images": [], "features": [depth]}.get(kind, [int(index or 0)])
        assert all(torch.equal(found[stream], plain[stream]) for stream in streams), name
    later = {int(name.partition(".")[2]) for name in reads if "." in name} | {-1}
    changed = [i for i in range(depth) if not torch.equal(found[i], plain[i])]
    assert not changed or max(later) < max(changed), "nothing that changes is said to be frozen"


def _resumable(case: Case) -> bool:
    """Whether logits come from frozen features: not where a network runs the blocks itself."""
    method = _of_case(case)
    prompts = {"prompt_length", "supernet_epochs"} & set(case.options)
    runs_the_blocks = case.method == "hst" or (case.method == "noah" and prompts)
    return method.reads(_outline(case.kind)) != ("images",) and not runs_the_blocks


@_parametrize((case, long) for case, long in EVERY_STREAM if _resumable(case))
def test_resumes_from_what_it_reads(case: Case) -> None:
    """The logits and gradients from images, and from the features read of the untrained model."""
    plain = build(case.kind)
    backbone = block_map(plain)
    backbone.open_trunk()
    attached = case.attach(build(case.kind))
    reads = attached.method.reads(attached.backbone)
    attached.backbone.open_trunk()
    assert resumes(attached.model)
    features = cast(OpenedModel, plain).read(reads, images())
    randomise(attached)
    torch.manual_seed(0)
    expected = attached.model(images())
    torch.manual_seed(0)
    found = cast(OpenedModel, attached.model).resume(features)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    trained = [*attached.trainable_parameters(), *attached.head_parameters()]
    for a, b in zip(
        torch.autograd.grad(found.square().sum(), trained),
        torch.autograd.grad(expected.square().sum(), trained),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@_parametrize(
    (case, long)
    for case, long in EVERY_STREAM
    if _of_case(case).first_changed_block(_outline(case.kind)) > 0
)
def test_nothing_is_kept_below_the_first_trained_tensor(case: Case) -> None:
    """Autograd saves nothing of the frozen prefix, and no frozen weight gets a gradient."""
    attached = case.attach(build(case.kind).train())
    first = attached.method.first_changed_block(attached.backbone)
    saved: list[int] = []
    hooks = []
    for block in attached.backbone.blocks[:first]:
        hooks.append(block.module.register_forward_pre_hook(lambda *_: saved.append(0)))
        hooks.append(block.module.register_forward_hook(lambda *_: saved.append(-1)))

    def pack(tensor: Tensor) -> Tensor:
        if saved and saved[-1] >= 0:
            saved[-1] += 1
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        attached.model(images()).square().sum().backward()
    assert all(count <= 0 for count in saved)
    assert len(saved) == 2 * first
    trained = {*attached.trainable_parameters(), *attached.head_parameters()}
    assert all(p.grad is None for p in attached.model.parameters() if p not in trained)
    for hook in hooks:
        hook.remove()


def block_streams(model: nn.Module, backbone: Backbone) -> list[Tensor]:
    """The stream that enters the first block, and the stream behind each block, in a pass."""
    modules = [block.module for block in backbone.blocks]
    streams: list[Tensor | None] = [None] * (len(modules) + 1)

    def record(index: int) -> Callable[..., None]:
        def hook(_: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            if index == 0 and streams[0] is None:
                streams[0] = given[0]
            if streams[index + 1] is None:
                streams[index + 1] = output

        return hook

    hooks = [module.register_forward_hook(record(i)) for i, module in enumerate(modules)]
    logits(model)
    for hook in hooks:
        hook.remove()
    return [cast(Tensor, stream) for stream in streams]


@pytest.mark.parametrize(
    "name",
    [
        "lora",
        "prefix",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("convpass", "lst", "gps")),
    ],
)
def test_compiled_is_eager(name: str) -> None:
    """A leaf, the inside of attention, a parallel branch, a network around, a weight update."""
    case = Case(name, SMALL.get(name, {}), "vit")
    torch._dynamo.reset()  # what other tests compiled counts against a limit
    model = build("vit")
    model.blocks = model.blocks[:1]  # each takes its time
    attached = case.attach(model)
    randomise(attached)
    expected = gradients(attached.model)
    output = logits(attached.model)
    compiled = torch.compile(attached.model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(logits(compiled), output, rtol=1e-4, atol=1e-5)  # type: ignore[arg-type]
    found = gradients(compiled)
    for key, gradient in found.items():
        torch.testing.assert_close(gradient, expected[key.removeprefix("_orig_mod.")])


@EVERY_MODULE
def test_bf16_autocast(case: Case) -> None:
    attached = case.attach(build(case.kind).train())
    for checkpointing in (False, True):
        attached.model.zero_grad(set_to_none=True)
        cast(Any, attached.model).set_grad_checkpointing(checkpointing)
        with torch.autocast("cpu", torch.bfloat16):
            output = attached.model(images())
            nn.functional.cross_entropy(output, targets()).backward()
        assert output.isfinite().all()
        assert all(
            p.grad is not None and p.grad.isfinite().all() for p in attached.trainable_parameters()
        )


@EVERY_MODULE
def test_gradient_checkpointing(case: Case) -> None:
    attached = case.attach(build(case.kind))
    randomise(attached)
    expected = gradients(attached.model)
    cast(Any, attached.model).set_grad_checkpointing()
    assert_same(gradients(attached.model), expected)


# ---- delta checkpoints --------------------------------------------------------------------------


@EVERY_PLACE
def test_save_and_load(case: Case, tmp_path: Path) -> None:
    attached = case.attach(build(case.kind))
    randomise(attached)
    path = tmp_path / "delta.safetensors"
    assert attached.save(path) == path.stat().st_size
    torch.manual_seed(1)  # another start, which loading has to overwrite
    fresh = case.attach(build(case.kind))
    fresh.load(path)
    # No part of a delta; a method whose features have another width brings a new one.
    fresh.backbone.head.load_state_dict(attached.backbone.head.state_dict())
    assert torch.equal(logits(fresh.model), logits(attached.model))
    assert_same(state(fresh.model), state(attached.model))


@EVERY_DEFAULT
def test_delta_of_something_else_is_refused(case: Case, tmp_path: Path) -> None:
    own, other, damaged = (tmp_path / name for name in ("own", "other", "damaged"))
    source = case.attach(build(case.kind))
    randomise(source)
    source.save(own)
    attached = case.attach(build(case.kind))
    before = state(attached.model)

    def refused(path: Path, match: str) -> None:
        with pytest.raises(DeltaMismatchError, match=match):
            attached.load(path)
        assert_same(state(attached.model), before)

    case.attach(build(case.kind, seed=1)).save(other)
    refused(other, "base_fingerprint")

    name = "linear" if case.method != "linear" else "full"
    vpeft_bench.attach(build(case.kind), name).save(other)
    refused(other, "method")

    if differing := with_other_options(case, source.method):
        differing.save(other)
        refused(other, "options")

    with safe_open(own, framework="pt") as file:
        header = file.metadata()
    tensors = load_file(own)
    save_file(tensors | {"stray": torch.zeros(1)}, other, metadata=header)
    refused(other, "unexpected tensor stray")
    if tensors:
        name = next(iter(tensors))
        save_file({k: v for k, v in tensors.items() if k != name}, other, metadata=header)
        refused(other, f"missing tensor {name}")
        save_file(tensors | {name: tensors[name][None].clone()}, other, metadata=header)
        refused(other, name)
    save_file(tensors, other)
    refused(other, "nothing")

    for content in (own.read_bytes()[:-1] if tensors else b"{", own.read_bytes()[:20], b""):
        damaged.write_bytes(content)
        refused(damaged, "cannot be read")
    damaged.write_text("accuracy 0.93\n" * 9)
    refused(damaged, "cannot be read")
    refused(tmp_path / "absent", "cannot be read")
    refused(tmp_path, "cannot be read")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda t: t.fill_(torch.nan), "holds NaN"),
        (lambda t: t.fill_(torch.inf), "holds infinity"),
        (lambda t: t.to(torch.int8), "file torch.int8, model torch.float32"),
    ],
)
def test_delta_with_spoilt_numbers_is_refused(tmp_path: Path, spoil: Any, said: str) -> None:
    path = tmp_path / "delta.safetensors"
    attached = vpeft_bench.attach(build("vit"), "lora")
    attached.save(path)
    before = state(attached.model)
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    name = next(iter(tensors))
    save_file({**tensors, name: spoil(tensors[name])}, path, metadata=header)
    with pytest.raises(DeltaMismatchError, match=rf"{re.escape(name)}.* {re.escape(said)}"):
        attached.load(path)
    assert_same(state(attached.model), before)
    for damaged in ("[1]", "{not json", '"text"'):
        save_file(tensors, path, metadata={HEADER_KEY: damaged})
        with pytest.raises(DeltaMismatchError, match="cannot be read as a delta"):
            attached.load(path)


def with_other_options(case: Case, method: Method) -> Attached | None:
    """The method with one option changed to another valid value, the first that fits the model."""
    for options in other_options(method):
        try:
            return Case(case.method, options, case.kind).attach(build(case.kind))
        except (MethodOptionError, UnsupportedBackboneError):
            continue  # the options hang together
    return None


def other_options(method: Method) -> Iterator[dict[str, Any]]:
    """The method's options with one of them changed, one after the other."""
    for field in fields(method):
        value = getattr(method, field.name)
        choices = [c for c in field.metadata["choices"] if c != value]
        if isinstance(value, bool):
            changed: Any = not value
        elif isinstance(value, list):
            changed = [choice for choice in choices if choice not in value][:1] or value[:1]
        elif choices:
            changed = choices[0]
        elif isinstance(value, int | float):
            changed = value + 1 if field.metadata["maximum"] is None else value / 2 + 0.25
        else:
            continue
        yield method.options() | {field.name: changed}


# ---- merging ------------------------------------------------------------------------------------


@EVERY_PLACE
def test_merge(case: Case) -> None:
    attached = case.attach(build(case.kind))
    randomise(attached)
    model = attached.model
    expected, before = logits(model), state(model)
    refusal = attached.method.merge_refusal
    on_qkv = case.options.get("placement") != "mlp"
    if refusal is None and (
        (case.method in SHIFTS_KEYS and case.kind in NO_KEY_BIAS)
        or (case.method in SHIFTS and on_qkv and case.kind in NO_BIAS)
    ):
        refusal = "no bias"
    if refusal is not None:
        with pytest.raises(NotMergeableError) as error:
            attached.merge()
        assert refusal in str(error.value)
        assert_same(state(model), before)
        assert torch.equal(logits(model), expected)
        return
    assert attached.merge() is model
    assert relative_error(logits(model), expected) < 1e-5
    fresh = build(case.kind, seed=3)
    assert [type(m) for m in model.modules()] == [type(m) for m in fresh.modules()]
    assert all(p.requires_grad for p in model.parameters())
    fresh.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(logits(fresh), logits(model))
    with pytest.raises(AlreadyAttachedError):
        attached.detach()
    case.attach(model)  # a merged model is a plain one: the next method may come


@pytest.mark.parametrize("name", [n for n in vpeft_bench.list_methods() if n == "ssf"])
def test_merge_without_a_bias_says_why_and_changes_nothing(name: str) -> None:
    """CLIP's patch embedding has no bias, so a shift behind it has nowhere to go."""
    model = build("vit")
    model.patch_embed.proj.register_parameter("bias", None)
    attached = vpeft_bench.attach(model, name)
    before = state(model)
    with pytest.raises(NotMergeableError, match=r"patch_embed\.proj.*bias"):
        attached.merge()
    assert_same(state(model), before)
    attached.detach()


# ---- leaving ------------------------------------------------------------------------------------


@EVERY_DEFAULT_PLACE
def test_detach_gives_the_original_back(case: Case) -> None:
    model = build(case.kind)
    frozen = next(iter(model.parameters())).requires_grad_(False)
    hook_calls: list[int] = []
    block_map(model).blocks[0].module.register_forward_hook(lambda *_: hook_calls.append(1))
    before, expected = state(model), logits(model)
    classes = [type(module) for module in model.modules()]
    required_grad = {name: p.requires_grad for name, p in model.named_parameters()}
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}

    attached = case.attach(model.train())
    train(attached)
    head = {name: p for name, p in model.state_dict().items() if name.startswith("head")}
    assert attached.detach() is model
    model.eval()

    after = state(model)
    assert_same(
        {n: t for n, t in after.items() if n not in head},
        {n: t for n, t in before.items() if n not in head},
    )
    assert list(after) == list(before)
    assert [type(module) for module in model.modules()] == classes
    assert {name: p.requires_grad for name, p in model.named_parameters()} == required_grad
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    assert frozen.grad is None
    model.load_state_dict(before)  # the head was trained; it is not the method's to restore
    calls = len(hook_calls)
    assert torch.equal(logits(model), expected)
    assert len(hook_calls) == calls + 1
    with pytest.raises(AlreadyAttachedError):
        attached.detach()
    case.attach(model)


@EVERY_DEFAULT
def test_one_method_at_a_time(case: Case) -> None:
    model = build(case.kind)
    attached = case.attach(model)
    expected = logits(model)
    with pytest.raises(AlreadyAttachedError, match=case.method):
        vpeft_bench.attach(model, "linear")
    assert torch.equal(logits(model), expected)
    attached.detach()
    second = vpeft_bench.attach(model, "linear")
    with pytest.raises(AlreadyAttachedError):
        attached.detach()  # spent: it must not take off what came after it
    second.detach()


@EVERY_OPTION
def test_deepcopy(case: Case) -> None:
    attached = case.attach(build(case.kind))
    randomise(attached)
    expected = logits(attached.model)
    twin = copy.deepcopy(attached)
    assert torch.equal(logits(twin.model), expected)
    assert torch.equal(logits(copy.deepcopy(attached.model)), expected)
    train(twin)
    assert torch.equal(logits(attached.model), expected)
    twin.detach()
    assert torch.equal(logits(attached.model), expected)


# ---- a method that fails ------------------------------------------------------------------------


class Unfoldable(nn.Module):
    """Says nothing about merging."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y


class Broken(Method):
    """Places something, then raises."""

    name = "broken"

    def unfrozen(self, backbone: Backbone) -> list[nn.Parameter]:
        return list(backbone.blocks[0].linear("qkv").parameters())

    def place(self, backbone: Backbone) -> None:
        backbone.blocks[0].place("qkv", Unfoldable())
        backbone.blocks[0].place("attn_in", nn.Identity())
        backbone.blocks[0].place("attn_in", nn.Identity())


def test_a_method_that_fails_leaves_no_trace() -> None:
    model = build("vit")
    before, expected = state(model), logits(model)
    with pytest.raises(ValueError, match=r"blocks\.0\.attn_in already holds a Identity"):
        attach_method(model, Broken())
    assert_same(state(model), before)
    assert torch.equal(logits(model), expected)
    assert [type(m) for m in model.modules()] == [type(m) for m in build("vit").modules()]
    assert all(p.requires_grad for p in model.parameters())
    vpeft_bench.attach(model, "linear")


class Hidden(Broken):
    """Places something that cannot be folded, without saying so."""

    def unfrozen(self, backbone: Backbone) -> list[nn.Parameter]:
        return []

    def place(self, backbone: Backbone) -> None:
        backbone.blocks[1].place("fc1", Unfoldable())


def test_merge_names_what_cannot_be_folded() -> None:
    attached = attach_method(build("vit"), Hidden())
    with pytest.raises(NotMergeableError, match=r"blocks\.1\.mlp\.fc1\.delta: a Unfoldable"):
        attached.merge()
