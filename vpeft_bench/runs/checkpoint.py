"""What an unfinished run goes on from: written after whole epochs, looked at before it is used."""

from __future__ import annotations

import io
import math
import pickle
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import CheckpointIO

from vpeft_bench.errors import DamagedError
from vpeft_bench.files import write_atomically
from vpeft_bench.tasks.base import Task

TORCH = "torch_version"
"""The key of the version that wrote a checkpoint."""
PARTS = "parts"
"""The key of the parts of an epoch that are done, and of the number of parts of a batch."""


class WholeFiles(CheckpointIO):
    """How Lightning writes and reads: a file appears in its place as a whole, or not at all.

    Lightning's own writer puts a copy into the system's temporary folder first, which may be on
    another disk, and which a kill leaves there.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write beside, then rename.

        Raises:
            OSError: the file cannot be written.
        """
        # In memory first: torch.save gives no reason where it meets a full disk.
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write_atomically(Path(path), content.getbuffer())

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Tensors and plain values; nothing in the file is executed."""
        content: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
        return content

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint."""
        Path(path).unlink(missing_ok=True)


@dataclass(frozen=True)
class Progress:
    """How far a training came.

    Attributes:
        epochs: whole ones.
        parts: of the next epoch, the parts of batches that are done; see ``hardware.accumulate``.
    """

    epochs: int = 0
    parts: int = 0

    def __bool__(self) -> bool:
        return bool(self.epochs or self.parts)


class EpochCheckpoint(pl.Callback):
    """One checkpoint to resume from, replaced at the end of an epoch, and within a long one.

    Where writing takes long (full fine-tuning of a large model), epochs are left out so that it
    stays below a twentieth of the time; the last epoch is always kept.

    Args:
        path: of the checkpoint.
        minutes: from one checkpoint to the next within an epoch.
    """

    SHARE = 1 / 20
    LOOK = 16
    """Steps between two questions of several processes whether it is time: all write, or none."""

    def __init__(self, path: Path, minutes: float = math.inf) -> None:
        self.path = path
        self.minutes = minutes
        self._not_before = 0.0
        self._last = time.monotonic()
        self._done = Progress()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What came before is no training."""
        self._last = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Write after a whole batch, where the last checkpoint is old; the epoch's end writes."""
        parts = batch_idx + 1
        if parts % trainer.accumulate_grad_batches or parts == trainer.num_training_batches:
            return
        if trainer.world_size > 1 and trainer.global_step % self.LOOK:
            return
        old = time.monotonic() - self._last >= 60 * self.minutes
        if trainer.strategy.broadcast(old) if trainer.world_size > 1 else old:
            self._write(trainer, Progress(trainer.current_epoch, parts))

    def _write(self, trainer: pl.Trainer, done: Progress) -> None:
        self._done = done
        trainer.save_checkpoint(self.path)
        self._last = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write, unless that was done a moment ago."""
        last = trainer.current_epoch + 1 == trainer.max_epochs
        start = time.perf_counter()
        wanted = start >= self._not_before or last
        if not trainer.strategy.broadcast(wanted):  # all processes write, or none
            return
        self._write(trainer, Progress(trainer.current_epoch + 1))
        end = time.perf_counter()
        self._not_before = end + (end - start) / self.SHARE

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Say by which version; half a run on another one would be neither's. And how far."""
        checkpoint[TORCH] = str(torch.__version__)
        checkpoint[PARTS] = (self._done.parts, trainer.accumulate_grad_batches)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Let Lightning count in the parts of batches that there are now."""
        if (parts := _parts_now(checkpoint, trainer.accumulate_grad_batches)) == 0:
            return
        counts = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for which in ("total", "current"):
            before = counts[which]["processed"] - checkpoint[PARTS][0]
            now = dict.fromkeys(("ready", "started", "processed"), before + parts)
            counts[which] |= now | {"completed": before + parts - 1}  # as it is while one is saved


def _parts_now(checkpoint: dict[str, Any], accumulate: int) -> int:
    """The parts of its epoch that are done, of batches in ``accumulate`` parts."""
    parts, of = checkpoint.get(PARTS, (0, 1))  # an earlier version wrote after whole epochs
    return int(parts // of * accumulate)


def progress(path: Path, task: Task, accumulate: int) -> Progress:
    """How far a checkpoint is, once it is known to be sound.

    Args:
        path: what :class:`EpochCheckpoint` wrote.
        task: what is to go on from it.
        accumulate: parts of each batch, which need not be those of then.

    Raises:
        DamagedError: it cannot be read, or holds anything but what ``task`` goes on from.
        OSError: the file cannot be opened.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load leaves the checksums alone
            if (part := archive.testzip()) is not None:
                raise DamagedError(path, f"{part} is damaged")
        content = torch.load(path, map_location="cpu", weights_only=True)
        version = content.get(TORCH, "an earlier version of this package")
        if version != torch.__version__:
            raise DamagedError(path, f"written by torch {version}, this is {torch.__version__}")
        _require_fitting(path, content, task)
        epochs = content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
        done = Progress(epochs, _parts_now(content, accumulate))
        if type(epochs) is not int or epochs < 0 or not done:
            raise DamagedError(path, f"it says that {epochs} epochs are done")
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, pickle.UnpicklingError) as error:
        raise DamagedError(path, str(error)) from error
    except (LookupError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise DamagedError(path, f"{type(error).__name__}: {error}") from error
    return done


def _require_fitting(path: Path, content: dict[str, Any], task: Task) -> None:
    """The tensors of the task, by name, shape and in finite numbers, and its optimizer's groups."""
    stored, own = content["state_dict"], task.changing()
    for name in sorted(stored.keys() | own.keys()):
        if name not in stored or name not in own or stored[name].shape != own[name].shape:
            raise DamagedError(path, f"its {name} is not that of this model")
        if own[name].isfinite().all() and not stored[name].isfinite().all():
            raise DamagedError(path, f"its {name} is not finite: that training diverged")
    optimizer = task.configure_optimizers()["optimizer"]
    (state,) = content["optimizer_states"]
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    if sizes != [len(group["params"]) for group in state["param_groups"]]:
        raise DamagedError(path, "its optimizer trains other parameters")
