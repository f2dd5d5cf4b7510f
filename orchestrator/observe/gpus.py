"""What the ranks' GPUs say of themselves: the newest reading of each, and what about it should find a person.

Plan half; the readings are NVML's (orchestrator/rank/gpuhealth.py).
"""

from collections.abc import Mapping, Sequence
from typing import Any

Reading = Mapping[str, Any]
"""`uuid`, `host` and, of what the GPU can tell: `sm_clock_mhz`, `memory_clock_mhz`, `temperature_c`, `power_w`,
`ecc_corrected` and `ecc_uncorrected` (errors since the driver was loaded), `throttle_reasons` (NVML's bits)."""

FIGURES = (
    "sm_clock_mhz",
    "memory_clock_mhz",
    "temperature_c",
    "power_w",
    "ecc_corrected",
    "ecc_uncorrected",
    "throttle_reasons",
)
SLOWDOWNS = {
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}
"""Bits of nvml.h's nvmlClocksEventReason that mean that something is wrong. An idle GPU, clocks that were set and the
power cap (0x04), at which a busy GPU belongs, do not."""


class GpuWatch:
    """Takes every rank's reports; tells what is new about a GPU once, not at every reading."""

    def __init__(self) -> None:
        self._newest: dict[int, Reading] = {}
        self._uncorrected: dict[str, int] = {}
        """GPU -> the count that was told, or was there before the run."""
        self._slowed: dict[str, int] = {}
        """GPU -> the bits of SLOWDOWNS that have been told and still stand."""

    def hear(self, reports: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Reports of one step in rank order; returns fields of `gpu_fault` events."""
        faults: list[dict[str, Any]] = []
        for rank, report in enumerate(reports):
            reading = report.get("gpu")
            if reading is not None:
                self._newest[rank] = reading
                faults += [
                    {"rank": rank, "node": reading["host"], "gpu": reading["uuid"], "message": message}
                    for message in (*self._new_errors(reading), *self._new_slowdowns(reading))
                ]
        for rank in [rank for rank in self._newest if rank >= len(reports)]:
            del self._newest[rank]
        return faults

    def newest(self, rank: int) -> Reading | None:
        return self._newest.get(rank)

    def row_fields(self) -> dict[str, Any]:
        """Of the next row: the worst of the world's GPUs; empty where none says anything."""
        readings = list(self._newest.values())

        def known(name: str) -> list[Any]:
            return [reading[name] for reading in readings if reading.get(name) is not None]

        fields: dict[str, Any] = {}
        if temperatures := known("temperature_c"):
            fields["gpu_temperature_c"] = max(temperatures)
        if clocks := known("sm_clock_mhz"):
            fields["gpu_sm_clock_mhz"] = min(clocks)
        if errors := known("ecc_uncorrected"):
            fields["gpu_ecc_uncorrected"] = sum(errors)
        if reasons := known("throttle_reasons"):
            fields["gpus_slowed"] = sum(bool(_slowdowns(bits)) for bits in reasons)
        return fields

    def _new_errors(self, reading: Reading) -> list[str]:
        count, gpu = reading.get("ecc_uncorrected"), reading["uuid"]
        if count is None:
            return []
        before = self._uncorrected.get(gpu, count)
        self._uncorrected[gpu] = count
        if count <= before:  # a driver that was loaded anew counts from 0
            return []
        return [f"has {count - before} new uncorrectable memory errors (ECC), {count} in all: have it looked at"]

    def _new_slowdowns(self, reading: Reading) -> list[str]:
        bits, gpu = reading.get("throttle_reasons"), reading["uuid"]
        if bits is None:
            return []
        found = _slowdowns(bits)
        new = found & ~self._slowed.get(gpu, 0)
        self._slowed[gpu] = found
        if not new:
            return []
        words = " and ".join(words for bit, words in SLOWDOWNS.items() if new & bit)
        clock, temperature = reading.get("sm_clock_mhz"), reading.get("temperature_c")
        at = [f"{clock} MHz"] if clock is not None else []
        at += [f"{temperature} °C"] if temperature is not None else []
        return [f"is slowed down ({words})" + (f" at {', '.join(at)}" if at else "")]


def gpu_health(reading: Reading | None) -> dict[str, float]:
    """A rank's figures for Prometheus and TensorBoard: `gpu_temperature_c`, ..."""
    if reading is None:
        return {}
    return {f"gpu_{name}": float(reading[name]) for name in FIGURES if reading.get(name) is not None}


def _slowdowns(bits: int) -> int:
    return bits & sum(SLOWDOWNS)
