"""Every golden file against our implementation: values, gradients, trainable sets, merging.

Run with ``-s`` to see how closely each file agrees.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from entries import ENTRIES, NOT_COMPARED, Entry, Part
from entries.entry import listed
from golden_files import (
    DIRECTORY_VARIABLE,
    SHARED,
    GoldenFile,
    GoldenModel,
    NoGoldenFilesError,
    golden_files,
    loss,
    summed_in_loss,
)
from torch import Tensor, nn

import vpeft_bench
from vpeft_bench.attaching.attachment import Attached
from vpeft_bench.backbones import Backbone
from vpeft_bench.methods.parts.sparse import SparseUpdate

torch.set_num_threads(1)  # tiny tensors: threads only get in each other's way

NO_BACKBONE = cast(Backbone, None)  # a stand-alone module stands on none
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])


def _collect() -> list[GoldenFile]:
    try:
        return golden_files() or []
    except NoGoldenFilesError:
        return []  # test_the_directory_holds_files fails and says why


def _left_out(method: str) -> str | None:
    """Why a file is not compared, or None where it is not named among those."""
    return next((why for pattern, why in NOT_COMPARED.items() if fnmatch(method, pattern)), None)


FILES = _collect()
COMPARED = [file for file in FILES if file.method in ENTRIES]
EVERY_FILE = pytest.mark.parametrize("file", COMPARED, ids=[f.path.stem for f in COMPARED])


# ---- files and coverage -------------------------------------------------------------------------


def test_the_directory_holds_files() -> None:
    if golden_files() is None:
        pytest.skip(f"no golden files: {SHARED.name}/ is not beside the repository")
    assert FILES


def test_every_file_is_compared_or_named() -> None:
    if golden_files() is None:
        pytest.skip(f"no golden files: {SHARED.name}/ is not beside the repository")
    reasons = {file.path.stem: _left_out(file.method) for file in FILES if file not in COMPARED}
    print(f"\n{len(FILES)} golden files, {len(COMPARED)} compared; left out:")
    print("\n".join(f"  {name}: {why}" for name, why in reasons.items()))
    assert not [name for name, why in reasons.items() if why is None]
    assert COMPARED, "not one file is compared"


def test_nothing_is_both_compared_and_left_out() -> None:
    """A method is compared with its vector from the day it exists."""
    assert not [name for name in ENTRIES if _left_out(name)]
    unknown = {entry.method for entry in ENTRIES.values()} - set(vpeft_bench.list_methods())
    assert not unknown


def test_an_empty_or_missing_directory_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(tmp_path))
    with pytest.raises(NoGoldenFilesError, match="holds no"):
        golden_files()
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(tmp_path / "absent"))
    with pytest.raises(NoGoldenFilesError, match="not a directory"):
        golden_files()
    monkeypatch.setenv(DIRECTORY_VARIABLE, "")
    with pytest.raises(NoGoldenFilesError, match="is empty"):
        golden_files()


def test_absent_parts_may_be_stored_or_not() -> None:
    """A supernet holds tensors that a part of no size does not use; other files leave them out."""
    names = {"a": [Part("x")], "b": [Part("y")]}
    assert without_absent(names, {"x": torch.ones(1)}, {"a"}) == {"a": [Part("x")]}
    assert without_absent(names, {"x": torch.ones(1)}, {"a", "b"}) == {"a": [Part("x")], "b": []}


def test_the_tolerance_of_a_sum_grows_with_its_length() -> None:
    value, expected = torch.tensor(3e-7, dtype=torch.float64), torch.tensor(0.0).double()
    close(torch.float64, "sum", value, expected, terms=1000)
    with pytest.raises(AssertionError, match="off by"):
        close(torch.float64, "sum", value, expected, terms=100)


def test_several_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named as in PATH; all of them must be there."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        GoldenFile(tmp_path / name / f"{name}.npz", {"method": name, "hyper": {}}).write()
    directories = [str(tmp_path / name) for name in ("one", "two")]
    monkeypatch.setenv(DIRECTORY_VARIABLE, os.pathsep.join(directories))
    assert [file.method for file in golden_files() or []] == ["one", "two"]
    (tmp_path / "two" / "two.npz").unlink()
    with pytest.raises(NoGoldenFilesError, match="two holds no"):
        golden_files()


# ---- one file -----------------------------------------------------------------------------------


@DTYPES
@EVERY_FILE
def test_golden(file: GoldenFile, dtype: torch.dtype) -> None:
    compare(file.read(), dtype)


def compare(file: GoldenFile, dtype: torch.dtype) -> None:
    """All steps of comparing one file at one precision."""
    if file.meta["level"] == "module":
        off_output, off_gradient = compare_module(file, dtype)
    else:
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
        self.ours: dict[str, Tensor]
        self.names: dict[str, list[Part]]
        self.in_place: dict[str, nn.Parameter]
        # Of each tensor the reference lists, where it is trained; empty: everywhere.
        self.masks = {} if self.entry.masks is None else file.group(self.entry.masks)

    def step_plain_backbone(self) -> list[Tensor]:
        self.golden.fill(self.file)
        self.golden.to(self.dtype)
        with torch.no_grad():
            outputs: list[Tensor] = self.golden(self.images)
        for output, expected in zip(outputs, self._expected("backbone_"), strict=True):
            close(self.dtype, "backbone output", output, expected)
        return outputs

    def step_install(self) -> None:
        options = self.entry.options(self.file.hyper)
        self.attached = vpeft_bench.attach(self.golden.model, self.entry.method, **options)
        if self.entry.calibration is not None:
            self.golden.double()  # the closest calls are a few 1e-5 apart
            self.attached.select(self.entry.calibration(self.file))
            self.golden.to(self.dtype)
        if self.entry.check_selection is not None:
            self.entry.check_selection(self.file, self.attached)
        self.attached.model.eval()
        self.ours = ours_of(self.attached)
        self.names = self.entry.names(self.file.hyper, self.attached.backbone)
        listed_as_trained = set(self._trained(self.file.meta["trainable"]))
        weights = self.file.group("peft")
        if self.entry.leading:
            self.names = without_absent(self.names, self.ours, {*weights, *listed_as_trained})
        fill(weights, self.ours, self.names, self.entry.leading)
        self.in_place = trained_in_place(self.golden, self.attached, self.names, self.entry)
        unused = {theirs for theirs, ours in self.names.items() if not ours}
        mapped = {t for t, ours in self.names.items() if ours and trained(self.ours, ours)}
        assert {*self.in_place, *mapped} == listed_as_trained - unused
        for name, mask in self.masks and sparse_masks(self.attached).items():
            assert torch.equal(mask, self.masks[name]), name

    def step_outputs(self, plain: list[Tensor]) -> float:
        outputs = self.golden(self.images)
        expected = self._expected("")
        off = [close(self.dtype, "output", o, e) for o, e in zip(outputs, expected, strict=True)]
        moved = any(
            not torch.allclose(o, p, atol=1e-4) for o, p in zip(outputs, plain, strict=True)
        )
        assert moved == self.file.meta["differs_from_backbone"]
        value = loss(self.file, outputs)
        terms = summed_in_loss(self.file, outputs)
        stored = self.file.tensor(f"loss{self.suffix}")
        close(self.dtype, "loss", value, stored, scaled=True, terms=terms)
        value.backward()
        return max(off)

    def step_gradients(self) -> float:
        expected = self.file.group(f"grad{self.suffix}")
        assert set(expected) == set(self.file.meta["trainable"])
        expected = {name: self._masked(name, expected[name]) for name in self._trained(expected)}
        gradients = reference_gradients(self.ours, self.names, self.in_place, expected)
        return max(
            close(self.dtype, name, gradients[name], value, scaled=True)
            for name, value in expected.items()
        )

    def step_merge(self) -> None:
        mergeable = self.attached.method.merge_refusal is None
        assert mergeable or not self.entry.merges, "the reference can be merged"
        if mergeable:
            self.attached.merge()
            with torch.no_grad():
                outputs = self.golden(self.images)
            for output, expected in zip(outputs, self._expected(""), strict=True):
                close(self.dtype, "merged output", output, expected)

    def _trained(self, listed: Iterable[str]) -> list[str]:
        return [name for name in listed if not self.masks or self.masks[name].any()]

    def _masked(self, name: str, value: Tensor) -> Tensor:
        return value[self.masks[name]].reshape(-1) if self.masks else value

    def _expected(self, kind: str) -> list[Tensor]:
        return self.file.outputs(kind, self.dtype)


def compare_module(file: GoldenFile, dtype: torch.dtype) -> tuple[float, float]:
    """A stand-alone module: tensor in, tensor out."""
    entry = ENTRIES[file.method]
    suffix = "64" if dtype is torch.float64 else ""
    assert entry.module is not None, "the entry of a module-level file names a module"
    module = entry.module(file.hyper).to(dtype).eval()
    ours: dict[str, Tensor] = dict(module.named_parameters())
    names = {t: listed(o) for t, o in entry.whole(file.hyper, NO_BACKBONE).items()}
    fill(file.group("peft"), ours, names, entry.leading)
    assert set(names) == set(file.meta["trainable"])
    x = file.tensor("input", dtype).requires_grad_()
    output = module(x)
    large = True  # the values of these files are: their tolerance is relative
    expected = file.tensor(f"output{suffix}")
    off = close(dtype, "output", output, expected, scaled=large)
    value = (output * file.tensor("cotangent", dtype)).sum()
    stored = file.tensor(f"loss{suffix}")
    close(dtype, "loss", value, stored, scaled=True, terms=output.numel())
    value.backward()
    gradients = file.group(f"grad{suffix}")
    assert set(gradients) == {*names, "input"}
    found = reference_gradients(ours, names, {"input": cast(nn.Parameter, x)}, gradients)
    return off, max(close(dtype, n, found[n], g, scaled=True) for n, g in gradients.items())


def ours_of(attached: Attached) -> dict[str, Tensor]:
    """Everything of ours that a reference may have a name for: trained, buffers, head."""
    head = {f"head.{name}": p for name, p in attached.backbone.head.named_parameters()}
    return {**attached._stored(), **head}


def trained(ours: Mapping[str, Tensor], parts: list[Part]) -> bool:
    return all(ours[part.name].requires_grad for part in parts)


def without_absent(
    names: Mapping[str, list[Part]], ours: Mapping[str, Tensor], theirs: set[str]
) -> dict[str, list[Part]]:
    """The names without parts of no size: ours has no such tensor, a file may have it or not."""
    present = {name: [part for part in names[name] if part.name in ours] for name in names}
    return {name: parts for name, parts in present.items() if parts or name in theirs}


def fill(
    weights: Mapping[str, Tensor],
    ours: Mapping[str, Tensor],
    names: Mapping[str, list[Part]],
    leading: bool,
) -> None:
    """Copy the reference's tensors into ours; every one is consumed, each entry of ours once."""
    additions = {theirs for theirs, parts in names.items() if any(p.addition for p in parts)}
    assert set(weights) == set(names) - additions, "the file's new tensors, and those named"
    mapped = {part.name for parts in names.values() for part in parts}
    filled = {name: torch.zeros_like(ours[name], dtype=torch.int) for name in mapped}
    for theirs, parts in names.items():
        for part in parts:
            filled[part.name][part.where] += 1
        if theirs in additions:
            assert not any(ours[part.name].data[part.where].any() for part in parts), theirs
        elif leading and parts:
            (target,) = (ours[part.name] for part in parts)
            target.data.copy_(weights[theirs][tuple(slice(size) for size in target.shape)])
        elif parts:
            pieces = [ours[part.name].data[part.where] for part in parts]
            stored = weights[theirs].flatten().split([piece.numel() for piece in pieces])
            for part, piece, value in zip(parts, pieces, stored, strict=True):
                ours[part.name].data[part.where] = value.reshape(piece.shape).to(piece.dtype)
    assert not [name for name, times in filled.items() if (times != 1).any()]


