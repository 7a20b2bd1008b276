"""Types of the peft library: each keeps the contract of a method, and what is said of it is so."""

from __future__ import annotations

import copy
import inspect
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import test_contract as contract
import timm
import torch
from test_contract import Case, logits, randomise, relative_error, state, train
from tiny_models import build, images, targets
from torch import Tensor, nn

import vpeft_bench
from vpeft_bench.attaching.attachment import Attached
from vpeft_bench.backbones import block_map
from vpeft_bench.config.choices import every_choice
from vpeft_bench.errors import (
    MethodOptionError,
    MissingExtraError,
    NotMergeableError,
    UnsupportedBackboneError,
)
from vpeft_bench.methods.base import default_options
from vpeft_bench.methods.hf import bridge as hf
from vpeft_bench.methods.hf.types import NOT_OFFERED, OFFERED, Start
from vpeft_bench.methods.registry import build_method, list_methods, method_class
from vpeft_bench.runs.callbacks import MethodSteps

pytest.importorskip("peft")

LACKING = {name for name in OFFERED if hf._library_class("CONFIG", name) is None}
"""Offered types that the installed peft is too old for."""


@pytest.fixture(autouse=True)
def _of_this_peft(request: pytest.FixtureRequest) -> None:
    """A test of a type that is not there is skipped."""
    if lacking := LACKING.intersection(re.split(r"\W+", request.node.name)):
        pytest.skip(f"peft {version('peft')} has no type {', '.join(sorted(lacking))}")


# Options that fit linears of 16 to 128 features; every other type runs with its defaults.
SMALL: dict[str, dict[str, Any]] = {
    "adamss": {"r": 16, "num_subspaces": 2},
    "c3a": {"block_size": 8},
    "fourierft": {"n_frequency": 50},
    "gralora": {"r": 4},
    "hira": {"r": 4},
    "lily": {"r": 4},
    "miss": {"r": 8},
    "oft": {"oft_block_size": 8},
    "peanut": {"r": 4},
    "psoft": {"r": 4},
    "pvera": {"r": 8},
    "randlora": {"r": 4, "randlora_alpha": 8},
    "road": {"group_size": 8},
    "shira": {"r": 2},
    "vblora": {"num_vectors": 16, "vector_length": 8},
    "vera": {"r": 8},
    "waveft": {"n_frequency": 50},
}

# Options that take another path through a type than its defaults do.
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("lora", {"targets": ["qkv"], "r": 3, "lora_alpha": 6, "use_rslora": True, "lora_bias": True}),
    ("lora", {"use_dora": True, "lora_dropout": 0.1}),
    ("lora", {"init_lora_weights": "gaussian"}),
    ("lora", {"init_lora_weights": "mica"}),
    ("lora", {"init_lora_weights": "olora"}),
    ("lora", {"init_lora_weights": "orthogonal"}),
    ("lora", {"init_lora_weights": "pissa"}),
    ("lora", {"init_lora_weights": "pissa_niter_4"}),
    ("lora", {"init_lora_weights": False}),
    ("boft", {"boft_block_size": 0, "boft_block_num": 4}),
    ("c3a", {"block_size": 8, "init_weights": True}),
    ("deft", {"decomposition_method": "qr"}),
    ("fourierft", {"n_frequency": 50, "init_weights": True}),
    ("glora", {"config_A_B": "vector", "config_C": "none", "config_D_E": "vector"}),
    ("gralora", {"r": 4, "hybrid_r": 2}),
    ("hra", {"r": 3, "apply_GS": True}),
    ("hra", {"r": 3}),
    ("ia3", {"targets": ["qkv", "fc1"], "feedforward_modules": ["fc1"]}),
    ("lily", {"r": 4, "stride_A": 2, "num_B": 3}),
    ("ln_tuning", {"targets": ["norm2"]}),
    ("lokr", {"decompose_both": True, "decompose_factor": 4, "r": 2}),
    ("miss", {"r": 8, "init_weights": "bat"}),
    ("miss", {"r": 8, "init_weights": "mini", "mini_r": 8}),
    ("oft", {"r": 4, "oft_block_size": 0, "block_share": True, "use_cayley_neumann": False}),
    ("osf", {"effective_rank": 0.75}),
    ("peanut", {"r": 4, "depth": 2}),
    ("psoft", {"r": 4, "ab_svd_init": "pissa_init", "psoft_mag_b": False}),
    ("randlora", {"r": 4, "randlora_alpha": 8, "sparse": True}),
    ("road", {"group_size": 8, "variant": "road_4"}),
    ("shira", {"r": 2, "random_seed": 5}),
    ("supertuning", {"sparsity": 0.9, "r": 2}),
    ("tinylora", {"weight_tying": 1.0, "init_weights": "uniform"}),
]

