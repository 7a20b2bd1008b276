"""Pretrained weights: where they come from, whether they are there, loading them completely."""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
import socket
import threading
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from vpeft_bench.errors import MissingWeightsError, Problem, WeightsMismatchError

HUB = "hub"
NONE = "none"
SUFFIXES = (".safetensors", ".npz", ".pth", ".pt", ".bin")
UNREADABLE = (
    SafetensorError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    RuntimeError,
    ValueError,
    TypeError,
    EOFError,
    OSError,
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
        if source.path.suffix not in SUFFIXES:
            valid = f"hub, none, or a file ending in {' '.join(SUFFIXES)}"
            return [Problem(where, "is neither a checkpoint nor a source", f"valid: {valid}")]
        if not source.path.is_file():
            return [Problem(where, f"there is no file {source.path.absolute()}")]
        return []
    if source.kind == NONE or _in_cache(source.name):
        return []
    if not source.name:
        fix = "backbone.weights=PATH for a local file, backbone.weights=none for random weights"
        return [Problem("backbone.weights=hub", f"timm knows no weights for {model}", fix)]
    if not _hub_reachable():
        return [_missing(source.name)]
    return []


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


def load_weights(model: nn.Module, source: WeightsSource) -> None:
    """Fill ``model`` from ``source``; the head keeps its fresh start.

    Raises:
        WeightsMismatchError: the checkpoint does not fill the backbone completely, or holds tensors
            that the backbone does not have; the message lists the names.
        MissingWeightsError: the hub could not be reached after all.
    """
    if source.kind == NONE:
        return
    if source.path is not None and source.path.suffix == ".npz":
        _load_npz(model, source.path)
        return
    state = _read(source)
    for wrapper in ("state_dict", "model", "module"):
        if isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]  # type: ignore[assignment]
    state = _to_timm_names(state, model)
    head = _head_names(model)
    state = {n: t for n, t in state.items() if n not in head and not n.startswith("pre_logits.")}
    own = model.state_dict()
    problems = [f"missing: {name}" for name in own if name not in state and name not in head]
    problems += [f"unexpected: {name}" for name in state if name not in own]
    problems += [
        f"{name}: file {tuple(tensor.shape)}, backbone {tuple(own[name].shape)}"
        for name, tensor in state.items()
        if name in own and tensor.shape != own[name].shape
    ]
    if problems:
        raise _mismatch(source, problems)
    model.load_state_dict(state, strict=False)


def _read(source: WeightsSource) -> dict[str, torch.Tensor]:
    """Names and tensors of a checkpoint; pickled objects other than tensors are refused."""
    if source.path is None:
        from timm.models import load_state_dict_from_hf

        try:
            return dict(load_state_dict_from_hf(source.name, weights_only=True))
        except OSError as error:  # the hub's client raises subclasses of it
            raise MissingWeightsError([_missing(source.name)]) from error
    try:
        if source.path.suffix == ".safetensors":
            return load_file(source.path)
        return dict(torch.load(source.path, map_location="cpu", weights_only=True))
    except UNREADABLE as error:
        reason = str(error).partition("\n")[0]
        raise WeightsMismatchError(
            f"{source.path} cannot be read as weights: {reason} (an incomplete copy? fetch it "
            "again; *.safetensors is read as such, all else by torch.load)"
        ) from error


def _to_timm_names(state: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Foreign names (original ViT, DINOv2, CLIP, Swin) and sizes, as timm's loader maps them."""
    from timm.models import swin_transformer, vision_transformer

    filters: dict[type[nn.Module], Callable[..., Mapping[str, torch.Tensor]]] = {
        vision_transformer.VisionTransformer: vision_transformer.checkpoint_filter_fn,
        swin_transformer.SwinTransformer: swin_transformer.checkpoint_filter_fn,
    }
    to_timm = filters.get(type(model))
    return dict(to_timm(state, model)) if to_timm else state


def _load_npz(model: nn.Module, path: Path) -> None:
    """The original JAX checkpoints, by timm's own reader; NaN marks what it leaves unfilled."""
    head = _head_names(model)
    fresh = {n: p.detach().clone() for n, p in model.named_parameters() if n in head}
    parameters = {n: p for n, p in model.named_parameters() if n not in head}
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.fill_(float("nan"))
    source = WeightsSource("file", str(path))
    try:
        model.load_pretrained(str(path))  # type: ignore[operator]
    except (KeyError, AttributeError, *UNREADABLE) as error:
        raise _mismatch(source, [f"timm's reader says: {error}"]) from error
    unfilled = [f"missing: {n}" for n, p in parameters.items() if torch.isnan(p).any()]
    if unfilled:
        raise _mismatch(source, unfilled)
    model.load_state_dict(fresh, strict=False)  # the reader fills a head of matching size as well


def _head_names(model: nn.Module) -> set[str]:
    head = set(model.get_classifier().parameters())  # type: ignore[operator]
    return {name for name, parameter in model.named_parameters() if parameter in head}


def _mismatch(source: WeightsSource, problems: list[str]) -> WeightsMismatchError:
    listing = "\n".join(f"  - {problem}" for problem in problems)
    return WeightsMismatchError(f"{source.name} does not fill the backbone exactly:\n{listing}")