def close(
    dtype: torch.dtype,
    what: str,
    value: Tensor,
    expected: Tensor,
    scaled: bool = False,
    terms: int = 1,
) -> float:
    """Assert agreement within the tolerances of the golden files; how far off it is.

    Args:
        scaled: in single precision, relative to the largest value.
        terms: the value sums up so many numbers, each within the tolerance; their errors are
            independent, so that of the sum grows with the root.
    """
    assert value.shape == expected.shape, what
    off = (value.detach() - expected).abs().max().item()
    tolerance = (1e-8 if dtype is torch.float64 else 1e-5) * terms**0.5
    if scaled and dtype is torch.float32:
        tolerance *= max(1.0, expected.abs().max().item())
    assert off <= tolerance, f"{what} is off by {off:.2e}, tolerated {tolerance:.2e}"
    return off


def reference_gradients(
    ours: Mapping[str, Tensor],
    names: Mapping[str, list[Part]],
    in_place: Mapping[str, nn.Parameter],
    like: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Gradients by the reference's names, in the shapes of ``like``; zero where ours has none."""
    parts = {theirs: [(ours[p.name], p.where) for p in parts] for theirs, parts in names.items()}
    parts |= {theirs: [(parameter, ...)] for theirs, parameter in in_place.items()}
    found = {}
    for theirs, shape_like in like.items():
        gradients = [cast(Tensor, tensor.grad)[where] for tensor, where in parts[theirs]]
        if not gradients:
            found[theirs] = torch.zeros_like(shape_like)
        elif sum(g.numel() for g in gradients) == shape_like.numel():
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            found[theirs] = flat.reshape(shape_like.shape)
        else:  # a leading slice
            (gradient,) = gradients
            whole = torch.zeros_like(shape_like)
            whole[tuple(slice(size) for size in gradient.shape)] = gradient
            found[theirs] = whole
    return found


def trained_in_place(
    golden: GoldenModel, attached: Attached, names: Mapping[str, list[Part]], entry: Entry
) -> dict[str, nn.Parameter]:
    """What is trained and is not new, under the reference's names."""
    mapped = {part.name for parts in names.values() for part in parts}
    known = mapped | entry.only_ours(attached.backbone)
    ours = dict(attached.named_trainable_parameters())
    rest = {_of_whole(name): p for name, p in ours.items() if name not in known}
    if not golden.out_norms:
        if "head.weight" in mapped:
            return rest
        head = golden.model.get_classifier().named_parameters()
        return rest | {f"{entry.head}.{name}": p for name, p in head}
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


def _of_whole(name: str) -> str:
    """The weight that single values are learned for."""
    return name.replace(".weight_update.values", ".weight")


def sparse_masks(attached: Attached) -> dict[str, Tensor]:
    """Of every weight with learned single values, which entries they are."""
    masks = {}
    for placement in attached.backbone.placements:
        if isinstance(placement.module, SparseUpdate):
            mask = torch.zeros_like(cast(Tensor, placement.host.weight), dtype=torch.bool)
            mask.view(-1)[placement.module.indices] = True
            masks[_of_whole(f"{placement.path}.values")] = mask
    return masks


def _downsample_at_the_end(name: str) -> str:
    """The reference merges patches behind a stage, timm in front of the next one."""
    layers, stage, *rest = name.split(".")
    if layers == "layers" and rest[0] == "downsample":
        return ".".join([layers, str(int(stage) - 1), *rest])
    return name


# ---- the test itself ----------------------------------------------------------------------------


def test_a_wrong_weight_is_noticed() -> None:
    for file in COMPARED:
        unused = file.meta.get("zero_gradient_in_reference") or []
        weights = [name for name in file.read().group("peft") if name not in unused]
        if weights:
            key = f"peft/{weights[0]}"
            file.arrays[key] = np.asarray(file.arrays[key] * 1.001)
            with pytest.raises(AssertionError, match="off by"):
                compare(file, torch.float64)


@EVERY_FILE
def test_no_size_is_baked_in(
    file: GoldenFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of other sizes, written by our own implementation, is read and compared as well."""
    write = write_module_variant if file.meta["level"] == "module" else write_variant
    write(file, tmp_path)
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
    if entry.calibration is not None:
        copy_calibration(file, variant)
        attached.select(entry.calibration(variant))
    attached.model.eval()
    ours = ours_of(attached)
    names = entry.names(meta["hyper"], attached.backbone)
    if entry.leading:
        names = without_absent(names, ours, set())
    for theirs, parts in names.items():
        if any(part.addition for part in parts):
            continue
        for part in parts:
            piece = ours[part.name].data[part.where]
            value = 0.3 * torch.randn(piece.shape)
            running_variance = not ours[part.name].requires_grad
            value = value.abs() + 0.5 if running_variance else value
            ours[part.name].data[part.where] = value.to(piece.dtype)
        stored = [ours[part.name].detach()[part.where] for part in parts]
        if not stored:
            stored = [torch.zeros(3)]
        whole = stored[0] if len(stored) == 1 else torch.cat([each.flatten() for each in stored])
        variant.arrays[f"peft/{theirs}"] = whole.numpy()
    outputs = _store_outputs(variant, "", golden, images)
    if classes is None:
        for stage, output in enumerate(outputs):
            variant.arrays[f"cotangent/{stage}"] = torch.randn(output.shape).numpy()
    else:
        variant.arrays["targets"] = np.array([0, classes - 1])
    value = loss(variant, outputs)
    value.backward()
    variant.arrays["loss64"] = value.detach().numpy()
    in_place = trained_in_place(golden, attached, names, entry)
    peft = {
        theirs: torch.cat([ours[p.name].data[p.where].flatten() for p in parts])
        if any(p.addition for p in parts)
        else variant.tensor(f"peft/{theirs}")
        for theirs, parts in names.items()
        if not parts or trained(ours, parts)
    }
    gradients = reference_gradients(ours, names, in_place, {**in_place, **peft})
    for name, gradient in gradients.items():
        variant.arrays[f"grad64/{name}"] = gradient.numpy()
    if entry.masks is not None:
        write_masks(variant, entry.masks, sparse_masks(attached), gradients)
    meta["trainable"] = list(gradients)
    variant.write()


def write_masks(
    variant: GoldenFile, group: str, masks: Mapping[str, Tensor], gradients: Mapping[str, Tensor]
) -> None:
    """Masks of everything trained, and the gradients of single values in those of the whole."""
    for name, gradient in gradients.items():
        mask = masks.get(name, torch.ones_like(gradient, dtype=torch.bool))
        variant.arrays[f"{group}/{name}"] = mask.numpy()
        whole = torch.zeros(mask.shape, dtype=gradient.dtype)
        variant.arrays[f"grad64/{name}"] = whole.masked_scatter(mask, gradient).numpy()


def copy_calibration(file: GoldenFile, variant: GoldenFile) -> None:
    """The pictures of the data pass, in the size of the variant; what they select is not known."""
    size = variant.meta["backbone"]["img_size"]
    for key, value in file.read().arrays.items():
        if key.startswith(("calib/", "select/views", "select/labels")):
            pictures = value.ndim == 4
            resized = torch.randn(*value.shape[:2], size, size).numpy() if pictures else value
            variant.arrays[key] = resized


def write_module_variant(file: GoldenFile, directory: Path) -> None:
    """As :func:`write_variant`, for a stand-alone module."""
    entry = ENTRIES[file.method]
    meta = copy.deepcopy(file.meta)
    assert entry.other_sizes is not None
    assert entry.module is not None
    entry.other_sizes(meta)
    torch.manual_seed(0)
    variant = GoldenFile(directory / file.path.name, meta)
    module = entry.module(meta["hyper"]).double().eval()
    ours: dict[str, Tensor] = dict(module.named_parameters())
    names = {t: listed(o) for t, o in entry.whole(meta["hyper"], NO_BACKBONE).items()}
    for theirs, parts in names.items():
        for part in parts:
            ours[part.name].data.copy_(0.3 * torch.randn(ours[part.name].shape))
        stored = [ours[part.name].detach() for part in parts]
        variant.arrays[f"peft/{theirs}"] = torch.cat(stored).numpy()
    tokens = math.prod(meta["hyper"].get("window", [file.arrays["input"].shape[1] + 1]))
    x = torch.randn(2, tokens, meta["hyper"]["width"]).double().requires_grad_()
    output = module(x)
    cotangent = torch.randn_like(output)
    value = (output * cotangent).sum()
    value.backward()
    found = reference_gradients(ours, names, {}, {t: variant.tensor(f"peft/{t}") for t in names})
    found["input"] = cast(Tensor, x.grad)
    variant.arrays |= {f"grad64/{name}": gradient.numpy() for name, gradient in found.items()}
    variant.arrays["input"] = x.detach().numpy()
    variant.arrays["cotangent"] = cotangent.numpy()
    variant.arrays["output64"] = output.detach().numpy()
    variant.arrays["loss64"] = value.detach().numpy()
    meta["trainable"] = list(names)
    variant.write()


def _other_sizes(meta: dict[str, Any]) -> dict[str, Any]:
    meta = copy.deepcopy(meta)
    backbone = meta["backbone"]
    change = ENTRIES[meta["method"]].other_sizes
    if backbone.get("kind") == "swin":  # one stage more
        backbone["depths"].append(1)
        backbone["num_heads"] = [heads + 1 for heads in (*backbone["num_heads"], 2)]
        backbone["embed_dim"] = 6 * math.lcm(*backbone["num_heads"])
        backbone["img_size"] *= 2
        if "num_classes" in backbone:
            backbone["num_classes"] += 1
    else:
        backbone["depth"] += 1
        backbone["num_heads"] += 1
        backbone["embed_dim"] = backbone["num_heads"] * 10
        backbone["img_size"] += backbone["patch_size"]
        backbone["num_classes"] += 1
    backbone["mlp_ratio"] -= 1
    if change is not None:
        change(meta)
        return meta
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
