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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vpeft_bench.backbones import Backbone, block_map
from vpeft_bench.backbones.block_map import fingerprint
from vpeft_bench.backbones.checkpoint_files import not_finite
from vpeft_bench.errors import (
    AlreadyAttachedError,
    DeltaMismatchError,
    NotMergeableError,
    NotSelectedError,
)
from vpeft_bench.methods.base import Method
from vpeft_bench.methods.data_pass import BatchData, Selection, SelectionData, same_selection
from vpeft_bench.methods.registry import build_method, checked
from vpeft_bench.tensor_files import save_tensors

HEADER_KEY = "vpeft_bench"
DELTA_FORMAT = "vpeft_bench delta 1"
_MARK = "_vpeft_bench_attached"
_SELECTION = "selection."


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


def attach(
    model: nn.Module,
    method: str | Method,
    *,
    data: SelectionData | Iterable[Sequence[Tensor]] | None = None,
    **options: Any,
) -> Attached:
    """Attach a method to ``model``, in place.

    Every original parameter outside the head is frozen, except those the method itself trains. The
    head is left as it is: it is never part of a method.

    Args:
        model: a timm model with a block map (``python -m vpeft_bench backbones`` lists them).
        method: a name, see :func:`vpeft_bench.list_methods`; or a method itself.
        data: batches ``(images, labels)`` for a method that looks at training data before it is
            placed (as :meth:`Attached.select`); ignored by all others.
        options: the hyper-parameters of a method that is given by name.

    Raises:
        TypeError: options beside a method that has its own.
        MethodOptionError: unknown method or option, wrong type, value out of range.
        UnsupportedBackboneError: no block map, or the method needs what it has not.
        AlreadyAttachedError: the model carries a method; detach or merge it first.
    """
    if isinstance(method, Method):
        if options:
            raise TypeError(f"{method.name} has its options already: {', '.join(options)}")
        method = checked(method)
    else:
        method = build_method(method, options)
    attached = attach_method(model, method)
    if data is not None and attached.method.selects:
        attached.select(data)
    return attached


def attach_method(model: nn.Module, method: Method, *, detachable: bool = True) -> Attached:
    """As :func:`attach`, with a method that is built already.

    Args:
        detachable: keep copies of the original parameters that the method trains; without them it
            cannot be taken off again, and their memory is not needed.
    """
    if (carried := getattr(model, _MARK, None)) is not None:
        raise AlreadyAttachedError(f"the model carries {carried}; call detach() or merge() first")
    backbone = block_map(model)
    method.check(backbone)
    return Attached(model, method, backbone, detachable)


