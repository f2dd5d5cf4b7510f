"""Agents that are being started: up once they answer."""

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from orchestrator.errors import PlacementError, SupersededError
from orchestrator.fleet.raylib import first_line, import_ray

LOOK_S = 0.5


class ComingAgents:
    def __init__(self, actors: Sequence[Any], nodes: Sequence[int], calls: Sequence[Any]) -> None:
        """One actor in each of the bundles `nodes`; `calls` are the references of what must have returned."""
        self.actors = list(actors)
        self.nodes = list(nodes)
        self._waiting = list(calls)

    def are_up(self, timeout_s: float) -> bool:
        """Whether all have answered, within `timeout_s`. Raises PlacementError where one has died instead,
        SupersededError where a newer driver has it."""
        ray = import_ray()
        if not self._waiting:
            return True
        done, self._waiting = ray.wait(self._waiting, num_returns=len(self._waiting), timeout=timeout_s)
        try:
            ray.get(done)
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, SupersededError):
                raise cause from None
            raise PlacementError(f"an agent did not start ({first_line(error)}); see `ray status`") from error
        return not self._waiting

    def come_up(self, limit_s: float, is_placed: Callable[[], bool]) -> bool:
        """Wait until they are up; False where `is_placed` says that their nodes are gone. Raises PlacementError where
        they don't start in `limit_s`, as `are_up` does, and ends them then."""
        up_by_s = time.monotonic() + limit_s
        try:
            while not self.are_up(LOOK_S):
                if not is_placed():
                    return False
                if time.monotonic() > up_by_s:
                    raise PlacementError(
                        f"the agents did not start in cluster.start_timeout_s={limit_s:g}; see `ray status`"
                    )
        except PlacementError:
            self.end()
            raise
        return True

    def end(self) -> None:
        for actor in self.actors:
            with contextlib.suppress(Exception):
                import_ray().kill(actor)
