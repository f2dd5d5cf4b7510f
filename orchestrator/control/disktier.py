"""The disk tier as the driver sees it: steps are committed on every node's own disk, and found there again."""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from orchestrator.checkpoint.fencing import Claim
from orchestrator.checkpoint.layout import step_folder
from orchestrator.checkpoint.marker import Marker
from orchestrator.checkpoint.spread import SpreadStep, held_steps, reachable_steps
from orchestrator.config import RunConfig
from orchestrator.control.attempt import Attempt, Message
from orchestrator.control.specs import disk_folder
from orchestrator.errors import CheckpointError
from orchestrator.fleet.members import AgentHandle, Cluster, call
from orchestrator.spec import ResumePoint

OnReject = Callable[[int, str, str], None]
"""Called with a step, what is wrong with its checkpoint, and where that is."""


@dataclass(slots=True)
class DiskOutcome:
    """What became of a step that all ranks have written to their nodes' disks."""

    attempt: int
    step: int
    seconds: float = 0.0
    num_bytes: int = 0
    pruned: list[int] = field(default_factory=list)
    """Steps that some node's disk gave up."""
    error: CheckpointError | None = None


@dataclass(slots=True)
class DiskTier:
    """`agents` are those of now, by rising node; the owner keeps them so. For the controller's thread only."""

    cluster: Cluster
    folder: str
    keep_last: int
    agents: Sequence[AgentHandle] = ()
    _newest_attempt: int = 0
    _outcomes: deque[DiskOutcome] = field(default_factory=deque)
    _thread: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="disk-commit")
    )

    def open(self, agents: Sequence[AgentHandle], secret: str, *, is_private: bool) -> None:
        """Before the agents' disks are used. Raises ConnectionError where an agent is gone."""
        self.agents = agents
        self.cluster.call_all([(agent, (self.folder, is_private, secret)) for agent in agents], "open_disk")

    def points(self) -> list[SpreadStep]:
        """What the nodes' disks hold whole, the best first; nothing where an agent is gone: the attempt that starts
        will fail for it."""
        try:
            answers = self._ask("held")
        except ConnectionError:
            return []
        return reachable_steps([held_steps(answer["steps"]) for answer in answers])

    def find_newest_attempt(self) -> int:
        """That has claimed any of the disks; as last found, where an agent is gone."""
        with contextlib.suppress(ConnectionError):
            self._newest_attempt = max(answer["newest_attempt"] for answer in self._ask("held"))
        return self._newest_attempt

    def restorable(self, point: SpreadStep, fingerprint: str, on_reject: OnReject) -> ResumePoint | None:
        """Verify every byte of it, each file where it is; None where it is damaged (then it is set aside), not this
        run's, or can't be reached any more. Afterwards every node knows where to read it."""
        try:
            return self._restorable(point, fingerprint, on_reject)
        except (ConnectionError, CheckpointError) as error:
            on_reject(point.step, str(error), self.folder)
            return None

    def _restorable(self, point: SpreadStep, fingerprint: str, on_reject: OnReject) -> ResumePoint | None:
        text: str = self._ask_one(point.witness, "marker", point.step)
        marker = Marker.from_json(text, f"the marker of step {point.step} in {self.folder}")
        if marker.fingerprint != fingerprint:
            return None
        holders = sorted(point.holders.items())
        found = self.cluster.call_all(
            [(self.agents[node], ("problems", text, files)) for node, files in holders], "on_disk"
        )
        problems = [
            f"on {self.agents[node].host}: {problem}"
            for (node, _), of_node in zip(holders, found, strict=True)
            for problem in of_node
        ]
        if problems:
            self._ask("reject", point.step, problems[0])
            on_reject(point.step, problems[0], f"{self.folder}/{step_folder(point.step)}")
            return None
        where = {
            marker.files[i].file: (self.agents[node].address, self.agents[node].port)
            for node, files in holders
            for i in files
        }
        self._ask("prepare_restore", point.step, text, where)
        return ResumePoint(
            step=point.step,
            source="disk",
            checkpoint=f"{self.folder}/{step_folder(point.step)}",
            skipped_windows=marker.data.skipped_windows,
            branch=marker.branch,
            is_spread=True,
        )

    def claim(self, claim: Claim) -> None:
        """Older attempts commit nothing on these disks from now on; a newer one that came between is found by the
        first commit."""
        with contextlib.suppress(ConnectionError, CheckpointError):
            self._ask("claim", claim.attempt, claim.content)

    def begin_commit(
        self, attempt: Attempt, step: int, messages: Sequence[Message], make: Callable[[], Marker]
    ) -> None:
        """Every rank's payload is on its node's disk: write the marker there, in the background."""
        agents = list(self.agents)

        def work() -> None:
            outcome = DiskOutcome(attempt.number, step)
            started = time.monotonic()
            try:
                marker = make()
                text = marker.to_json()
                calls: list[tuple[AgentHandle, tuple[object, ...]]] = [
                    (agent, ("commit", step, attempt.number, text, self.keep_last)) for agent in agents
                ]
                pruned = self.cluster.call_all(calls, "on_disk")
                outcome.pruned = sorted({step for of_node in pruned for step in of_node})
                outcome.num_bytes = marker.total_bytes
            except CheckpointError as error:
                outcome.error = error
            except ConnectionError as error:  # a node is lost: the controller hears of it
                outcome.error = CheckpointError(str(error))
            outcome.seconds = max(m["seconds"] for m in messages) + time.monotonic() - started
            self._outcomes.append(outcome)

        self._thread.submit(work)

    def finished(self) -> list[DiskOutcome]:
        """What has come since the last call."""
        outcomes = []
        while self._outcomes:
            outcomes.append(self._outcomes.popleft())
        return outcomes

    def settle(self) -> None:
        """Until no commit is under way."""
        done = threading.Event()
        self._thread.submit(done.set)
        done.wait()

    def close(self, *, is_finished: bool) -> None:
        """A finished run leaves nothing on the nodes' disks: its last checkpoint is at checkpoint.url."""
        self._thread.shutdown(wait=True)
        if is_finished:
            with contextlib.suppress(ConnectionError, CheckpointError):
                self._ask("clear")

    def _ask(self, operation: str, *arguments: object) -> list[Any]:
        return self.cluster.call_all([(agent, (operation, *arguments)) for agent in self.agents], "on_disk")

    def _ask_one(self, index: int, operation: str, *arguments: object) -> Any:
        return call(self.cluster, self.agents[index], "on_disk", operation, *arguments)


def disk_tier(config: RunConfig, run_id: str, cluster: Cluster) -> DiskTier | None:
    folder = disk_folder(config, run_id)
    return None if folder is None else DiskTier(cluster, folder, config.checkpoint.local_keep_last)
