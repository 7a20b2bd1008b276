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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vpeft_bench.attaching import delta
from vpeft_bench.attaching.stacking import (
    MARK,
    Attachments,
    require_mergeable_first,
    require_stackable,
)
from vpeft_bench.backbones.block_map import fingerprint
from vpeft_bench.backbones.placement import ChangedParameters
from vpeft_bench.errors import AlreadyAttachedError, NotMergeableError, NotSelectedError
from vpeft_bench.methods.base import Method
from vpeft_bench.methods.data_pass import BatchData, Selection, SelectionData, same_selection
from vpeft_bench.methods.registry import build_method, checked
from vpeft_bench.tensor_files import save_tensors

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
    as_: str | None = None,
    data: SelectionData | Iterable[Sequence[Tensor]] | None = None,
    **options: Any,
) -> Attached:
    """Attach a method to ``model``, in place.

    Every original parameter outside the head is frozen, except those the method itself trains. The
    head is left as it is: it is never part of a method.

    Args:
        model: a timm model with a block map (``python -m vpeft_bench backbones`` lists them).
        method: a name, see :func:`vpeft_bench.list_methods`; or a method itself.
        as_: a name for the attachment, which a second one on the same model needs; that of the
            method by default. A further attachment is stacked on those that are enabled.
        data: batches ``(images, labels)`` for a method that looks at training data before it is
            placed (as :meth:`Attached.select`); ignored by all others.
        options: the hyper-parameters of a method that is given by name.

    Raises:
        TypeError: options beside a method that has its own.
        MethodOptionError: unknown method or option, wrong type, value out of range.
        UnsupportedBackboneError: no block map, or the method needs what it has not.
        AlreadyAttachedError: the model carries a method, and ``as_`` was not given or is taken.
        NotStackableError: it cannot work together with one that is enabled.
    """
    if isinstance(method, Method):
        if options:
            raise TypeError(f"{method.name} has its options already: {', '.join(options)}")
        method = checked(method)
    else:
        method = build_method(method, options)
    attached = attach_method(model, method, as_)
    if data is not None and attached.method.selects:
        try:
            attached.select(data)
        except BaseException:  # whoever asked for both at once has no attachment to try again with
            if attached.name in attached.carried:
                attached.detach()
            raise
    return attached


def attach_method(
    model: nn.Module, method: Method, as_: str | None = None, *, detachable: bool = True
) -> Attached:
    """As :func:`attach`, with a method that is built already.

    Args:
        detachable: keep copies of the original parameters that the method trains; without them it
            cannot be taken off again, and their memory is not needed.
    """
    carried: Attachments | None = getattr(model, MARK, None)
    name = as_ or method.name
    if carried is not None:
        carried.require_whole_batches()
    if carried is None:
        carried = Attachments(model)
    elif as_ is None:
        listed = ", ".join(carried)
        raise AlreadyAttachedError(
            f"the model carries {listed}; call detach() or merge() first, or name a further "
            f'attachment: attach(model, "{method.name}", as_="NAME")'
        )
    elif name in carried:
        raise AlreadyAttachedError(f"the model carries an attachment {name!r}; choose another name")
    try:
        method.check(carried.backbone)
        return Attached(carried, name, method, detachable)
    except BaseException:
        if name in carried:
            carried.leave(name)
        carried.end_if_empty()
        raise


