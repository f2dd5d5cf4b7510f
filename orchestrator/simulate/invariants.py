"""What must hold whatever goes wrong. Each finds its violations; the schedule asks after every event. Plan half."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.checkpoint.layout import MARKER, step_of
from orchestrator.simulate.trained import Trained, trained_on

CLAIMS = "attempts"
PAYLOAD_SUFFIX = ".safetensors"
_CLAIM = re.compile(rf"{CLAIMS}/attempt_(\d+)\.json")
_NUMBER = re.compile(rb'^"(attempt|step)": (\d+)', re.MULTILINE)
LOST_ATTEMPT = frozenset({"rank_died", "node_lost", "hang_detected"})


class Invariants:
    """Hears what is put into the store, what the drivers write down, what ranks are started from."""

    def __init__(self, *, max_restarts: int) -> None:
        self.violations: list[str] = []
        self.committed: dict[int, int] = {}
        """Step -> the attempt whose marker stands, of those that nothing has damaged or rejected."""
        self.newest_claim = 0
        self.newest_start = 0
        """The newest attempt whose ranks were started."""
        self.furthest_step = 0
        """That any attempt has done."""
        self._late: set[int] = set()
        """Steps that an older driver has committed beside a newer one whose claim was not in the store yet."""
        self._max_restarts = max_restarts
        self._failures: dict[str, int] = {}
        """Driver -> failed attempts without a checkpoint in between."""
        self._further_losses: Counter[str] = Counter()
        """Driver -> nodes lost after their attempt had failed: while it is placed again that may be a failure
        of its own."""
        self._last_attempt: dict[str, int] = {}
        self._failed_attempts: set[tuple[str, int]] = set()
        self._unpriced: dict[str, str] = {}
        """Driver -> a loss of which it has not told yet what it has cost."""

    def put(self, path: str, data: bytes) -> None:
        """A file of the checkpoint store was written."""
        if path.endswith(PAYLOAD_SUFFIX):  # nearly all
            return
        folder, _, name = path.partition("/")
        if folder != CLAIMS and name != MARKER:
            return
        claim = _CLAIM.fullmatch(path)
        if claim:
            number = int(claim.group(1))
            self._require(number > self.newest_claim, f"attempt {number} was claimed after {self.newest_claim}")
            self.newest_claim = max(number, self.newest_claim)
            return
        step = step_of(folder)
        if step is None or name != MARKER:
            return
        found = {key.decode(): int(value) for key, value in _NUMBER.findall(data)}
        attempt = found["attempt"]
        self._require(found["step"] == step, f"the marker of step {found['step']} lies in {folder}")
        self._require(
            attempt == self.newest_claim,
            f"attempt {attempt} committed step {step} although attempt {self.newest_claim} had claimed the run",
        )
        if attempt < self.newest_start:
            # The newer one could not put its claim, because the store did not answer: see `fencing`.
            self._late.add(step)
            self.committed[step] = attempt
            return
        newest = self._newest_in_time()
        self._require(step > newest, f"attempt {attempt} committed step {step} after step {newest}: not monotonic")
        self.committed[step] = attempt

    def _newest_in_time(self) -> int:
        """The newest commit that every driver must know of."""
        return max((step for step in self.committed if step not in self._late), default=0)

    def damaged(self, step: int) -> None:
        """What was committed of `step` is not whole any more, or was set aside, or retention has deleted it."""
        self.committed.pop(step, None)

    def started(self, attempt: int, resume_step: int, resumed: Trained, skipped: Sequence[int] = ()) -> None:
        """Ranks are started from what was found, on the branch that leaves the windows `skipped` out."""
        newest = self._newest_in_time()
        self.newest_start = max(attempt, self.newest_start)
        self._require(
            attempt == self.newest_claim or resume_step >= 0, f"attempt {attempt} started after {self.newest_claim}"
        )
        self._require(
            resume_step >= newest, f"attempt {attempt} went back to step {resume_step}, behind the commit of {newest}"
        )
        self._require(
            resume_step <= self.furthest_step,
            f"attempt {attempt} started from step {resume_step}, which nobody has done: samples are lost",
        )
        self._require(
            resumed == trained_on(Trained(0, 0), resume_step, skipped),
            f"attempt {attempt} started from step {resume_step} with a state that has seen {resumed}",
        )

    def ended(self, steps: int, final: Trained | None, skipped: Sequence[int] = ()) -> None:
        """The run has finished; `final` is what its last checkpoint holds."""
        wanted = trained_on(Trained(0, 0), steps, skipped)
        self._require(final == wanted, f"the last checkpoint has seen {final}, {wanted} was to be seen")

    def recorded(self, driver: str, event: Mapping[str, Any]) -> None:
        """A driver has written an event."""
        name, attempt = event["event"], event["attempt"]
        if name in LOST_ATTEMPT:
            self._further_losses[driver] += name == "node_lost" and (driver, attempt) in self._failed_attempts
            self._failed(driver, attempt)
            self._unpriced.setdefault(driver, f"{name} of attempt {attempt}")
        elif name == "recovered":
            self._unpriced.pop(driver, None)
        elif name == "run_finished":
            self._require(driver not in self._unpriced, f"nobody told what {self._unpriced.get(driver)} has cost")
        elif name == "checkpoint_committed" and (driver, attempt) not in self._failed_attempts:
            self._failures[driver] = self._further_losses[driver] = 0
        elif name == "anomaly":
            self._failed_attempts.add((driver, attempt))  # of another budget
        elif name == "rollback":
            for step in [step for step in self.committed if step > event["to_step"]]:
                self.damaged(step)
        elif name == "checkpoint_rejected":
            self.damaged(event["step"])
        elif name == "attempt_started":
            if driver in self._last_attempt:  # a start that has timed out leaves no event of its own
                self._failed(driver, self._last_attempt[driver])
            self._last_attempt[driver] = attempt
            failures = self._failures.get(driver, 0)
            self._require(
                failures <= self._max_restarts,
                f"attempt {attempt} started after {failures} failures, fault.max_restarts={self._max_restarts}",
            )
        for step in event.get("pruned") or ():
            self.damaged(step)

    def _failed(self, driver: str, attempt: int) -> None:
        """Once for each attempt."""
        if (driver, attempt) not in self._failed_attempts:
            self._failed_attempts.add((driver, attempt))
            self._failures[driver] = self._failures.get(driver, 0) + 1

    def gave_up(self, driver: str, digest: str) -> None:
        """A driver has ended as failed; `digest` is what it says of it."""
        if "fault.* is used up" in digest:
            self._failed(driver, self._last_attempt[driver])
            failures = self._failures[driver] + self._further_losses[driver]
            is_spent = failures > self._max_restarts or "identical" in digest
            self._require(is_spent, f"it gave up after {failures} failures, fault.max_restarts={self._max_restarts}")

    def _require(self, holds: bool, violation: str) -> None:
        if not holds:
            self.violations.append(violation)
