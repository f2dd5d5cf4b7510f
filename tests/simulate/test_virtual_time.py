"""Virtual time: what is due happens in order, and the commit thread waits in it."""

import sys
import threading
from collections.abc import Iterator

import pytest

from orchestrator.simulate.world import Background, DriverClock, World

WORK_S = 2.0


@pytest.fixture
def many_switches() -> Iterator[None]:
    """Threads take turns wherever they can, as on a busy machine."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def threads_at_work() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "simulated-commit"]


def thread_of(world: World, log: list[object]) -> tuple[Background, DriverClock]:
    background = Background(world, WORK_S, lambda: True)
    return background, DriverClock(world, background)


def test_what_is_due_happens_in_its_order_also_while_somebody_is_busy() -> None:
    world, seen = World(), []
    world.after(5, lambda: seen.append(("later", world.now_s)))
    world.after(1, lambda: (seen.append(("first", world.now_s)), world.after(1, lambda: seen.append("nested"))))
    world.at(1, lambda: seen.append("second"))
    world.advance(3)
    assert seen == [("first", 1.0), "second", "nested"]
    assert world.now_s == 3.0
    assert world.step() and not world.step()
    assert seen[-1] == ("later", 5.0)


def test_work_is_done_in_its_order_each_after_its_time_and_waits_in_virtual_time() -> None:
    world, log, event = World(), [], threading.Event()
    background, clock = thread_of(world, log)

    def work(name: str) -> None:
        log.append((name, clock.monotonic()))
        log.append((name, clock.wait(event, 30.0), clock.monotonic()))

    background.submit(work, "a")
    background.submit(work, "b")
    world.advance(100)
    assert log == [("a", 2.0), ("a", False, 32.0), ("b", 34.0), ("b", False, 64.0)]
    background.shutdown()


def test_who_settles_wakes_what_waits() -> None:
    world, log, event = World(), [], threading.Event()
    background, clock = thread_of(world, log)
    background.submit(lambda: log.append(clock.wait(event, 1000.0)))
    world.advance(10)
    event.set()
    background.submit(lambda: None).result()
    assert log == [True]
    assert world.now_s == 10.0
    background.shutdown()


def test_of_a_killed_process_nothing_more_is_done() -> None:
    world, log, event = World(), [], threading.Event()
    background, clock = thread_of(world, log)
    background.submit(lambda: (clock.wait(event, 5.0), log.append("not this")))
    background.submit(lambda: log.append("nor this"))
    world.advance(3)
    background.abandon()
    world.advance(100)
    assert log == []
    assert threads_at_work() == []


def test_a_thread_that_looks_alive_for_a_moment_after_its_last_word_is_not_waited_for(many_switches: None) -> None:
    for _ in range(500):
        world, event = World(), threading.Event()
        background, clock = thread_of(world, [])
        background.submit(clock.wait, event, 5.0)
        world.advance(3)
        background.abandon()
    assert threads_at_work() == []


def test_what_does_not_wait_needs_no_thread() -> None:
    world, log = World(), []
    background = Background(world, WORK_S, lambda: False)
    background.submit(lambda: log.append(threading.current_thread() is threading.main_thread()))
    world.advance(WORK_S)
    assert log == [True]
    assert threads_at_work() == []
