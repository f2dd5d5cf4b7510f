"""Losing a node: its agent dies with every snapshot that it held, and the run goes on from the copies of its peer."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from comparing import assert_bit_equal, assert_same_course
from left_behind import is_alive
from moments import hold_at_step, let_go
from slowing import slowed
from sweeping import Sweep
from typed import PHALANX, Run, SharedRay, Typist, wait_for
from typists import clean_environment, joined_typist

from orchestrator.control import growth
from orchestrator.control.badnodes import read_bad_nodes
from orchestrator.errors import EXIT_PREEMPTED

pytestmark = pytest.mark.real

NUM_NODES = 3
"""Two to train on and a spare one, or three to train on and none."""
KILL_STEP = 20
CORRUPT = str(Path(__file__).parent.parent / "rank" / "corrupt")
"""On the ranks' PYTHONPATH: SIGUSR1 flips a bit of a rank's parameters."""


@dataclass(frozen=True)
class FakeNodes:
    ray: SharedRay
    process: "subprocess.Popen[str]"

    def add_one(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "added\n"


@pytest.fixture(scope="module")
def fake_nodes(nothing_left: None) -> Iterator[FakeNodes]:
    folder = Path(tempfile.mkdtemp(prefix="phx-fk-", dir="/tmp"))
    token_path = folder / "token"
    token_path.touch(mode=0o600)
    token_path.write_text(secrets.token_hex(32))
    environment = clean_environment()
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [CORRUPT, environment.get("PYTHONPATH")]))
    authentication = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_path)}
    with (folder / "stderr").open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("fake_nodes.py")), str(NUM_NODES)],
            env=environment | authentication | {"RAY_TMPDIR": str(folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        address = process.stdout.readline().strip()
        assert address, f"Ray did not start: {(folder / 'stderr').read_text()[-2000:]}"
        yield FakeNodes(SharedRay(address, authentication), process)
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()
        shutil.rmtree(folder)


@pytest.fixture
def typist_on_nodes(tmp_path: Path, data: Path, fake_nodes: FakeNodes) -> Iterator[Typist]:
    typist = joined_typist(tmp_path, data, fake_nodes.ray)
    typist.words = [*typist.words, f"cluster.address={fake_nodes.ray.address}", "cluster.workers_per_node=1"]
    yield typist
    typist.close()


def agent_of(rank_pid: int) -> psutil.Process:
    """The agent's process: a rank is forked by the zygote, which the agent has started."""
    zygote = psutil.Process(psutil.Process(rank_pid).ppid())
    assert "orchestrator.agent.zygote" in zygote.cmdline()
    return psutil.Process(zygote.ppid())


def test_a_lost_node_comes_back_from_its_peer(typist_on_nodes: Typist, run: Run, reference: Run) -> None:
    driver = typist_on_nodes.train(run, "checkpoint.every_steps=0", "cluster.failure_domain_label=rack")
    rank_pid = hold_at_step(driver, run, 1, KILL_STEP).pid
    agents = [agent_of(pid) for pid in (run.rank_pid(1, 0), rank_pid) if pid is not None]
    assert agents[0].pid != agents[1].pid
    os.kill(agents[1].pid, signal.SIGKILL)
    driver.finish()

    assert "failure domain" not in driver.output, "every node's rack is known, and the copies are in the other one"
    wait_for("the end of the lost node's rank", lambda: not psutil.pid_exists(rank_pid))
    assert len(run.events("node_lost")) == 1
    (recovered,) = run.events("recovered")
    assert recovered["source"] == "peer"
    assert 0 < recovered["resume_step"] <= recovered["step"] <= 60
    (first, second) = run.events("attempt_started")
    assert (first["source"], second["source"]) == ("start", "peer")
    assert second["resume_step"] == recovered["resume_step"]
    assert list(run.rows()) == list(range(1, 61))
    assert_bit_equal(run, reference)


def lose_a_node(run: Run, attempt: int, ranks: int) -> int:
    """Kill a node's raylet and agent, as a power cut would, though not the first node's, where Ray's own service is;
    returns the rank that it had."""
    for rank in reversed(range(ranks)):
        pid = run.rank_pid(attempt, rank)
        assert pid is not None
        agent = agent_of(pid)
        raylet = agent.parent()
        assert raylet is not None
        assert "raylet" in raylet.name()
        if "--head" not in " ".join(raylet.cmdline()):
            raylet.kill()
            agent.kill()
            return rank
    raise AssertionError("every rank is on the first node")


