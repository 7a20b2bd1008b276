"""Reading files of weights: the format by its content, and nothing of a pickle is executed."""

from __future__ import annotations

import argparse
import datetime
import functools
import os
import pickle
import subprocess
import tarfile
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import nn

from vpeft_bench.backbones.checkpoint_files import (
    Inert,
    NotWeightsError,
    format_of,
    named_tensors,
    not_finite,
    read_file,
)

STATE = {"norm.weight": torch.arange(6.0).view(2, 3), "norm.bias": torch.ones(3)}


class Settings(dict[str, Any]):
    """As yacs, EasyDict and addict have theirs: a dictionary of a class of its own."""


class Steps(list[int]):
    """A list of a class of its own."""


def same(found: dict[str, Any]) -> bool:
    return found.keys() == STATE.keys() and all(torch.equal(found[n], t) for n, t in STATE.items())


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_what_is_stored_beside_the_tensors_does_not_matter(tmp_path: Path, zipped: bool) -> None:
    """Training scripts store their arguments, schedules and callbacks: no class is imported."""
    settings = Settings(lr=0.1)
    settings["steps"] = Steps([1, 2])
    content = {
        "model": STATE,
        "args": argparse.Namespace(lr=1e-3, output=Path("out")),
        "best": np.float64(81.2),
        "history": np.arange(3),
        "hyper_parameters": OmegaConf.create({"a": {"b": [1, "x"]}}),
        "config": settings,
        "time": datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC),
        "counts": defaultdict(list, a=[1]),
        "init": functools.partial(nn.init.normal_, std=0.02),
        "norm": nn.LayerNorm,
        "names": {"a", "b"},
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"params": [0]}]},
    }
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    read = read_file(tmp_path / "w.pth")
    assert isinstance(read["args"], Inert)
    assert same(named_tensors(read)["model"])


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_every_protocol_of_pickles(tmp_path: Path, protocol: int) -> None:
    content = {"model": OrderedDict(STATE), "args": argparse.Namespace(lr=1e-3)}
    torch.save(content, tmp_path / "w.pth", pickle_protocol=protocol)
    assert same(named_tensors(read_file(tmp_path / "w.pth"))["model"])


