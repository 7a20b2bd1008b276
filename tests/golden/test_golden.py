"""Every golden file against our implementation: values, gradients, trainable sets, merging.

Run with ``-s`` to see how closely each file agrees.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from entries import ENTRIES, Entry
from golden_files import (
    DIRECTORY_VARIABLE,
    SHARED,
    GoldenFile,
    GoldenModel,
    NoGoldenFilesError,
    golden_files,
    loss,
)
from torch import Tensor, nn

import vpeft_bench
from vpeft_bench.attachment import Attached

torch.set_num_threads(1)  # tiny tensors: threads only get in each other's way

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])


def _collect() -> list[GoldenFile]:
    try:
        return golden_files() or []
    except NoGoldenFilesError:
        return []  # test_the_directory_holds_files fails and says why


def _missing(file: GoldenFile) -> str | None:
    """Why a file cannot be compared, or None where it can."""
    entry = ENTRIES.get(file.method)
    if entry is None:
        return f"no method here implements {file.method} yet"
    if entry.method not in vpeft_bench.list_methods():
        return f"method {entry.method} does not exist yet"
    return None


FILES = _collect()
# test_every_file_is_compared_or_named prints the others, each with its reason.
COMPARED = [file for file in FILES if _missing(file) is None]
EVERY_FILE = pytest.mark.parametrize("file", COMPARED, ids=[f.path.stem for f in COMPARED])


# ---- files and coverage -------------------------------------------------------------------------


def test_the_directory_holds_files() -> None:
    if golden_files() is None:
        pytest.skip(f"no golden files: {SHARED.name}/ is not beside the repository")
    assert FILES


def test_every_file_is_compared_or_named() -> None:
    if golden_files() is None:
        pytest.skip(f"no golden files: {SHARED.name}/ is not beside the repository")
    covered = [file.path.stem for file in FILES if _missing(file) is None]
    missing = {file.path.stem: _missing(file) for file in FILES if file.path.stem not in covered}
    print(f"\n{len(FILES)} golden files, {len(covered)} compared; left out: {missing or 'none'}")
    assert len(covered) + len(missing) == len(FILES)
    assert covered, "not one file is compared"


def test_every_method_with_a_file_has_an_entry() -> None:
    """A new method is compared with its vector from the day it exists."""
    methods = set(vpeft_bench.list_methods())
    assert not [f.path.stem for f in FILES if f.method in methods and f.method not in ENTRIES]


def test_an_empty_or_missing_directory_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(tmp_path))
    with pytest.raises(NoGoldenFilesError, match="holds no"):
        golden_files()
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(tmp_path / "absent"))
    with pytest.raises(NoGoldenFilesError, match="not a directory"):
        golden_files()


# ---- one file -----------------------------------------------------------------------------------


@DTYPES
@EVERY_FILE
def test_golden(file: GoldenFile, dtype: torch.dtype) -> None:
    compare(file.read(), dtype)


def compare(file: GoldenFile, dtype: torch.dtype) -> None:
    """All steps of comparing one file at one precision."""
    case = Case(file, dtype)
    plain = case.step_plain_backbone()
    case.step_install()
    off_output, off_gradient = case.step_outputs(plain), case.step_gradients()
    case.step_merge()
    off = f"outputs {off_output:.1e}, gradients {off_gradient:.1e}"
    print(f"\n{file.path.stem} {str(dtype).removeprefix('torch.')}: {off}")


class Case:
    """A golden file, the backbone it describes and our method on it."""

    def __init__(self, file: GoldenFile, dtype: torch.dtype) -> None:
        self.file = file
        self.dtype = dtype
        self.entry: Entry = ENTRIES[file.method]
        self.suffix = "64" if dtype is torch.float64 else ""
        self.golden = GoldenModel(file.meta).eval()
        self.images = file.tensor("input", dtype)
        self.attached: Attached
        self.ours: dict[str, nn.Parameter]
        self.names: dict[str, list[str]]
        self.in_place: dict[str, nn.Parameter]

    def step_plain_backbone(self) -> list[Tensor]:
        self.golden.fill(self.file)
        self.golden.to(self.dtype)
        with torch.no_grad():
            outputs: list[Tensor] = self.golden(self.images)
        for output, expected in zip(outputs, self._expected("backbone_"), strict=True):
            self._close("backbone output", output, expected)
        return outputs

    def step_install(self) -> None:
        options = self.entry.options(self.file.hyper)
        self.attached = vpeft_bench.attach(self.golden.model, self.entry.method, **options)
        self.attached.model.eval()
        self.ours = dict(self.attached.named_trainable_parameters())
        self.names = self.entry.names(self.file.hyper, self.attached.backbone)
        weights = self.file.group("peft")
        assert set(weights) == set(self.names), "the file's new tensors, and those the entry names"
        mapped = [our for ours in self.names.values() for our in ours]
        assert len(mapped) == len(set(mapped))
        for theirs, ours in self.names.items():
            targets = [self.ours[our] for our in ours]
            rows = [target.shape[0] if target.ndim else 1 for target in targets]
            stacked = weights[theirs].reshape(sum(rows), *targets[0].shape[1:])
            for target, part in zip(targets, stacked.split(rows), strict=True):
                target.data.copy_(part.reshape(target.shape))
        self.in_place = trained_in_place(self.golden, self.ours, self.names)
        assert {*self.in_place, *self.names} == set(self.file.meta["trainable"])

    def step_outputs(self, plain: list[Tensor]) -> float:
        outputs = self.golden(self.images)
        expected = self._expected("")
        off = [self._close("output", o, e) for o, e in zip(outputs, expected, strict=True)]
        moved = any(
            not torch.allclose(o, p, atol=1e-4) for o, p in zip(outputs, plain, strict=True)
        )
        assert moved == self.file.meta["differs_from_backbone"]
        value = loss(self.file, outputs)
        self._close("loss", value, self.file.tensor(f"loss{self.suffix}"), scaled=True)
        value.backward()
        return max(off)

    def step_gradients(self) -> float:
        expected = self.file.group(f"grad{self.suffix}")
        assert set(expected) == set(self.file.meta["trainable"])
        gradients = reference_gradients(self.ours, self.names, self.in_place)
        return max(
            self._close(name, gradients[name].reshape(value.shape), value, scaled=True)
            for name, value in expected.items()
        )

    def step_merge(self) -> None:
        mergeable = self.attached.method.not_mergeable is None
        assert mergeable or not self.entry.merges, "the reference can be merged"
        if mergeable:
            self.attached.merge()
            with torch.no_grad():
                outputs = self.golden(self.images)
            for output, expected in zip(outputs, self._expected(""), strict=True):
                self._close("merged output", output, expected)

    def _expected(self, kind: str) -> list[Tensor]:
        return self.file.outputs(kind, self.dtype)

    def _close(self, what: str, value: Tensor, expected: Tensor, scaled: bool = False) -> float:
        """Assert agreement within the tolerances of the golden files; how far off it is."""
        assert value.shape == expected.shape, what
        off = (value.detach() - expected).abs().max().item()
        tolerance = 1e-8 if self.dtype is torch.float64 else 1e-5
        if scaled and self.dtype is torch.float32:
            tolerance *= max(1.0, expected.abs().max().item())
        assert off <= tolerance, f"{what} is off by {off:.2e}, tolerated {tolerance:.2e}"
        return off


def reference_gradients(
    ours: Mapping[str, nn.Parameter],
    names: Mapping[str, list[str]],
    in_place: Mapping[str, nn.Parameter],
) -> dict[str, Tensor]:
    """Gradients by the reference's names; flat, so that the parts of a stack follow each other."""
    parts = {theirs: [ours[our] for our in parts] for theirs, parts in names.items()}
    parts |= {theirs: [parameter] for theirs, parameter in in_place.items()}
    return {
        theirs: torch.cat([cast(Tensor, parameter.grad).flatten() for parameter in parameters])
        for theirs, parameters in parts.items()
    }