# What every method owes; the checks are those of the methods of this package.
CHECKS: list[Callable[..., None]] = [
    contract.test_bf16_autocast,
    contract.test_deepcopy,
    contract.test_delta_of_something_else_is_refused,
    contract.test_detach_gives_the_original_back,
    contract.test_everything_trainable_learns,
    contract.test_first_changed_block,
    contract.test_gradient_checkpointing,
    contract.test_merge,
    contract.test_one_method_at_a_time,
    contract.test_only_what_is_declared_changes,
    contract.test_placed_modules_follow_the_model,
    contract.test_save_and_load,
    contract.test_train_and_eval_modes,
]
# On the second family and for the variants: what widths and options can break. What the bridge
# does alike for every type is tried at once with types of different kinds, and of a variant what
# its own path computes and stores; all else is left to .ci/run.
FEWER = [
    contract.test_detach_gives_the_original_back,
    contract.test_everything_trainable_learns,
    contract.test_merge,
    contract.test_only_what_is_declared_changes,
    contract.test_save_and_load,
]
# What the bridge does alike for every type: of one that adds, shares, and takes weights apart.
OF_THE_BRIDGE = (
    contract.test_delta_of_something_else_is_refused,
    contract.test_one_method_at_a_time,
)
KINDS_OF_TYPES = ("lora", "vera", "osf")
OF_A_VARIANT = (contract.test_merge, contract.test_save_and_load)
OF_A_TYPE = (*OF_A_VARIANT, contract.test_everything_trainable_learns)
FLOAT32_ONLY = ("psoft", "pissa", "olora", "mica")


def _cases() -> Iterator[Case]:
    for kind in ("vit", "swin"):
        for name, facts in OFFERED.items():
            if not facts.needs or kind == "vit":
                yield Case(f"hf/{name}", SMALL.get(name, {}), kind)
    for name, options in VARIANTS:
        yield Case(f"hf/{name}", options, "vit")


def _checks() -> Iterator[Any]:
    for case in _cases():
        kind = case.method.removeprefix("hf/")
        whole = case.kind == "vit" and case.options == SMALL.get(kind, {})
        for check in CHECKS if whole else FEWER:
            if check is contract.test_placed_modules_follow_the_model and kind in FLOAT32_ONLY:
                continue
            if check in OF_THE_BRIDGE and kind not in KINDS_OF_TYPES:
                continue
            if case.kind == "vit" and not whole:
                at_once = check in OF_A_VARIANT
            else:
                at_once = kind in KINDS_OF_TYPES or (whole and check in OF_A_TYPE)
            marks = [] if at_once else pytest.mark.slow
            yield pytest.param(check, case, id=f"{check.__name__}-{case}", marks=marks)


# What a type does is the same on every backbone that it fits.
EVERY_TYPE = pytest.mark.parametrize("case", [c for c in _cases() if c.kind == "vit"], ids=str)


