"""What the harness does, taken apart so that it can be timed: its step, its inference, its runs."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from speed.measure import Settings
from vpeft_bench.attaching.attachment import Attached
from vpeft_bench.cli.overrides import check_overrides
from vpeft_bench.config.schema import RunConfig, typed
from vpeft_bench.data.dataset import open_dataset
from vpeft_bench.errors import ConfigError
from vpeft_bench.records.run_record import RunRecord
from vpeft_bench.runs import validation
from vpeft_bench.runs.build import (
    autocast,
    build_model,
    build_task,
    compile_in_place,
)
from vpeft_bench.runs.run import Result, run
from vpeft_bench.tasks.base import Model, Task
from vpeft_bench.tasks.names import kind_of


def vit_b16(settings: Settings) -> list[str]:
    """The backbone of most bars, with random weights; a tiny one where it must be quick."""
    if not settings.quick:
        return ["backbone=vit_b16", "backbone.weights=none"]
    return [
        "backbone=timm",
        "backbone.name=vit_tiny_patch16_224",
        "backbone.image_size=32",
        "backbone.weights=none",
        "+backbone.model_args.depth=2",
    ]


def accelerator(settings: Settings) -> str:
    """The override that chooses the device."""
    return f"hardware.accelerator={settings.device.type}"


def config_of(settings: Settings, *overrides: str) -> RunConfig:
    """The config that the command line would make of ``overrides``."""
    checked = check_overrides([accelerator(settings), *overrides], multirun=False)
    if checked.config is None or checked.problems:
        raise ConfigError(checked.problems)
    config = typed(checked.config)
    validation.check(config)
    return config


class Network:
    """A backbone with a method as the harness builds it, and a synthetic batch.

    Attributes:
        task: what Lightning would train.
        attached: the method on the timm model.
        images, labels: the batch: uint8 ``(B, 3, H, W)`` and int64 ``(B,)``.
    """

    def __init__(self, settings: Settings, *overrides: str) -> None:
        config = config_of(settings, *overrides)
        dataset = open_dataset(config.data)
        torch.manual_seed(0)
        model = build_model(config, dataset)
        self.task = build_task(config, dataset, model, steps_per_epoch=100).to(settings.device)
        self.attached: Attached = model.attached
        if config.hardware.compile:
            compile_in_place(self.attached)
        self._autocast = partial(autocast, config.hardware.precision, settings.device)
        self.images, self.labels = _batch(settings, model, dataset.num_classes)

    @property
    def normalized(self) -> Tensor:
        """The pictures as the backbone reads them."""
        return self.task.normalize(self.images)

    def training(self) -> TrainingStep:
        """Its training step; the network is in training mode from now on."""
        return TrainingStep(self.task.train(), (self.images, self.labels), self._autocast)

    def inference(self) -> Callable[[], Tensor]:
        """Logits of the batch; the network is in evaluation mode from now on."""
        self.task.eval()

        @torch.inference_mode()
        def infer() -> Tensor:
            with self._autocast():
                return self.task(self.images)

        return infer


class TrainingStep:
    """What a run does between two batches: loss, backward, optimizer, schedule."""

    def __init__(
        self, task: Task, batch: Any, autocast: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        self.task, self.batch, self.autocast = task, batch, autocast
        self.optimizer, self.scheduler = optimizer_and_schedule(task)

    def __call__(self) -> None:
        with self.autocast():
            loss = self.task.training_step(self.batch, 0)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()


def optimizer_and_schedule(task: Task) -> tuple[Any, Any]:
    """As Lightning gets them."""
    configured = task.configure_optimizers()
    return configured["optimizer"], configured["lr_scheduler"]["scheduler"]


def _batch(settings: Settings, model: Model, classes: int) -> tuple[Tensor, Tensor]:
    shape = (settings.batch_size, 3, *model.preprocessing.image_size)
    images = torch.randint(256, shape, dtype=torch.uint8)
    labels = torch.randint(classes, (settings.batch_size,))
    return images.to(settings.device), labels.to(settings.device)


# ---------------------------------------------------------------------------------- whole runs


def finished_run(config: RunConfig, console: Console | None = None) -> RunRecord:
    """Run ``config`` in this process, printing nothing."""
    outcome = run(config, console or Console(file=io.StringIO()))
    assert outcome.result is Result.DONE, outcome.reason
    assert outcome.record is not None
    return outcome.record


class EpochClock(io.StringIO):
    """A terminal's file that notes when the harness tells that an epoch is over."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[float] = []

    def write(self, text: str) -> int:
        if ": epoch " in text:
            self.ends.append(time.perf_counter())
        return super().write(text)


def seconds_per_epoch(ends: list[float]) -> float:
    """In the steady state: from the end of the first epoch to the end of the last."""
    return (ends[-1] - ends[0]) / (len(ends) - 1)


def harness_epochs(config: RunConfig) -> float:
    """Seconds per epoch of a run, with all that happens between and around the steps.

    Up to ten epochs: each prints a line of progress.
    """
    clock = EpochClock()
    finished_run(config, Console(file=clock, width=200))
    assert len(clock.ends) == config.train.epochs <= 10, clock.getvalue()
    return seconds_per_epoch(clock.ends)


def bare_epochs(config: RunConfig, device: torch.device) -> float:
    """Seconds per epoch of a bare loop over the same batches, with the same step."""
    torch.manual_seed(config.seed)
    dataset = open_dataset(config.data)
    model = build_model(config, dataset)
    split = config.data.final_train
    loader = kind_of(config).batches(config, dataset, model.preprocessing, split, train=True)
    task = build_task(config, dataset, model, len(loader)).to(device).train()
    optimizer, scheduler = optimizer_and_schedule(task)
    ends = []
    for epoch in range(config.train.epochs):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]  # ours has it
        for images, labels in loader:
            loss = task.training_step((images.to(device), labels.to(device)), 0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        ends.append(time.perf_counter())
    return seconds_per_epoch(ends)


def noise_pictures(folder: Path, count: int, side: int) -> None:
    """``count`` training pictures of noise, and as many to test, in VTAB-1k's layout."""
    rng = np.random.default_rng(0)
    lines = []
    for index in range(2 * count):
        pixels = rng.integers(256, size=(side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
        lines.append(f"{index}.png {index % 2}\n")
    held_out = max(2, count // 5)
    lists = {
        "train800": lines[: count - held_out],
        "val200": lines[count - held_out : count],
        "train800val200": lines[:count],
        "test": lines[count:],
    }
    for name, listed in lists.items():
        (folder / f"{name}.txt").write_text("".join(listed))
