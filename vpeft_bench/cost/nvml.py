"""What an NVIDIA GPU tells of itself: energy, power limit, load, by the driver's own library."""

from __future__ import annotations

import pynvml
from pynvml import NVMLError as NvmlError

__all__ = ["Nvml", "NvmlError"]


class Nvml:
    """One GPU. Each question raises ``NvmlError`` where the driver does not tell.

    Args:
        uuid: of the GPU, with or without ``GPU-`` before it.

    Raises:
        NvmlError: there is no driver, or it does not know the GPU.
    """

    def __init__(self, uuid: str) -> None:
        pynvml.nvmlInit()
        name = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
        self._handle = pynvml.nvmlDeviceGetHandleByUUID(name)

    def joules(self) -> float:
        """Energy used since the driver was loaded, by the whole GPU."""
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1000

    def power_limit_watts(self) -> float:
        """The limit that is in force."""
        return float(pynvml.nvmlDeviceGetEnforcedPowerLimit(self._handle)) / 1000

    def busy_percent(self) -> int:
        """Share of the last second or less in which something ran."""
        return int(pynvml.nvmlDeviceGetUtilizationRates(self._handle).gpu)

    def driver(self) -> str:
        """Version of the driver."""
        return str(pynvml.nvmlSystemGetDriverVersion())
