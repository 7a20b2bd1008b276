"""What is known of the device, and how it is noticed that others use it."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pynvml
import pytest
import torch

from tests.cost.measuring import METERED
from vpeft_bench.config.sections import HardwareConfig
from vpeft_bench.cost import device
from vpeft_bench.cost.device import MeteredDevice, find_device
from vpeft_bench.cost.nvml import Nvml, NvmlError

UUID = "0a1b2c3d-0000-0000-0000-000000000000"
CUDA = torch.device("cuda", 0)


class FakeLibrary:
    """The driver's library under ``pynvml``: answers are written where the caller points to."""

    def __init__(self, status: int = 0, percent: int = 3) -> None:
        self.status = status
        self.percent = percent
        self.uuid = b""

    def nvmlInitWithFlags(self, flags: Any) -> int:
        return 0

    def nvmlDeviceGetHandleByUUID(self, uuid: ctypes.c_char_p, handle: Any) -> int:
        self.uuid = uuid.value or b""
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any, answer: Any) -> int:
        answer._obj.value = 2**33 + 500  # more millijoules than 32 bits hold
        return self.status

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: Any, answer: Any) -> int:
        answer._obj.value = 700_000
        return 0

    def nvmlDeviceGetUtilizationRates(self, handle: Any, answer: Any) -> int:
        answer._obj.gpu = self.percent
        return 0

    def nvmlSystemGetDriverVersion(self, text: Any, length: ctypes.c_uint) -> int:
        text.value = b"570.86.15"
        return 0


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeLibrary]:
    """Puts a library of the driver in the place of the machine's own."""

    def put(**answers: int) -> FakeLibrary:
        library = FakeLibrary(**answers)
        monkeypatch.setattr(pynvml, "nvmlLib", library)
        monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
        return library

    return put


def test_nvml(driver: Callable[..., FakeLibrary]) -> None:
    library = driver()
    gpu = Nvml(UUID)
    assert library.uuid == f"GPU-{UUID}".encode()
    assert gpu.joules() == (2**33 + 500) / 1000
    assert gpu.power_limit_watts() == 700
    assert gpu.busy_percent() == 3
    assert gpu.driver() == "570.86.15"


def test_a_gpu_that_reports_no_energy_says_why(driver: Callable[..., FakeLibrary]) -> None:
    driver(status=3)
    joules, why = MeteredDevice(CUDA, METERED.described, Nvml(UUID), None).joules()
    assert joules is None
    assert why == "Not Supported"


def test_a_driver_that_lacks_a_function(
    driver: Callable[..., FakeLibrary], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver()
    monkeypatch.delattr(FakeLibrary, "nvmlDeviceGetUtilizationRates")
    with pytest.raises(NvmlError, match="Function Not Found"):
        Nvml(UUID).busy_percent()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a driver")
def test_a_machine_without_a_driver_says_so() -> None:
    with pytest.raises(NvmlError, match="Not Found"):
        Nvml(UUID)


@pytest.mark.parametrize(
    ("percent", "held", "expected"),
    [
        (3, 500 * 2**20, None),  # a context of our own
        (40, 0, "40 %"),
        (0, 3 * 2**30, "3.0 GiB"),
    ],
)
def test_a_gpu_in_use(
    percent: int,
    held: int,
    expected: str | None,
    driver: Callable[..., FakeLibrary],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver(percent=percent)
    total = 80 * 2**30
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (total - held, total))
    found = device._busy_gpu(CUDA, Nvml(UUID))
    assert found is None if expected is None else expected in str(found)
    if percent == 40:  # without the driver's library memory alone tells
        assert device._busy_gpu(CUDA, None) is None


def test_a_processor_in_use() -> None:
    """More busy loops than a tenth of the cores."""
    command = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(command) for _ in range((os.cpu_count() or 1) // 5 + 1)]
    try:
        found = device._busy_processor()
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert found is not None
    assert "in use by others" in found


def test_own_work_and_the_load_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ticks in all and busy, before and behind; 4 of 100 ticks are this process's own."""
    clock = os.sysconf("SC_CLK_TCK")
    monkeypatch.setattr("time.sleep", lambda _: None)
    for busy, expected in ((13, None), (24, "20%")):
        times = iter([(1000, 500), (1100, 500 + busy)])
        own = iter([0.0, 4 / clock])
        monkeypatch.setattr(device, "_processor_times", lambda times=times: next(times))
        monkeypatch.setattr("time.process_time", lambda own=own: next(own))
        found = device._busy_processor()
        assert found is None if expected is None else expected in str(found)


def test_a_cpu_is_known_by_name_and_reports_no_energy() -> None:
    threads = torch.get_num_threads()
    metered = find_device(HardwareConfig("cpu", "cpu", threads=1))
    torch.set_num_threads(threads)
    assert (metered.described.kind, metered.described.threads) == ("cpu", 1)
    assert "cores" in metered.described.name
    assert (metered.described.driver, metered.described.power_limit_watts) == (None, None)
    assert metered.joules() == (None, "a CPU reports no energy")
