"""Pretrained weights: where they come from, whether they are there, loading them completely."""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
import re
import socket
import threading
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from safetensors import SafetensorError
from torch import nn

from vpeft_bench.backbones.checkpoint_files import (
    NotWeightsError,
    format_of,
    named_tensors,
    read_file,
)
from vpeft_bench.backbones.fitting import (
    AmbiguousError,
    backbone_tensors,
    choose,
    fits,
    notes,
    shortened,
    unsound,
)
from vpeft_bench.backbones.mismatch import differences
from vpeft_bench.errors import MissingWeightsError, Problem, WeightsMismatchError, nearest

HUB = "hub"
NONE = "none"
SUFFIXES = (".safetensors", ".npz", ".pth", ".pth.tar", ".pt", ".bin", ".ckpt")  # in any case
PART = re.compile(r"-\d{5}-of-\d{5}\.")  # of weights that the hub's clients store in several files
# What readers of damaged files raise: safetensors, pickle, zip, torch, NumPy, the system.
UNREADABLE = (
    SafetensorError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    zlib.error,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
# A run that cannot start must say so at once; timm and the hub would retry for about 50 s.
REACH_HUB_SECONDS = 2.5


@dataclass(frozen=True)
class WeightsSource:
    """Where a backbone's weights come from.

    Attributes:
        kind: "hub", "file", "package" (a file that comes with this package) or "none".
        name: hub repository, file path, or "none"; shown and recorded.
        path: the file, for the kinds "file" and "package".
    """

    kind: str
    name: str
    path: Path | None = None

    def identity(self) -> str:
        """What of the source belongs to the identity of a run: the hub id or the file's content."""
        if self.path is None:
            return self.name
        with self.path.open("rb") as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def weights_source(weights: str, model: str) -> WeightsSource:
    """The source that ``backbone.weights=...`` names, for the timm model ``model``.

    Args:
        weights: "hub", "none" or the path of a file.
        model: timm name; its pretrained configuration knows the hub repository, or a file that
            comes with the package.
    """
    if weights == NONE:
        return WeightsSource(NONE, NONE)
    if weights != HUB:
        return WeightsSource("file", weights, Path(weights).expanduser())
    config = _pretrained_config(model)
    if config.get("file"):
        return WeightsSource("package", model, Path(config["file"]))
    return WeightsSource(HUB, config.get("hf_hub_id") or "")


def check_weights(weights: str, model: str) -> list[Problem]:
    """What stands in the way of loading ``backbone.weights=weights``; empty if nothing does."""
    source = weights_source(weights, model)
    if source.path is not None:
        where = f"backbone.weights={weights}"
        try:
            return list(_check_file(where, source.path))
        except OSError as error:
            return [Problem(where, f"cannot be read: {error.strerror}")]
    if source.kind == NONE or _in_cache(source.name):
        return []
    if not source.name:
        fix = "backbone.weights=PATH for a local file, backbone.weights=none for random weights"
        return [Problem("backbone.weights=hub", f"timm knows no weights for {model}", fix)]
    if not _hub_reachable():
        return [_missing(source.name)]
    return []


def _check_file(where: str, path: Path) -> Iterator[Problem]:
    if path.is_dir():
        inside = sorted(p for p in path.iterdir() if p.name.lower().endswith(SUFFIXES))
        fix = "\n".join(f"backbone.weights={p}" for p in inside[:3])
        if any(PART.search(p.name) for p in inside):
            fix = "weights in several parts are not read: save them as one file"
        yield Problem(where, "is a folder", fix or "name a file of weights")
    elif not path.name.lower().endswith(SUFFIXES):
        valid = f"hub, none, or a file ending in {' '.join(SUFFIXES)}"
        yield Problem(where, "is neither a checkpoint nor a source", f"valid: {valid}")
    elif not path.exists():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        close = nearest(path.name, siblings)
        fix = f"did you mean backbone.weights={path.parent / close}" if close else ""
        yield Problem(where, f"there is no file {path.absolute()}", fix)
    elif PART.search(path.name):
        fix = "save all of them as one file, and name that"
        yield Problem(where, "is one of several parts, and holds only some of the weights", fix)
    else:
        try:
            format_of(path)
        except NotWeightsError as error:
            yield Problem(where, str(error))


def _missing(repository: str) -> Problem:
    return Problem(
        "backbone.weights=hub",
        f"the weights {repository} are not in the local cache and the hub cannot be reached",
        f"on a machine with network: hf download {repository}\n"
        f"then copy its cache folder to {_cache_folder(repository)}\n"
        "or type backbone.weights=PATH for a local .safetensors, .npz or .pth file\n"
        "or type backbone.weights=none to run on random weights (marked so everywhere)",
    )


def _cache_folder(repository: str) -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"


def _in_cache(repository: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    names = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin")
    return bool(repository) and any(
        isinstance(try_to_load_from_cache(repository, name), str) for name in names
    )


def _hub_reachable() -> bool:
    """Whether the hub (or the proxy in front of it) answers a connection attempt soon."""
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        return False
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    address = os.environ.get("https_proxy") or os.environ.get("HTTPS_PROXY") or endpoint
    url = urlparse(address if "//" in address else f"//{address}")
    port = url.port or (80 if url.scheme == "http" else 443)
    answered = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection((url.hostname or "", port), timeout=REACH_HUB_SECONDS).close()
            answered.set()
        except OSError:
            pass

    # Name resolution has no timeout of its own: wait for the thread, not for the resolver.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(REACH_HUB_SECONDS)
    return answered.is_set()


@functools.cache
def _pretrained_config(model: str) -> dict[str, str]:
    import timm

    config = timm.get_pretrained_cfg(model)
    return config.to_dict() if config is not None else {}


def load_weights(model: nn.Module, source: WeightsSource) -> tuple[str, ...]:
    """Fill ``model`` from ``source``; the head keeps its fresh start.

    Returns:
        What was decided about the file, in words: which of several parts was taken, a prefix left
        out, tensors not used, sizes and kinds of numbers changed. Empty where nothing was.

    Raises:
        WeightsMismatchError: the file cannot be read, does not fill the backbone completely, holds
            tensors that the backbone does not have, or numbers that are not finite.
        MissingWeightsError: the hub could not be reached after all.
    """
    if source.kind == NONE:
        return ()
    groups = named_tensors(_read(source))
    if not groups:
        raise WeightsMismatchError(
            f"{source.name} cannot be read as weights: it holds no tensors with names"
        )
    own = backbone_tensors(model)
    found = fits(groups, model, own)
    try:
        chosen = choose(found)
    except AmbiguousError as error:
        raise WeightsMismatchError(f"{source.name}: {error}") from error
    if not chosen:
        why = differences(found, own)
        raise WeightsMismatchError(f"{source.name} does not fill the backbone exactly:\n{why}")
    fit, *others = chosen
    if problems := unsound(fit, own):
        raise WeightsMismatchError(f"{source.name} is not used: {', '.join(shortened(problems))}")
    model.load_state_dict(fit.state, strict=False)
    return tuple(notes(fit, others))


def _read(source: WeightsSource) -> Any:
    """What the file or the hub holds; see :func:`read_file`."""
    try:
        if source.path is not None:
            return read_file(source.path)
        from timm.models import load_state_dict_from_hf

        return load_state_dict_from_hf(source.name, weights_only=True)
    except NotWeightsError as error:
        raise WeightsMismatchError(f"{source.name} {error}") from error
    except UNREADABLE as error:
        if source.path is None and isinstance(error, OSError):  # as the hub's client raises them
            raise MissingWeightsError([_missing(source.name)]) from error
        again = "fetch it again"
        if source.path is None:
            again = f"type hf download --force-download {source.name}"
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise WeightsMismatchError(
            f"{source.name} cannot be read as weights: {reason} (an incomplete copy? {again})"
        ) from error
