"""Attaching a method to a timm model, without the harness.

>>> import timm, vpeft_bench
>>> model = timm.create_model("vit_tiny_patch16_224", num_classes=10)
>>> attached = vpeft_bench.attach(model, "lora", rank=8)
>>> attached.parameter_counts().method
73728
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from vpeft_bench.backbones import Backbone, block_map
from vpeft_bench.backbones.block_map import fingerprint
from vpeft_bench.errors import AlreadyAttachedError, DeltaMismatchError, NotMergeableError
from vpeft_bench.methods.base import MergeableModule, Method
from vpeft_bench.methods.registry import build_method

HEADER_KEY = "vpeft_bench"
DELTA_FORMAT = "vpeft_bench delta 1"
_MARK = "_vpeft_bench_attached"


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters.

    Attributes:
        method: trained by the method, without the head.
        head: trained in the classifier.
        total: trained in all, ``method + head``.
        model: everything the model holds, frozen parameters included.
    """

    method: int
    head: int
    total: int
    model: int


def attach(model: nn.Module, name: str, **options: Any) -> Attached:
    """Attach the method ``name`` to ``model``, in place.

    Every original parameter outside the head is frozen, except those the method itself trains. The
    head is left as it is: it is never part of a method.

    Args:
        model: a timm model with a block map (``VisionTransformer``, ``SwinTransformer``).
        name: one of :func:`vpeft_bench.list_methods`.
        options: the method's hyper-parameters.

    Raises:
        MethodOptionError: unknown method or option, wrong type, value out of range.
        UnsupportedBackboneError: no block map, or the method is not defined on this family.
        AlreadyAttachedError: the model carries a method; detach or merge it first.
    """
    return attach_method(model, build_method(name, options))


def attach_method(model: nn.Module, method: Method) -> Attached:
    """As :func:`attach`, with a method that is built already."""
    if (carried := getattr(model, _MARK, None)) is not None:
        raise AlreadyAttachedError(f"the model carries {carried}; call detach() or merge() first")
    backbone = block_map(model)
    method.check(backbone)
    return Attached(model, method, backbone)


