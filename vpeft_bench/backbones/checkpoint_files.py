"""Reading a file of weights: its format by its content, never executing what is pickled in it."""

from __future__ import annotations

import codecs
import pickle
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

TorchArchive: Any = torch._C.PyTorchFileReader


class Format(StrEnum):
    """Formats of weights that are read."""

    SAFETENSORS = "safetensors"
    TORCH = "torch.save"
    NPZ = "npz"


class NotWeightsError(Exception):
    """A file is none of the formats; says in words what it is instead, and what to do."""


SAFETENSORS_HEADER = 100_000_000  # bytes of its header at most, by its specification
AGAIN = "fetch it again"
UNPACK = "unpack it, and name the file of weights in it"
OTHER_CONTENT = {  # what a file begins with: what it is, what to do
    b"version https://git-lfs": ("a pointer of Git LFS, not the weights", "type git lfs pull"),
    b"<": ("a web page or XML, not weights", f"{AGAIN}: the address led to a page"),
    b"\x1f\x8b": ("compressed by gzip", UNPACK),
    b"BZh": ("compressed by bzip2", UNPACK),
    b"\xfd7zXZ": ("compressed by xz", UNPACK),
    b"\x28\xb5\x2f\xfd": ("compressed by zstd", UNPACK),
    b"7z\xbc\xaf": ("a 7z archive", UNPACK),
    b"\x93NUMPY": ("a single NumPy array without a name", "name an .npz file"),
    b"\x89HDF": ("an HDF5 file (Keras)", "name a file of timm's or JAX's weights"),
    b"GGUF": ("a GGUF file", "name a file of timm's weights"),
    b"{": ("JSON text, not weights", "name the file of weights that it describes"),
}
NOT_A_MODEL = (
    "a TorchScript archive, a program and not a file of weights",
    "where you trust it, save its weights: "
    "torch.save(torch.jit.load(PATH, map_location='cpu').state_dict(), 'weights.pth')",
)


def format_of(path: Path) -> Format:
    """The format of a file, by its content.

    Raises:
        NotWeightsError: it is none of them.
        OSError: it cannot be opened.
    """
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        raise _not_weights(("empty (0 bytes)", AGAIN))
    if start.startswith(b"PK"):
        return _format_of_zip(path)
    # Eight bytes of length, then JSON: ahead of the table, for a length may begin like anything.
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= SAFETENSORS_HEADER:
        return Format.SAFETENSORS
    for beginning, other in OTHER_CONTENT.items():
        if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(beginning):
            raise _not_weights(other)
    if start[257:262] == b"ustar":
        with tarfile.open(path) as archive:
            raise _not_weights((f"a tar archive of {_some(archive.getnames())}", UNPACK))
    if start[:1] != b"\x80":  # the first operation of a pickle
        raise _not_weights(("no format of weights that is known here", AGAIN))
    return Format.TORCH


def _format_of_zip(path: Path) -> Format:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        raise _not_weights((f"an incomplete archive ({error})", AGAIN)) from error
    last = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in last:
        raise _not_weights(NOT_A_MODEL)
    if "data.pkl" in last:
        return Format.TORCH
    if names and all(name.endswith(".npy") for name in names):
        return Format.NPZ
    raise _not_weights((f"a zip archive of {_some(names)}", UNPACK))


def _not_weights(other: tuple[str, str]) -> NotWeightsError:
    return NotWeightsError("is {}; {}".format(*other))


def _some(names: Iterable[str]) -> str:
    listed = ["".join(c if c.isprintable() else "?" for c in name) for name in names]
    return f"{', '.join(listed[:3]) or 'nothing'}{', ...' if len(listed) > 3 else ''}"


def read_file(path: Path) -> Any:
    """What a file of weights holds: tensors in mappings of names, in main memory.

    Everything else that is stored beside them is an :class:`Inert` object.

    Raises:
        NotWeightsError, OSError: see :func:`format_of`.
        Exception: whatever the reader of a format raises where the file is damaged.
    """
    match format_of(path):
        case Format.SAFETENSORS:
            return load_file(path)
        case Format.NPZ:
            with np.load(path, allow_pickle=False) as arrays:
                return {name: _tensor(arrays[name]) for name in arrays.files}
        case Format.TORCH:
            return _read_pickled(path)


def _tensor(array: NDArray[Any]) -> Tensor:
    """An array in this machine's byte order; NumPy knows bfloat16 only as two bytes."""
    if array.dtype.kind == "V" and array.dtype.itemsize == 2:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))


# ---- torch.save ----------------------------------------------------------------------------------


class Inert:
    """Stands where the file has an object of some class: keeps what was stored, does nothing.

    Attributes:
        path: module and name of the class or function in the file.
        entries: items, where the object is a mapping.
        state: what the object would have been restored from.
    """

    path = ""
    dump_patches = False  # torch.load asks classes of modules for it

    entries: dict[Any, Any]
    state: Any

    def __new__(cls, *args: object, **kwargs: object) -> Inert:
        """Whatever the arguments are, the object is empty."""
        made = super().__new__(cls)
        made.entries, made.state = {}, None
        return made

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __call__(self, *args: object, **kwargs: object) -> Inert:
        """What a stored function of an object would have given."""
        return Inert()

    def __setstate__(self, state: object) -> None:
        self.state = state

    def __setitem__(self, key: object, value: object) -> None:
        self.entries[key] = value

    def append(self, item: object) -> None:
        """Left out."""

    extend = add = append


