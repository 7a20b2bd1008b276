"""The device of a measurement: what it is, and whether something else uses it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from vpeft_bench.config.sections import HardwareConfig
from vpeft_bench.cost.nvml import Nvml, NvmlError
from vpeft_bench.records.cost_card import Device
from vpeft_bench.records.environment import processor_name
from vpeft_bench.runs.host import flush_denormals, set_float32

BUSY_SHARE = 0.1
"""Of the processor's time, or of a GPU's, that others may use."""
BUSY_MEMORY = 1024**3
"""Bytes of a GPU's memory that others may hold; a CUDA context of our own is below it."""
SAMPLED_SECONDS = 1.0

T = TypeVar("T")


@dataclass(frozen=True)
class MeteredDevice:
    """Where it is measured.

    Attributes:
        described: what a card says of the device.
        nvml: how it is asked for energy; else ``no_energy`` says why it cannot be asked.
    """

    device: torch.device
    described: Device
    nvml: Nvml | None
    no_energy: str | None

    def joules(self) -> tuple[float | None, str | None]:
        """Energy that the device has used so far; None and why where it does not tell."""
        try:
            return (None, self.no_energy) if self.nvml is None else (self.nvml.joules(), None)
        except NvmlError as error:
            return None, str(error)


def find_device(hardware: HardwareConfig) -> MeteredDevice:
    """The device that the configuration names; to be called before anything is put on it."""
    from vpeft_bench.runs.build import device_of  # with Lightning: the command line does without it

    flush_denormals()  # as in a run
    set_float32(hardware.precision)
    if hardware.threads is not None:
        torch.set_num_threads(hardware.threads)
    device = device_of(hardware.accelerator)
    nvml, no_energy = _open_nvml(device)
    described = Device(
        kind=device.type,
        name=device_name(device.type),
        threads=torch.get_num_threads(),
        driver=_told(nvml, Nvml.driver),
        power_limit_watts=_told(nvml, Nvml.power_limit_watts),
        busy=_busy_gpu(device, nvml) if device.type == "cuda" else _busy_processor(),
    )
    return MeteredDevice(device, described, nvml, no_energy)


def device_name(accelerator: str) -> str:
    """The name of the device that ``hardware.accelerator`` stands for; nothing is put on it."""
    if accelerator != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return processor_name()


def _open_nvml(device: torch.device) -> tuple[Nvml | None, str | None]:
    """The GPU's own interface; else None, and why."""
    if device.type != "cuda":
        return None, "a CPU reports no energy"
    try:
        return Nvml(str(torch.cuda.get_device_properties(device).uuid)), None
    except NvmlError as error:
        return None, str(error)


def _told(nvml: Nvml | None, question: Callable[[Nvml], T]) -> T | None:
    try:
        return None if nvml is None else question(nvml)
    except NvmlError:
        return None


def _busy_gpu(device: torch.device, nvml: Nvml | None) -> str | None:
    """What others do on the GPU, in words; None where it is next to nothing."""
    percent = _told(nvml, Nvml.busy_percent)
    if percent is not None and percent > 100 * BUSY_SHARE:
        return f"in use by others, who keep it busy {percent} % of the time"
    free, total = torch.cuda.mem_get_info(device)
    if total - free > BUSY_MEMORY:
        return f"in use by others, who hold {(total - free) / 1024**3:.1f} GiB of its memory"
    return None


def _busy_processor() -> str | None:
    """What others do on the processor, in words; None where it is next to nothing."""
    if (before := _processor_times()) is None:
        return None
    own = time.process_time()
    time.sleep(SAMPLED_SECONDS)
    after = _processor_times()
    assert after is not None
    ticks, busy = after[0] - before[0], after[1] - before[1]
    own_ticks = (time.process_time() - own) * os.sysconf("SC_CLK_TCK")
    share = (busy - own_ticks) / ticks if ticks else 0.0
    return f"in use by others, who take {share:.0%} of it" if share > BUSY_SHARE else None


def _processor_times() -> tuple[int, int] | None:
    """Clock ticks of all cores since the start, in all and not idle; None where it is not told."""
    try:
        line = Path("/proc/stat").read_text().splitlines()[0]
    except OSError:
        return None
    # user nice system idle iowait irq softirq steal; what follows is contained in user and nice
    ticks = [int(field) for field in line.split()[1:9]]
    return sum(ticks), sum(ticks) - ticks[3] - ticks[4]