class Attached:
    """A timm model with a method attached to it.

    Attributes:
        model: the timm model, changed in place.
        method: the method with its hyper-parameters.
        name: of the attachment, among those of the model.
        backbone: the model's block map, and what the method placed there.
        carried: all attachments of the model.
    """

    def __init__(
        self, carried: Attachments, name: str, method: Method, detachable: bool = True
    ) -> None:
        self.model = carried.model
        self.method = method
        self.name = name
        self.carried = carried
        self.backbone = carried.backbone.another()
        self._detachable = detachable
        self._trainable: dict[str, nn.Parameter] = {}
        self._stored_frozen: list[str] = []
        self._attached = True
        self._placed = False
        self.selection: Selection | None = None
        carried.add(name, self)
        if not method.selects:
            self._place()

    def _place(self) -> None:
        """Let the method unfreeze and place what it trains; on any error, nothing is left of it.

        It is placed on the plain model; then those that were there before are put in as well.
        """
        method, backbone = self.method, self.backbone
        others = [other for other in self.carried.enabled if other != self.name]
        self.carried.arrange(())
        originals = dict(backbone.named_parameters())
        try:
            unfrozen = set(method.unfrozen(backbone))
            # The originals of what the method changes in place: detach() must give them back.
            kept = unfrozen | set(method.rewritten(backbone))
            backbone.changed = ChangedParameters({n: p for n, p in originals.items() if p in kept})
            if self._detachable:
                backbone.changed.keep_originals()
            for parameter in unfrozen:
                parameter.requires_grad_(True)
            if self.selection is None:
                method.place(backbone)
            else:
                method.place_selected(backbone, self.selection)
            for other in others:
                require_stackable(self.carried[other], self)
        except Exception:  # whatever a method raises, the model is given back as it was
            backbone.take_out()
            self._forget()
            self.selection = None
            self.carried.arrange(others)
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
        self.carried.entered(self.name)
        if others:
            self.carried.arrange([*others, self.name])

    def select(self, data: SelectionData | Iterable[Sequence[Tensor]]) -> None:
        """Let the method look at training data, then place it; for methods with ``selects``.

        It looks at the plain model, without other attachments.

        Args:
            data: batches ``(images, labels)``, normalised, on the model's device (two views per
                picture, ``(first, second, labels)``, for GPS), or a :class:`SelectionData`.
        """
        self._require_unselected()
        source = data if hasattr(data, "training") else BatchData(data)  # type: ignore[arg-type]
        device = next(self.model.parameters()).device
        others = self.carried.enabled
        self.carried.arrange(())
        try:
            # What is placed starts with the same random numbers as from a stored selection.
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                selection = self.method.select(self.backbone, source)  # type: ignore[arg-type]
        except Exception:
            self.backbone.clear()  # what a search may have placed
            self._leave()
            raise
        finally:
            self.carried.arrange(others)
        for parameter in self.backbone.model.parameters():
            parameter.grad = None
        self.place_selection(selection)

    def place_selection(self, selection: Selection) -> None:
        """Place a method with ``selects`` by what an earlier data pass decided.

        Whatever the method raises where that does not fit the model, nothing is placed then.
        """
        self._require_unselected()
        self.selection = selection
        self._place()

    def _require_unselected(self) -> None:
        self._require_attached()
        if not self.method.selects:
            raise NotSelectedError(f"method {self.method.name} selects nothing from data")
        if self._placed:
            raise AlreadyAttachedError(f"{self.method.name} has selected already; detach() first")

    # ---- in the model and out of it ------------------------------------------------------------

    @property
    def enabled(self) -> bool:
        """Whether it is in the model."""
        return self._attached and self.name in self.carried.enabled

    def enable(self) -> None:
        """Put it into the model, beside those that are there.

        Raises:
            NotStackableError: it cannot work together with one of them.
        """
        self._require_attached()
        self.carried.only(*self.carried.enabled, self.name)

    def disable(self) -> None:
        """Take it out of the model; what it trained is kept, for :meth:`enable`."""
        self._require_attached()
        self.require_placed()
        self.carried.arrange([name for name in self.carried.enabled if name != self.name])

    @property
    def label(self) -> str:
        """Name and method, for messages."""
        same = self.name == self.method.name
        return self.name if same else f"{self.name!r} ({self.method.name})"

    # ---- what is trained -----------------------------------------------------------------------

    def named_trainable_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What the method trains, without the head, by name in the model where it stands alone."""
        self.require_placed()
        return iter(self._trainable.items())

    def trainable_parameters(self) -> list[nn.Parameter]:
        """What the method trains, for an optimizer; without the head."""
        self.require_placed()
        return list(self._trainable.values())

    def head_parameters(self) -> list[nn.Parameter]:
        """Parameters of the classifier."""
        return list(self.backbone.head.parameters())

    def parameter_counts(self) -> ParameterCounts:
        """Trainable parameters of method, head and both, and the size of the whole model."""
        self.require_placed()
        method = sum(p.numel() for p in self._trainable.values())
        head = sum(p.numel() for p in self.head_parameters() if p.requires_grad)
        model = sum(p.numel() for p in self.model.parameters())
        return ParameterCounts(method=method, head=head, total=method + head, model=model)

    def before_step(self, step: int, steps: int) -> None:
        """To be called before training step ``step`` of ``steps``, counted from 0."""
        self.method.before_step(self.backbone, step, steps)

    def after_step(self, step: int, steps: int) -> None:
        """To be called after the optimizer's step, before the gradients are cleared."""
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
        return fingerprint(self.carried.base_tensors())

    def save(self, path: str | os.PathLike[str]) -> int:
        """Write the delta checkpoint (safetensors): what the method trained and stores.

        Returns:
            Its size in bytes.
        """
        self._require_attached()
        self.require_placed()
        path = Path(path)
        header = delta.header(self.method, self.base_fingerprint())
        # One entry: safetensors writes several in random order, and equal deltas are equal files.
        text = json.dumps(header, sort_keys=True)
        save_tensors(self._stored(), path, {delta.HEADER_KEY: text})
        return path.stat().st_size

    def stored_bytes(self) -> int:
        """Bytes of the tensors in the delta checkpoint, without the header of the file."""
        self.require_placed()
        return sum(t.numel() * t.element_size() for t in self._stored().values())

    def load(self, path: str | os.PathLike[str]) -> None:
        """Fill the method's tensors from a delta checkpoint; all of them or none.

        Raises:
            DeltaMismatchError: not a delta checkpoint, or one of another method, other options,
                other base weights, other tensors or numbers that are not finite.
        """
        self._require_attached()
        header, tensors = delta.read(path)
        expected = delta.header(self.method, self.base_fingerprint())
        traits = self.backbone.family.traits
        if found := delta.header_differences(header, expected, self.method, traits):
            raise delta.not_ours(path, found)
        if self.method.selects:
            self._load_selection(path, tensors)
        own = self._stored()
        if found := delta.differences(tensors, own):
            raise delta.not_ours(path, found)
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(tensors[name])

    def _load_selection(self, path: str | os.PathLike[str], tensors: dict[str, Tensor]) -> None:
        """Place what the file's data pass selected; the model as it was where that fails."""
        chosen = {n[len(_SELECTION) :]: t for n, t in tensors.items() if n.startswith(_SELECTION)}
        if self.selection is not None and same_selection(chosen, self.selection):
            return
        before = (self.selection, {n: t.detach().clone() for n, t in self._stored().items()})
        out, others = self._placed and not self.enabled, self.carried.enabled
        if out:
            self.carried.arrange(())
        device = next(self.model.parameters()).device
        try:
            self._place_again({name: tensor.to(device) for name, tensor in chosen.items()})
            found = delta.differences(tensors, self._stored())
        except (LookupError, ValueError, TypeError, RuntimeError) as error:
            found = [f"its selection does not fit: {error}"]
        if found:
            self._place_again(before[0])
            with torch.no_grad():
                for name, tensor in self._stored().items():
                    tensor.copy_(before[1][name])
        if out:
            self.carried.arrange(others)
        if found:
            raise delta.not_ours(path, found)

    def _place_again(self, selection: Selection | None) -> None:
        """Take off what is placed, and place what ``selection`` says; nothing where it is None."""
        self.carried.arrange([name for name in self.carried.enabled if name != self.name])
        self._forget()
        self.selection = selection
        if selection is not None:
            self._place()

    def _stored(self) -> dict[str, Tensor]:
        trained = {n: self.backbone.changed.value(p) for n, p in self._trainable.items()}
        state = {
            f"{placement.path}.{name}": tensor
            for placement in self.backbone.placements
            for name, tensor in placement.module.state_dict(keep_vars=True).items()
        }
        frozen = {name: state[name] for name in sorted(self._stored_frozen)}
        selected = {f"{_SELECTION}{n}": t for n, t in (self.selection or {}).items()}
        return {**trained, **frozen, **selected}

    # ---- leaving -------------------------------------------------------------------------------

    def merge(self) -> nn.Module:
        """Fold the method into the backbone's own weights and give the timm model back.

        Other attachments stay on it. What they stand on is then what came out of the merge.

        Raises:
            NotMergeableError: says why; nothing is changed then.
        """
        self._require_attached()
        self.require_placed()
        self.carried.require_whole_batches()
        reason = self.method.merge_refusal or "\n".join(self.method.obstacles(self.backbone))
        if reason:
            raise NotMergeableError(f"method {self.method.name} cannot be merged: {reason}")
        require_mergeable_first(self, self.carried)
        self.method.merge(self.backbone)
        self.backbone.changed.leave()
        self.backbone.changed, self._detachable = ChangedParameters(), True
        self._leave()
        return self.model

    def detach(self) -> nn.Module:
        """Take the method off again: the original model, bit for bit."""
        self._require_attached()
        self.require_detachable()
        self._leave()
        return self.model

    def require_detachable(self) -> None:
        """Refuse to take off what cannot be taken off.

        Raises:
            AlreadyAttachedError: no originals were kept.
        """
        if not self._detachable:
            raise AlreadyAttachedError("attached with detachable=False: no originals were kept")

    def _leave(self) -> None:
        self.carried.leave(self.name)
        self._forget()
        self._attached = False

    def _forget(self) -> None:
        """Nothing is placed any more; what was is out of the model."""
        self.backbone.forget()
        self._trainable, self._stored_frozen = {}, []
        self._placed = False
        self.carried.close_if_empty()

    def _require_attached(self) -> None:
        if not self._attached:
            raise AlreadyAttachedError("the method was merged or detached; attach it again")

    def require_placed(self) -> None:
        """Refuse what needs the method to be placed.

        Raises:
            NotSelectedError: it has yet to look at data.
        """
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
