"""Which tensors of a file fill a backbone: under which keys and prefix, and what else would not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vpeft_bench.backbones.checkpoint_files import Inert, not_finite
from vpeft_bench.backbones.foreign_names import State, to_timm
from vpeft_bench.formats import counted

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# Left in names by torch's wrappers (compile, FSDP, activation checkpointing), wherever they sit.
WRAPPERS = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Which part to take where several fill the backbone with different values, the first found wins;
# averaged weights ("ema" in a key or prefix) before all of them, as timm's load_checkpoint.
PREFERRED = (
    "teacher",  # DINO, iBOT: what their evaluation loads
    "base_encoder",  # MoCo v3
    "encoder_q",  # MoCo v1 and v2
    "encoder",  # I-JEPA: as timm's filter
    "backbone",
    "state_dict",
    "model",
)


@dataclass(frozen=True)
class Fit:
    """What a part of a file gives a backbone.

    Attributes:
        group: keys that lead to the part in the file; "" for all of a bare state dict.
        prefix: what its names begin with, and the backbone's do not.
        state: the tensors below the prefix under timm's names, head and decoder left out.
        missing: names of the backbone that it does not have, as the file would call them.
        unexpected: names that the backbone does not have.
        misshapen: names of both, with shapes in the file and in the backbone.
        unused: names of the group that do not carry the prefix, or served pretraining only.
        resampled: what timm changed the size of, in words.
        wrapped: whether torch's wrappers had left words in the names.
        error: what timm's filter raised.
    """

    group: str
    prefix: str
    state: State
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    unused: tuple[str, ...]
    resampled: tuple[str, ...]
    wrapped: bool
    error: str

    @property
    def complete(self) -> bool:
        """Whether it fills the backbone exactly."""
        return not (self.missing or self.unexpected or self.misshapen)

    @property
    def words(self) -> str:
        """The part as a user would name it."""
        return ".".join(part for part in (self.group, self.prefix.rstrip("./")) if part)

    @property
    def rank(self) -> int:
        """Its place among parts that all fill the backbone; small is preferred."""
        keys = re.split(r"[./]", f"{self.group}.{self.prefix}".lower())
        if any("ema" in key.split("_") for key in keys):
            return -1
        return next((i for i, name in enumerate(PREFERRED) if name in keys), len(PREFERRED))


def fits(
    groups: Mapping[str, Mapping[str, Tensor | Inert]], model: nn.Module, own: State
) -> list[Fit]:
    """Every part of a file, by group and prefix, held against the backbone.

    Args:
        own: what a file must fill, by :func:`backbone_tensors`.
    """
    found: list[Fit] = []
    for group, entries in groups.items():
        plain = {WRAPPERS.sub("", name): value for name, value in entries.items()}
        wrapped = plain.keys() != entries.keys()
        found += [_fit(group, prefix, plain, model, own, wrapped) for prefix in _prefixes(plain)]
    return found


def backbone_tensors(model: nn.Module) -> State:
    """What a file must fill: every tensor but the head's."""
    return {n: t for n, t in model.state_dict().items() if not _left_out(n, model)}


def _prefixes(names: Iterable[str]) -> list[str]:
    """Everything that ends in a dot or slash and begins a name; the empty prefix first."""
    prefixes = {"": None}
    for name in names:
        prefixes |= {name[: found.end()]: None for found in re.finditer(r"[./]", name)}
    return list(prefixes)


def _fit(
    group: str,
    prefix: str,
    entries: Mapping[str, Tensor | Inert],
    model: nn.Module,
    own: State,
    wrapped: bool,
) -> Fit:
    inner = {n[len(prefix) :]: t for n, t in entries.items() if n.startswith(prefix)}
    tensors = {name: t for name, t in inner.items() if isinstance(t, Tensor)}
    state, error = tensors, ""
    own_names: dict[str, str] = {}
    resampled: tuple[str, ...] = ()
    try:
        translation = to_timm(tensors, model)
    except Exception as caught:  # whatever timm's filters raise on what they did not expect
        error = f"{type(caught).__name__}: {caught}".partition("\n")[0]
    else:
        state, own_names = translation.state, translation.own_names
        resampled = tuple(
            f"{name} fitted from {a} to {b}, as timm does" for name, a, b in translation.resampled
        )
    state = {name: tensor for name, tensor in state.items() if not _left_out(name, model)}
    misshapen = {
        name: (tuple(tensor.shape), tuple(own[name].shape))
        for name, tensor in state.items()
        if name in own and tensor.shape != own[name].shape
    }
    missing = []
    for name in own:
        if name not in state:
            stored = inner.get(name)
            kind = f" (a {stored.path}, no plain tensor)" if isinstance(stored, Inert) else ""
            missing.append(own_names.get(name, name) + kind)
    return Fit(
        group,
        prefix,
        state,
        tuple(missing),
        tuple(name for name in state if name not in own),
        misshapen,
        tuple(n for n in entries if not n.startswith(prefix) or _pretraining(n[len(prefix) :])),
        resampled,
        wrapped,
        error,
    )


