"""The trunk: the sequence of blocks, with what enters it, passes between blocks and leaves it.

Some methods are no part of a block but a network around all of them: a ladder beside the frozen
trunk (LST, LAST, E3VA), a thin state carried along and added back late (DTL), tokens that come and
go (HST, NOAH). They are placed as one module on the opened model, which hands it the trunk.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vpeft_bench.backbones.sites import OpenedBlock


@dataclass
class Stage:
    """Blocks of one resolution.

    Attributes:
        merge: what stands before the first block: Swin's patch merging, else the identity.
        blocks: callables from stream to stream.
    """

    merge: Callable[[Tensor], Tensor]
    blocks: Sequence[OpenedBlock | BoundBlock]


@dataclass(frozen=True)
class BoundBlock:
    """A block together with what its attention takes beside the stream: positions.

    Attributes:
        arguments: from the stream that enters the block.
    """

    block: OpenedBlock
    arguments: Callable[[Tensor], Mapping[str, Tensor]]

    def __call__(self, x: Tensor) -> Tensor:
        """The stream through the block."""
        x = self.block(x, **self.arguments(x))
        return x

    def branches(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As those of the block."""
        return self.block.branches(x, **self.arguments(x))


@dataclass
class TrunkOutput:
    """What a module around the trunk gives back.

    Attributes:
        streams: the residual stream after every block, for the final norm (the last) and for dense
            decoders.
        features: ``(B, D')`` for the head, where they are no pooling of the last stream.
    """

    streams: list[Tensor]
    features: Tensor | None = None


class OpenedModel(nn.Module):
    """A whole model with the slot ``trunk``.

    The module there is called as ``trunk(images, x, model)``: the images ``(B, 3, H, W)``, the
    tokens that enter the first block, and this model, for :meth:`stages`, :meth:`run` and
    :meth:`pooled`. It returns a :class:`TrunkOutput`.
    """

    SLOTS: ClassVar[tuple[str, ...]] = ("trunk",)
    trunk: nn.Module | None

    # ---- what each family says -----------------------------------------------------------------
    # A module gets one of these classes later and is never made of it, so that a method left out
    # is noticed where it is called, and not by an abstract class.

    def embed(self, images: Tensor) -> Tensor:
        """Images to the tokens that enter the first block."""
        raise NotImplementedError

    def stages(self) -> list[Stage]:
        """The blocks in order, by resolution."""
        raise NotImplementedError

    def pooled(self, stream: Tensor) -> Tensor:
        """The last stream through final norm and pooling, ``(B, D)``: what the head reads."""
        raise NotImplementedError

    def classify(self, features: Tensor) -> Tensor:
        """Pooled features ``(B, D)`` to logits."""
        raise NotImplementedError

    def intermediates(self, x: Tensor, *args: Any, **options: Any) -> Any:
        """The streams as timm's ``forward_intermediates`` gives them, with the same options."""
        raise NotImplementedError

    def of_image(self, stream: Tensor) -> Tensor:
        """A stream without further tokens that pooling and feature maps would not leave out."""
        return stream

    # ---- running -------------------------------------------------------------------------------

    @property
    def runs_blocks(self) -> bool:
        """Whether the blocks are run here; timm's own forward pass would not do."""
        return self.trunk is not None

    def steps(self) -> list[tuple[Callable[[Tensor], Tensor], OpenedBlock | BoundBlock]]:
        """Every block in order, with what stands before it: patch merging or the identity."""
        return [
            (stage.merge if position == 0 else _same, block)
            for stage in self.stages()
            for position, block in enumerate(stage.blocks)
        ]

    def run(self, block: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """``block(x)``, recomputed in the backward pass where timm was asked for checkpointing."""
        model: Any = self
        owner = model if hasattr(model, "grad_checkpointing") else model.layers[0]
        if owner.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x, use_reentrant=False)
        return block(x)

    def around(self, images: Tensor) -> TrunkOutput:
        """The trunk with what is placed around it."""
        trunk: Any = self.trunk
        x = self.embed(images)
        if trunk is None:
            return self._from_block(0, x)
        return cast(TrunkOutput, trunk(images, x, self))

    def _from_block(self, first: int, x: Tensor) -> TrunkOutput:
        """The blocks from ``first`` on, which the stream x enters."""
        streams: list[Tensor] = []
        for index, (merge, block) in enumerate(self.steps()):
            if index >= first:
                x = self.run(block, merge(x) if index > first else x)
                streams.append(x)
        return TrunkOutput(streams)

    def forward_features(self, images: Tensor, **masks: Any) -> Tensor:
        """The last stream after the final norm, as timm's method of this name.

        Args:
            masks: what timm's own takes; a network around the trunk takes none.
        """
        if not self.runs_blocks:
            return cast(Tensor, super().forward_features(images, **masks))  # type: ignore[misc]  # timm's
        if given := [
            name for name, mask in masks.items() if mask is not None and mask is not False
        ]:
            raise TypeError(f"{', '.join(given)}: a network around the trunk takes no mask")
        norm: Any = self.norm
        return cast(Tensor, norm(self.of_image(self.around(images).streams[-1])))

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(B, 3, H, W)`` to logits; timm's own where nothing is placed."""
        if not self.runs_blocks:
            return cast(Tensor, super().forward(images))
        return self._logits(self.around(images))

    def _logits(self, output: TrunkOutput) -> Tensor:
        features = output.features
        return self.classify(self.pooled(output.streams[-1]) if features is None else features)

    def forward_intermediates(self, x: Tensor, *args: Any, **options: Any) -> Any:
        """As timm's; its own where nothing is placed."""
        if not self.runs_blocks:
            return super().forward_intermediates(x, *args, **options)  # type: ignore[misc]  # timm's
        return self.intermediates(x, *args, **options)

    # ---- from frozen features ------------------------------------------------------------------

    @torch.no_grad()
    def read(self, names: Iterable[str], images: Tensor) -> dict[str, Tensor]:
        """Frozen features of images, see :func:`read_features`."""
        return read_features(names, images, self.embed(images), self)

    def resume(self, features: dict[str, Tensor]) -> Tensor:
        """Logits from the frozen features that the method reads: what :meth:`forward` gives.

        Args:
            features: what the method's ``reads`` names, as :meth:`read` gives it.
        """
        if isinstance(self.trunk, SideNetwork):
            return self._logits(self.trunk.side(features, self))
        ((name, x),) = features.items()
        if name == "features":
            return self.classify(x)
        return self._logits(self._from_block(int(name.removeprefix("tokens.")), x))


