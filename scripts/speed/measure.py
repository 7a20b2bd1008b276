"""Timing things against each other, and what is kept of it."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

Measure = Callable[[], float]
"""Does something once and says how many seconds it took, or how many bytes."""


@dataclass(frozen=True)
class Settings:
    """How everything is measured.

    Attributes:
        device: where.
        quick: tiny networks and few repeats, to see that everything works; no numbers to keep.
        repeats: of everything; what has a bar within a few percent is repeated twice as often.
        slow_repeats: of whole runs that take minutes.
    """

    device: torch.device
    quick: bool = False
    repeats: int = 7
    slow_repeats: int = 3

    @property
    def many_repeats(self) -> int:
        """For a bar that is close to 1."""
        return self.repeats if self.quick else 2 * self.repeats + 1

    @property
    def batch_size(self) -> int:
        """Pictures in a training step; a GPU would spend one of 8 waiting for the interpreter."""
        return 2 if self.quick else 8 if self.device.type == "cpu" else 64

    def bar(self, on_cpu: float, on_gpu: float | None = None) -> float | None:
        """The bar that is set for the device, or None; a quick measurement has none."""
        if self.quick:
            return None
        return on_cpu if self.device.type == "cpu" else on_gpu


@dataclass(frozen=True)
class Row:
    """A number with its bar.

    Attributes:
        name: what was measured.
        quantity: what ``values`` are, in words, such as "time of LoRA / time of full".
        values: one for each repeat.
        unit: ``x`` (a ratio), ``%``, ``s`` or ``MiB``.
        at_least, at_most: the bar; None where there is none.
        sides: of each thing that was measured all raw values, by its name with the unit.
        note: what else should be known.
    """

    name: str
    quantity: str
    values: list[float]
    unit: str = "x"
    at_least: float | None = None
    at_most: float | None = None
    sides: dict[str, list[float]] = field(default_factory=dict)
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the median reaches the bar; None without one."""
        median = statistics.median(self.values)
        if self.at_least is not None:
            return median >= self.at_least
        return None if self.at_most is None else median <= self.at_most

    def as_json(self) -> dict[str, Any]:
        """Everything, with medians and quartiles."""
        return {
            "name": self.name,
            "quantity": self.quantity,
            "unit": self.unit,
            **spread(self.values),
            "at_least": self.at_least,
            "at_most": self.at_most,
            "met": self.met,
            "sides": {name: spread(values) for name, values in self.sides.items()},
            "note": self.note,
        }


def spread(values: list[float]) -> dict[str, Any]:
    """n, median, quartiles and the values themselves."""
    quartiles = [values[0]] * 3
    if len(values) > 1:
        quartiles = statistics.quantiles(values, n=4, method="inclusive")
    median = statistics.median(values)
    return {
        "n": len(values),
        "median": median,
        "low": quartiles[0],
        "high": quartiles[2],
        "values": values,
    }


def seconds_of(action: Callable[[], Any], device: torch.device) -> float:
    """Wall time of ``action``, with the device's work finished before and after."""
    _synchronize(device)
    start = time.perf_counter()
    action()
    _synchronize(device)
    return time.perf_counter() - start


def timed(step: Callable[[], Any], settings: Settings, warm_up: int = 2) -> Measure:
    """Measures the seconds per step, over a block of as many as take half a second.

    A step of several seconds is a block of its own.
    """
    device = settings.device
    for _ in range(warm_up):  # the optimizer's state, kernels that are chosen or compiled
        once = seconds_of(step, device)
    count = 1 if settings.quick else max(1, math.ceil(0.5 / once))

    def block() -> None:
        for _ in range(count):
            step()

    return lambda: seconds_of(block, device) / count


def interleaved(sides: Mapping[str, Measure], repeats: int) -> dict[str, list[float]]:
    """Measure A B A B ..., so that a machine that gets slower or faster does so for all sides."""
    values: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, measure in sides.items():
            values[name].append(measure())
    return values


def ratios(numerator: list[float], denominator: list[float]) -> list[float]:
    """Ratios of what was measured side by side; a repeat that only one side has is left out."""
    return [a / b for a, b in zip(numerator, denominator, strict=False)]


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