def trained_in_place(
    golden: GoldenModel, ours: Mapping[str, nn.Parameter], names: Mapping[str, list[str]]
) -> dict[str, nn.Parameter]:
    """What is trained and is not new, under the reference's names."""
    mapped = {our for parts in names.values() for our in parts}
    rest = {name: p for name, p in ours.items() if name not in mapped}
    if not golden.out_norms:
        head = golden.model.get_classifier().named_parameters()
        return rest | {f"head.{name}": p for name, p in head}
    in_place = {}
    for name, parameter in rest.items():
        if name.startswith("norm."):
            # The norms behind the stages stand in for the final norm, which has no part in them.
            part = name.removeprefix("norm.")
            for stage, norm in golden.out_norms.items():
                in_place[f"{stage}.{part}"] = norm.get_parameter(part)
        else:
            in_place[_downsample_at_the_end(name)] = parameter
    return in_place


def _downsample_at_the_end(name: str) -> str:
    """The reference merges patches behind a stage, timm in front of the next one."""
    layers, stage, *rest = name.split(".")
    if layers == "layers" and rest[0] == "downsample":
        return ".".join([layers, str(int(stage) - 1), *rest])
    return name


# ---- the test itself ----------------------------------------------------------------------------


def test_a_wrong_weight_is_noticed() -> None:
    for file in FILES:
        if _missing(file) is None and (weights := file.read().group("peft")):
            key = f"peft/{next(iter(weights))}"
            file.arrays[key] = file.arrays[key] * 1.001
            with pytest.raises(AssertionError, match="off by"):
                compare(file, torch.float64)


