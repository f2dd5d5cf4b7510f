"""What the simulation has found in the controller, each once more by itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from simulated import assert_clean, setting

from launch.job.ending import lost_a_node
from orchestrator.codec import encode
from orchestrator.control.anomalies import Anomaly, Kind
from orchestrator.control.opening import OpenRun
from orchestrator.errors import StoreFault
from orchestrator.observe.ledger import read_events
from orchestrator.observe.metrics import surviving_rows
from orchestrator.runfolder import RunFolder
from orchestrator.simulate.faults import Fault, Scenario
from orchestrator.simulate.injecting import Injector
from orchestrator.simulate.outcome import Course
from orchestrator.simulate.saving import Payloads
from orchestrator.simulate.schedule import Schedule
from orchestrator.simulate.world import EPOCH_S

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
        for node in schedule.drivers[0].cluster.nodes:  # and the one before it, or its copy
            node.damaged.add(node.ranks[0])

    when_step_is_done(schedule, SAVE_EVERY + 20, go_down)
    course = schedule.run()
    assert_clean(course)
    assert course.drivers == 1
    assert [recovery["source"] for recovery in course.recoveries] == ["remote"]
    assert course.recoveries[0]["downtime_s"] > 90


def test_a_damaged_snapshot_costs_no_more_than_the_one_before_it_in_memory(tmp_path: Path) -> None:
    schedule = schedule_in(tmp_path)
    when_step_is_done(schedule, SAVE_EVERY + 50, lambda: Injector(schedule).inject(Fault.damaged_snapshot))
    course = schedule.run()
    assert_clean(course)
    assert course.attempts == 3
    (recovery,) = course.recoveries
    assert recovery["source"] in {"memory", "peer"}
    assert recovery["steps_lost"] <= 2


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


def lose_one_more_while_placing(schedule: Schedule, after_s: float) -> None:
    """A node is lost, and another so long after the ranks were stopped."""
    cluster = schedule.drivers[0].cluster
    cluster.on_stop.append(lambda: schedule.world.after(after_s, lambda: cluster.lose(cluster.nodes[5])))
    Injector(schedule)._lose(cluster, cluster.nodes[2], False)


def test_a_node_that_is_lost_while_the_run_is_placed_again_costs_one_failure(tmp_path: Path) -> None:
    schedule = schedule_in(tmp_path)
    after_s = schedule.costs.place_s + schedule.costs.agent_s / 2
    when_step_is_done(schedule, SAVE_EVERY + 20, lambda: lose_one_more_while_placing(schedule, after_s))
    course = schedule.run()
    assert_clean(course)
    assert (course.drivers, course.attempts) == (1, 2)
    events = read_events(RunFolder(tmp_path).events)
    assert [event["attempt"] for event in events if event["event"] == "node_lost"] == [1, 1]
    assert [event["source"] for event in events if event["event"] == "recovered"] == ["peer"]


def test_nodes_that_are_found_lost_at_once_are_replaced_together(tmp_path: Path) -> None:
    schedule = schedule_in(tmp_path)

    def lose_two() -> None:
        cluster = schedule.drivers[0].cluster
        Injector(schedule)._lose(cluster, cluster.nodes[2], True)

    when_step_is_done(schedule, SAVE_EVERY + 20, lose_two)
    course = schedule.run()
    assert_clean(course)
    assert (course.drivers, course.attempts) == (1, 2)


def test_a_run_that_ends_for_want_of_a_node_says_so_and_its_job_may_be_requeued(tmp_path: Path) -> None:
    """Not the first rank's death, which came of it."""
    schedule = schedule_in(tmp_path)

    def lose_one_without_spares() -> None:
        cluster = schedule.drivers[0].cluster
        cluster.has_spares = False
        Injector(schedule)._lose(cluster, cluster.nodes[2], False)

    when_step_is_done(schedule, SAVE_EVERY + 20, lose_one_without_spares)
    course = schedule.run()
    assert_clean(course)
    assert course.drivers == 2
    events = read_events(RunFolder(tmp_path).events)
    (failed,) = [event for event in events if event["event"] == "run_failed"]
    assert failed["rank"] is None
    assert "the cluster has not freed nodes" in failed["digest"]
    assert lost_a_node(events[: events.index(failed) + 1], 0.0)


def corrupt(schedule: Schedule, good_step: int, ranks: tuple[int, ...] = (), silent: int = 0) -> int:
    """Ranks say that a replica's parameters differ, the last `silent` of them don't get to it; the step."""
    cluster = schedule.drivers[0].cluster
    training = cluster.training
    assert training is not None
    cluster.halt()
    step = training.steps_done()
    schedule.report(cluster, training, step)
    anomaly = encode(Anomaly(Kind.replicas_differ, step, good_step, "rank 3 holds other parameters", ranks))
    said = {"kind": "anomaly", "attempt": training.attempt, "step": step, "anomaly": anomaly}
    cluster.emit_of_ranks(said, cluster.nodes[: len(cluster.nodes) - silent])
    return step


def assert_went_back(folder: Path, course: Course, good_step: int) -> None:
    assert_clean(course)
    events = read_events(RunFolder(folder).events)
    (rollback,) = [event for event in events if event["event"] == "rollback"]
    assert (rollback["kind"], rollback["to_step"]) == ("replicas_differ", good_step)
    starts = [event["resume_step"] for event in events if event["event"] == "attempt_started"]
    assert starts == [0, good_step]


