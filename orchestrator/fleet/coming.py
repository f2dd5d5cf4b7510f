"""An agent that is being started: up once it answers."""

import contextlib
import time
from typing import Any

from orchestrator.errors import PlacementError, SupersededError
from orchestrator.fleet.raylib import first_line, import_ray


class ComingAgent:
    def __init__(self, actor: Any, call: Any, ray_node: str) -> None:
        """`call` is the reference of what must have returned; `ray_node`: Ray's id of the node that it starts on."""
        self.actor = actor
        self.call = call
        self.ray_node = ray_node
        self.since_s = time.monotonic()
        self._is_up = False

    def is_up(self) -> bool:
        """Returns at once. Raises PlacementError where it has died instead, SupersededError where a newer driver has
        it."""
        ray = import_ray()
        if not self._is_up and ray.wait([self.call], timeout=0)[0]:
            try:
                ray.get(self.call)
            except ray.exceptions.RayError as error:
                cause = getattr(error, "cause", None)
                if isinstance(cause, SupersededError):
                    raise cause from None
                raise PlacementError(f"an agent did not start ({first_line(error)}); see `ray status`") from error
            self._is_up = True
        return self._is_up

    def end(self) -> None:
        with contextlib.suppress(Exception):
            import_ray().kill(self.actor)