def test_a_sweep_outlives_a_node_and_waits_for_another(
    typist_on_nodes: Typist, fake_nodes: FakeNodes, tmp_path: Path
) -> None:
    """The trial that lost the node goes on without it; the next one needs as many as there were."""
    sweep = Sweep(tmp_path / "runs")
    words = ["train.global_batch_size=18", "train.eval_every_steps=0", "train.steps=100"]
    words += ["optim.lr=interval(1e-3,2e-3)", "sweep=random", "sweep.trials=2"]
    words += ["cluster.num_workers=3", "cluster.min_workers=2", "cluster.replace_timeout_s=1"]
    places = [f"run.root={sweep.root}", "sweep.max_concurrent=1"]
    driver = typist_on_nodes.start("sweep", *typist_on_nodes.words, *words, *places)
    first = sweep.run(sweep.trial_within(driver, 5, 70))
    lose_a_node(first, 1, 3)
    driver.wait_for("the first one's end", lambda: " waits for nodes: 2 of 3 nodes are left" in driver.output)
    fake_nodes.add_one()
    driver.finish()

    one, two = sweep.study().trials.values()
    assert [(trial.state, trial.failures, trial.starts) for trial in (one, two)] == [("finished", 0, 1)] * 2
    assert [(event["from"], event["to"]) for event in first.events("resized")] == [(3, 2)]
    assert {row.world_size for row in sweep.run(two).rows().values()} == {3}


def test_without_spare_nodes_the_run_goes_on_with_fewer_and_grows_again_one_by_one(
    typist_on_nodes: Typist, fake_nodes: FakeNodes, tmp_path: Path, run: Run
) -> None:
    """18 samples don't divide over two ranks with micro-batches of two."""
    words = ["train.global_batch_size=18", "train.eval_every_steps=0", "checkpoint.every_steps=0"]
    words += ["optim.schedule_steps=100000"]
    sizes = ["cluster.num_workers=3", "cluster.min_workers=1", "cluster.replace_timeout_s=1"]
    driver = typist_on_nodes.train(run, *words, *sizes, "cluster.grow_interval_s=0.1", "train.steps=100000")
    driver.wait_for_step(run, KILL_STEP)

    def wait_for_attempt(number: int, what: str) -> None:
        driver.wait_for(what, lambda: run.newest_attempt() == number)
        driver.wait_for_step(run, run.events("attempt_started")[-1]["resume_step"] + 5)

    lose_a_node(run, 1, 3)
    wait_for_attempt(2, "two ranks that train")
    lose_a_node(run, 2, 2)
    wait_for_attempt(3, "one rank that trains")
    fake_nodes.add_one()
    wait_for_attempt(4, "two ranks that train")
    fake_nodes.add_one()
    wait_for_attempt(5, "three ranks that train")
    driver.process.terminate()
    assert driver.wait() == EXIT_PREEMPTED

    assert [(event["from"], event["to"]) for event in run.events("resized")] == [(3, 2), (2, 1), (1, 2), (2, 3)]
    attempts = run.events("attempt_started")
    assert [event["world_size"] for event in attempts] == [3, 2, 1, 2, 3]
    assert [event["source"] for event in attempts] == ["start", "peer", "peer", "memory", "memory"]
    shrunk, again, *grown = run.events("recovered")
    assert (shrunk["source"], again["source"]) == ("peer", "peer")
    assert [(event["source"], event["steps_lost"]) for event in grown] == [("memory", 0)] * 2
    rows = run.rows()
    assert sorted({row.world_size for row in rows.values()}) == [1, 2, 3]
    alone = Run(tmp_path / "alone")
    last = f"train.steps={max(rows)}"
    typist_on_nodes.train(alone, *words, "cluster.num_workers=1", last).finish()
    assert_same_course(run, alone)


def test_who_waits_for_nodes_leaves_at_once_when_told_to(
    typist_on_nodes: Typist, fake_nodes: FakeNodes, tmp_path: Path, run: Run
) -> None:
    """At its start, and after a loss that nothing makes good."""
    words = ["cluster.num_workers=3", "cluster.start_timeout_s=100000", "train.steps=100000"]
    words += ["train.global_batch_size=18", "optim.schedule_steps=60", "checkpoint.every_steps=0"]
    driver = typist_on_nodes.train(run, *words)
    driver.wait_for_step(run, 3)
    second = Run(tmp_path / "second")
    late = typist_on_nodes.train(second, *words)
    late.wait_for("its claim", lambda: second.has_folder and second.folder.attempt(1).exists())
    late.process.terminate()
    assert late.wait() == EXIT_PREEMPTED
    assert "told to stop before its nodes were there; next: phalanx train" in late.output
    assert second.events("attempt_started") == []

    lose_a_node(run, 1, 3)
    driver.wait_for("the loss", lambda: run.events("node_lost"))
    driver.process.terminate()
    assert driver.wait() == EXIT_PREEMPTED
    assert run.events("run_failed") == []
    assert len(run.events("preemption_notice")) == 1
    fake_nodes.add_one()