@pytest.mark.parametrize(("check", "case"), list(_checks()))
def test_contract(check: Callable[..., None], case: Case, tmp_path: Path) -> None:
    known = {"case": case, "tmp_path": tmp_path}
    check(**{name: known[name] for name in inspect.signature(check).parameters})


def _on_linears_in_pieces() -> Iterator[Any]:
    """Where qkv has its biases beside it: a few types here, all of them by .ci/run."""
    for name in OFFERED:
        if name == "glora":
            continue
        case = Case(f"hf/{name}", SMALL.get(name, {}), "beit")
        marks = [] if name in ("ia3", "lora", "oft") else pytest.mark.slow
        for check in FEWER:
            yield pytest.param(check, case, id=f"{check.__name__}-{case}", marks=marks)
    for kind in ("eva02_split", "swinv2"):
        for check in FEWER:
            case = Case("hf/lora", {"use_dora": True, "targets": ["qkv", "fc1"]}, kind)
            yield pytest.param(check, case, id=f"{check.__name__}-{case}")


@pytest.mark.parametrize(("check", "case"), list(_on_linears_in_pieces()))
def test_contract_on_linears_in_pieces(
    check: Callable[..., None], case: Case, tmp_path: Path
) -> None:
    known = {"case": case, "tmp_path": tmp_path}
    check(**{name: known[name] for name in inspect.signature(check).parameters})


@pytest.mark.parametrize("kind", ["dinov3", "eva02", "swinv2"])
def test_a_bias_of_the_keys_is_not_folded_where_there_is_none(kind: str) -> None:
    model = build(kind)
    attached = Case("hf/lora", {"targets": ["qkv"], "lora_bias": True}, kind).attach(model)
    contract.randomise(attached)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(NotMergeableError, match="no bias"):
        attached.merge()
    contract.assert_same(model.state_dict(), before)


# ---- what is said of a type ----------------------------------------------------------------------


@EVERY_TYPE
def test_start(case: Case) -> None:
    model = build(case.kind)
    before = logits(model)
    method = case.attach(model).method
    error = relative_error(logits(model), before)
    assert method.identity_at_start == (method.start is Start.SAME)
    if method.start is Start.SAME:
        assert torch.equal(logits(model), before)
    elif method.start is Start.ROUNDED:
        assert error < 1e-5
    else:
        assert error > 1e-5


@EVERY_TYPE
def test_counts(case: Case) -> None:
    model = build(case.kind)
    size = sum(p.numel() for p in model.parameters())
    expected = build_method(case.method, case.options).parameter_count(block_map(model))
    counts = case.attach(model).parameter_counts()
    assert counts.method == sum(p.numel() for n, p in model.named_parameters() if _trains(n, p))
    assert counts.head == sum(p.numel() for p in model.get_classifier().parameters())
    assert counts.model >= size
    assert expected in (None, counts.method)
    assert (expected is None) == (case.method != "hf/lora" or "mica" in str(case.options))


def _trains(name: str, parameter: nn.Parameter) -> bool:
    return parameter.requires_grad and not name.startswith("head")


@EVERY_TYPE
def test_base_is_known_by_its_own_weights(case: Case) -> None:
    """The fingerprint is that of the plain model, whatever was replaced or rewritten."""
    model = build(case.kind)
    plain = vpeft_bench.attach(build(case.kind), "linear").base_fingerprint()
    attached = case.attach(model)
    assert attached.base_fingerprint() == plain
    train(attached)
    assert attached.base_fingerprint() == plain


def _another_machine(patch: pytest.MonkeyPatch) -> None:
    """Random permutations come out in another order, singular vectors with other signs."""
    randperm, svd, qr = torch.randperm, torch.linalg.svd, torch.linalg.qr

    def flipped_svd(matrix: Tensor, *args: Any, **kwargs: Any) -> Any:
        left, values, right = svd(matrix, *args, **kwargs)
        return torch.return_types.linalg_svd((-left, values, -right))

    def flipped_qr(matrix: Tensor, *args: Any, **kwargs: Any) -> Any:
        orthogonal, triangular = qr(matrix, *args, **kwargs)
        return torch.return_types.linalg_qr((-orthogonal, -triangular))

    patch.setattr(torch, "randperm", lambda *args, **kwargs: randperm(*args, **kwargs).flip(0))
    patch.setattr(torch.linalg, "svd", flipped_svd)
    patch.setattr(torch.linalg, "qr", flipped_qr)


