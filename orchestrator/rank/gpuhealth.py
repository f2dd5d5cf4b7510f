"""What NVML says of this rank's GPU: the only file that imports pynvml (nvidia-ml-py), which may be absent.

A thread reads every few seconds: a GPU that falls off its bus can hold NVML's calls for long, and no step waits for
them.
"""

import contextlib
import socket
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

EVERY_S = 10.0


def load_nvml() -> ModuleType | None:
    """pynvml with NVML initialised; None where either is not there."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml  # type: ignore[no-any-return]


class GpuHealth:
    """Reads one GPU until `close`."""

    def __init__(self, nvml: ModuleType, uuid: str, every_s: float = EVERY_S) -> None:
        """`uuid` as NVML writes it: `GPU-5ee0...`. Errors: nvml.NVMLError where there is no such GPU."""
        self._nvml = nvml
        self._uuid = uuid
        self._handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
        self._every_s = every_s
        self._newest: dict[str, Any] | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="gpu health", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, uuid: str) -> "GpuHealth | None":
        """None where NVML can't be had, or does not know the GPU: nothing else is lost."""
        nvml = load_nvml()
        if nvml is None:
            return None
        try:
            return cls(nvml, uuid)
        except nvml.NVMLError:
            return None

    def take(self) -> dict[str, Any] | None:
        """The newest reading, once."""
        taken, self._newest = self._newest, None
        return taken

    def close(self) -> None:
        self._stopping.set()

    def read(self) -> dict[str, Any]:
        """What it can tell now; a figure that this GPU or driver does not have is left out."""
        nvml, handle = self._nvml, self._handle
        figures: dict[str, Callable[[], Any]] = {
            "sm_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "memory_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
            "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            "power_w": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
            "ecc_corrected": lambda: self._errors(nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED),
            "ecc_uncorrected": lambda: self._errors(nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED),
            "throttle_reasons": lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
        }
        found: dict[str, Any] = {"uuid": self._uuid, "host": socket.gethostname()}
        for name, ask in figures.items():
            with contextlib.suppress(nvml.NVMLError):
                found[name] = ask()
        return found

    def _errors(self, kind: int) -> int:
        return int(self._nvml.nvmlDeviceGetTotalEccErrors(self._handle, kind, self._nvml.NVML_VOLATILE_ECC))

    def _watch(self) -> None:
        while True:
            self._newest = self.read()
            if self._stopping.wait(self._every_s):
                return
