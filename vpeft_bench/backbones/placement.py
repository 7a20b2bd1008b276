"""What a method placed on a backbone, and what it put in the place of something."""

from __future__ import annotations

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
