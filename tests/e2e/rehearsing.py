"""Schedules of faults on one shared Ray, two at a time, and what each has left behind."""

import shutil
import threading
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from left_behind import SHARED_MEMORY, command_of, listening_ports, marked_pids, new_shared_memory
from schedules import draw
from striking import Outcome, Striker, differences
from typed import Run, SharedRay, wait_for
from typists import MARK, joined_typist

from launch.prove_digest import final_digest

AT_ONCE = 2
WORDS = [
    "fault.lease_timeout_s=4",
    "fault.driver_grace_s=60",
    "fault.hang_constant_s=1",
    "fault.max_restarts=20",
    "fault.max_identical_failures=20",
    # From outside a standby can't be told from a rank, and with standbys a restart has no joining to be struck in.
    "worker.standby=false",
]
TORCHS_CACHE = "torchinductor_"
"""One for all processes of a user: meant to stay."""
AGENT_WORDS = ("orchestrator.agent", "AgentActor")


class Rehearsal:
    """Use as a context manager; leaving it lets what is under way end."""

    def __init__(self, scratch: Path, data: Path, shared_ray: SharedRay, calm: Run) -> None:
        """`calm`: the undisturbed run at ZeRO-2."""
        self._scratch = scratch
        self._data = data
        self._ray = shared_ray
        self._pool = ThreadPoolExecutor(AT_ONCE)
        self._calm: dict[int, tuple[Run, str]] = {2: (calm, final_digest(calm.folder))}
        self._training_calm = threading.Lock()
        self._outcomes: dict[int, Future[Outcome]] = {}
        self._before = {*SHARED_MEMORY.iterdir()}

    def __enter__(self) -> "Rehearsal":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def begin(self, seeds: Iterable[int]) -> None:
        self._outcomes |= {seed: self._pool.submit(self._run, seed) for seed in seeds}

    def outcome(self, seed: int) -> Outcome:
        return self._outcomes[seed].result()

    def _run(self, seed: int) -> Outcome:
        schedule = draw(seed)
        calm, digest = self._undisturbed(schedule.zero_stage)
        folder = self._scratch / f"seed_{seed}"
        folder.mkdir()
        run, typist = Run(folder / "runs"), joined_typist(folder, self._data, self._ray)
        try:
            striker = Striker(schedule, typist, run, [*WORDS, f"parallel.zero_stage={schedule.zero_stage}"])
            outcome = striker.carry_out()
            outcome.problems += differences(run, calm, digest)
        finally:
            typist.close()
        seen = striker.seen.values()
        wait_for(f"the end of all processes of seed {seed}", lambda: not any(each.is_running() for each in seen))
        if not outcome.problems:
            shutil.rmtree(folder)
        return outcome

    def _undisturbed(self, stage: int) -> tuple[Run, str]:
        with self._training_calm:
            if stage not in self._calm:
                folder = self._scratch / f"calm_{stage}"
                folder.mkdir()
                run, typist = Run(folder / "runs"), joined_typist(folder, self._data, self._ray)
                try:
                    typist.train(run, f"parallel.zero_stage={stage}").finish()
                finally:
                    typist.close()
                self._calm[stage] = run, final_digest(run.folder)
            return self._calm[stage]

    def check_nothing_is_left(self) -> None:
        """Once all are done."""
        try:
            wait_for("an end of all that the runs have left", lambda: not self._left_behind())
        except AssertionError as error:
            raise AssertionError(f"{error}: {self._left_behind()}") from None

    def _left_behind(self) -> list[str]:
        """Agents, their listeners, shared memory and temporary files."""
        pids = marked_pids(MARK)
        ours = [pid for pid in pids if any(word in command_of(pid) for word in AGENT_WORDS)]
        found = [f"process {pid} {command_of(pid)}" for pid in ours]
        found += [f"port {port}" for port in listening_ports(ours)]
        found += map(str, new_shared_memory(self._before, MARK))
        temporary = Path(self._ray.environment["TMPDIR"]).iterdir()
        return found + [str(path) for path in temporary if not path.name.startswith(TORCHS_CACHE)]