@EVERY_FILE
def test_no_size_is_baked_in(
    file: GoldenFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of other sizes, written by our own implementation, is read and compared as well."""
    write_variant(file, tmp_path)
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(tmp_path))
    (variant,) = golden_files() or []
    compare(variant.read(), torch.float64)


def write_variant(file: GoldenFile, directory: Path) -> None:
    """What a reference of other sizes would have stored, as far as float64 comparison reads it."""
    meta = _other_sizes(file.meta)
    variant = GoldenFile(directory / file.path.name, meta)
    torch.manual_seed(0)
    golden = GoldenModel(meta).eval()
    for parameter in golden.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    for name, tensor in golden.model.state_dict().items():
        if not (golden.out_norms and name.startswith("norm.")):
            variant.arrays[f"backbone/{name}"] = tensor.numpy()
    for name, tensor in golden.out_norms.state_dict().items():
        variant.arrays[f"outnorm/{name}"] = tensor.numpy()
    golden.double()
    size, classes = meta["backbone"]["img_size"], meta["backbone"].get("num_classes")
    variant.arrays["input"] = torch.randn(2, 3, size, size).numpy()
    images = variant.tensor("input", torch.float64)
    _store_outputs(variant, "backbone_", golden, images)

    entry = ENTRIES[file.method]
    attached = vpeft_bench.attach(golden.model, entry.method, **entry.options(meta["hyper"]))
    ours = dict(attached.named_trainable_parameters())
    names = entry.names(meta["hyper"], attached.backbone)
    for theirs, parts in names.items():
        for part in parts:
            ours[part].data.copy_(0.3 * torch.randn(ours[part].shape))
        stacked = torch.cat([ours[part].detach() for part in parts])
        variant.arrays[f"peft/{theirs}"] = stacked.numpy()
    outputs = _store_outputs(variant, "", golden, images)
    if classes is None:
        for stage, output in enumerate(outputs):
            variant.arrays[f"cotangent/{stage}"] = torch.randn(output.shape).numpy()
    else:
        variant.arrays["targets"] = np.array([0, classes - 1])
    value = loss(variant, outputs)
    value.backward()
    variant.arrays["loss64"] = value.detach().numpy()
    in_place = trained_in_place(golden, ours, names)
    gradients = reference_gradients(ours, names, in_place)
    for name, gradient in gradients.items():
        like = in_place[name] if name in in_place else variant.tensor(f"peft/{name}")
        variant.arrays[f"grad64/{name}"] = gradient.reshape(like.shape).numpy()
    meta["trainable"] = list(gradients)
    variant.write()


def _other_sizes(meta: dict[str, Any]) -> dict[str, Any]:
    meta = copy.deepcopy(meta)
    backbone = meta["backbone"]
    if backbone.get("kind") == "swin":  # one stage more
        backbone["depths"].append(1)
        backbone["num_heads"] = [heads + 1 for heads in (*backbone["num_heads"], 2)]
        backbone["embed_dim"] = 6 * math.lcm(*backbone["num_heads"])
        backbone["img_size"] *= 2
    else:
        backbone["depth"] += 1
        backbone["num_heads"] += 1
        backbone["embed_dim"] = backbone["num_heads"] * 10
        backbone["img_size"] += backbone["patch_size"]
        backbone["num_classes"] += 1
    backbone["mlp_ratio"] -= 1
    for key, value in meta["hyper"].items():
        if type(value) is int:
            meta["hyper"][key] = value + 1
        elif key == "scale":
            meta["hyper"][key] = value * 1.5
    return meta


def _store_outputs(
    variant: GoldenFile, kind: str, golden: GoldenModel, images: Tensor
) -> list[Tensor]:
    outputs: list[Tensor] = golden(images)
    for stage, output in enumerate(outputs):
        for suffix in ("", "64"):
            name = f"features{suffix}/{stage}" if golden.out_norms else f"logits{suffix}"
            variant.arrays[f"{kind}{name}"] = output.detach().numpy()
    return outputs