@EVERY_TYPE
def test_a_delta_is_exact_on_another_machine(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was drawn or decomposed on attaching is in the file, not only what was trained."""
    attached = case.attach(build(case.kind))
    randomise(attached)
    attached.save(tmp_path / "delta")
    torch.manual_seed(99)
    with monkeypatch.context() as patch:
        _another_machine(patch)
        other = case.attach(build(case.kind))
    other.load(tmp_path / "delta")
    assert torch.equal(logits(other.model), logits(attached.model))


FROZEN = {
    "adalora": ("ranknum", 12),
    "adamss": ("scatter_index", 12),
    "delora": ("delora_w_norm", 12),
    "fourierft": ("indices", 12),
    "frod": ("frod_V", 4),  # shared by all linears of one kind
    "osf": ("_osf_U_low_init", 12),
    "psoft": ("_psoft_A_cache", 12),
    "pvera": ("pvera_A", 1),  # shared by all
    "randlora": ("randlora_A", 1),
    "shira": ("shira_indices", 12),
    "supertuning": ("supertuning_indices", 12),
    "tinylora": ("tinylora_P", 12),
    "unilora": ("unilora_indices_A", 12),
    "vera": ("vera_A", 1),
    "waveft": ("waveft_indices", 12),
}


@pytest.mark.parametrize("name", FROZEN)
def test_what_is_frozen_is_stored_once(name: str) -> None:
    attached = vpeft_bench.attach(build("vit"), f"hf/{name}", **SMALL.get(name, {}))
    kind, count = FROZEN[name]
    trained = {name for name, _ in attached.named_trainable_parameters()}
    stored = [key for key in attached._stored() if key not in trained]
    assert sum(f".{kind}." in key for key in stored) == count


@pytest.mark.parametrize("name", sorted(OFFERED))
def test_facts(name: str) -> None:
    found = method_class(f"hf/{name}")
    contract.test_states_its_facts(f"hf/{name}")
    assert found.idea.count(". ") == 1
    assert found.idea.endswith(".")
    assert default_options(found)["targets"]
    assert set(OFFERED[name].limits) <= {f.name for f in fields(found)}
    for option in OFFERED[name].starts:
        assert option in {f.name for f in fields(found)}


def test_every_type_of_the_library_is_offered_or_refused_with_a_reason() -> None:
    from peft import PeftType

    assert {t.value.lower() for t in PeftType} <= set(OFFERED) | set(NOT_OFFERED)
    assert not set(OFFERED) & set(NOT_OFFERED)


def test_the_readme_counts_them() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert f"{len(OFFERED)} more come from the peft library" in readme


def test_every_type_is_a_choice() -> None:
    choices = [name for name in every_choice()["method"] if name.startswith("hf/")]
    assert choices == list_methods("hf/")


# ---- options -------------------------------------------------------------------------------------


def problem(method: str, **options: Any) -> str:
    with pytest.raises(MethodOptionError) as error:
        build_method(method, options)
    (only,) = error.value.problems
    return str(only)


@pytest.mark.parametrize(
    ("method", "options", "says"),
    [
        ("hf/lora", {"rank": 4}, "hf/lora has no such option"),
        ("hf/lora", {"lora_alhpa": 4}, "did you mean method.lora_alpha="),
        ("hf/lora", {"r": 0}, "must be at least 1"),
        ("hf/lora", {"r": "8"}, "must be of type int"),
        ("hf/lora", {"lora_dropout": 2}, "must be between 0 and 1"),
        ("hf/lora", {"targets": ["proj", "head"]}, "['head'] not in ['qkv', 'proj', 'fc1', 'fc2']"),
        ("hf/lora", {"init_lora_weights": "pisa"}, "did you mean pissa?"),
        ("hf/lora", {"init_lora_weights": 1}, "must be of type str"),
        ("hf/ln_tuning", {"targets": ["qkv"]}, "['qkv'] not in ['norm1', 'norm2']"),
        ("hf/oft", {"r": 4}, "method=hf/oft"),
        ("hf/hra", {"apply_GS": True}, "method.r=9, or method.apply_GS=false"),
        ("hf/boft", {"boft_block_num": 4}, "method=hf/boft"),
        ("hf/lorra", {}, "did you mean method=hf/lora"),
        ("hf/xlora", {}, "is not offered: it mixes LoRA adapters that were trained before"),
        ("hf/prompt_tuning", {}, "method=vpt_shallow"),
    ],
)
def test_wrong_options_are_told_at_once(method: str, options: dict[str, Any], says: str) -> None:
    assert says in problem(method, **options)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("road", {}, "group_size=64 does not fit a linear of 32 -> 32 features"),
        ("c3a", {"block_size": 5}, "valid: 1, 2, 4, 8, 16, 32 (nearest: method.block_size=4)"),
        ("vblora", {"vector_length": 12}, "nearest: method.vector_length=8"),
        ("boft", {"boft_block_size": 3}, "valid: 1, 2, 4, 8, 16, 32"),
        ("boft", {"boft_block_size": 0, "boft_block_num": 7}, "nearest: method.boft_block_num=8"),
        ("oft", {"oft_block_size": 24}, "method.oft_block_size=24 does not fit"),
        ("gralora", {"r": 3, "gralora_k": 3}, "method.gralora_k=3 does not fit"),
        ("miss", {"r": 5, "init_weights": "bat"}, "method.r=5 does not fit"),
        ("miss", {"mini_r": 5, "r": 8, "init_weights": "mini"}, "method.mini_r=5 does not fit"),
        ("psoft", {"r": 33}, "valid: 1 to 32 (nearest: method.r=32)"),
        ("lora", {"r": 40, "init_lora_weights": "pissa"}, "valid: 1 to 32"),
        ("fourierft", {"n_frequency": 1025}, "valid: 1 to 1024"),
        ("shira", {"r": 17}, "valid: 1 to 16"),
        ("lora", {"r": 3, "init_lora_weights": "orthogonal"}, "the peft library refuses"),
    ],
)
def test_options_that_do_not_fit_the_widths(name: str, options: dict[str, Any], says: str) -> None:
    """Told with the valid values before anything is changed."""
    model = build("vit")
    before, classes = state(model), [type(m) for m in model.modules()]
    with pytest.raises(UnsupportedBackboneError, match=f"hf/{name}") as error:
        vpeft_bench.attach(model, f"hf/{name}", **options)
    assert says in str(error.value)
    contract.assert_same(state(model), before)
    assert [type(m) for m in model.modules()] == classes
    vpeft_bench.attach(model, "linear")


def test_frod_says_why_it_is_not_for_swin() -> None:
    with pytest.raises(UnsupportedBackboneError, match="same width in every block"):
        vpeft_bench.attach(build("swin"), "hf/frod")


@pytest.mark.parametrize(
    ("name", "options"), [("psoft", {"r": 4}), ("lora", {"init_lora_weights": "pissa"})]
)
def test_decompositions_want_single_precision(name: str, options: dict[str, Any]) -> None:
    model = build("vit").double()
    before = state(model)
    with pytest.raises(UnsupportedBackboneError, match="float32"):
        vpeft_bench.attach(model, f"hf/{name}", **options)
    contract.assert_same(state(model), before)


# ---- where it goes -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_only_blocks_are_adapted(kind: str) -> None:
    """``proj`` is also the name of the patch embedding's convolution."""
    attached = vpeft_bench.attach(build(kind), "hf/lora", targets=["proj"])
    paths = [placement.path for placement in attached.backbone.placements]
    assert paths == [f"{block.path}.attn.proj" for block in attached.backbone.blocks]
    assert type(attached.model.patch_embed.proj) is nn.Conv2d
    assert type(attached.model.get_classifier()) is nn.Linear


def test_the_head_stays_as_it_is() -> None:
    model = build("vit")
    model.head.bias.requires_grad_(False)
    attached = vpeft_bench.attach(model, "hf/lora")
    assert model.head.weight.requires_grad
    assert not model.head.bias.requires_grad
    attached.detach()
    assert not hasattr(model, "peft_config")


def test_bias_that_is_not_there() -> None:
    """BEFT adds to a bias; where there is none, it cannot be merged, and nothing is changed."""
    model = build("vit")
    model.blocks[1].attn.proj.register_parameter("bias", None)
    attached = vpeft_bench.attach(model, "hf/beft")
    randomise(attached)
    before = state(model)
    with pytest.raises(NotMergeableError, match=r"blocks\.1\.attn\.proj.*bias"):
        attached.merge()
    contract.assert_same(state(model), before)
    attached.detach()


def test_ia3_scales_what_enters_the_feed_forward_modules() -> None:
    def count(**options: Any) -> int:
        return vpeft_bench.attach(build("vit"), "hf/ia3", **options).parameter_counts().method

    assert count() == 3 * (96 + 32 + 128 + 128)
    assert count(feedforward_modules=["fc1"]) == 3 * (96 + 32 + 32 + 32)
    assert count(targets=["qkv"]) == 3 * 96


# ---- LoRA: theirs and ours -----------------------------------------------------------------------


def test_lora_is_our_lora() -> None:
    """The same matrices give the same logits, and as many parameters."""
    made = {"num_classes": 5, "img_size": 64}
    torch.manual_seed(0)
    first = timm.create_model("vit_tiny_patch16_224", **made).eval()
    second = copy.deepcopy(first)
    sites = ["qkv", "proj", "fc1", "fc2"]
    theirs = vpeft_bench.attach(first, "hf/lora", r=8, lora_alpha=4)
    ours = vpeft_bench.attach(second, "lora", rank=8, alpha=4.0, targets=sites)
    assert theirs.parameter_counts() == ours.parameter_counts()
    assert theirs.parameter_counts().method == 294_912
    assert theirs.method.parameter_count(theirs.backbone) == 294_912
    for parameter in ours.trainable_parameters():
        nn.init.normal_(parameter, std=0.05)
    layers = {p.path: p.module for p in theirs.backbone.placements}
    for placement in ours.backbone.placements:
        layer: Any = layers[placement.path.removesuffix(".delta")]
        module: Any = placement.module
        layer.lora_A["default"].weight.data.copy_(module.down())
        layer.lora_B["default"].weight.data.copy_(module.up())
    pictures = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert relative_error(first(pictures), second(pictures)) < 1e-6
        plain = theirs.merge(), ours.merge()
        assert relative_error(plain[0](pictures), plain[1](pictures)) < 1e-6


def test_pissa_is_stored_whole(tmp_path: Path) -> None:
    """The weight is changed on attaching: the delta holds it, and detaching gives it back."""
    model = build("vit")
    before = state(model)
    attached = vpeft_bench.attach(model, "hf/lora", r=4, init_lora_weights="pissa")
    weight = "blocks.0.attn.qkv.base_layer.weight"
    assert weight in attached._stored()
    assert not torch.equal(model.state_dict()[weight], before["blocks.0.attn.qkv.weight"])
    names = [name for name, _ in attached.named_trainable_parameters()]
    assert all("lora_" in name for name in names)
    attached.detach()
    contract.assert_same(state(model), before)


# ---- steps ---------------------------------------------------------------------------------------


def steps(attached: Attached, first: int, last: int, total: int, optimizer: Any) -> None:
    for step in range(first, last):
        attached.before_step(step, total)
        attached.model.zero_grad(set_to_none=True)
        torch.manual_seed(step)
        loss = nn.functional.cross_entropy(attached.model(images(seed=step)), targets())
        penalty = attached.penalty()
        (loss if penalty is None else loss + penalty).backward()
        optimizer.step()
        attached.after_step(step, total)


def adam(attached: Attached) -> torch.optim.AdamW:
    return torch.optim.AdamW(attached.trainable_parameters(), lr=1e-2)


def ranks(attached: Attached) -> int:
    layers: list[Any] = [placement.module for placement in attached.backbone.placements]
    return sum(int((layer.lora_E["default"] != 0).sum()) for layer in layers)


ADALORA = {"init_r": 4, "target_r": 2, "tinit": 2, "tfinal": 2}
ADAMSS = {
    **SMALL["adamss"],
    "use_asa": True,
    "init_warmup": 1,
    "final_warmup": 8,
    "mask_interval": 2,
    "asa_target_subspaces": 6,
}
REMEMBER = {"adalora": ADALORA, "adamss": ADAMSS}
"""Types with a state between steps."""


def test_adalora_allocates_its_budget() -> None:
    attached = vpeft_bench.attach(build("vit"), "hf/adalora", **ADALORA)
    optimizer = adam(attached)
    steps(attached, 0, 2, 10, optimizer)
    assert ranks(attached) == 12 * 4
    steps(attached, 2, 10, 10, optimizer)
    assert ranks(attached) == 12 * 2


def test_adalora_reaches_its_budget_in_the_last_step() -> None:
    attached = vpeft_bench.attach(build("vit"), "hf/adalora", init_r=12, target_r=1, deltaT=2)
    steps(attached, 0, 3, 3, adam(attached))
    assert ranks(attached) == 12


@pytest.mark.parametrize("name", ["adalora", "adamss"])
def test_what_was_remembered_follows_the_model_to_its_device(name: str) -> None:
    """A checkpoint is read before the model is moved to where it trains."""
    attached = vpeft_bench.attach(build("vit"), f"hf/{name}", **REMEMBER[name])
    steps(attached, 0, 3, 40, adam(attached))
    callback = MethodSteps(attached)
    callback.load_state_dict(copy.deepcopy(callback.state_dict()))
    attached.model.to("meta")
    trainer: Any = SimpleNamespace(estimated_stepping_batches=40)
    callback.on_train_start(trainer, cast(Any, None))
    averages = _tensors(attached.step_state())
    assert averages
    assert {tensor.device.type for tensor in averages} == {"meta"}


def _tensors(state: Any) -> list[Tensor]:
    """All tensors within lists and dicts."""
    if isinstance(state, Tensor):
        return [state]
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, list) else []
    return [tensor for part in parts for tensor in _tensors(part)]