def resumes(model: nn.Module) -> bool:
    """Whether logits can be had from frozen features; other networks run the blocks themselves."""
    trunk = getattr(model, "trunk", None)
    return trunk is None or isinstance(trunk, SideNetwork)


class SideNetwork(nn.Module, ABC):
    """A module around a trunk that stays frozen: it reads features and never changes them.

    Attributes:
        reads: names of the features (:func:`read_features`); all that need to be cached.
        frozen_blocks: how many blocks, from the first on, put out what they do in the plain model;
            their streams are added to what the side network gives back.
    """

    def __init__(self, reads: Iterable[str], frozen_blocks: int = 0) -> None:
        super().__init__()
        self.reads = tuple(reads)
        self.frozen_blocks = frozen_blocks

    def forward(self, images: Tensor, x: Tensor, model: OpenedModel) -> TrunkOutput:
        """Read without gradient, then run the side network."""
        streams = [f"outputs.{index}" for index in range(self.frozen_blocks)]
        with torch.no_grad():
            found = read_features([*self.reads, *streams], images, x, model)
        output = self.side({name: found[name] for name in self.reads}, model)
        return TrunkOutput([found[name] for name in streams] + output.streams, output.features)

    @abstractmethod
    def side(self, features: dict[str, Tensor], model: OpenedModel) -> TrunkOutput:
        """The trainable part.

        Args:
            features: what ``reads`` names.
            model: for the frozen parts that the side network shares (final norm, pooling).

        Returns:
            The streams after the first ``frozen_blocks`` blocks are left out.
        """


def _same(x: Tensor) -> Tensor:
    return x


def read_features(
    names: Iterable[str], images: Tensor, x: Tensor, model: OpenedModel
) -> dict[str, Tensor]:
    """Features of the plain trunk, by name.

    ============= ==================================================================
    ``images``    ``(B, 3, H, W)``
    ``tokens.i``  stream entering block i (after patch merging); ``tokens.L`` leaves the last
    ``outputs.i`` stream leaving block i (before patch merging)
    ``attn.i``    what the attention of block i adds to the stream
    ``mlp.i``     what its MLP adds
    ``features``  pooled, after the final norm: what the head reads
    ============= ==================================================================

    The trunk is run only as far as the names ask for.
    """
    wanted = set(names)
    found = {"images": images}
    steps = model.steps()
    for index, (merge, block) in enumerate(steps):
        if wanted <= set(found):
            break
        x = merge(x)
        found[f"tokens.{index}"] = x
        if wanted <= set(found):
            break
        if wanted & {f"attn.{index}", f"mlp.{index}"}:
            found[f"attn.{index}"], found[f"mlp.{index}"], x = block.branches(x)
        else:
            x = block(x)
        found[f"outputs.{index}"] = x
    else:
        found[f"tokens.{len(steps)}"] = x
        if "features" in wanted:
            found["features"] = model.pooled(x)
    return {name: found[name] for name in names}
