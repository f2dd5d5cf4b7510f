"""What a probe of a CPU has measured, for `steptime`. Plan half; `doctor/probing.py` measures and keeps it."""

from dataclasses import dataclass
from math import log2

from orchestrator.config import Precision


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """What one rank reaches with `threads` threads while others keep all other cores busy the same way."""

    threads: int
    matmul_flops_per_s: dict[Precision, dict[int, float]]
    """By precision and width: of a product [rows, width] x [width, 4 * width]."""
    memory_bytes_per_s: float
    """Read and written, of copies that no cache holds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    host: str
    date: str
    """ISO 8601, UTC, to the second."""
    cpus: int
    rates: list[Rates]
    """By ascending threads; at least one."""
    link_bytes_per_s: float
    """A gloo all-reduce of two processes: bytes of the tensor a second, which each sends and receives once."""

    def at(self, threads: int) -> Rates:
        """The largest number of threads that was measured and is not above `threads`, else the smallest."""
        return max((r for r in self.rates if r.threads <= threads), key=lambda r: r.threads, default=self.rates[0])


def matmul_rate(rates: Rates, precision: Precision, width: int) -> float | None:
    """FLOP/s at `width`, between two measured widths by their logarithm; None where `precision` was not measured."""
    measured = rates.matmul_flops_per_s.get(precision)
    if not measured:
        return None
    below = max((w for w in measured if w <= width), default=min(measured))
    above = min((w for w in measured if w >= width), default=max(measured))
    if below == above:
        return measured[below]
    share = log2(width / below) / log2(above / below)
    return measured[below] * (1 - share) + measured[above] * share