def test_a_driver_that_dies_before_it_has_gone_back_leaves_that_to_the_next(tmp_path: Path) -> None:
    """It waits for a node in place of the one that gave wrong bits. A checkpoint has come since they were right."""
    schedule = schedule_in(tmp_path)

    def hit() -> None:
        corrupt(schedule, SAVE_EVERY, (3,))
        driver = schedule.drivers[0]
        schedule.world.after(schedule.costs.stop_s + schedule.costs.place_s, lambda: schedule.kill(driver))

    when_step_is_done(schedule, 2 * SAVE_EVERY + 20, hit)
    course = schedule.run()
    assert course.drivers == 2
    assert_went_back(tmp_path, course, SAVE_EVERY)


def test_a_rank_that_dies_amid_the_news_of_bad_numbers_changes_nothing(tmp_path: Path) -> None:
    schedule = schedule_in(tmp_path)

    def hit() -> None:
        corrupt(schedule, SAVE_EVERY, silent=1)
        cluster = schedule.drivers[0].cluster
        node, training = cluster.nodes[-1], cluster.training
        assert training is not None
        dies = {"exit_code": None, "signal": 9}
        Injector(schedule).exits_later(cluster, node, node.ranks[0], training, how=dies, after_s=0.01)

    when_step_is_done(schedule, 2 * SAVE_EVERY + 20, hit)
    course = schedule.run()
    assert course.drivers == 1
    assert_went_back(tmp_path, course, SAVE_EVERY)


def resumed(schedule: Schedule, folder: Path) -> list[dict[str, Any]]:
    """The events of a run that a second driver went on with, and that had not failed."""
    course = schedule.run()
    assert_clean(course)
    assert course.drivers == 2
    events = read_events(RunFolder(folder).events)
    assert [event for event in events if event["event"] == "run_failed"] == []
    return events


def test_a_run_that_is_told_to_stop_while_its_store_fails_may_be_resumed(tmp_path: Path) -> None:
    """It is no failed run: a scheduler goes on with it."""
    schedule = schedule_in(tmp_path)

    def tell_to_stop() -> None:
        driver = schedule.drivers[0]
        schedule.files.fault = StoreFault.full
        driver.notices += 1
        schedule.expect_end(driver)
        limit_s = setting().config.checkpoint.final_timeout_s
        schedule.world.after(limit_s + 100, lambda: setattr(schedule.files, "fault", None))

    when_step_is_done(schedule, SAVE_EVERY + 20, tell_to_stop)
    events = resumed(schedule, tmp_path)
    assert [e["resume_step"] for e in events if e["event"] == "attempt_started"] == [0, SAVE_EVERY]


def test_a_run_that_is_told_to_stop_while_it_waits_for_its_checkpoints_may_be_resumed(tmp_path: Path) -> None:
    """Nobody is there to be drained: it leaves, and has not failed."""
    schedule = schedule_in(tmp_path)

    def go_down() -> None:
        driver = schedule.drivers[0]
        schedule.files.fault = StoreFault.busy
        assert Injector(schedule).inject(Fault.damaged_snapshot)
        for node in driver.cluster.nodes:
            node.damaged.add(node.ranks[0])
        schedule.world.after(60, lambda: setattr(driver, "notices", 1))
        schedule.expect_end(driver, 120)
        schedule.world.after(130, lambda: setattr(schedule.files, "fault", None))

    when_step_is_done(schedule, SAVE_EVERY + 20, go_down)
    events = resumed(schedule, tmp_path)
    assert len([event for event in events if event["event"] == "preemption_notice"]) == 1


def stop_with_an_end(schedule: Schedule) -> int:
    """All ranks stand still, and one's end is the first that the driver hears of it; the last step done."""
    cluster = schedule.drivers[0].cluster
    training, node = cluster.training, cluster.nodes[-1]
    assert training is not None
    cluster.halt()
    about = {"kind": "exited", "attempt": training.attempt, "rank": node.ranks[0], "node": node.index}
    end = {"exit_code": None, "signal": 9, "is_stopped": False, "tail": [], "stack": [], "reason": None}
    cluster.emit({**about, **end, "time": EPOCH_S + schedule.world.now_s})
    return training.steps_done()


def test_a_nodes_loss_that_is_heard_with_a_ranks_end_costs_no_memory(tmp_path: Path) -> None:
    schedule = schedule_in(tmp_path)

    def hit() -> None:
        cluster = schedule.drivers[0].cluster
        schedule.invariants.furthest_step = stop_with_an_end(schedule)
        lost = cluster.nodes[2]
        cluster.lose(lost)
        lost.is_told = True
        cluster._dead += [agent for agent in cluster._agents if agent.actor is lost]

    when_step_is_done(schedule, SAVE_EVERY + 50, hit)
    course = schedule.run()
    assert_clean(course)
    assert (course.drivers, course.attempts) == (1, 2)
    (recovery,) = course.recoveries
    assert recovery["source"] == "peer"
    assert recovery["steps_lost"] <= 1


def test_reports_that_are_heard_with_a_ranks_end_are_written_down(tmp_path: Path) -> None:
    schedule = schedule_in(tmp_path)
    told: list[int] = []

    def hit() -> None:
        cluster = schedule.drivers[0].cluster
        step = stop_with_an_end(schedule)
        told.extend(range(step - 3, step + 1))
        assert cluster.training is not None
        for each in told:
            schedule.report(cluster, cluster.training, each)

    when_step_is_done(schedule, SAVE_EVERY + 50, hit)
    course = schedule.run()
    assert_clean(course)
    assert course.recoveries[0]["source"] == "memory"
    assert set(told) <= set(surviving_rows(RunFolder(tmp_path).metrics))
