"""What the simulation has found in the controller, each once more by itself."""

from collections.abc import Callable
from pathlib import Path

from simulated import assert_clean, setting

from orchestrator.control.opening import OpenRun
from orchestrator.errors import StoreFault
from orchestrator.observe.ledger import read_events
from orchestrator.runfolder import RunFolder
from orchestrator.simulate.faults import Fault, Scenario
from orchestrator.simulate.injecting import Injector
from orchestrator.simulate.saving import Payloads
from orchestrator.simulate.schedule import Schedule

STEPS = 400
SAVE_EVERY = 100


def schedule_in(folder: Path) -> Schedule:
    """A calm one."""
    at = setting().with_steps(STEPS, save_every=SAVE_EVERY)
    run = OpenRun(at.config, at.plan, at.manifest, RunFolder(folder), "simulated://store", False)
    calm = Scenario(steps=STEPS, hours=1.0, interval_s=1e12, uninjected=0)
    return Schedule(run, at.placement, at.costs, Payloads(len(at.placement.ranks)), scenario=calm, seed=1)


def when_step_is_done(schedule: Schedule, step: int, act: Callable[[], None]) -> None:
    def look() -> None:
        cluster = schedule.drivers[0].cluster if schedule.drivers else None
        if cluster is not None and cluster.training is not None and cluster.training.steps_done() >= step:
            act()
        else:
            schedule.world.after(1.0, look)

    schedule.world.after(1.0, look)


def test_a_restart_from_a_store_that_does_not_answer_waits_for_it(tmp_path: Path) -> None:
    schedule = schedule_in(tmp_path)
    injector = Injector(schedule)

    def go_down() -> None:
        schedule.files.fault = StoreFault.busy
        schedule.world.after(90, lambda: setattr(schedule.files, "fault", None))
        assert injector.inject(Fault.damaged_snapshot)

    when_step_is_done(schedule, SAVE_EVERY + 20, go_down)
    course = schedule.run()
    assert_clean(course)
    assert course.drivers == 1
    assert [recovery["source"] for recovery in course.recoveries] == ["remote"]
    assert course.recoveries[0]["downtime_s"] > 90


def test_an_older_live_driver_does_not_take_the_run_back_when_its_attempt_fails(tmp_path: Path) -> None:
    schedule = schedule_in(tmp_path)

    def start_another() -> None:
        older = schedule.drivers[0]
        schedule.type_again()
        schedule.world.after(5.0, lambda: Injector(schedule)._hit_now(older.cluster, Fault.memory))

    when_step_is_done(schedule, 150, start_another)
    course = schedule.run()
    assert_clean(course)
    assert course.drivers == 2
    starts = [event for event in read_events(tmp_path / "events.jsonl") if event["event"] == "attempt_started"]
    assert len(starts) == 2


def test_a_node_that_dies_after_the_stop_does_not_cost_the_others_memory(tmp_path: Path) -> None:
    schedule = schedule_in(tmp_path)
    injector = Injector(schedule)

    def hit() -> None:
        cluster = schedule.drivers[0].cluster
        cluster.on_stop.append(lambda: schedule.world.after(0.001, lambda: cluster.lose(cluster.nodes[3])))
        injector._hit_now(cluster, Fault.memory)

    when_step_is_done(schedule, SAVE_EVERY + 50, hit)
    course = schedule.run()
    assert_clean(course)
    (recovery,) = course.recoveries
    assert recovery["source"] == "peer"
    assert recovery["steps_lost"] <= 1