class _Rebuild:
    """One of torch's functions that make tensors; a file can call it and not change it."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("the file tries to change a function of torch")


_REBUILD = (
    "_rebuild_tensor",
    "_rebuild_tensor_v2",
    "_rebuild_tensor_v3",
    "_rebuild_parameter",
    "_rebuild_parameter_with_state",
)
_KNOWN: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "torch.storage.UntypedStorage": torch.UntypedStorage,
    "__builtin__.set": set,  # its name in pickles of protocol 2, which torch writes
    "builtins.set": set,
    "_codecs.encode": _Rebuild(codecs.encode),  # bytes, as the old protocol has them
    **{f"torch._utils.{name}": _Rebuild(getattr(torch._utils, name)) for name in _REBUILD},
    **{str(kind): kind for kind in vars(torch).values() if isinstance(kind, torch.dtype)},
}


class _Unpickler(pickle.Unpickler):
    """Makes tensors and plain containers; nothing else is imported or called.

    The way that Python's manual names for pickles from strangers ("Restricting Globals").
    """

    def find_class(self, module: str, name: str, /) -> Any:
        path = f"{module}.{name}"
        return _KNOWN.get(path) or type("Inert", (Inert,), {"path": path})


class _InertPickle:
    """What ``torch.load`` uses of a pickle module."""

    __name__ = "inert pickle"
    Unpickler = _Unpickler

    @staticmethod
    def load(file: IO[bytes], **arguments: Any) -> Any:
        """One object of the file."""
        return _Unpickler(file, **arguments).load()


def _read_pickled(path: Path) -> Any:
    with path.open("rb") as file:
        if file.read(2) == b"PK":
            # torch.load would run such an archive. Its own reader is asked, which sees the same.
            if "constants.pkl" in TorchArchive(str(path)).get_all_records():
                raise _not_weights(NOT_A_MODEL)
        elif tarfile.is_tarfile(path):
            raise _not_weights(("a tar archive", UNPACK))
        file.seek(0)
        with warnings.catch_warnings():  # about source code of classes that nobody imports
            warnings.simplefilter("ignore")
            # Not executed all the same: torch's own safe reader knows no class but tensors, and
            # gives up on a file that holds the arguments of its training script.
            return torch.load(
                file, map_location="cpu", pickle_module=_InertPickle(), weights_only=False
            )


# ---- what lies in it -----------------------------------------------------------------------------

_MOST_LEVELS = 8


def named_tensors(content: Any) -> dict[str, dict[str, Tensor | Inert]]:
    """The groups of named tensors in a file, each under the keys that lead to it.

    ``{"epoch": 3, "state_dict_ema": {"norm.weight": t}}`` gives
    ``{"state_dict_ema": {"norm.weight": t}}``; a bare state dict has the key "". The parameters and
    buffers of a stored module are a group as its state dict would be. A tensor of a kind that is
    not read (quantised, distributed) is an :class:`Inert` object.
    """
    return dict(_groups(content, "", 0, set()))


def _groups(
    content: Any, path: str, level: int, seen: set[int]
) -> Iterator[tuple[str, dict[str, Any]]]:
    if level > _MOST_LEVELS or id(content) in seen:  # a file may refer to itself
        return
    seen.add(id(content))
    if _is_module(content):
        yield path, dict(_module_state(content, "", 0))
        return
    items = _items(content)
    if own := {key: value for key, value in items.items() if _is_leaf(value)}:
        yield path, own
    for key, value in items.items():
        if not _is_leaf(value):
            yield from _groups(value, f"{path}.{key}" if path else key, level + 1, seen)


def _items(content: Any) -> dict[str, Any]:
    if isinstance(content, Inert):
        content = content.entries
    if isinstance(content, (list, tuple)):
        content = {str(index): item for index, item in enumerate(content)}
    if not isinstance(content, Mapping):
        return {}
    # Names are shown: what could steer a terminal is none.
    return {k: v for k, v in content.items() if isinstance(k, str) and k.isprintable()}


def _is_leaf(value: Any) -> bool:
    if isinstance(value, Inert):
        known = value.path.startswith("torch.") and value.path.isprintable()
        return known and not value.entries and not _is_module(value)
    return isinstance(value, Tensor)


def _is_module(value: Any) -> bool:
    stored = value.state if isinstance(value, Inert) else None
    return isinstance(stored, dict) and isinstance(stored.get("_parameters"), dict)


def _module_state(module: Inert, prefix: str, level: int) -> Iterator[tuple[str, Any]]:
    """The state dict of a stored ``nn.Module``."""
    state = module.state
    not_stored = state.get("_non_persistent_buffers_set")
    not_stored = not_stored if isinstance(not_stored, set) else set()
    for kind in ("_parameters", "_buffers"):
        for name, tensor in (state.get(kind) or {}).items():
            if isinstance(tensor, (Tensor, Inert)) and name not in not_stored:
                yield f"{prefix}{name}", tensor
    for name, child in (state.get("_modules") or {}).items():
        if _is_module(child) and level < 4 * _MOST_LEVELS:
            yield from _module_state(child, f"{prefix}{name}.", level + 1)


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """For every tensor with a number that is NaN or infinite in float32: its name, and which."""
    found = []
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel():
            ends = torch.stack(tensor.detach().aminmax()).float()  # NaN where any number is
            if not bool(ends.isfinite().all()):
                found.append(f"{name} holds {'NaN' if bool(ends.isnan().any()) else 'infinity'}")
    return found
