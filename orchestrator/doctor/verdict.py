"""Which of a job's nodes are unfit, from what each said and how fast it was beside the others. Plan half."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from orchestrator.doctor.finding import Finding, Level, NodeReport, clock_findings, joint_findings
from orchestrator.observe.units import bytes_text

MAX_ROUNDS = 3
"""Each node is paired so often, with another one each time: who is slow with all of them is slow itself."""


@dataclass(kw_only=True, slots=True)
class NodeCheck:
    """What one node has found, filled in as it comes."""

    host: str
    findings: list[Finding] = field(default_factory=list)
    gpus: tuple[str, ...] = ()
    """UUIDs."""
    flops_per_s: float | None = None
    """Of its slowest device; None: not measured."""
    clock: NodeReport | None = None
    pairs: dict[str, float] = field(default_factory=dict)
    """Other node -> bytes summed a second; 0: no all-reduce came about."""
    pair_errors: list[str] = field(default_factory=list)


def rounds(hosts: Sequence[str]) -> list[list[tuple[str, str]]]:
    """Who is paired with whom, at most MAX_ROUNDS times: each node once a round, no two of them twice (circle
    method). The first of a pair is the earlier one of `hosts`.

    3 nodes: [(a, b)], [(a, c)], [(b, c)].
    """
    circle: list[str | None] = [*hosts] if len(hosts) % 2 == 0 else [None, *hosts]
    place = {host: number for number, host in enumerate(hosts)}
    found = []
    for _ in range(min(MAX_ROUNDS, len(circle) - 1)):
        facing = zip(circle[: len(circle) // 2], reversed(circle[len(circle) // 2 :]), strict=True)
        pairs = [(a, b) for a, b in facing if a is not None and b is not None]
        found.append([(a, b) if place[a] < place[b] else (b, a) for a, b in pairs])
        circle = [circle[0], circle[-1], *circle[1:-1]]
    return [pairs for pairs in found if pairs]


def unfit(
    hosts: Sequence[str], checks: Mapping[str, NodeCheck], silent: Mapping[str, str], min_rate: float
) -> dict[str, str]:
    """Node -> why it is unfit, in words. `checks`: of those that answered; `silent`: what was heard of the others.

    A node fails by itself, by a clock far from the others', or by a rate below `min_rate` of the median of the
    other nodes. Where two nodes alone can't be joined, the first is taken for the good one: it leads the job.
    """
    reasons: dict[str, list[str]] = {host: [] for host in hosts}
    for host in hosts:
        if host not in checks:
            reasons[host].append(silent.get(host, "has not answered"))
    present = [checks[host] for host in hosts if host in checks]
    for check in present:
        reasons[check.host] += [_words(finding) for finding in check.findings if finding.level is Level.fail]
    for host, finding in _clocks(present):
        if finding.level is Level.fail:
            reasons[host].append(f"its clock is {finding.found.removesuffix(' this one')} the others'")
    for host, words in [*_shared_gpus(present), *_slow_products(present, min_rate), *_slow_sums(present, min_rate)]:
        reasons[host].append(words)
    return {host: "; ".join(words) for host, words in reasons.items() if words}


def warnings(checks: Sequence[NodeCheck]) -> list[str]:
    """What is not as it should be, though nobody is unfit for it."""
    reports = [NodeReport(check.host, 0.0, (0.0, 0.0), tuple(check.findings)) for check in checks]
    found = [*joint_findings(reports), *(finding for _, finding in _clocks(checks))]
    return [_words(finding) for finding in found if finding.level is Level.warn]


def rate_words(checks: Sequence[NodeCheck]) -> str:
    """`matrix product 57 to 61 GFLOP/s, all-reduce 480 to 510 MiB/s`; empty where nothing was measured."""
    products = [check.flops_per_s for check in checks if check.flops_per_s]
    sums = [max(check.pairs.values()) for check in checks if check.pairs]
    parts = []
    if products:
        parts.append(f"matrix product {_span(*map(_flops_text, (min(products), max(products))))}")
    if sums:
        parts.append(f"all-reduce {_span(*map(_speed_text, (min(sums), max(sums))))}")
    return ", ".join(parts)


def _words(finding: Finding) -> str:
    return f"{finding.row}: {finding.found}"


def _clocks(checks: Sequence[NodeCheck]) -> Iterator[tuple[str, Finding]]:
    """Each against the median of all; of two, against the asker's own."""
    reports = [check.clock for check in checks if check.clock is not None]
    ahead_s = [report.time_s - sum(report.asked_s) / 2 for report in reports]
    common_s = median(ahead_s) if len(reports) > 2 else 0.0
    moved = [replace(report, time_s=report.time_s - common_s) for report in reports]
    yield from zip([report.host for report in reports], clock_findings(moved), strict=True)


def _shared_gpus(checks: Sequence[NodeCheck]) -> Iterator[tuple[str, str]]:
    holders = Counter(uuid for check in checks for uuid in set(check.gpus))
    for check in checks:
        for uuid in sorted({uuid for uuid in check.gpus if holders[uuid] > 1}):
            yield check.host, f"{uuid} is on another node, too"


def _slow_products(checks: Sequence[NodeCheck], min_rate: float) -> Iterator[tuple[str, str]]:
    rates = {check.host: check.flops_per_s for check in checks if check.flops_per_s is not None}
    for host, others in _far_below(rates, min_rate):
        yield host, f"a matrix product at {_flops_text(rates[host])}, where the others have {_flops_text(others)}"


def _slow_sums(checks: Sequence[NodeCheck], min_rate: float) -> Iterator[tuple[str, str]]:
    paired = {check.host: check for check in checks if check.pairs}
    rates = {host: max(check.pairs.values()) for host, check in paired.items()}
    failed = [host for host, rate in rates.items() if rate == 0.0]
    if len(rates) == 2:
        failed = failed[1:]
    for host in failed:
        others, errors = " or ".join(paired[host].pairs), paired[host].pair_errors
        yield host, f"no all-reduce with {others}: {errors[-1] if errors else 'it did not end'}"
    if len(rates) > 2:
        for host, rate in _far_below(rates, min_rate):
            if host not in failed:
                yield host, f"an all-reduce at {_speed_text(rates[host])}, where the others have {_speed_text(rate)}"


def _far_below(rates: Mapping[str, float], min_rate: float) -> Iterator[tuple[str, float]]:
    """(node, the others' median) of each whose rate is below `min_rate` of that."""
    for host, rate in rates.items():
        others = [other for name, other in rates.items() if name != host]
        if others and rate < min_rate * median(others):
            yield host, median(others)


def _span(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"


def _flops_text(flops_per_s: float) -> str:
    size, unit = (1e12, "TFLOP/s") if flops_per_s >= 1e12 else (1e9, "GFLOP/s")
    return f"{flops_per_s / size:,.3g} {unit}"


def _speed_text(bytes_per_s: float) -> str:
    return f"{bytes_text(bytes_per_s)}/s"
