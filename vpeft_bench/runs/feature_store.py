"""Where frozen features are kept: in main memory, or in memory-mapped files."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from vpeft_bench.files import DAMAGED, set_aside, sync, write_atomically

Features = dict[str, Tensor]

_UNFINISHED = ".unfinished"


class Store(Protocol):
    """Where features are kept; the least recently used ones give way to new ones."""

    def find(self, key: str) -> Features | None:
        """What is kept under ``key``."""

    def empty(
        self, key: str, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype
    ) -> Features:
        """Room to be filled."""

    def keep(self, key: str, features: Features) -> Features:
        """Keep under ``key`` what :meth:`empty` gave and was filled since."""

    def locked(self, key: str) -> contextlib.AbstractContextManager[Any]:
        """While it is held, nobody else computes what ``key`` names."""


_memory: OrderedDict[str, Features] = OrderedDict()


def forget() -> None:
    """Let go of all features kept in memory."""
    _memory.clear()


class MemoryStore:
    """Main memory; shared by the runs of a process.

    Args:
        limit: most bytes of all features together.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def find(self, key: str) -> Features | None:
        """What is kept, and used most recently from now on."""
        if key in _memory:
            _memory.move_to_end(key)
        return _memory.get(key)

    def empty(
        self, key: str, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype
    ) -> Features:
        """Room for new features, made by letting go of old ones."""
        wanted = bytes_of(shapes, dtype)
        while _memory and wanted + sum(map(size_of, _memory.values())) > self.limit:
            _memory.popitem(last=False)
        return {name: torch.empty(shape, dtype=dtype) for name, shape in shapes.items()}

    def keep(self, key: str, features: Features) -> Features:
        """Keep them as they are."""
        _memory[key] = features
        return features

    def locked(self, key: str) -> contextlib.AbstractContextManager[Any]:
        """Nobody else reaches this memory."""
        return contextlib.nullcontext()


class DiskStore:
    """A directory of memory-mapped files; shared by processes.

    An entry is a directory that gets its name when it is whole. One that is removed while another
    process reads it stays readable there: its pages outlive its name.

    Args:
        directory: of all entries.
        limit: most bytes of all features together.
        tell: is told in one line what is damaged and set aside.
    """

    META = "features.json"

    def __init__(self, directory: Path, limit: int, tell: Callable[[str], None] = print) -> None:
        self.directory = directory
        self.limit = limit
        self.tell = tell
        directory.mkdir(parents=True, exist_ok=True)

    def find(self, key: str) -> Features | None:
        """What lies there whole; a damaged entry is set aside."""
        entry = self.directory / key
        if not entry.exists():
            return None
        try:
            meta = json.loads((entry / self.META).read_text())
            (entry / self.META).touch()  # used most recently from now on
            dtype = getattr(torch, meta["dtype"])
            shapes = {name: tuple(shape) for name, shape in meta["shapes"].items()}
            for name, shape in shapes.items():
                if (entry / name).stat().st_size != math.prod(shape) * dtype.itemsize:
                    raise ValueError(f"{name} has another size than it should have")
            return {n: _map(entry / n, shape, dtype, shared=False) for n, shape in shapes.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            aside = set_aside(entry)
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            self.tell(f"{entry} cannot be used ({reason}); it is kept as {aside.name}")
            return None

    def empty(
        self, key: str, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype
    ) -> Features:
        """Files beside the entry, made room for by removing the least recently used entries."""
        self._sweep(key)
        entries = [path.parent for path in self.directory.glob(f"*/{self.META}")]
        entries += [path for path in self.directory.glob(f"*.{DAMAGED}*") if _is_key(path)]
        entries = sorted(set(entries), key=self._last_used)
        sizes = {e: sum(f.stat().st_size for f in e.iterdir()) for e in entries}
        free = self.limit - sum(sizes.values())
        for entry, size in sizes.items():
            if free >= bytes_of(shapes, dtype):
                break
            shutil.rmtree(entry, ignore_errors=True)
            free += size
        unfinished = self._unfinished(key)
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        return {n: _map(unfinished / n, shape, dtype, shared=True) for n, shape in shapes.items()}

    def keep(self, key: str, features: Features) -> Features:
        """Give the entry its name."""
        unfinished, entry = self._unfinished(key), self.directory / key
        dtype = str(next(iter(features.values())).dtype).removeprefix("torch.")
        shapes = {name: list(tensor.shape) for name, tensor in features.items()}
        meta = json.dumps({"dtype": dtype, "shapes": shapes})
        write_atomically(unfinished / self.META, meta.encode())
        for name in features:  # on the disk before the name that says so
            sync(unfinished / name)
        os.replace(unfinished, entry)
        return features

    def locked(self, key: str) -> contextlib.AbstractContextManager[Any]:
        """Other processes that need the same wait until it is there."""
        return FileLock(self._lock(key))

    def _last_used(self, entry: Path) -> float:
        """Seconds; damaged entries come before all others."""
        return 0.0 if DAMAGED in entry.suffix else (entry / self.META).stat().st_mtime

    def _sweep(self, mine: str) -> None:
        """Remove what processes that were killed have left unfinished, but for ``mine``."""
        for left in filter(_is_key, self.directory.glob(f"*{_UNFINISHED}")):
            if left.stem != mine:
                with contextlib.suppress(Timeout), FileLock(self._lock(left.stem), timeout=0):
                    shutil.rmtree(left, ignore_errors=True)

    def _lock(self, key: str) -> Path:
        return self.directory / f"{key}.lock"

    def _unfinished(self, key: str) -> Path:
        return self.directory / f"{key}{_UNFINISHED}"


def _is_key(path: Path) -> bool:
    """Whether a folder can be one of ours: the user may have named one that holds others."""
    return re.fullmatch(r"[0-9a-f]{20}", path.stem) is not None and path.is_dir()


def _map(path: Path, shape: tuple[int, ...], dtype: torch.dtype, *, shared: bool) -> Tensor:
    """A file as a tensor: a new one to be filled (``shared``), or one to be read."""
    if shared:
        with path.open("wb") as file:  # from_file would make it unreadable to a user's group
            size = math.prod(shape) * dtype.itemsize
            file.truncate(size)
            if size and hasattr(os, "posix_fallocate"):
                # Room is taken now: on a full disk, filling the tensor would kill the process.
                os.posix_fallocate(file.fileno(), 0, size)
    flat = torch.from_file(str(path), shared=shared, size=math.prod(shape), dtype=dtype)
    return flat.view(shape)


def bytes_of(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> int:
    """Bytes of features of these shapes."""
    return sum(math.prod(shape) for shape in shapes.values()) * dtype.itemsize


def size_of(features: Features) -> int:
    """Bytes of kept features."""
    return sum(tensor.numel() * tensor.element_size() for tensor in features.values())
