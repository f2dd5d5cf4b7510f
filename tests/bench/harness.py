"""What every benchmark shares: the idle gate, interleaving, statistics, docs/benchmarks.json and the page made of it.

A result is a ratio of neighbours: ours and the peer run in turn (A B A B ...) in the same minutes on the same
machine, and each pair gives one ratio. All raw samples are kept in the JSON, so anyone can do the sums again.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "benchmarks.json"
PAGE = ROOT / "docs" / "benchmarks.md"

MAX_BUSY_SHARE = 0.05
"""Of all cores together, before and after: more, and the machine is doing something else."""
MAX_STOLEN_SHARE = 0.02
"""Of all cores, while measuring: more, and another guest of the host took what we were timed on."""
GATE_S = 3.0
EXIT_BUSY = 3

Runs = list[list[float]]
"""One list of samples for each repetition."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The same quantity of ours and of a peer, repetition by repetition: ours[i] ran next to peer[i]."""

    name: str
    unit: str
    goal: str
    """In words; what the ratio ours / peer is held against by people, never by a test."""
    ours: Runs
    peer: Runs

    def ratios(self) -> list[float]:
        """Ours / peer, of the two medians of each pair."""
        return [median(a) / median(b) for a, b in zip(self.ours, self.peer, strict=True)]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A quantity that has no peer."""

    name: str
    unit: str
    samples: list[float]


@dataclass(frozen=True, kw_only=True)
class Quiet:
    """Shares of all cores, 0 to 1."""

    busy_before: float
    busy_after: float
    stolen: float

    @property
    def is_quiet(self) -> bool:
        return max(self.busy_before, self.busy_after) <= MAX_BUSY_SHARE and self.stolen <= MAX_STOLEN_SHARE


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What a benchmark file declares about itself; `measure(options)` does the work."""

    name: str
    title: str
    about: str
    """What is compared with what, under which settings, and how it is timed: all that a doubter asks."""
    pairs: int
    measure: Callable[[argparse.Namespace], "Measured"]
    cause: str = ""
    """Where a goal is missed: why, what was tried, and what would be next."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    settings: dict[str, Any]
    comparisons: list[Comparison]
    figures: list[Figure] = field(default_factory=list)


# ---- statistics


def summary(samples: Sequence[float]) -> tuple[float, float, float]:
    """(min, median, p99); p99 by nearest rank: of fewer than 100 samples the largest."""
    ordered = sorted(samples)
    return ordered[0], median(ordered), ordered[-(-99 * len(ordered) // 100) - 1]


def interleave(pairs: int, **sides: Callable[[], Any]) -> dict[str, list[Any]]:
    """Run the sides in turn, `pairs` times each, and say how far it is; the results of each side in order."""
    results: dict[str, list[Any]] = {name: [] for name in sides}
    for pair in range(pairs):
        for name, run in sides.items():
            print(f"pair {pair + 1} of {pairs}: {name}", file=sys.stderr, flush=True)
            results[name].append(run())
    return results


# ---- the machine


@dataclass(frozen=True)
class CpuTimes:
    """Of all cores since boot, in seconds."""

    busy_s: float
    stolen_s: float
    total_s: float

    @staticmethod
    def now() -> "CpuTimes":
        fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
        user, nice, system, idle, iowait, irq, softirq, steal = (int(f) / os.sysconf("SC_CLK_TCK") for f in fields)
        busy_s = user + nice + system + irq + softirq
        return CpuTimes(busy_s, steal, busy_s + idle + iowait + steal)

    def since(self, before: "CpuTimes") -> "CpuTimes":
        busy_s, stolen_s = self.busy_s - before.busy_s, self.stolen_s - before.stolen_s
        # The kernel's count of time that waits for a disk may fall (proc_stat(5)).
        return CpuTimes(busy_s, stolen_s, max(busy_s + stolen_s, self.total_s - before.total_s))


def busy_share(seconds: float) -> float:
    """Share of all cores that somebody uses while we sleep, 0 to 1."""
    before = CpuTimes.now()
    time.sleep(seconds)
    spent = CpuTimes.now().since(before)
    return (spent.busy_s + spent.stolen_s) / max(spent.total_s, 1e-9)


def machine_facts() -> dict[str, Any]:
    cpu_lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = {line.split(":", 1)[1].strip() for line in cpu_lines if line.startswith("model name")}
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    packages = ("torch", "deepspeed", "ray", "numpy")
    return {
        "cpu": ", ".join(sorted(models)) or platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(pages / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


def commit_of_tree() -> str:
    """The commit, with `+` where files differ from it; `unknown` outside of git."""
    try:
        return _git("rev-parse", "--short=10", "HEAD") + ("+" if _git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


# ---- running and recording


def main(bench: Bench, add_options: Callable[[argparse.ArgumentParser], None] | None = None) -> int:
    """Gate, measure, gate, record. Exit code 3 where the machine is busy and the figures would mislead."""
    parser = argparse.ArgumentParser(prog=f"python -m tests.bench.{bench.name}", description=bench.title)
    parser.add_argument("--pairs", type=int, default=bench.pairs, help=f"repetitions (default: {bench.pairs})")
    parser.add_argument("--anyway", action="store_true", help="on a busy machine too; the result says so")
    parser.add_argument("--dry-run", action="store_true", help="print the section, write nothing")
    if add_options is not None:
        add_options(parser)
    options = parser.parse_args()
    busy_before = busy_share(GATE_S)
    if busy_before > MAX_BUSY_SHARE and not options.anyway:
        return _refuse(f"{busy_before:.0%} of the machine was busy before the start")
    before = CpuTimes.now()
    measured = bench.measure(options)
    spent = CpuTimes.now().since(before)
    quiet = Quiet(
        busy_before=busy_before, busy_after=busy_share(GATE_S), stolen=spent.stolen_s / max(spent.total_s, 1e-9)
    )
    record = to_record(bench, measured, quiet)
    print(render_section(bench.name, record))
    if not quiet.is_quiet and not options.anyway:
        return _refuse(f"{quiet.busy_after:.0%} was busy at the end, {quiet.stolen:.1%} stolen: nothing is recorded")
    if not options.dry_run:
        write_record(bench.name, record, RESULTS, PAGE)
    return 0


def _refuse(why: str) -> int:
    print(
        f"{why}; a benchmark needs a quiet machine (at most {MAX_BUSY_SHARE:.0%} busy); "
        "end what runs beside it, or mark the result as busy with --anyway",
        file=sys.stderr,
    )
    return EXIT_BUSY


def to_record(bench: Bench, measured: Measured, quiet: Quiet) -> dict[str, Any]:
    return {
        "title": bench.title,
        "about": bench.about,
        "cause": bench.cause,
        "settings": measured.settings,
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit_of_tree(),
        "machine": machine_facts(),
        "quiet": {**asdict(quiet), "is_quiet": quiet.is_quiet},
        "comparisons": [asdict(comparison) for comparison in measured.comparisons],
        "figures": [asdict(figure) for figure in measured.figures],
    }


def write_record(name: str, record: dict[str, Any], results: Path, page: Path) -> None:
    """Replace this benchmark's record and render the page from all of them."""
    records = json.loads(results.read_text()) if results.exists() else {}
    records = dict(sorted({**records, name: record}.items()))
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps(_rounded(records), indent=1, ensure_ascii=False) + "\n")
    page.write_text(render_page(records))