def test_adalora_needs_steps_to_allocate_in() -> None:
    attached = vpeft_bench.attach(build("vit"), "hf/adalora", tinit=5, tfinal=5)
    with pytest.raises(MethodOptionError, match="the run has 10 steps"):
        attached.before_step(0, 10)


def test_adalora_penalty() -> None:
    """For A = 0 and B = 0, the distance from orthogonality is sqrt(rank)."""
    attached = vpeft_bench.attach(build("vit"), "hf/adalora", init_r=9, orth_reg_weight=0.5)
    with torch.no_grad():
        for name, parameter in attached.named_trainable_parameters():
            parameter.zero_()
            if "lora_A" in name and "qkv" in name:
                parameter.fill_diagonal_(1.0)
    penalty = attached.penalty()
    assert penalty is not None
    # Of 24 factors, three (qkv in three blocks) are orthogonal.
    assert torch.isclose(penalty, torch.tensor(0.5 * 3.0 * 21 / 24))
    assert vpeft_bench.attach(build("vit"), "hf/adalora", orth_reg_weight=0.0).penalty() is None


@pytest.mark.parametrize(("name", "options"), REMEMBER.items())
def test_training_taken_up_again_goes_on_as_if_never_stopped(
    name: str, options: dict[str, Any]
) -> None:
    def attach() -> tuple[Attached, torch.optim.AdamW]:
        torch.manual_seed(0)
        attached = vpeft_bench.attach(build("vit"), f"hf/{name}", **options)
        return attached, adam(attached)

    whole, optimizer = attach()
    steps(whole, 0, 10, 10, optimizer)
    half, optimizer = attach()
    steps(half, 0, 5, 10, optimizer)
    saved = copy.deepcopy((half.model.state_dict(), optimizer.state_dict(), half.step_state()))
    again, optimizer = attach()
    again.model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    steps_only, _ = attach()
    steps_only.model.load_state_dict(saved[0])
    again.load_step_state(saved[2])
    steps(again, 5, 10, 10, optimizer)
    contract.assert_same(state(again.model), state(whole.model))
    forgot = adam(steps_only)
    forgot.load_state_dict(saved[1])
    steps(steps_only, 5, 10, 10, forgot)
    left, right = state(steps_only.model), state(whole.model)
    assert any(not torch.equal(left[key], right[key]) for key in left)