def test_an_agent_that_says_nothing_for_a_lease_is_lost(typist_on_nodes: Typist, run: Run, reference: Run) -> None:
    """Ray takes it for alive, as it does with a node behind a partition for a minute."""
    driver = typist_on_nodes.train(run, "checkpoint.every_steps=0", "fault.lease_timeout_s=4")
    rank_pid = hold_at_step(driver, run, 1, KILL_STEP).pid
    agent = agent_of(rank_pid)
    agent.suspend()
    let_go(rank_pid)
    driver.finish()

    wait_for("the end of the lost agent and its rank", lambda: not (is_alive(rank_pid) or is_alive(agent.pid)))
    assert len(run.events("node_lost")) == 1
    assert run.events("recovered")[-1]["source"] == "peer"
    assert list(run.rows()) == list(range(1, 61))
    assert_bit_equal(run, reference)


def test_the_node_of_a_slow_rank_is_left_for_a_spare_one(typist_on_nodes: Typist, run: Run, reference: Run) -> None:
    words = ["checkpoint.every_steps=0", "train.eval_every_steps=0", "fault.evict_straggler_after_steps=2"]
    driver = typist_on_nodes.train(run, *words, "train.steps=100000", "optim.schedule_steps=60")
    driver.wait_for_step(run, 3)
    pid = run.rank_pid(1, 1)
    assert pid is not None
    with slowed(pid):
        driver.wait_for("two ranks that train elsewhere", lambda: run.newest_attempt() == 2)
    driver.wait_for_step(run, run.events("attempt_started")[1]["resume_step"] + 5)
    driver.process.terminate()
    assert driver.wait() == EXIT_PREEMPTED

    (straggler,), (left,) = run.events("straggler"), run.events("node_lost")
    assert (left["node"], straggler["rank"]) == (straggler["node"], 1)
    assert f"node {left['node']} is left: rank 1 takes" in driver.output
    assert [entry.node for entry in read_bad_nodes(run.folder)] == [left["node"]]
    (recovered,) = run.events("recovered")
    assert recovered["steps_lost"] == 0
    assert {row.world_size for row in run.rows().values()} == {2}

    again = typist_on_nodes.train(run, *words, "train.steps=100000", "optim.schedule_steps=60")
    again.wait_for("the next driver's attempt", lambda: run.newest_attempt() == 3)
    (devices,) = [line for line in again.output.splitlines() if line.startswith("devices")]
    assert left["node"] not in devices
    assert f"left alone while others have room: {left['node']}" in again.output + again.error_output
    again.process.terminate()
    assert again.wait() == EXIT_PREEMPTED


def test_without_a_spare_node_the_run_goes_on_without_the_slow_one(
    typist_on_nodes: Typist, fake_nodes: FakeNodes, run: Run
) -> None:
    """At once, as it knows that there is no other, without a step lost even where copies are rare, and without
    growing onto the node that it has left."""
    words = ["checkpoint.every_steps=0", "train.eval_every_steps=0", "fault.evict_straggler_after_steps=2"]
    words += ["train.global_batch_size=18", "cluster.num_workers=3", "cluster.min_workers=2"]
    words += ["train.steps=100000", "optim.schedule_steps=60", "cluster.grow_interval_s=0.1"]
    words += ["cluster.replace_timeout_s=100000", "snapshot.replicate_every_steps=100000"]
    driver = typist_on_nodes.train(run, *words)
    driver.wait_for_step(run, 3)
    pid = run.rank_pid(1, 1)
    assert pid is not None
    with slowed(pid):
        driver.wait_for("two ranks that train", lambda: run.newest_attempt() == 2)
    resumed_step = run.events("attempt_started")[1]["resume_step"]
    began_s = driver.wait_for_step(run, resumed_step + 1).time
    driver.wait_for("some looks for other nodes", lambda: seconds_trained(run, began_s) > 1.5 * growth.LOOK_S)
    assert run.newest_attempt() == 2
    fake_nodes.add_one()
    driver.wait_for("three ranks that train", lambda: run.newest_attempt() == 3)
    driver.wait_for_step(run, run.events("attempt_started")[2]["resume_step"] + 5)
    driver.process.terminate()
    assert driver.wait() == EXIT_PREEMPTED

    (left,), (bad,) = run.events("node_lost"), read_bad_nodes(run.folder)
    assert (bad.node, bad.reason) == (left["node"], left["why"])
    assert "rank 1 takes" in bad.reason
    assert [(event["from"], event["to"]) for event in run.events("resized")] == [(3, 2), (2, 3)]
    attempts = run.events("attempt_started")
    assert [(event["world_size"], event["source"]) for event in attempts] == [
        (3, "start"),
        (2, "peer"),
        (3, "memory"),
    ]
    assert [event["steps_lost"] for event in run.events("recovered")] == [0, 0]
    assert run.events("rank_died", "run_failed") == []