def _left_out(name: str, model: nn.Module) -> bool:
    """Whether a tensor is the head's, or served pretraining only."""
    return re.split(r"[./]", name)[0] in (*_heads(model), "pre_logits") or _pretraining(name)


def _pretraining(name: str) -> bool:
    """Whether a tensor only served pretraining: masking (iBOT, DINOv2), a decoder (MAE, SimMIM)."""
    return re.match(r"(mask_token|masked_embed|decoder(_\w+)?)([./]|$)", name) is not None


def _heads(model: Any) -> list[str]:
    """The modules that timm calls the classifier, built or not."""
    classifier = model.pretrained_cfg.get("classifier") or "head"
    names = [classifier] if isinstance(classifier, str) else classifier
    return [name.partition(".")[0] for name in names]


class AmbiguousError(Exception):
    """Several parts of a file fill the backbone with different values."""


def choose(found: Sequence[Fit]) -> tuple[Fit, ...]:
    """The part to take, then the others that fill the backbone with other values.

    Empty where none fills it.

    Raises:
        AmbiguousError: nothing says which of several parts is meant.
    """
    complete: list[Fit] = []
    for fit in found:
        if fit.complete and not any(_same(fit.state, other.state) for other in complete):
            complete.append(fit)
    complete.sort(key=lambda fit: fit.rank)
    if len(complete) > 1 and complete[0].rank == complete[1].rank:
        parts = " and ".join(fit.words for fit in complete if fit.rank == complete[0].rank)
        raise AmbiguousError(
            f"{parts} fill the backbone with different values, and nothing says which is meant; "
            "save that part in a file of its own"
        )
    return tuple(complete)


def _same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(
        t is b[n] or (t.dtype == b[n].dtype and torch.equal(t, b[n])) for n, t in a.items()
    )


# ---- what is told --------------------------------------------------------------------------------


def notes(fit: Fit, others: Sequence[Fit]) -> list[str]:
    """What was decided about a file that fills the backbone, in words; empty where nothing was."""
    told = []
    if others:
        told.append(f"took {fit.words}, not {', '.join(other.words for other in others)}")
    elif fit.prefix and fit.group:
        told.append(f"took {fit.group}")
    if fit.prefix:
        told.append(f'prefix "{fit.prefix}" left out')
    if fit.wrapped:
        told.append("names of torch's wrappers left out")
    if fit.unused and not others:
        tops = dict.fromkeys(re.split(r"[./]", name)[0] for name in fit.unused)
        unused = counted(len(fit.unused), "tensor")
        told.append(f"{unused} of {', '.join(shortened([*tops]))} not used")
    told += shortened(fit.resampled)
    kinds = {t.dtype for t in fit.state.values() if t.dtype in FLOATS} - {torch.float32}
    for kind in sorted(map(_kind, kinds)):
        told.append("float64 rounded to float32" if kind == "float64" else f"stored in {kind}")
    return told


def unsound(fit: Fit, own: State) -> list[str]:
    """What the tensors hold that no computation may start from, with the names.

    Args:
        own: the backbone's tensors; where they are integers, the file's may be.
    """
    hollow: list[str] = []
    kinds: dict[torch.dtype, list[str]] = {}
    for name, tensor in fit.state.items():
        if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized:
            hollow.append(f"{name} is no plain tensor with values")
        elif tensor.dtype not in FLOATS and own[name].is_floating_point():
            kinds.setdefault(tensor.dtype, []).append(name)
    quantised = [
        f"{counted(len(names), 'tensor')} of kind {_kind(dtype)}, first {names[0]}: quantised "
        "weights are not read"
        for dtype, names in kinds.items()
    ]
    if problems := hollow + quantised or not_finite(fit.state):
        return problems
    matrices = [tensor for tensor in fit.state.values() if tensor.ndim > 1 and tensor.numel() > 1]
    if matrices and all(bool((tensor == tensor.flatten()[0]).all()) for tensor in matrices):
        return ["every matrix in it holds one value: it was saved before it was filled"]
    return []


def _kind(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def shortened(lines: Sequence[str], most: int = 4) -> list[str]:
    """The first of the lines, and how many more there are."""
    more = len(lines) - most
    return [*lines[:most], f"... and {more} more"] if more > 1 else list(lines)
