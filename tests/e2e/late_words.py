"""python late_words.py: what a driver hears of an agent whose words the Ray at $RAY_ADDRESS brings late, as JSON."""

import json
import threading
from typing import Any

import ray

from orchestrator.agent.lease import LeaseTerms
from orchestrator.agent.mailbox import Event, Mailbox
from orchestrator.fleet.members import AgentHandle
from orchestrator.fleet.renewals import Renewals
from orchestrator.fleet.stream import EventStream
from orchestrator.fleet.tenancy import Tenancy
from orchestrator.leaving import leave_with


class LateAgent:
    """What it has said is on its way until it is asked for a mark."""

    def __init__(self) -> None:
        self._mailbox = Mailbox()
        self._is_asked = threading.Event()

    def command(self, generation: int, method: str, *arguments: Any) -> Any:
        return getattr(self, method)(*arguments)

    def say(self, rank: int) -> None:
        self._mailbox.put({"kind": "exited", "rank": rank})

    def mark(self, mark: int) -> None:
        self._mailbox.put({"kind": "mark", "mark": mark})
        self._is_asked.set()

    def next_events(self, timeout_s: float) -> list[Event]:
        events = self._mailbox.take(timeout_s)
        if events:
            self._is_asked.wait()
        return events


def main() -> dict[str, Any]:
    actor = ray.remote(LateAgent).options(num_cpus=0, max_concurrency=8).remote()
    agent = AgentHandle(actor, 0, "here", "127.0.0.1", None, 0)
    renewals = Renewals(Tenancy("late", 1, LeaseTerms(timeout_s=1e6, grace_s=0.0)), list)
    try:
        stream = EventStream([agent], 1, renewals)
        ray.get([actor.command.remote(1, "say", rank) for rank in (0, 1)])
        at_once, _ = stream.poll(0.0)
        caught_up, _ = stream.catch_up()
        ray.kill(actor)
        dead: list[AgentHandle] = []
        while not dead:
            _, dead = stream.catch_up()
    finally:
        renewals.close()
    return {"at_once": at_once, "caught_up": [event["rank"] for event in caught_up], "dead": len(dead)}


def told() -> int:
    ray.init(log_to_driver=False, logging_level="ERROR", namespace="phalanx")
    print(json.dumps(main()))
    ray.shutdown()
    return 0


if __name__ == "__main__":
    leave_with(told)