def seconds_trained(run: Run, began_s: float | None) -> float:
    row = run.newest_row()
    assert row is not None
    assert row.time is not None
    assert began_s is not None
    return row.time - began_s


def test_a_node_that_is_lost_again_and_again_is_left_alone(typist_on_nodes: Typist, run: Run) -> None:
    """Where only the agent has died its node is taken again first, but not for ever."""
    words = ["checkpoint.every_steps=0", "train.eval_every_steps=0", "fault.avoid_after_losses=2"]
    driver = typist_on_nodes.train(run, *words, "train.steps=100000", "optim.schedule_steps=60")
    driver.wait_for_step(run, 3)
    for attempt in (1, 2, 3):
        pid = run.rank_pid(attempt, 1)
        assert pid is not None
        assert not run.folder.bad_nodes.exists() or attempt == 3
        agent_of(pid).kill()
        driver.wait_for("the next attempt", lambda number=attempt + 1: run.newest_attempt() == number)
        driver.wait_for_step(run, run.events("attempt_started")[-1]["resume_step"] + 3)
    driver.process.terminate()
    assert driver.wait() == EXIT_PREEMPTED

    first, again, other = [event["node"] for event in run.events("node_lost")]
    assert first == again != other
    assert [(bad.node, bad.reason) for bad in read_bad_nodes(run.folder)] == [(first, "lost 2 times")]
    assert {event["world_size"] for event in run.events("attempt_started")} == {2}
    assert [event["source"] for event in run.events("recovered")] == ["peer"] * 3


def test_the_node_of_a_rank_that_holds_other_bits_is_left(
    typist_on_nodes: Typist, run: Run, fake_nodes: FakeNodes
) -> None:
    fake_nodes.add_one()
    words = ["train.global_batch_size=18", "cluster.num_workers=3", "fault.check_replicas_every_steps=1"]
    driver = typist_on_nodes.train(run, *words, "checkpoint.every_steps=0")
    pid = hold_at_step(driver, run, 1, 9).pid
    os.kill(pid, signal.SIGUSR1)
    let_go(pid)
    driver.finish()

    (anomaly,), (left,) = run.events("anomaly"), run.events("node_lost")
    assert (anomaly["kind"], anomaly["ranks"], anomaly["nodes"]) == ("replicas_differ", [1], [left["node"]])
    (bad,) = read_bad_nodes(run.folder)
    assert (bad.node, bad.reason) == (left["node"], left["why"])
    assert [event["world_size"] for event in run.events("attempt_started")] == [3, 3]
    assert run.events("rank_died", "run_failed") == []
    assert list(run.rows()) == list(range(1, 61))


def test_a_node_that_ray_drains_is_a_notice(typist_on_nodes: Typist, run: Run, fake_nodes: FakeNodes) -> None:
    """The last of this file: the node stays drained."""
    driver = typist_on_nodes.train(run, "train.steps=100000", "optim.schedule_steps=60", "checkpoint.every_steps=0")
    driver.wait_for_step(run, KILL_STEP)
    environment = typist_on_nodes.environment | {"RAY_ADDRESS": fake_nodes.ray.address}
    name = json.loads(run.folder.agents.read_text())["name"]
    script = str(Path(__file__).with_name("nodes_of_agents.py"))
    found = subprocess.run([sys.executable, script, name], env=environment, stdout=subprocess.PIPE, check=True)
    words = ["drain-node", "--address", fake_nodes.ray.address, "--node-id", json.loads(found.stdout)[1]]
    words += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "test"]
    words += ["--deadline-remaining-seconds", "3600"]
    subprocess.run([str(Path(PHALANX).with_name("ray")), *words], env=environment, check=True)
    assert driver.wait() == EXIT_PREEMPTED
    assert "Ray drains it" in driver.output + driver.error_output
    last = run.newest_row()
    assert last is not None
    assert run.committed_steps() == [last.step]
    assert len(run.events("preemption_notice")) == 1
