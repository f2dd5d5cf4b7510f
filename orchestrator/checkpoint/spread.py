"""Checkpoints that are spread over the nodes' own disks: which of them can be read whole, and from where. Plan half.

A node has the payloads of the ranks that ran on it, and a copy of the marker, which names every rank's payload.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class HeldStep:
    """What one node's disk has of a committed step. Plain values: it travels from an agent to the driver."""

    step: int
    attempt: int
    marker: str
    """SHA-256 of the marker's text: two attempts may have committed the same step."""
    num_files: int
    """That the marker names."""
    files: tuple[int, ...]
    """Positions in the marker's list of those that are here with their size."""


@dataclass(frozen=True, slots=True)
class SpreadStep:
    """A step of which every file is on some node's disk."""

    step: int
    attempt: int
    marker: str
    witness: int
    """A node that has the marker."""
    holders: dict[int, tuple[int, ...]]
    """node -> positions of the files that are read from there; each file once."""


def reachable_steps(held: Sequence[Sequence[HeldStep]]) -> list[SpreadStep]:
    """What can be restored from all nodes' disks together, the best first: the newest step, of the newest attempt.

    `held` is by node. A file that several nodes have is read from the first of them.
    """
    found: dict[tuple[int, int, str], dict[int, int]] = {}
    witnesses: dict[tuple[int, int, str], tuple[int, int]] = {}
    for node, steps in enumerate(held):
        for item in steps:
            key = item.step, item.attempt, item.marker
            witnesses.setdefault(key, (node, item.num_files))
            for file in item.files:
                found.setdefault(key, {}).setdefault(file, node)
    reachable = []
    for key, (witness, num_files) in witnesses.items():
        node_of = found.get(key, {})
        if num_files == 0 or node_of.keys() != set(range(num_files)):
            continue
        holders: dict[int, tuple[int, ...]] = {}
        for file, node in sorted(node_of.items()):
            holders[node] = (*holders.get(node, ()), file)
        reachable.append(SpreadStep(*key, witness, holders))
    return sorted(reachable, key=lambda item: (item.step, item.attempt), reverse=True)


def held_steps(raw: Sequence[dict[str, Any]]) -> list[HeldStep]:
    """As an agent's answer came over the wire."""
    return [HeldStep(**{**item, "files": tuple(item["files"])}) for item in raw]
