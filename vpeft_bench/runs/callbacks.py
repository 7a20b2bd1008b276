"""What happens around the epochs of a run: seeds, clock, curves, progress."""

from __future__ import annotations

import csv
import io
import math
import time
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from vpeft_bench.attaching.attachment import Attached
from vpeft_bench.files import write_atomically
from vpeft_bench.metric_names import shown, title
from vpeft_bench.runs import host
from vpeft_bench.runs.claim import Claim
from vpeft_bench.runs.loggers import Sink
from vpeft_bench.tasks.base import Task


def _part(trainer: pl.Trainer, batch_idx: int) -> int:
    """Which part of a batch comes next, from 0; see ``hardware.accumulate``."""
    return batch_idx % trainer.accumulate_grad_batches


def _part_of_all(trainer: pl.Trainer, batch_idx: int) -> int:
    """The same among the parts of all devices: random numbers are those of one device's parts."""
    return _part(trainer, batch_idx) * trainer.world_size + trainer.global_rank


class StillOurs(pl.Callback):
    """Ends a training that another process has taken over, see :mod:`vpeft_bench.runs.claim`."""

    def __init__(self, claim: Claim) -> None:
        self.claim = claim

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Look at what is known; the claim's own thread finds it out."""
        if self.claim.lost:
            self.claim.require()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make sure of it: checkpoint and curves are written next."""
        self.claim.require()


class StepSeed(pl.Callback):
    """Make dropout and drop-path a function of (seed, step), so that a resumed run repeats them.

    The order of the images is one of (seed, epoch) already: the loader's sampler sees to it.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed every step anew: what draws random numbers between steps does not matter."""
        seed = self.seed * 1_000_003 + trainer.global_step
        seed += _part_of_all(trainer, batch_idx) << 40
        # Not torch.manual_seed(): it asks every kind of accelerator, which takes longer than the
        # step of a linear probe.
        torch.default_generator.manual_seed(seed)
        if pl_module.device.type == "cuda":
            torch.cuda.manual_seed(seed)


