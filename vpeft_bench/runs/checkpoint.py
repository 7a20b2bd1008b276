"""What an unfinished run goes on from: written after whole epochs, looked at before it is used."""

from __future__ import annotations

import io
import pickle
import time
import zipfile
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


class EpochCheckpoint(pl.Callback):
    """One checkpoint to resume from, replaced at the end of an epoch.

    Where writing takes long (full fine-tuning of a large model), epochs are left out so that it
    stays below a twentieth of the time; the last epoch is always kept.
    """

    SHARE = 1 / 20

    def __init__(self, path: Path) -> None:
        self.path = path
        self._not_before = 0.0

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write, unless that was done a moment ago."""
        last = trainer.current_epoch + 1 == trainer.max_epochs
        start = time.perf_counter()
        wanted = start >= self._not_before or last
        if not trainer.strategy.broadcast(wanted):  # all processes write, or none
            return
        trainer.save_checkpoint(self.path)
        end = time.perf_counter()
        self._not_before = end + (end - start) / self.SHARE

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Say by which version; half a run on another one would be neither's."""
        checkpoint[TORCH] = str(torch.__version__)


def whole_epochs(path: Path, task: Task) -> int:
    """How many epochs a checkpoint is after, once it is known to be sound.

    Args:
        path: what :class:`EpochCheckpoint` wrote.
        task: what is to go on from it.

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
        if type(epochs) is not int or epochs < 1:
            raise DamagedError(path, f"it says that {epochs} epochs are done")
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, pickle.UnpicklingError) as error:
        raise DamagedError(path, str(error)) from error
    except (LookupError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise DamagedError(path, f"{type(error).__name__}: {error}") from error
    return epochs


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