class Attached:
    """A timm model with a method attached to it.

    Attributes:
        model: the timm model, changed in place.
        method: the method with its hyper-parameters.
        backbone: the model's block map.
    """

    def __init__(self, model: nn.Module, method: Method, backbone: Backbone) -> None:
        self.model = model
        self.method = method
        self.backbone = backbone
        originals = dict(backbone.named_parameters())
        self._required_grad = {name: p.requires_grad for name, p in originals.items()}
        self._saved: dict[str, torch.Tensor] = {}
        self._trainable: dict[str, nn.Parameter] = {}
        self._attached = True
        head_names = self._head_names()
        self._base_names = [name for name in model.state_dict() if name not in head_names]
        for parameter in originals.values():
            parameter.requires_grad_(False)
        try:
            unfrozen = set(method.unfrozen(backbone))
            # The originals of what the method trains in place: detach() must give them back.
            self._saved = {n: _copy(p) for n, p in originals.items() if p in unfrozen}
            for parameter in unfrozen:
                parameter.requires_grad_(True)
            method.place(backbone)
        except Exception:  # whatever a method raises, the model is given back as it was
            self._restore()
            raise
        placed = {p for placement in backbone.placements for p in placement.module.parameters()}
        trained = placed | unfrozen
        self._trainable = {n: p for n, p in backbone.named_parameters() if p in trained}
        self._stored_buffers = {
            f"{placement.path}.{name}"
            for placement in backbone.placements
            for name in placement.module.state_dict()
        } - {n for n, _ in model.named_parameters(remove_duplicate=False)}
        setattr(model, _MARK, method.name)

    def _head_names(self) -> set[str]:
        head = set(self.backbone.head.parameters()) | set(self.backbone.head.buffers())
        state = self.model.state_dict(keep_vars=True)
        return {name for name, tensor in state.items() if tensor in head}

    # ---- what is trained -----------------------------------------------------------------------

    def named_trainable_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What the method trains, by name in the model; without the head."""
        return iter(self._trainable.items())

    def trainable_parameters(self) -> list[nn.Parameter]:
        """What the method trains, for an optimizer; without the head."""
        return list(self._trainable.values())

    def head_parameters(self) -> list[nn.Parameter]:
        """Parameters of the classifier."""
        return list(self.backbone.head.parameters())

    def parameter_counts(self) -> ParameterCounts:
        """Trainable parameters of method, head and both, and the size of the whole model."""
        method = sum(p.numel() for p in self._trainable.values())
        head = sum(p.numel() for p in self.head_parameters() if p.requires_grad)
        model = sum(p.numel() for p in self.model.parameters())
        return ParameterCounts(method=method, head=head, total=method + head, model=model)

    # ---- delta checkpoints ---------------------------------------------------------------------

    def base_fingerprint(self) -> str:
        """SHA-256 of the pretrained weights below the head, as they were before training."""
        self._require_attached()
        state = self.model.state_dict()
        return fingerprint((n, self._saved.get(n, state[n])) for n in self._base_names)

    def save(self, path: str | os.PathLike[str]) -> int:
        """Write the delta checkpoint (safetensors): what the method trained and stores.

        Returns:
            Its size in bytes.
        """
        self._require_attached()
        tensors = {name: t.detach().cpu().contiguous() for name, t in self._stored().items()}
        path = Path(path)
        temporary = path.with_name(f"{path.name}.tmp")
        save_file(tensors, temporary, metadata={HEADER_KEY: self._header_text()})
        os.replace(temporary, path)  # whole or not at all
        return path.stat().st_size

    def load(self, path: str | os.PathLike[str]) -> None:
        """Fill the method's tensors from a delta checkpoint; all of them or none.

        Raises:
            DeltaMismatchError: not a delta checkpoint, or one of another method, other options,
                other base weights or other tensors.
        """
        self._require_attached()
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {}).get(HEADER_KEY, "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise DeltaMismatchError(
                f"{path} cannot be read as a delta checkpoint: {error}"
            ) from error
        differences = [
            f"{key}: file {header.get(key, 'nothing')}, model {value}"
            for key, value in self._header().items()
            if header.get(key) != value
        ]
        own = self._stored()
        differences += [f"missing tensor {name}" for name in own if name not in tensors]
        differences += [f"unexpected tensor {name}" for name in tensors if name not in own]
        differences += [
            f"{name}: file {tuple(tensors[name].shape)}, model {tuple(own[name].shape)}"
            for name in own
            if name in tensors and tensors[name].shape != own[name].shape
        ]
        if differences:
            listing = "\n".join(f"  - {difference}" for difference in differences)
            raise DeltaMismatchError(f"{path} does not belong to this model and method:\n{listing}")
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(tensors[name])

    def _stored(self) -> dict[str, torch.Tensor]:
        state = self.model.state_dict(keep_vars=True)
        return {**self._trainable, **{name: state[name] for name in sorted(self._stored_buffers)}}

    def _header_text(self) -> str:
        # One entry: safetensors writes several in random order, and equal deltas are equal files.
        return json.dumps(self._header(), sort_keys=True)

    def _header(self) -> dict[str, str]:
        return {
            "format": DELTA_FORMAT,
            "method": self.method.name,
            "options": json.dumps(self.method.options(), sort_keys=True),
            "base_fingerprint": self.base_fingerprint(),
        }

    # ---- leaving -------------------------------------------------------------------------------

    def merge(self) -> nn.Module:
        """Fold the method into the backbone's own weights and give back the plain timm model.

        Raises:
            NotMergeableError: says why; nothing is changed then.
        """
        self._require_attached()
        reason = self.method.not_mergeable or "\n".join(self._obstacles())
        if reason:
            raise NotMergeableError(f"method {self.method.name} cannot be merged: {reason}")
        for placement in self.backbone.placements:
            assert isinstance(placement.module, MergeableModule)
            placement.module.merge_into(placement.host)
        self._saved.clear()  # the trained values stay
        self._restore()
        return self.model

    def _obstacles(self) -> Iterator[str]:
        for placement in self.backbone.placements:
            if not isinstance(placement.module, MergeableModule):
                yield f"{placement.path}: a {type(placement.module).__name__} cannot be folded"
            elif obstacle := placement.module.obstacle(placement.host):
                yield f"{placement.path}: {obstacle}"

    def detach(self) -> nn.Module:
        """Take the method off again: the original model, bit for bit."""
        self._require_attached()
        self._restore()
        return self.model

    def _restore(self) -> None:
        self.backbone.close()
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, original in self._saved.items():
                parameters[name].copy_(original)
        for name, required_grad in self._required_grad.items():
            parameters[name].requires_grad_(required_grad)
            parameters[name].grad = None
        if hasattr(self.model, _MARK):
            delattr(self.model, _MARK)
        self._trainable = {}
        self._attached = False

    def _require_attached(self) -> None:
        if not self._attached:
            raise AlreadyAttachedError("the method was merged or detached; attach it again")

    def __repr__(self) -> str:
        counts = asdict(self.parameter_counts())
        return f"Attached({self.method}, {', '.join(f'{k}={v:,}' for k, v in counts.items())})"


def _copy(parameter: nn.Parameter) -> torch.Tensor:
    """A copy kept in main memory, so that the accelerator does not hold the weights twice."""
    original = parameter.detach()
    return original.clone() if original.is_meta else original.to("cpu", copy=True)
