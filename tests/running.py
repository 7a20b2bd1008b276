"""Whole runs within the test's process: what starting a process for each would cost is saved."""

from __future__ import annotations

import math
import signal
from pathlib import Path

import pytest
import pytorch_lightning as pl
from hydra import compose, initialize_config_dir
from rich.console import Console

from vpeft_bench.config.choices import config_dir
from vpeft_bench.config.schema import RunConfig, register_schema, typed
from vpeft_bench.runs.checkpoint import EpochCheckpoint
from vpeft_bench.runs.run import Outcome, run

ON_CPU = ("hardware=cpu", "hardware.threads=1", "hardware.workers=0")


def config_of(*overrides: str, place: tuple[str, ...] = ON_CPU) -> RunConfig:
    """The config that these overrides compose, on the CPU unless another place is given."""
    register_schema()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return typed(compose("config", overrides=[*place, *overrides]))


def run_here(
    results: Path,
    *overrides: str,
    console: Console | None = None,
    place: tuple[str, ...] = ON_CPU,
) -> Outcome:
    """One run, its files below ``results``."""
    config = config_of(*overrides, f"results_dir={results}", place=place)
    return run(config, console or Console(quiet=True))


def signal_after_epoch(patch: pytest.MonkeyPatch, epoch: int, number: signal.Signals) -> None:
    """Let the process get a signal as soon as the checkpoint of an epoch is written.

    That checkpoint is written however long it takes; the test undoes all this with ``patch``.
    """
    write = EpochCheckpoint.on_train_epoch_end

    def write_and_signal(
        self: EpochCheckpoint, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> None:
        write(self, trainer, pl_module)
        if trainer.current_epoch + 1 == epoch:
            signal.raise_signal(number)

    patch.setattr(EpochCheckpoint, "SHARE", math.inf)
    patch.setattr(EpochCheckpoint, "on_train_epoch_end", write_and_signal)