class Trap:
    """Calls something where it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
def test_nothing_of_a_pickle_is_executed(tmp_path: Path, zipped: bool, protocol: int) -> None:
    trace = tmp_path / "trapped"
    traps = {
        "system": Trap(os.system, f"touch {trace}"),
        "popen": Trap(subprocess.getoutput, f"touch {trace}"),
        "eval": Trap(eval, f"open({str(trace)!r}, 'w')"),
        "exec": Trap(exec, f"open({str(trace)!r}, 'w')"),
        "method": Trap(Path.touch, trace),
        "partial": Trap(functools.partial(os.system, f"touch {trace}")),
        "getattr": Trap(getattr, Path, "touch"),
        "import": Trap(__import__, "this_module_is_not_there"),
        "torch": Trap(torch.hub.load_state_dict_from_url, f"file://{trace}"),
        "load": Trap(torch.load, str(trace)),
    }
    for name, trap in traps.items():
        torch.save(
            {"model": STATE, "args": trap},
            tmp_path / f"{name}.pth",
            pickle_protocol=protocol,
            _use_new_zipfile_serialization=zipped,
        )
        assert same(named_tensors(read_file(tmp_path / f"{name}.pth"))["model"]), name
    assert not trace.exists()


def test_functions_of_torch_cannot_be_changed_by_a_file(tmp_path: Path) -> None:
    """A pickle may set attributes of what it names; what rebuilds tensors is closed to that."""
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n"
    state = b"(N(dX\x08\x00\x00\x00__name__X\x01\x00\x00\x00xstb."  # (None, {"__name__": "x"})
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        archive.writestr("w/data.pkl", b"\x80\x02" + rebuild + state)
        archive.writestr("w/version", b"3\n")
    with pytest.raises(pickle.UnpicklingError, match="change a function"):
        read_file(tmp_path / "w.pth")
    assert torch._utils._rebuild_tensor_v2.__name__ == "_rebuild_tensor_v2"


def test_programs_are_refused(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "clip.pt"))
    with pytest.raises(NotWeightsError, match=r"TorchScript.*torch\.jit\.load.*state_dict"):
        read_file(tmp_path / "clip.pt")


def test_the_format_is_that_of_the_content(tmp_path: Path) -> None:
    """Whatever the file is called."""
    save_file(STATE, tmp_path / "renamed.pth")
    np.savez(tmp_path / "w.npz", **{n: t.numpy() for n, t in STATE.items()})
    (tmp_path / "w.npz").rename(tmp_path / "w.bin")
    torch.save(STATE, tmp_path / "w.safetensors")
    for name in ("renamed.pth", "w.bin", "w.safetensors"):
        assert same(named_tensors(read_file(tmp_path / name))[""]), name


def test_arrays_of_other_machines_and_bfloat16(tmp_path: Path) -> None:
    numbers = torch.tensor([1.5, -2.0])
    arrays = {
        "big": numbers.numpy().astype(">f4"),
        "bfloat16": numbers.bfloat16().view(torch.int16).numpy().view("V2"),
    }
    np.savez(tmp_path / "w.npz", **arrays)
    for tensor in read_file(tmp_path / "w.npz").values():
        assert torch.equal(tensor.float(), numbers)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "git lfs pull"),
        (b"\xef\xbb\xbf\n <!DOCTYPE html><html>", "a web page"),
        (b"<?xml version='1.0'?><Error/>", "a web page or XML"),
        (b'{"weight_map": {}}', "JSON"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"\x89HDF\r\n", "Keras"),
        (b"hello", "no format of weights"),
        (b"PK\x03\x04 cut off", "incomplete"),
    ],
)
def test_what_is_no_file_of_weights_is_said_in_words(
    tmp_path: Path, content: bytes, said: str
) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(NotWeightsError, match=said):
        format_of(tmp_path / "w.pth")


def test_archives_of_other_files(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("weights are inside")
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as zipped:
        zipped.write(tmp_path / "readme.txt", "model/readme.txt")
    with pytest.raises(NotWeightsError, match=r"zip archive of model/readme\.txt; unpack"):
        format_of(tmp_path / "w.pth")
    with tarfile.open(tmp_path / "w.pth.tar", "w") as archive:
        archive.add(tmp_path / "readme.txt", "readme.txt")
    with pytest.raises(NotWeightsError, match=r"tar archive of readme\.txt; unpack"):
        format_of(tmp_path / "w.pth.tar")


def test_a_stored_module_is_its_state_dict(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4))
    module.register_buffer("index", torch.arange(3), persistent=False)
    torch.save({"model": module, "epoch": 3}, tmp_path / "w.pth")
    (state,) = named_tensors(read_file(tmp_path / "w.pth")).values()
    assert list(state) == list(module.state_dict())
    assert all(torch.equal(state[name], t) for name, t in module.state_dict().items())


def test_groups_go_by_the_keys_that_lead_to_them() -> None:
    content: dict[Any, Any] = {"a": {"b": STATE}, "list": [dict(STATE)], 3: STATE, "epoch": 1}
    assert list(named_tensors(content)) == ["a.b", "list.0"]
    content["self"] = content  # a file may refer to itself
    content["\x1b[31m"] = STATE  # and hold names that would steer a terminal
    assert list(named_tensors(content)) == ["a.b", "list.0"]


def test_not_finite() -> None:
    tensors = {
        "sound": torch.ones(2),
        "nan": torch.tensor([1.0, torch.nan]),
        "inf": torch.tensor([1.0, -torch.inf]).bfloat16(),
        "counts": torch.ones(2, dtype=torch.int64),
        "empty": torch.ones(0),
    }
    assert not_finite(tensors) == ["nan holds NaN", "inf holds infinity"]
