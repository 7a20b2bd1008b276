"""Numbers that are not finite end a run: whatever follows from them means nothing."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor

from vpeft_bench.errors import DivergedError
from vpeft_bench.tasks.base import Task

STEPS_BETWEEN_LOOKS = 16
"""On an accelerator, which would be waited for."""


class _Number(NamedTuple):
    """One number of one training step, on the device."""

    quantity: str
    step: int
    value: Tensor


class Divergence(pl.Callback):
    """Ends the run at the first loss, gradient norm, weight or evaluated output that is not finite.

    On a CPU every step is looked at. On an accelerator reading a number would wait for the step, so
    the numbers of some steps are sent together, and read when the next ones are sent: the error
    names the step, and comes at most two such intervals later, or at the end of the epoch.
    Gradient norms are known where ``train.clip_norm`` needs them; without it, what they would have
    shown is in the weights and in the next loss. With float16 the scaler of the loss looks for
    gradients that are not finite and leaves those steps out, which is no divergence.

    Args:
        every: training steps between two looks; None: as the device needs it.
    """

    def __init__(self, every: int | None = None) -> None:
        self.every = every
        self._numbers: list[_Number] = []
        self._sent: tuple[list[_Number], list[Tensor], torch.cuda.Event | None] | None = None
        self._weights: list[str] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note what is finite; a buffer may hold an infinity on purpose."""
        assert isinstance(pl_module, Task)
        if self.every is None:
            self.every = 1 if pl_module.device.type == "cpu" else STEPS_BETWEEN_LOOKS
        self._weights = [n for n, t in _numbers(pl_module).items() if bool(t.isfinite().all())]

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Nothing is left of an epoch before."""
        self._numbers, self._sent = [], None

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Keep the numbers of the step; now and then look at them."""
        assert isinstance(pl_module, Task)
        assert self.every is not None
        step = batch_idx // trainer.accumulate_grad_batches + 1
        self._numbers.append(_Number("loss", step, outputs["loss"].detach()))
        norm = pl_module.gradient_norm
        if norm is not None and trainer.precision != "16-mixed":
            self._numbers.append(_Number("gradient norm", step, norm))
        if (batch_idx + 1) % self.every == 0:
            epoch = trainer.current_epoch + 1
            self._look(epoch)
            self._send()
            if self.every == 1:
                self._look(epoch)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the last steps, and at all that training changes.

        Raises:
            DivergedError
        """
        assert isinstance(pl_module, Task)
        epoch = trainer.current_epoch + 1
        self._look(epoch)
        self._send()
        self._look(epoch)
        changing = _numbers(pl_module)
        finite = torch.stack([changing[name].isfinite().all() for name in self._weights])
        for name, fine in zip(self._weights, finite.tolist(), strict=True):
            if not fine:
                raise DivergedError(f"weight {name.removeprefix('model.')}", epoch, 0)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A metric of outputs that are not finite is a number all the same."""
        self._look_at_outputs(pl_module, trainer.current_epoch + 1)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """As after a validation; the model is that of the last epoch."""
        self._look_at_outputs(pl_module, trainer.max_epochs or 0)

    def _look_at_outputs(self, task: pl.LightningModule, epoch: int) -> None:
        assert isinstance(task, Task)
        if not task.outputs_are_finite():
            raise DivergedError("output in evaluation", epoch, 0)

    def _send(self) -> None:
        """Start copying the numbers kept so far to the CPU."""
        values, event = [number.value for number in self._numbers], None
        if values and values[0].is_cuda:
            together = torch.stack([value.float() for value in values])
            values = list(together.to("cpu", non_blocking=True))
            event = torch.cuda.Event()
            event.record()
        self._sent = (self._numbers, values, event)
        self._numbers = []

    def _look(self, epoch: int) -> None:
        """Read what was sent last."""
        if self._sent is None:
            return
        numbers, values, event = self._sent
        self._sent = None
        if event is not None:
            event.synchronize()
        for number, value in zip(numbers, values, strict=True):
            if not math.isfinite(value):
                raise DivergedError(number.quantity, epoch, number.step)


def _numbers(task: Task) -> dict[str, Tensor]:
    """Trained parameters and buffers by name, without whole numbers."""
    return {name: t for name, t in task.changing().items() if t.is_floating_point()}