def _rounded(value: Any) -> Any:
    """Six significant digits: what a clock is good for."""
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


# ---- the page

PREAMBLE = """# Benchmarks

Generated from `benchmarks.json`, which holds every raw sample, by `tests/bench/harness.py`; do not edit.
Repeat all of them on a quiet machine with `make bench`, one with `python -m tests.bench.NAME` from the
repository's root. On a machine that does something else they refuse to record anything.

Ours and the peer run in turn, and the score is the ratio of the two medians of each pair. Only ratios travel from
one machine to another; the seconds and the tokens are this machine's.
"""


def render_page(records: dict[str, dict[str, Any]]) -> str:
    return "\n".join([PREAMBLE, *(render_section(name, record) for name, record in records.items())])


def render_section(name: str, record: dict[str, Any]) -> str:
    lines = [f"## {record['title']}", "", record["about"], ""]
    if not record["quiet"]["is_quiet"]:
        lines += [_busy_warning(record["quiet"]), ""]
    if record["comparisons"]:
        lines += _table(
            ["", "unit", "ours: min / median / p99", "peer: min / median / p99", "ratio (pairs)", "goal"],
            [_comparison_cells(Comparison(**raw)) for raw in record["comparisons"]],
        )
    if record["figures"]:
        lines += _table(
            ["", "unit", "min / median / p99"],
            [[raw["name"], raw["unit"], _triple(raw["samples"])] for raw in record["figures"]],
        )
    if record.get("cause"):
        lines += [record["cause"], ""]
    lines += [_provenance(name, record), ""]
    return "\n".join(lines)


def _busy_warning(quiet: dict[str, Any]) -> str:
    return (
        f"**The machine was busy ({quiet['busy_before']:.0%} before, {quiet['busy_after']:.0%} after, "
        f"{quiet['stolen']:.1%} stolen): these figures mislead.**"
    )


def _comparison_cells(comparison: Comparison) -> list[str]:
    ratios = comparison.ratios()
    spread = f"{median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}, n={len(ratios)})"
    flat = [[sample for run in side for sample in run] for side in (comparison.ours, comparison.peer)]
    return [comparison.name, comparison.unit, *map(_triple, flat), spread, comparison.goal]


def _triple(samples: Sequence[float]) -> str:
    return " / ".join(f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}" for value in summary(samples))


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)] + [""]


def _provenance(name: str, record: dict[str, Any]) -> str:
    machine, quiet = record["machine"], record["quiet"]
    settings = ", ".join(f"{key}={value}" for key, value in record["settings"].items())
    libraries = ", ".join(f"{package} {machine[package]}" for package in ("torch", "deepspeed", "ray", "numpy"))
    return (
        f"Repeat: `python -m tests.bench.{name}`. Settings: {settings}. Commit {record['commit']}, "
        f"{record['date']}; {machine['cores']} cores of {machine['cpu']}, {machine['memory_gib']} GiB, "
        f"Linux {machine['kernel']}, Python {machine['python']}, {libraries}; busy "
        f"{quiet['busy_before']:.0%} before, {quiet['busy_after']:.0%} after, {quiet['stolen']:.1%} stolen."
    )
