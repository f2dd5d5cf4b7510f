"""The ranks of one attempt as one state machine: all of them go in step, so what they do between two moments of
interest is arithmetic, and costs nothing to simulate."""

from collections.abc import Callable
from typing import Any

from orchestrator.agent.watchdog import Phase, Position, RankProgress
from orchestrator.data.order import GlobalOrder, window_of_step
from orchestrator.simulate.costs import Costs
from orchestrator.simulate.trained import Trained, digest_of, trained_on
from orchestrator.simulate.world import World

Message = dict[str, Any]


NO_DIGEST = "0" * 16
TICK_S = 1e-6
"""The moment at which a step is done belongs to it, whatever rounding says."""


class Training:
    """From `begin` to `halt`. `wake(step)` is called when a step of interest is done: the first one, those at which
    a checkpoint is due, the last."""

    def __init__(
        self,
        world: World,
        costs: Costs,
        spec: Message,
        resumed: Trained,
        wake: Callable[[int], None],
    ) -> None:
        """`spec`: what the ranks' encoded WorkerSpecs have in common."""
        self.attempt: int = spec["attempt"]
        self.world_size: int = spec["world_size"]
        self.start_step: int = spec["resume"]["step"]
        self._every: int = spec["snapshot"]["every_steps"]
        self._replicate_every: int = spec["snapshot"]["replicate_every_steps"]
        self._save_every: int = spec["checkpoint"]["every_steps"]
        self.skipped: tuple[int, ...] = tuple(spec["resume"]["skipped_windows"])
        self.is_halted = False
        self.is_drained = False
        self.told_step = self.start_step
        """The newest step of which every rank has reported."""
        self.leave_step: int | None = None
        """The step boundary at which the ranks have agreed to leave."""
        self._world = world
        self._costs = costs
        self._has_peer: bool = spec["has_peer"]
        self._steps: int = spec["steps"]
        step_s = costs.step_s
        step_s += costs.stall_s / self._every if self._every else 0.0
        self.step_s: float = step_s + (costs.persist_stall_s / self._save_every if self._save_every else 0.0)
        self._resumed = resumed
        self._wake = wake
        self._base_step = self.start_step + 1
        self._base_s = 0.0
        """When that step is done; the others follow from it."""
        self._halted_s = 0.0
        self._version = 0

    def begin(self, start_s: float) -> None:
        """The ranks are forked now; their first step begins in `start_s`."""
        self._base_s = self._world.now_s + start_s + self.step_s
        self._expect()

    @property
    def end_step(self) -> int:
        return self._steps if self.leave_step is None else self.leave_step

    @property
    def now_s(self) -> float:
        """Where the ranks' own time stands."""
        return self._halted_s if self.is_halted else self._world.now_s

    def steps_done(self) -> int:
        ahead_s = self.now_s - self._base_s
        if ahead_s < -TICK_S:
            return self._base_step - 1
        return min(self.end_step, self._base_step + int((ahead_s + TICK_S) / self.step_s))

    def time_of(self, step: int) -> float:
        return self._base_s + (step - self._base_step) * self.step_s

    def state_at(self, step: int) -> Trained:
        return trained_on(self._resumed, step - self.start_step, self.skipped)

    def is_save_due(self, step: int) -> bool:
        every = self._save_every
        return step == self.end_step or (every > 0 and step % every == 0)

    def drain(self) -> None:
        """The ranks leave at the next boundary."""
        if not self.is_halted and self.leave_step is None:
            nearest = max(self.steps_done(), self.start_step) + 1
            if nearest < self.end_step:
                self.leave_step, self.is_drained = nearest, True
            self._expect()

    def delay(self, seconds: float) -> None:
        """All of them are held up, and move."""
        if not self.is_halted and self.has_begun:
            following = self.steps_done() + 1
            self._base_step, self._base_s = following, self.time_of(following) + seconds
            self._expect()

    @property
    def has_begun(self) -> bool:
        """Whether the first step is under way or done."""
        return self.now_s >= self.time_of(self.start_step + 1) - self.step_s

    def halt(self) -> None:
        """No rank makes another step."""
        if not self.is_halted:
            self._halted_s, self.is_halted = self._world.now_s, True
            self._version += 1

    def sealed_steps(self) -> list[int]:
        """The steps of which every rank's slots hold a snapshot, the newest two."""
        every = self._every
        if not every:
            return []
        newest = self.steps_done() // every * every
        if newest > self.start_step and self.now_s < self.time_of(newest) + self._costs.seal_s:
            newest -= every
        return [step for step in (newest, newest - every) if step > self.start_step]

    def copied_steps(self) -> list[int]:
        """Of which the peers hold copies: only one set is on its way at a time."""
        every = self._every
        if not every or not self._has_peer:
            return []
        between = max(every, self._replicate_every, -(-int(self._costs.copy_s / self.step_s * 1000) // 1000))
        between = -(-between // every) * every
        newest = self.steps_done() // between * between
        while (
            newest > self.start_step and self.now_s < self.time_of(newest) + self._costs.seal_s + self._costs.copy_s
        ):
            newest -= between
        return [newest] if newest > self.start_step else []

    def position(self) -> Position:
        return Position(self.steps_done(), Phase.compute if self.has_begun else Phase.starting)

    def progress_of(self, rank: int, node: int, is_stuck: bool, limit_s: float) -> RankProgress:
        still_s = self._world.now_s - self._halted_s if self.is_halted else 0.0
        step, phase = self.position()[:2]
        waits = Position(step, phase if is_stuck else Phase.update)
        return RankProgress(rank, node, waits, still_s, limit_s, self.step_s)

    def _expect(self) -> None:
        """Wake at the next step of interest."""
        self._version += 1
        version, done, every = self._version, self.steps_done(), self._save_every
        following = [self.end_step, (done // every + 1) * every if every else self.end_step]
        if self.told_step == self.start_step or done < self.start_step + 1:
            following.append(done + 1)
        step = min(s for s in following if s > done) if done < self.end_step else self.end_step

        def act() -> None:
            if version == self._version and not self.is_halted:
                self._wake(step)
                if step < self.end_step and version == self._version:
                    self._expect()

        self._world.at(self.time_of(step), act)


def step_report(training: Training, step: int, time_s: float) -> Message:
    """What a rank says of a step, but for its number and node."""
    return {
        "kind": "step",
        "step": step,
        "attempt": training.attempt,
        "loss_sum": 0.0,
        "grad_norm": 1.0,
        "lr": 1e-4,
        "step_s": training.step_s,
        "data_s": 0.0,
        "snapshot_s": 0.0,
        "keep_s": 0.0,
        "wait_s": 0.0,
        "digest": NO_DIGEST,
        "rng_digest": NO_DIGEST,
        "memory_bytes": 0,
        "time": time_s,
        "phases_s": {},
    }


def batch_digest(training: Training, step: int, order: GlobalOrder, global_batch_size: int) -> str:
    """Of the whole batch that the ranks read in `step`: rank 0 reports it, the others add nothing."""
    return digest_of(order.rows_of_window(window_of_step(step - 1, training.skipped), global_batch_size))
