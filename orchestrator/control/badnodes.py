"""bad_nodes.txt in the run folder: nodes that a preflight or the run found bad, for people to read and to shorten."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from orchestrator.runfolder import RunFolder

HEADER = """\
# Nodes found bad: node, time, why. Later jobs of this run leave them out (--exclude), and the run takes others first.
# To use one again, delete its line; to use all again, delete this file.
"""


@dataclass(frozen=True, slots=True)
class BadNode:
    node: str
    time_s: float
    """Unix seconds."""
    reason: str


def add_bad_nodes(folder: RunFolder, reasons: Mapping[str, str], now_s: float) -> None:
    stamp = datetime.fromtimestamp(now_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    lines = [f"{node} {stamp} {' '.join(reason.split())}\n" for node, reason in reasons.items()]
    if lines:
        folder.path.mkdir(parents=True, exist_ok=True)
        header = "" if folder.bad_nodes.exists() else HEADER
        with folder.bad_nodes.open("a") as file:
            file.write(header + "".join(lines))


def read_bad_nodes(folder: RunFolder) -> list[BadNode]:
    """In the file's order; what a person wrote without a time counts from the beginning of time."""
    if not folder.bad_nodes.exists():
        return []
    found = []
    for line in folder.bad_nodes.read_text(errors="replace").splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            node, stamp, reason = [*line.split(maxsplit=2), "", ""][:3]
            found.append(BadNode(node, _unix_s(stamp), reason))
    return found


def avoided(folder: RunFolder) -> frozenset[str]:
    """Names of the nodes to leave alone, as the file says now."""
    return frozenset(entry.node for entry in read_bad_nodes(folder))


def excluded(config: str | None, bad: Sequence[BadNode]) -> str | None:
    """What --exclude says: the config's nodes and the bad ones."""
    words = [*([config] if config else []), *dict.fromkeys(entry.node for entry in bad)]
    return ",".join(words) or None


def _unix_s(stamp: str) -> float:
    try:
        return datetime.fromisoformat(stamp.replace("Z", "+00:00")).timestamp()
    except ValueError:
        return 0.0
