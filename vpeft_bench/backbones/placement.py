"""What a method placed on a backbone, put in the place of something, or changed the values of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain

from torch import Tensor, nn

from vpeft_bench.backbones.joined import JoinedLinear


@dataclass(frozen=True)
class Placement:
    """A module that a method placed: in the slot ``host.<slot>``, or in the place of ``host``.

    Attributes:
        path: its name in the model.
        replaces: it stands in the place of ``host``, whose name in its parent is ``slot``.
    """

    host: nn.Module
    slot: str
    module: nn.Module
    path: str
    replaces: bool = False


@dataclass(frozen=True)
class Replacement:
    """A child of timm's, and what stands in its place."""

    host: nn.Module
    name: str
    original: nn.Module
    module: nn.Module


class ChangedParameters:
    """Parameters of the model itself that a method changes: trains, or rewrites.

    Attributes:
        parameters: by name in the plain model.
        originals: their values as they were; none where no copies were kept.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter] | None = None) -> None:
        self.parameters = dict(parameters or {})
        self.originals: dict[str, Tensor] = {}
        self._away: dict[nn.Parameter, tuple[Tensor, bool]] = {}

    def keep_originals(self) -> None:
        """Copy the values in main memory, so that the accelerator does not hold them twice."""
        for name, parameter in self.parameters.items():
            original = parameter.detach()
            copied = original.clone() if original.is_meta else original.to("cpu", copy=True)
            self.originals[name] = copied

    def value(self, parameter: nn.Parameter) -> Tensor:
        """What the method made of ``parameter``, also while that is out of the model."""
        return self._away[parameter][0] if parameter in self._away else parameter

    def take_out(self) -> None:
        """Give the model its own values back; what the method made of them waits here."""
        for name, original in self.originals.items():
            parameter = self.parameters[name]
            self._away[parameter] = (parameter.data, parameter.requires_grad)
            parameter.data = original.to(parameter.device, parameter.dtype)
            parameter.requires_grad_(False)
            parameter.grad = None

    def put_in(self) -> None:
        """Undo :meth:`take_out`."""
        for name, parameter in self.parameters.items():
            value, required_grad = self._away.pop(parameter)
            self.originals[name] = parameter.data
            parameter.data = value.to(parameter.device, parameter.dtype)
            parameter.requires_grad_(required_grad)

    def leave(self) -> None:
        """Leave the values in the model, as its own, and frozen."""
        for parameter in self.parameters.values():
            parameter.requires_grad_(False)
            parameter.grad = None


def join(module: nn.Module, host: nn.Module) -> None:
    """Bring ``module`` to the device, type and mode of what stands at ``host``."""
    like = _like(host)
    module.to(device=like.device, dtype=like.dtype).train(host.training)


def follow(module: nn.Module, host: nn.Module) -> None:
    """As :func:`join`, at no cost where nothing changed while ``module`` was out of the model."""
    like = _like(host)
    for own in chain(module.parameters(), module.buffers()):
        if own.device != like.device or (own.is_floating_point() and own.dtype != like.dtype):
            join(module, host)
            return
    if module.training is not host.training:
        module.train(host.training)


def _like(host: nn.Module) -> Tensor:
    return next((host.pieces[0] if isinstance(host, JoinedLinear) else host).parameters())