class Attached:
    """A timm model with a method attached to it.

    Attributes:
        model: the timm model, changed in place.
        method: the method with its hyper-parameters.
        backbone: the model's block map.
    """

    def __init__(
        self, model: nn.Module, method: Method, backbone: Backbone, detachable: bool = True
    ) -> None:
        self.model = model
        self.method = method
        self.backbone = backbone
        originals = dict(backbone.named_parameters())
        self._required_grad = {name: p.requires_grad for name, p in originals.items()}
        self._detachable = detachable
        self._saved: dict[str, Tensor] = {}
        self._trainable: dict[str, nn.Parameter] = {}
        self._stored_frozen: list[str] = []
        self._attached = True
        self._placed = False
        head_names = self._head_names()
        self._base_names = [name for name in model.state_dict() if name not in head_names]
        self.selection: Selection | None = None
        for parameter in originals.values():
            parameter.requires_grad_(False)
        setattr(model, _MARK, method.name)
        if not method.selects:
            self._place()

    def _place(self) -> None:
        """Let the method unfreeze and place what it trains; on any error, nothing is left of it."""
        method, backbone = self.method, self.backbone
        originals = dict(backbone.named_parameters())
        try:
            unfrozen = set(method.unfrozen(backbone))
            # The originals of what the method changes in place: detach() must give them back.
            kept = unfrozen | set(method.rewritten(backbone))
            if self._detachable:
                self._saved = {n: _copy(p) for n, p in originals.items() if p in kept}
            for parameter in unfrozen:
                parameter.requires_grad_(True)
            if self.selection is None:
                method.place(backbone)
            else:
                method.place_selected(backbone, self.selection)
        except Exception:  # whatever a method raises, the model is given back as it was
            self._restore()
            raise
        placed = {p for placement in backbone.placements for p in placement.module.parameters()}
        trained = {p for p in placed if p.requires_grad} | unfrozen
        self._trainable = {n: p for n, p in backbone.named_parameters() if p in trained}
        # What is placed and not trained, each tensor once, and what placing changed.
        seen = trained | (set(backbone.original_tensors().values()) - kept)
        for placement in backbone.placements:
            for name, tensor in placement.module.state_dict(keep_vars=True).items():
                if tensor not in seen:
                    self._stored_frozen.append(f"{placement.path}.{name}")
                    seen.add(tensor)
        self._placed = True

    def _head_names(self) -> set[str]:
        head = set(self.backbone.head.parameters()) | set(self.backbone.head.buffers())
        state = self.model.state_dict(keep_vars=True)
        return {name for name, tensor in state.items() if tensor in head}

    def select(self, data: SelectionData | Iterable[Sequence[Tensor]]) -> None:
        """Let the method look at training data, then place it; for methods with ``selects``.

        Args:
            data: batches ``(images, labels)``, normalised, on the model's device (two views per
                picture, ``(first, second, labels)``, for GPS), or a :class:`SelectionData`.
        """
        self._require_unselected()
        source = data if hasattr(data, "training") else BatchData(data)  # type: ignore[arg-type]
        device = next(self.model.parameters()).device
        try:
            # What is placed starts with the same random numbers as from a stored selection.
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                selection = self.method.select(self.backbone, source)  # type: ignore[arg-type]
        except Exception:
            self._restore()
            raise
        for parameter in self.backbone.model.parameters():
            parameter.grad = None
        self.place_selection(selection)

    def place_selection(self, selection: Selection) -> None:
        """Place a method with ``selects`` by what an earlier data pass decided.

        Whatever the method raises where that does not fit the model, nothing is placed then.
        """
        self._require_unselected()
        self.selection = selection
        try:
            self._place()
        except Exception:
            self._place_again(None)
            raise

    def _require_unselected(self) -> None:
        self._require_attached()
        if not self.method.selects:
            raise NotSelectedError(f"method {self.method.name} selects nothing from data")
        if self._placed:
            raise AlreadyAttachedError(f"{self.method.name} has selected already; detach() first")

    # ---- what is trained -----------------------------------------------------------------------

    def named_trainable_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What the method trains, by name in the model; without the head."""
        self._require_selected()
        return iter(self._trainable.items())

    def trainable_parameters(self) -> list[nn.Parameter]:
        """What the method trains, for an optimizer; without the head."""
        self._require_selected()
        return list(self._trainable.values())

    def head_parameters(self) -> list[nn.Parameter]:
        """Parameters of the classifier."""
        return list(self.backbone.head.parameters())

    def parameter_counts(self) -> ParameterCounts:
        """Trainable parameters of method, head and both, and the size of the whole model."""
        self._require_selected()
        method = sum(p.numel() for p in self._trainable.values())
        head = sum(p.numel() for p in self.head_parameters() if p.requires_grad)
        model = sum(p.numel() for p in self.model.parameters())
        return ParameterCounts(method=method, head=head, total=method + head, model=model)

    def before_step(self, step: int, steps: int) -> None:
        """To be called in front of training step ``step`` of ``steps``, counted from 0."""
        self.method.before_step(self.backbone, step, steps)

    def after_step(self, step: int, steps: int) -> None:
        """To be called behind the optimizer's step, before the gradients are cleared."""
        self.method.after_step(self.backbone, step, steps)

    def step_state(self) -> dict[str, Any]:
        """What the step hooks remember outside the model, for training to be taken up again."""
        return self.method.step_state(self.backbone)

    def load_step_state(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`step_state` gave."""
        self.method.load_step_state(self.backbone, state)

    def penalty(self) -> Tensor | None:
        """A term that the method adds to the training loss (AdaLoRA's), or None."""
        return self.method.penalty(self.backbone)

    # ---- delta checkpoints ---------------------------------------------------------------------

    def base_fingerprint(self) -> str:
        """SHA-256 of the pretrained weights below the head, as they were before training."""
        self._require_attached()
        state = self.backbone.original_tensors() | self._saved
        return fingerprint((name, state[name]) for name in self._base_names)

    def save(self, path: str | os.PathLike[str]) -> int:
        """Write the delta checkpoint (safetensors): what the method trained and stores.

        Returns:
            Its size in bytes.
        """
        self._require_attached()
        self._require_selected()
        path = Path(path)
        save_tensors(self._stored(), path, {HEADER_KEY: self._header_text()})
        return path.stat().st_size

    def stored_bytes(self) -> int:
        """Bytes of the tensors in the delta checkpoint, without the header of the file."""
        self._require_selected()
        return sum(t.numel() * t.element_size() for t in self._stored().values())

    def load(self, path: str | os.PathLike[str]) -> None:
        """Fill the method's tensors from a delta checkpoint; all of them or none.

        Raises:
            DeltaMismatchError: not a delta checkpoint, or one of another method, other options,
                other base weights, other tensors or numbers that are not finite.
        """
        self._require_attached()
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {}).get(HEADER_KEY, "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if not isinstance(header, dict):
                raise ValueError("its header is no JSON object")
        except (SafetensorError, OSError, ValueError) as error:
            raise DeltaMismatchError(
                f"{path} cannot be read as a delta checkpoint: {error}"
            ) from error
        differences = [
            f"{key}: file {header.get(key, 'nothing')}, model {value}"
            for key, value in self._header().items()
            if header.get(key) != value and not self._same_options(key, header)
        ]
        if differences:
            raise _not_ours(path, differences)
        if self.method.selects:
            self._load_selection(path, tensors)
        own = self._stored()
        if differences := _differences(tensors, own):
            raise _not_ours(path, differences)
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(tensors[name])

    def _load_selection(self, path: str | os.PathLike[str], tensors: dict[str, Tensor]) -> None:
        """Place what the file's data pass selected; the model as it was where that fails."""
        chosen = {n[len(_SELECTION) :]: t for n, t in tensors.items() if n.startswith(_SELECTION)}
        if self.selection is not None and same_selection(chosen, self.selection):
            return
        before = (self.selection, {n: t.detach().clone() for n, t in self._stored().items()})
        device = next(self.model.parameters()).device
        try:
            self._place_again({name: tensor.to(device) for name, tensor in chosen.items()})
            differences = _differences(tensors, self._stored())
        except (LookupError, ValueError, TypeError, RuntimeError) as error:
            differences = [f"its selection does not fit: {error}"]
        if differences:
            self._place_again(before[0])
            with torch.no_grad():
                for name, tensor in self._stored().items():
                    tensor.copy_(before[1][name])
            raise _not_ours(path, differences)

    def _place_again(self, selection: Selection | None) -> None:
        """Take off what is placed, and place what ``selection`` says; nothing where it is None."""
        required_grad, mark = self._required_grad, getattr(self.model, _MARK, self.method.name)
        self._restore()
        self._attached = True
        self._required_grad = required_grad
        for _, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(False)
        setattr(self.model, _MARK, mark)
        self.selection = selection
        if selection is not None:
            self._place()

    def _stored(self) -> dict[str, Tensor]:
        state = self.model.state_dict(keep_vars=True)
        frozen = {name: state[name] for name in sorted(self._stored_frozen)}
        selected = {f"{_SELECTION}{n}": t for n, t in (self.selection or {}).items()}
        return {**self._trainable, **frozen, **selected}

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

    def _same_options(self, key: str, header: dict[str, str]) -> bool:
        """Whether ``key`` holds options that differ only by some that change nothing here."""
        if key != "options" or header.get("method") != self.method.name:
            return False
        try:
            stored = json.loads(header[key])
        except (KeyError, TypeError, ValueError):
            return False
        try:
            then = type(self.method)(**self.method.completed(stored))
        except TypeError:  # options of another version, or none at all
            return False
        return self._counted(then) == self._counted(self.method)

    def _counted(self, method: Method) -> dict[str, Any]:
        """The options that make the method what it is on this backbone."""
        uncounted = method.uncounted(self.backbone.family.traits)
        return {k: v for k, v in method.options().items() if k not in uncounted}

    # ---- leaving -------------------------------------------------------------------------------

    def merge(self) -> nn.Module:
        """Fold the method into the backbone's own weights and give back the plain timm model.

        Raises:
            NotMergeableError: says why; nothing is changed then.
        """
        self._require_attached()
        self._require_selected()
        reason = self.method.merge_refusal or "\n".join(self.method.obstacles(self.backbone))
        if reason:
            raise NotMergeableError(f"method {self.method.name} cannot be merged: {reason}")
        self.method.merge(self.backbone)
        self._saved.clear()  # the trained values stay
        self._restore()
        return self.model

    def detach(self) -> nn.Module:
        """Take the method off again: the original model, bit for bit."""
        self._require_attached()
        if not self._detachable:
            raise AlreadyAttachedError("attached with detachable=False: no originals were kept")
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
        self._stored_frozen = []
        self._saved = {}
        self._attached = False
        self._placed = False

    def _require_attached(self) -> None:
        if not self._attached:
            raise AlreadyAttachedError("the method was merged or detached; attach it again")

    def _require_selected(self) -> None:
        if self._attached and not self._placed:
            raise NotSelectedError(
                f"method {self.method.name} looks at training data before it is placed: call "
                "attached.select(batches), or attached.load(path) with an earlier selection"
            )

    def __repr__(self) -> str:
        if self._attached and not self._placed:
            return f"Attached({self.method}, nothing selected yet)"
        counts = asdict(self.parameter_counts())
        return f"Attached({self.method}, {', '.join(f'{k}={v:,}' for k, v in counts.items())})"


def _differences(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    differences = [f"missing tensor {name}" for name in own if name not in tensors]
    differences += [f"unexpected tensor {name}" for name in tensors if name not in own]
    for name in own:
        if (found := tensors.get(name)) is None:
            continue
        if found.shape != own[name].shape:
            differences.append(f"{name}: file {tuple(found.shape)}, model {tuple(own[name].shape)}")
        elif found.is_floating_point() != own[name].is_floating_point():
            differences.append(f"{name}: file {found.dtype}, model {own[name].dtype}")
    return differences or not_finite(tensors)


def _not_ours(path: str | os.PathLike[str], differences: list[str]) -> DeltaMismatchError:
    listing = "\n".join(f"  - {difference}" for difference in differences)
    return DeltaMismatchError(f"{path} does not belong to this model and method:\n{listing}")


def _copy(parameter: nn.Parameter) -> Tensor:
    """A copy kept in main memory, so that the accelerator does not hold the weights twice."""
    original = parameter.detach()
    return original.clone() if original.is_meta else original.to("cpu", copy=True)
