"""The job's side of a preflight: what it asks its nodes next, and what it has heard of them. Plan half.

First every node looks at itself; then all are asked for the time; then they are paired, in a few rounds. What does
not come in time is waited for no longer.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.doctor.finding import Finding, Level, NodeReport
from orchestrator.doctor.verdict import NodeCheck, rounds

STEP_TIMEOUT_S = 40.0
"""For the time, and for each round of pairs: twice what a pair that can't meet takes to give up."""
LOOKING, CLOCK = -2, -1
PATIENCE, PATIENCE_S = 3.0, 30.0
"""Once half of the nodes have answered, the others have so many times as long as that took, or these seconds."""


class Checking:
    def __init__(self, hosts: Sequence[str], timeout_s: float, now_s: float) -> None:
        """`timeout_s`: for the nodes' look at themselves."""
        self.checks: dict[str, NodeCheck] = {}
        """Of the nodes that have answered."""
        self.is_complete = False
        self._hosts = hosts
        self._failed: dict[str, str] = {}
        self._found: dict[str, list[Finding]] = {host: [] for host in hosts}
        self._ports: dict[str, tuple[str, int]] = {}
        self._rounds: list[list[tuple[str, str]]] | None = None
        self._turn = LOOKING
        """Then CLOCK, then the rounds by number."""
        self._waited_s = 0.0
        self._awaited = {*hosts}
        self._asked_s = now_s
        self._until_s = now_s + timeout_s

    @property
    def silent(self) -> dict[str, str]:
        """Node -> what is said of one that has not answered to the end."""
        words = f"has not answered in {self._waited_s:.0f} s; see the job's output for srun's words"
        return {host: self._failed.get(host, words) for host in self._hosts if host not in self.checks}

    def left_s(self, now_s: float) -> float:
        return max(0.0, self._until_s - now_s)

    def hear(self, message: Mapping[str, Any], now_s: float) -> None:
        node = message["node"]
        if node not in self._found:
            return
        match message["op"]:
            case "row":
                finding = Finding(message["row"], Level(message["level"]), message["found"], message["cure"])
                self._found[node].append(finding)
            case "failed":
                bad = [f"{row.row}: {row.found}" for row in self._found[node] if row.level is Level.fail]
                self._failed[node] = "; ".join([*bad, message["text"]])
                self._awaited.discard(node)
            case "checked" if self._turn == LOOKING:
                self.checks[node] = NodeCheck(
                    host=node,
                    findings=self._found[node],
                    gpus=tuple(message["gpus"]),
                    flops_per_s=message["flops_per_s"],
                )
                self._ports[node] = message["address"], message["port"]
                self._awaited.discard(node)
                if 2 * len(self.checks) >= len(self._hosts):
                    took_s = now_s - self._asked_s
                    self._until_s = min(self._until_s, self._asked_s + max(PATIENCE * took_s, PATIENCE_S))
            case "clock" if self._turn == CLOCK:
                self.checks[node].clock = NodeReport(node, message["time_s"], (self._asked_s, now_s), ())
                self._awaited.discard(node)
            case "paired" if message["turn"] == self._turn and node in self._awaited:
                self._paired(node, message["bytes_per_s"], message.get("error"))
                self._awaited.discard(node)

    def next_orders(self, now_s: float, *, has_ended: bool) -> list[dict[str, Any]]:
        """What to tell the nodes, once all that is awaited has come or its time is over; empty before that.

        `has_ended`: no node can be heard any more.
        """
        if self._awaited and now_s < self._until_s and not has_ended:
            return []
        if self._turn == LOOKING:
            self._waited_s = now_s - self._asked_s
        for node in self._awaited if self._turn >= 0 else ():
            self._paired(node, 0.0, None)
        if has_ended:
            return self._end()
        self._turn += 1
        self._asked_s, self._until_s = now_s, now_s + STEP_TIMEOUT_S
        present = [host for host in self._hosts if host in self.checks]
        if self._turn == CLOCK:
            self._awaited = {*present}
            return [{"op": "clock"}] if present else self._end()
        if self._rounds is None:
            self._rounds = rounds(present)
        if self._turn >= len(self._rounds):
            return self._end()
        pairs = self._rounds[self._turn]
        self._awaited = {node for pair in pairs for node in pair}
        return [
            {"op": "pair", "turn": self._turn, "nodes": [*pair], "address": address, "port": port}
            for pair in pairs
            for address, port in [self._ports[pair[0]]]
        ]

    def _paired(self, node: str, bytes_per_s: float, error: str | None) -> None:
        assert self._rounds is not None
        other = next(b if a == node else a for a, b in self._rounds[self._turn] if node in (a, b))
        self.checks[node].pairs[other] = bytes_per_s
        if error is not None:
            self.checks[node].pair_errors.append(error)

    def _end(self) -> list[dict[str, Any]]:
        self.is_complete = True
        self._awaited = set()
        return []
