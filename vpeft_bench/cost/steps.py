"""What is measured: a training step as the harness takes it, an inference step, and the clock."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vpeft_bench.attaching.attachment import Attached
from vpeft_bench.config.sections import HardwareConfig, Precision, TrainConfig
from vpeft_bench.methods.data_pass import BatchData
from vpeft_bench.records.cost_card import Timing
from vpeft_bench.runs.build import autocast, trained_parameters
from vpeft_bench.tasks.optim import build_optimizer

TRAIN = TrainConfig(lr=1e-6)
"""The harness's optimizer, at a rate that keeps all weights finite on meaningless pictures."""


class Batches:
    """Meaningless pictures on the device, normalised as real ones are, with labels.

    Args:
        image_size: height and width, pixels.
        layout: of the pictures in memory.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        num_classes: int,
        device: torch.device,
        layout: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self.image_size = image_size
        self.num_classes = num_classes
        self.device = device
        self.layout = layout

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """``count`` pictures ``(B, 3, H, W)`` and their labels."""
        images = torch.randn(count, 3, *self.image_size, device=self.device)
        labels = torch.randint(self.num_classes, (count,), device=self.device)
        return images.contiguous(memory_format=self.layout), labels

    def for_selection(self) -> BatchData:
        """Just enough for a method that looks at data first: two classes of two pictures."""
        images, _ = self.draw(4)
        labels = torch.arange(4, device=self.device) % 2
        return BatchData([(images, images.flip(3), labels)], validation=[(images, labels)])


class TrainingStep:
    """One step on a fixed batch, in the order in which the harness does it.

    Attributes:
        images, labels: the batch.
        optimizer: AdamW as the harness builds it.

    Args:
        steps: how many there will be, for methods that plan ahead.
    """

    def __init__(
        self,
        attached: Attached,
        hardware: HardwareConfig,
        batch: tuple[Tensor, Tensor],
        steps: int,
    ) -> None:
        self.attached = attached
        self.images, self.labels = batch
        self.device = self.images.device
        self.precision = hardware.precision
        self.steps = steps
        self.number = 0
        trained = trained_parameters(attached, attached.model, TRAIN)
        self.optimizer = build_optimizer(trained, TRAIN, fused=hardware.fused_optimizer)
        scaled = hardware.precision is Precision.fp16
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=scaled)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy, and the method's penalty where it has one."""
        with autocast(self.precision, self.device):
            loss = nn.functional.cross_entropy(self.attached.model(images), labels)
            penalty = self.attached.penalty()
        return loss if penalty is None else loss + penalty

    def __call__(self) -> None:
        """Forward, backward, optimizer, and what the method does around."""
        self.attached.before_step(self.number, self.steps)
        loss = self.loss(self.images, self.labels)
        self.optimizer.zero_grad()  # only now, as Lightning does: it is part of the peak of memory
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.attached.after_step(self.number, self.steps)
        self.number += 1

    def run(self, steps: int) -> None:
        """So many of them."""
        for _ in range(steps):
            self()


def inference_step(model: nn.Module, images: Tensor, precision: Precision) -> Callable[[], None]:
    """A forward pass in evaluation mode, without anything for a backward pass."""
    model.eval()

    def step() -> None:
        with torch.inference_mode(), autocast(precision, images.device):
            model(images)

    return step


def timed(
    step: Callable[[], None], steps: int, blocks: int, batch_size: int, device: torch.device
) -> Timing:
    """Time ``steps`` steps in equal ``blocks``; the device is waited for around blocks only."""
    milliseconds = []
    synchronize(device)
    for _ in range(blocks):
        start = time.perf_counter()
        for _ in range(steps // blocks):
            step()
        synchronize(device)
        milliseconds.append(1000 * (time.perf_counter() - start) / (steps // blocks))
    quartiles = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    low, median, high = torch.tensor(milliseconds, dtype=torch.float64).quantile(quartiles).tolist()
    return Timing(median, low, high, milliseconds, 1000 * batch_size / median)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
