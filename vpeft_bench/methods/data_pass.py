"""What a method may see of the data before training: for GPS, SCT, SPT and NOAH.

Only training and validation pictures; there is no way to the test split.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from vpeft_bench.errors import DivergedError

Selection = dict[str, Tensor]
"""What a data pass decided, by name; it is stored in the delta checkpoint."""


class SelectionData(Protocol):
    """Batches for a data pass, normalised as in training, on the model's device.

    Attributes:
        resume_path: where an expensive pass may keep its state, to go on after an interruption;
            None where there is no such place.
    """

    resume_path: Path | None

    def training(
        self,
        *,
        views: int = 1,
        augment: bool = False,
        shuffle: bool | None = None,
        batch_size: int | None = None,
        hold_out_validation: bool = False,
        epoch: int = 0,
    ) -> Iterator[tuple[Tensor, ...]]:
        """One pass over the training pictures: ``(images, labels)`` per batch.

        Args:
            views: pictures per example; two give ``(first, second, labels)``.
            augment: as training does; otherwise pictures come as they are.
            shuffle: in random order; None: where they are augmented.
            batch_size: pictures per batch; None for the run's own.
            hold_out_validation: leave out the pictures that :meth:`validation` gives.
            epoch: number of the pass; it decides order and augmentation.
        """
        ...

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass over the validation pictures."""
        ...


class BatchData:
    """:class:`SelectionData` from batches that are there already.

    Args:
        batches: ``(images, labels)``, or ``(first view, second view, labels)``; read once per pass.
        validation: batches for :meth:`validation`.
    """

    def __init__(
        self,
        batches: Iterable[Sequence[Tensor]],
        validation: Iterable[Sequence[Tensor]] = (),
        resume_path: Path | None = None,
    ) -> None:
        self.batches = batches if isinstance(batches, Sequence) else list(batches)
        self.held_out = validation if isinstance(validation, Sequence) else list(validation)
        self.resume_path = resume_path

    def training(
        self,
        *,
        views: int = 1,
        augment: bool = False,
        shuffle: bool | None = None,
        batch_size: int | None = None,
        hold_out_validation: bool = False,
        epoch: int = 0,
    ) -> Iterator[tuple[Tensor, ...]]:
        """The batches as they were given; a picture without a second view is its own."""
        for *images, labels in self.batches:
            shown = images[:views]
            yield (*shown, *[images[-1]] * (views - len(shown)), labels)

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The validation batches as they were given."""
        yield from ((images, labels) for images, labels in self.held_out)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout and drop-path inside; every module's own mode is restored afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def require_finite(tensors: Iterable[Tensor], what: str) -> None:
    """Refuse to rank by numbers that are none: the order of NaN is whatever a sort makes of it.

    Raises:
        DivergedError: some number is not finite.
    """
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise DivergedError(what, 0, 0)


def same_selection(left: Selection, right: Selection) -> bool:
    """Whether two data passes decided the same."""
    return set(left) == set(right) and all(torch.equal(left[n], right[n]) for n in left)
