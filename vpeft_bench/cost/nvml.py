"""What an NVIDIA GPU tells of itself: energy, power limit, load, by the driver's own library.

PyTorch has parts of this through a further package; the few calls needed are simple enough.
"""

from __future__ import annotations

import ctypes
from typing import Any

_LIBRARY = "libnvidia-ml.so.1"
_TEXT = 96


class NvmlError(Exception):
    """The driver does not tell; the message is one line."""


class _Utilization(ctypes.Structure):
    _fields_ = [("gpu", ctypes.c_uint), ("memory", ctypes.c_uint)]


class Nvml:
    """One GPU.

    Args:
        uuid: of the GPU, with or without ``GPU-`` in front.
        library: the loaded library; None: the system's.

    Raises:
        NvmlError: there is no library, or it does not know the GPU.
    """

    def __init__(self, uuid: str, library: Any = None) -> None:
        try:
            self._library = ctypes.CDLL(_LIBRARY) if library is None else library
        except OSError as error:
            raise NvmlError(f"the driver's library cannot be loaded: {error}") from error
        self._call("nvmlInit_v2")
        self._handle = ctypes.c_void_p()
        name = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
        handle = ctypes.byref(self._handle)
        self._call("nvmlDeviceGetHandleByUUID", ctypes.c_char_p(name.encode()), handle)

    def joules(self) -> float:
        """Energy used since the driver was loaded, by the whole GPU."""
        millijoules = ctypes.c_ulonglong()
        self._of_device("nvmlDeviceGetTotalEnergyConsumption", millijoules)
        return millijoules.value / 1000

    def power_limit_watts(self) -> float:
        """The limit that is in force."""
        milliwatts = ctypes.c_uint()
        self._of_device("nvmlDeviceGetEnforcedPowerLimit", milliwatts)
        return milliwatts.value / 1000

    def busy_percent(self) -> int:
        """Share of the last second or less in which something ran."""
        utilization = _Utilization()
        self._of_device("nvmlDeviceGetUtilizationRates", utilization)
        return int(utilization.gpu)

    def driver(self) -> str:
        """Version of the driver."""
        text = ctypes.create_string_buffer(_TEXT)
        self._call("nvmlSystemGetDriverVersion", text, ctypes.c_uint(_TEXT))
        return text.value.decode()

    def _of_device(self, function: str, answer: Any) -> None:
        self._call(function, self._handle, ctypes.byref(answer))

    def _call(self, function: str, *arguments: Any) -> None:
        try:
            status = getattr(self._library, function)(*arguments)
        except AttributeError as error:
            raise NvmlError(f"the driver has no {function}") from error
        if status != 0:
            raise NvmlError(f"{function} failed with status {status}")