def test_adamss_freezes_updates() -> None:
    attached = vpeft_bench.attach(build("vit"), "hf/adamss", **ADAMSS)
    count = attached.parameter_counts()
    steps(attached, 0, 10, 10, adam(attached))
    trained = [p for p in attached.trainable_parameters() if p.requires_grad]
    assert 0 < len(trained) < len(attached.trainable_parameters())
    assert attached.parameter_counts() == count  # what was trained at some time is stored


def test_osf_projects_in_a_copy_too() -> None:
    attached = vpeft_bench.attach(build("vit"), "hf/osf")
    twin = copy.deepcopy(attached)
    for one in (attached, twin):
        steps(one, 0, 1, 1, adam(one))
    first, second = ([p.grad for p in one.trainable_parameters()] for one in (attached, twin))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    for placement in attached.backbone.placements:
        layer: Any = placement.module
        left, _, right = torch.linalg.svd(layer.base_layer.weight, full_matrices=False)
        kept = layer.effective_rank["default"]
        factors = layer.osf_svd_params["default"]
        assert (left[:, :kept].T @ factors["U_low"].grad).abs().max() < 1e-5
        assert (factors["V_low"].grad @ right[:kept].T).abs().max() < 1e-5


# ---- the library is optional ---------------------------------------------------------------------


@pytest.mark.slow
def test_nothing_is_imported_before_it_is_asked_for() -> None:
    script = (
        "import sys, vpeft_bench\n"
        "from vpeft_bench.cli.overrides import check_overrides\n"
        "assert 'hf/lora' in vpeft_bench.list_methods('hf/')\n"
        "assert not check_overrides(['method=hf/lora', 'method.r=16']).problems\n"
        "import timm\n"
        "vpeft_bench.attach(timm.create_model('vit_tiny_patch16_224', img_size=32), 'lora')\n"
        "assert not {'peft', 'transformers', 'accelerate'} & set(sys.modules)\n"
        "vpeft_bench.attach(timm.create_model('vit_tiny_patch16_224', img_size=32), 'hf/lora')\n"
        "assert 'peft' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=300)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf, "installed", lambda: False)
    hf.method_class.cache_clear()
    with pytest.raises(MissingExtraError, match=r"pip install 'vpeft_bench\[hf\]'"):
        vpeft_bench.attach(build("vit"), "hf/lora")
    with pytest.raises(MethodOptionError, match="did you mean method=hf/lora"):
        build_method("hf/loraa", {})
