"""How signals, Ray's drains and the time that is left become notices."""

from dataclasses import dataclass, field

import pytest

from orchestrator.control.preemption import LEAVE_S, Drain, Preemptions


@dataclass
class World:
    signals: int = 0
    drain: Drain | None = None
    now_s: float = 1000.0
    said: list[str] = field(default_factory=list)

    def counter(self, grace_s: float | None) -> Preemptions:
        return Preemptions(
            lambda: self.signals, lambda: self.drain, grace_s, self.said.append, monotonic=lambda: self.now_s
        )


def test_signals_are_counted_as_they_come() -> None:
    world = World()
    count = world.counter(None)
    seen = [count()]
    for _ in range(3):
        world.signals += 1
        world.now_s += 3600.0  # nobody said how much time is left
        seen.append(count())
    assert seen == [0, 1, 2, 3]
    assert world.said == []


def test_a_drain_is_one_notice_also_beside_a_signal() -> None:
    world = World(drain=Drain("node-7", None))
    count = world.counter(None)
    assert [count(), count()] == [1, 1]
    world.signals = 1
    assert count() == 1
    world.signals = 2
    assert count() == 2
    (said,) = world.said
    assert said.startswith("node node-7 will be taken away (Ray drains it)")


@pytest.mark.parametrize(("grace_s", "drain"), [(30.0, None), (None, Drain("n", 30.0)), (5.0, Drain("n", 30.0))])
def test_shortly_before_the_time_is_up_the_run_ends_by_itself(grace_s: float | None, drain: Drain | None) -> None:
    world = World(signals=0 if drain else 1, drain=drain)
    count = world.counter(grace_s)
    assert count() == 1
    world.now_s += 30.0 - LEAVE_S - 0.1
    assert count() == 1
    world.now_s += 0.2
    assert count() == 2


def test_a_deadline_in_the_past_ends_it_at_once() -> None:
    count = World(drain=Drain("n", -5.0)).counter(None)
    assert count() == 2