class MethodSteps(pl.Callback):
    """Tell the method about every step (a supernet samples, AdaLoRA allocates ranks)."""

    def __init__(self, attached: Attached) -> None:
        self.attached = attached
        self.steps = 0
        self._restored: dict[str, Any] | None = None
        self._scale: float | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count the steps of the whole training, once; give the method back what it remembered."""
        self.steps = int(trainer.estimated_stepping_batches)
        if self._restored is not None:
            self.attached.load_step_state(self._restored)
            self._restored = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Before the step, of which there is one for all parts of a batch."""
        if _part(trainer, batch_idx) == 0:
            self.attached.before_step(trainer.global_step, self.steps)
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self._scale = None if scaler is None else scaler.get_scale()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """After the optimizer's step; Lightning clears the gradients before the next.

        With float16 the scaler leaves a step out whose gradients are not finite, and lowers its
        scale. Such gradients must not enter what a method keeps of them.
        """
        left_out = self._scale is not None and (
            trainer.precision_plugin.scaler.get_scale() < self._scale  # type: ignore[attr-defined]
        )
        if _part(trainer, batch_idx + 1) == 0 and not left_out:
            self.attached.after_step(trainer.global_step - 1, self.steps)

    def state_dict(self) -> dict[str, Any]:
        """What the method remembers from step to step."""
        return self.attached.step_state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint, once the model is where it will train."""
        self._restored = state_dict


class Curves(pl.Callback):
    """Learning curves and the clock; their state travels in the checkpoint.

    Attributes:
        curves: per epoch: ``epoch, train_loss, lr, train_seconds`` and, where a validation split is
            scored, ``val_`` and the name of each metric, the headline first.
        train_seconds, eval_seconds: time in training steps and in validation.
        images: images trained on.
        resumed: how often the run was taken up again from a checkpoint.
        peak_memory: of training alone, bytes; None on a CPU.
    """

    def __init__(self, path: Path, sinks: list[Sink]) -> None:
        self.path = path
        self.sinks = sinks
        self.curves: dict[str, list[float]] = {}
        self.train_seconds = 0.0
        self.eval_seconds = 0.0
        self.images = 0
        self.resumed = 0
        self.peak_memory: int | None = None
        self._losses: list[Tensor] = []
        self._images = 0
        self._validation: dict[str, float] = {}
        self._epoch_start = 0.0
        self._elapsed = 0.0
        self._validation_start = 0.0
        self._epoch_eval_seconds = 0.0
        self._lr = 0.0

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on from."""
        names = ("curves", "train_seconds", "eval_seconds", "images", "resumed", "peak_memory")
        state = {name: getattr(self, name) for name in names}
        elapsed = time.perf_counter() - self._epoch_start
        return {**state, "_losses": self._losses, "_images": self._images, "_elapsed": elapsed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        for name, value in state_dict.items():
            setattr(self, name, value)
        self.resumed += 1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on in the middle of an epoch, where it has no other start."""
        self._epoch_start = time.perf_counter() - self._elapsed
        self._losses = [loss.to(pl_module.device) for loss in self._losses]

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._losses, self._images = [], 0
        self._epoch_eval_seconds = 0.0
        self._epoch_start = time.perf_counter()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the rate of this step; the schedule moves on before its end."""
        group = trainer.optimizers[0].param_groups[0]
        self._lr = group["lr"] / group["lr_factor"]

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Keep the loss on the device: reading it here would wait for the step."""
        self._losses.append(outputs["loss"].detach())
        assert isinstance(pl_module, Task)
        assert pl_module.training_plan is not None
        if pl_module.training_plan.share(batch_idx):
            self._images += len(batch[1])

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validation is no training time."""
        self._note_peak(pl_module.device)
        if pl_module.device.type == "cuda":  # the queue of training is no evaluation
            torch.cuda.synchronize(pl_module.device)
        self._validation_start = time.perf_counter()

    def _note_peak(self, device: torch.device) -> None:
        """Before something else takes memory; of all processes, the one that took most."""
        if (peak := host.peak_memory(device)) is not None:
            self.peak_memory = max(self.peak_memory or 0, peak)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note metrics and time."""
        assert isinstance(pl_module, Task)
        self._validation = {
            f"val_{name}": math.nan if value is None else value
            for name, value in pl_module.metrics().items()
        }
        self._epoch_eval_seconds = time.perf_counter() - self._validation_start
        host.forget_peak(pl_module.device)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add one row to the curves, rewrite the CSV, feed the loggers."""
        self._note_peak(pl_module.device)
        # Losses of a batch's parts are divided by their number already. This waits for the device.
        batches = int(trainer.num_training_batches) // trainer.accumulate_grad_batches
        mean = torch.stack(self._losses).sum() / batches
        loss = cast(Any, trainer.strategy.reduce(mean, reduce_op="mean")).item()
        images: Any = torch.tensor(self._images, device=pl_module.device)
        self.images += int(trainer.strategy.reduce(images, reduce_op="sum"))
        self._losses, self._images = [], 0
        seconds = time.perf_counter() - self._epoch_start - self._epoch_eval_seconds
        self.train_seconds += seconds
        self.eval_seconds += self._epoch_eval_seconds
        row = {
            "epoch": trainer.current_epoch + 1,
            "train_loss": loss,
            "lr": self._lr,
            "train_seconds": seconds,
            **self._validation,
        }
        earlier = len(self.curves.get("epoch", ()))
        for name in dict.fromkeys([*self.curves, *row]):
            # The checkpoint of an earlier version may know other metrics: those were not measured.
            self.curves.setdefault(name, [math.nan] * earlier).append(row.get(name, math.nan))
        if trainer.is_global_zero:
            self.write_csv()
        for sink in self.sinks:
            sink.log({k: v for k, v in row.items() if k != "epoch"}, step=trainer.current_epoch + 1)

    def write_csv(self) -> None:
        """``metrics.csv``, whole or not at all."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.curves)
        writer.writerows(zip(*self.curves.values(), strict=True))
        write_atomically(self.path, text.getvalue().encode(), durable=False)


class ProgressBar(pl.Callback):
    """One bar for the whole training; a line every tenth of it where output is no terminal."""

    def __init__(self, console: Console, title: str) -> None:
        self.console = console
        self.title = title
        self.progress: Progress | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the bar."""
        epochs = trainer.max_epochs or 0
        if not self.console.is_terminal:
            steps = int(trainer.num_training_batches) // trainer.accumulate_grad_batches
            self.console.print(f"{self.title}: epochs: {epochs}, steps per epoch: {steps}")
            return
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("epochs  {task.fields[state]}"),
            TimeRemainingColumn(),
            console=self.console,
        )
        done = trainer.current_epoch
        self.task = self.progress.add_task(self.title, total=epochs, completed=done, state="")
        self.progress.start()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Advance within the epoch."""
        if self.progress is not None:
            done = trainer.current_epoch + (batch_idx + 1) / trainer.num_training_batches
            self.progress.update(self.task, completed=round(done, 1))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show loss and, where there is one, the validation's headline metric."""
        curves = next(c for c in trainer.callbacks if isinstance(c, Curves)).curves  # type: ignore[attr-defined]
        epoch, epochs = trainer.current_epoch + 1, trainer.max_epochs or 1
        state = f"loss {curves['train_loss'][-1]:.3f}"
        if scored := [name for name in curves if name.startswith("val_")]:
            headline = scored[0].removeprefix("val_")
            state += f"  val {title(headline)} {shown(headline, curves[scored[0]][-1], digits=1)}"
        if self.progress is not None:
            self.progress.update(self.task, completed=epoch, state=state)
        elif epoch * 10 // epochs > (epoch - 1) * 10 // epochs:
            self.console.print(f"{self.title}: epoch {epoch}/{epochs}  {state}")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the bar where it stands."""
        if self.progress is not None:
            self.progress.stop()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Give the terminal back before anything else is printed."""
        if self.progress is not None:
            self.progress.stop()
