"""An attempt's number, and with it the right to commit: no two drivers ever have the same."""

import contextlib

from orchestrator.checkpoint.fencing import Claim, new_claim, newest_attempt, refuse_if_fenced, take
from orchestrator.checkpoint.store import Store
from orchestrator.control.opening import OpenRun
from orchestrator.errors import FencedError, StoreError


class Claims:
    """Of one driver's attempts, one after the other."""

    def __init__(self, run: OpenRun, store: Store, first: Claim | None) -> None:
        """`first`: taken before there were agents."""
        self._run = run
        self._store = store
        self._first = first
        self._previous: Claim | None = None

    def next(self, newest_on_disks: int) -> Claim:
        """The first one where the agents' disks know of no later attempt; else a new one. Raises FencedError."""
        claim = self._first
        if claim is None or claim.attempt <= newest_on_disks:
            claim = claim_attempt(self._run, self._store, newest_on_disks, self._previous)
        self._first, self._previous = None, claim
        return claim


def claim_attempt(run: OpenRun, store: Store, newest_on_disks: int = 0, previous: Claim | None = None) -> Claim:
    """The next attempt's number, taken by exclusive create in the run folder and in the checkpoint store: no two
    drivers ever have the same, and older ones commit nothing from here on.

    `previous` is this driver's own last claim: FencedError where another driver has taken the run over since.
    Where the store does not answer, it is claimed by the attempt's first commit: a restart from memory goes on.
    """
    taken = [int(path.name.removeprefix("attempt_")) for path in run.folder.path.glob("attempt_[0-9]*")]
    if previous is not None:
        with contextlib.suppress(StoreError):
            refuse_if_fenced(store, previous.attempt, previous)
        newest = max(taken, default=0)
        if newest > previous.attempt:  # the store may be silent, but the run folder is not
            raise FencedError(
                f"attempt {previous.attempt} may not be restarted: attempt {newest} in {run.folder.path} is another "
                "driver's, which has taken the run over; nothing was damaged, and the run goes on there"
            )
    number = max(newest_on_disks, *taken, 0) + 1
    with contextlib.suppress(StoreError):
        number = max(number, newest_attempt(store) + 1)
    while True:
        claim = new_claim(number, run.plan.run_id)
        number += 1
        try:
            run.folder.attempt(claim.attempt).mkdir()
            if take(store, claim):
                return claim
        except FileExistsError:
            continue
        except StoreError:
            return claim
