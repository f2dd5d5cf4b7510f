"""What the doctor finds: a row with a level and a cure, and what rows of several nodes say together. Plan half."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    ok = "OK"
    warn = "WARN"
    """Works, but not as well as it could, or something optional is missing."""
    fail = "FAIL"
    """Training can't work like this."""


SEVERITY = (Level.ok, Level.warn, Level.fail)
ROW_WIDTH = 20
"""Fixed, so that rows can be shown as they are found."""
CLOCK_SKEW_WARN_S = 1.0
CLOCK_SKEW_FAIL_S = 30.0


@dataclass(frozen=True, slots=True)
class Finding:
    row: str
    """What was looked at: `python`, `torch`, `disk`."""
    level: Level
    found: str
    cure: str = ""
    """What to do; empty where all is well."""


@dataclass(frozen=True, slots=True)
class NodeReport:
    """What one node said of itself."""

    host: str
    time_s: float
    """Its clock, in unix seconds, when it was asked."""
    asked_s: tuple[float, float]
    """By the asker's clock: before and after the asking."""
    findings: tuple[Finding, ...]


def worst(findings: Iterable[Finding]) -> Level:
    return max((finding.level for finding in findings), key=SEVERITY.index, default=Level.ok)


def clock_findings(reports: Sequence[NodeReport]) -> list[Finding]:
    """How far each node's clock is from the asker's, less what the asking itself may explain."""
    found = []
    for report in reports:
        low, high = report.asked_s
        skew_s = max(0.0, low - report.time_s, report.time_s - high)
        level = Level.ok
        if skew_s > CLOCK_SKEW_WARN_S:
            level = Level.fail if skew_s > CLOCK_SKEW_FAIL_S else Level.warn
        cure = "" if level is Level.ok else "start chronyd or systemd-timesyncd there; certificates and logs need it"
        text = f"within {CLOCK_SKEW_WARN_S:g} s of this one" if level is Level.ok else f"{skew_s:.1f} s off this one"
        found.append(Finding(f"clock of {report.host}", level, text, cure))
    return found


def joint_findings(reports: Sequence[NodeReport]) -> list[Finding]:
    """One row for all nodes that say the same of it; those that differ are named, the most frequent word first."""
    rows = dict.fromkeys(finding.row for report in reports for finding in report.findings)
    joint = []
    for row in rows:
        said: dict[Finding, list[str]] = {}
        for report in reports:
            for finding in report.findings:
                if finding.row == row:
                    said.setdefault(finding, []).append(report.host)
        for finding, hosts in sorted(said.items(), key=lambda pair: -len(pair[1])):
            who = f"all {len(hosts)} nodes" if len(hosts) == len(reports) > 1 else ", ".join(hosts)
            joint.append(Finding(row, finding.level, f"{finding.found} ({who})", finding.cure))
    return joint


def missing_findings(expected: Sequence[str], reports: Sequence[NodeReport], why: Mapping[str, str]) -> list[Finding]:
    """A row for each node that has not answered; `why` has what was heard of it instead."""
    heard = {report.host for report in reports}
    return [
        Finding(
            f"node {host}",
            Level.fail,
            why.get(host, "has not answered"),
            "leave it out (--exclude, or another list of hosts), or look at it by hand",
        )
        for host in expected
        if host not in heard
    ]


def as_lines(findings: Sequence[Finding]) -> list[str]:
    """A table in plain text, the cure under its row."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.level:<4}  {finding.row:<{ROW_WIDTH}}  {finding.found}")
        if finding.cure:
            lines.append(f"{'':<4}  {'':<{ROW_WIDTH}}  -> {finding.cure}")
    return lines
