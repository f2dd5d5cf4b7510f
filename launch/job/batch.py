"""A job from its first line to its last: Ray on every node, the driver, SLURM's signals, the end.

The batch script becomes this process (`exec python -m launch.job.batch RUN_FOLDER`), so SLURM's signals arrive in
Python and not in a shell that may lose them. It decides nothing by itself: see ending.py.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.job import sweeping
from launch.job.ending import (
    Conclusion,
    Ended,
    Step,
    conclude,
    fruitless_jobs,
    lost_a_node,
    moves,
    notice_words,
    saved_words,
    slowest_save_s,
)
from launch.job.gathering import Gathering
from launch.job.nodestep import NodeStep, job_environment
from launch.job.preflight import unfit_nodes
from launch.job.waking import Wakeup
from launch.slurm import commands
from launch.slurm.jobspec import SUBMITTED_AS, JobSpec, driver_words, node_words
from launch.slurm.jobstate import JobView, SlurmError
from launch.slurm.record import Submission, append_submission, submissions
from orchestrator.codec import decode
from orchestrator.control.badnodes import add_bad_nodes, excluded, read_bad_nodes
from orchestrator.errors import EXIT_FAILED, EXIT_PREEMPTED, ConfigError, PhalanxError
from orchestrator.observe.ledger import Ledger, read_events
from orchestrator.observe.state import is_held
from orchestrator.runfolder import RunFolder

RAY_GONE_GRACE_S = 30.0
"""A driver whose Ray has died may still be saying why; it would try to reach that Ray for ten minutes."""
POLL_S = 1.0


@dataclass(frozen=True, slots=True)
class Allocation:
    job_id: int
    slurm_id: str
    """As SLURM's commands take it: 12, or 12_3 for a task of an array."""
    task: int | None
    restarts: int
    hosts: list[str]


class Job:
    def __init__(self, spec: JobSpec, allocation: Allocation, script: Path) -> None:
        """`script` is what a successor would be submitted with."""
        self._spec = spec
        self._script = script
        self._allocation = allocation
        self._folder = RunFolder(Path(spec.run_folder))
        self._started_s = time.time()
        self._notice: str | None = None
        self._noticed_s = 0.0
        self._left_s: float | None = None
        self._was_terminated = False
        self._view: JobView | None = None
        self._driver: subprocess.Popen[bytes] | None = None
        self._has_bad_nodes = False

    def run(self) -> int:
        """The job's exit code, which is the run's."""
        say(f"job {self._allocation.slurm_id} on {', '.join(self._allocation.hosts)}: run {self._folder.run_id}")
        with Wakeup(signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD) as wakeup:
            try:
                exit_code = self._train_on_all(wakeup)
            except PhalanxError as error:
                say(str(error))
                exit_code = error.exit_code
            return self._leave(conclude(self._ended(exit_code), self._spec.requeue), wakeup)

    # ---- Ray and the driver

    def _train_on_all(self, wakeup: Wakeup) -> int:
        """From srun to the driver's exit code; every process and folder that this job made is gone afterwards."""
        hosts = self._fit_hosts(wakeup)
        if hosts is None:
            return EXIT_PREEMPTED
        with NodeStep(node_words(self._spec, hosts), job_environment()) as nodes:
            gathered = self._gather(nodes, hosts, wakeup)
            if gathered is None or not self._wait_for_lock(wakeup):
                return EXIT_PREEMPTED
            return self._train(nodes, hosts, wakeup, gathered)

    def _fit_hosts(self, wakeup: Wakeup) -> list[str] | None:
        """The nodes to train on, the head first; None where they are too few, or SLURM wants them back already."""
        hosts = self._allocation.hosts
        if not self._spec.preflight.enabled:
            return hosts

        def wait(sources: Sequence[Any], timeout_s: float) -> bool:
            self._hear(wakeup.wait(sources, timeout_s))
            return self._notice is None

        unfit = unfit_nodes(self._spec, hosts, wait, say)
        if unfit is None:
            return None
        for node, reason in unfit.items():
            say(f"{node} is unfit: {reason}")
        fit = [host for host in hosts if host not in unfit]
        if not fit and len(hosts) > 1:
            raise SlurmError(
                "every node is unfit, so this is hardly the nodes' fault; mend what is named above, or set "
                "cluster.slurm.preflight.enabled=false"
            )
        add_bad_nodes(self._folder, unfit, time.time())
        self._has_bad_nodes = len(fit) < self._spec.request.least_nodes
        return None if self._has_bad_nodes else fit

    def _gather(self, nodes: NodeStep, hosts: list[str], wakeup: Wakeup) -> Gathering | None:
        """Once there is a Ray with every expected node; None where SLURM wants the nodes back already."""
        started_s = time.time()
        allocation, token = self._allocation, secrets.token_hex(32)
        nodes.tell({"op": "start", "token": token, "job": allocation.job_id, "slurm_id": allocation.slurm_id})
        gathering = Gathering(hosts, max(0, len(hosts) - self._spec.request.nodes), self._spec.start_timeout_s)
        while not gathering.is_complete:
            left_s = gathering.left_s(time.time() - started_s)
            self._hear(wakeup.wait([nodes.reader], left_s))
            if self._notice is not None:
                return None
            for message in nodes.reader.read():
                if message["op"] == "head":
                    nodes.tell({"op": "join", "address": message["address"]})
                gathering.hear(message)
            gathering.check(time.time() - started_s, has_ended=nodes.has_ended)
        took_s = time.time() - started_s
        say(f"Ray at {gathering.address} on {', '.join(sorted(gathering.up))} after {took_s:.0f} s")
        for warning in gathering.warnings:
            say(warning)
        return gathering

    def _wait_for_lock(self, wakeup: Wakeup) -> bool:
        """A requeued job may begin while the old one's driver still ends on another node. False on a notice."""
        until_s = time.time() + self._spec.start_timeout_s
        while self._allocation.restarts and is_held(self._folder.lock):
            if time.time() > until_s:
                raise SlurmError(
                    f"run {self._folder.run_id} is still held by its earlier driver after "
                    f"cluster.start_timeout_s={self._spec.start_timeout_s:g}; see phalanx status "
                    f"{self._folder.quoted}"
                )
            self._hear(wakeup.wait([], POLL_S))
            if self._notice is not None:
                return False
        return True

    def _train(self, nodes: NodeStep, hosts: list[str], wakeup: Wakeup, gathered: Gathering) -> int:
        """`hosts`: the head first, on which the driver runs and the node program has its folder."""
        own = {"RAY_ADDRESS": str(gathered.address), "RAY_AUTH_MODE": "token"}
        own |= {"RAY_AUTH_TOKEN_PATH": f"{gathered.folder}/token", "TMPDIR": gathered.folder}
        own |= {"PYTHONUNBUFFERED": "1", SUBMITTED_AS: self._spec.submitted_as}
        # SLURM without cgroups would leave the driver of a job whose program is killed.
        leash = [sys.executable, "-P", "-m", "orchestrator.sweep.leash", str(os.getpid())]
        self._driver = subprocess.Popen(
            [*leash, *driver_words(self._spec, hosts, self._allocation.hosts[0])],
            env=job_environment() | own,
            stdin=subprocess.DEVNULL,
        )
        gone_s: float | None = None
        while self._driver.poll() is None:
            sources = [] if nodes.has_ended else [nodes.reader]
            self._hear(wakeup.wait(sources, POLL_S if gone_s else None))
            for message in nodes.reader.read():
                if message["op"] == "died":
                    say(f"Ray on {message['node']}: {message['text']}")
                    is_head = message["node"] == hosts[0]
                    gone_s = gone_s or (time.time() if is_head else None)
            if nodes.has_ended and gone_s is None:
                say("srun has ended: no node program is left")
                gone_s = time.time()
            if gone_s is not None and time.time() - gone_s > RAY_GONE_GRACE_S:
                self._driver.kill()
        return self._exit_code(self._driver.wait())

    def _exit_code(self, code: int) -> int:
        """The driver's own; one that the notice killed before it could listen has nothing to save."""
        too_early = (-signal.SIGUSR1, 128 + signal.SIGUSR1)  # of a process, and of a step by srun
        if code in too_early and self._notice is not None:
            return EXIT_PREEMPTED
        if code < 0:
            say(f"the driver was killed by {signal.Signals(-code).name}")
            return EXIT_FAILED
        return code

    # ---- SLURM's signals

    def _hear(self, signals: list[signal.Signals]) -> None:
        """The first notice drains the run. The driver gets each notice once: a second one would end it at once."""
        for number in signals:
            if number is signal.SIGCHLD:
                continue
            self._was_terminated |= number is signal.SIGTERM
            if self._notice is None:
                self._notice, self._noticed_s = number.name, time.time()
                if self._driver is not None and self._driver.poll() is None:
                    self._driver.send_signal(signal.SIGUSR1)  # also through srun, which takes SIGTERM as its own end
                self._ask_slurm()

    def _ask_slurm(self) -> None:
        try:
            self._view = commands.job(self._allocation.slurm_id)
        except SlurmError as error:
            say(str(error))
        if self._view is not None and self._view.end_s is not None and self._notice == signal.SIGUSR1.name:
            self._left_s = self._view.end_s - self._noticed_s
        slowest_s = slowest_save_s([event for events in self._ledgers() for event in events])
        if self._left_s is not None and slowest_s is not None and slowest_s > self._left_s:
            say(
                f"a checkpoint of this run has taken {slowest_s:.0f} s, and {self._left_s:.0f} s are left: it may "
                "not be saved; raise cluster.slurm.notice_s"
            )

    # ---- the end

    def _ended(self, exit_code: int) -> Ended:
        events = read_events(self._folder.events)
        is_sweep = self._spec.is_sweep
        return Ended(
            exit_code=exit_code,
            notice=self._notice,
            was_terminated=self._was_terminated,
            is_preempted=self._view is not None and self._view.preempt_s is not None,
            has_lost_node=exit_code == EXIT_FAILED and not is_sweep and lost_a_node(events, self._started_s),
            fruitless_jobs=fruitless_jobs(events, self._saved_step()),
            has_bad_nodes=self._has_bad_nodes,
            moves=moves(read_bad_nodes(self._folder), events),
        )

    def _leave(self, end: Conclusion, wakeup: Wakeup) -> int:
        then, exclude = "leaving", None
        try:
            exclude = None if end.step is Step.leave else self._exclude()
            then = self._go_on(end.step, exclude)
        except PhalanxError as error:
            say(f"{error}; to go on, submit the run again")
        if end.why:
            say(end.why)
        if self._notice is not None:
            say(notice_words(self._notice, self._left_s, self._saved_words(), then))
        elif end.step is not Step.leave:
            why = "too few nodes are fit" if self._has_bad_nodes else "a node was lost and none took its place"
            say(f"{why}: {then}" + (f", without {exclude}" if exclude is not None else ""))
        if end.step is Step.wait:
            self._wait_for_slurm(wakeup)
        return end.exit_code

    def _exclude(self) -> str | None:
        """Nodes that the next job does without: those of the config and the bad ones. None where it would wait for
        ever then, though it can start in spite of them; ConfigError where it can't start with them either."""
        bad = read_bad_nodes(self._folder)
        if not bad:
            return None
        exclude = excluded(self._spec.exclude, bad)
        try:
            commands.test_only(self._script, f"--exclude={exclude}")
        except ConfigError as error:
            if self._has_bad_nodes:
                raise
            say(f"the next job may get {', '.join(sorted({entry.node for entry in bad}))} again: {error}")
            return None
        return exclude

    def _go_on(self, step: Step, exclude: str | None) -> str:
        """Does it; what was done, in words."""
        match step:
            case Step.requeue:
                commands.requeue(self._allocation.slurm_id)
                self._record_requeue(self._allocation.job_id)
                if exclude is not None:
                    try:
                        commands.exclude(self._allocation.slurm_id, exclude)
                    except SlurmError as error:
                        say(f"the next job may get bad nodes again: {error}")
                return f"requeued (restart {self._allocation.restarts + 1})"
            case Step.chain:
                without = [f"--exclude={exclude}"] if exclude is not None else []
                task = self._allocation.task
                after = ["--dependency=singleton"]
                if task is not None:  # all tasks of an array have one name
                    after = [f"--dependency=afterany:{self._allocation.slurm_id}", f"--array={task}"]
                successor = commands.submit(self._script, *after, *without)
                submission = Submission(job_id=successor, time_s=time.time(), follows=True, task=task)
                append_submission(self._folder, submission)
                self._record_requeue(successor)
                return f"goes on in job {successor}"
            case Step.wait:
                return "waiting for SLURM to take the nodes and requeue the job"
            case Step.leave:
                return "leaving"

    def _record_requeue(self, job_id: int) -> None:
        """Also of a job that did not come as far as its driver: one with too little time would go on for ever."""
        events = read_events(self._folder.events)
        if self._has_bad_nodes and not events and not self._spec.is_sweep:
            return  # bad_nodes.txt counts these
        attempt = max((event["attempt"] for event in events), default=0)
        ledger = Ledger(self._folder.events, time.time)
        more = {"bad_nodes": True} if self._has_bad_nodes else {}
        ledger.append("requeued", attempt, self._saved_step(), job=job_id, signal=self._notice, **more)
        ledger.sync()
        ledger.close()

    # ---- what was saved: by the run, or by all trials of a sweep

    def _ledgers(self) -> list[list[dict[str, Any]]]:
        return sweeping.trial_events(self._folder) if self._spec.is_sweep else [read_events(self._folder.events)]

    def _saved_step(self) -> int:
        return sweeping.saved_steps(self._ledgers())

    def _saved_words(self) -> str:
        if self._spec.is_sweep:
            return sweeping.saved_words(self._ledgers(), self._noticed_s)
        return saved_words(read_events(self._folder.events), self._noticed_s)

    def _wait_for_slurm(self, wakeup: Wakeup) -> None:
        """A job that ends by itself is not requeued by SLURM; one that SLURM ends is."""
        until_s = (self._view.end_s if self._view and self._view.end_s else time.time()) + 60
        while time.time() < until_s:
            if signal.SIGTERM in wakeup.wait([], until_s - time.time()):
                return


def say(text: str) -> None:
    print(f"phalanx: {text}", flush=True)


def main() -> int:
    folder = RunFolder(Path(sys.argv[1]))
    return run_job(folder, folder.job_script)


def run_job(folder: RunFolder, script: Path) -> int:
    """The job that this process is in, from its first line to its exit code."""
    spec = decode(JobSpec, json.loads(folder.job_spec.read_text()))
    job_id, array = os.environ["SLURM_JOB_ID"], os.environ.get("SLURM_ARRAY_JOB_ID")
    task = os.environ.get("SLURM_ARRAY_TASK_ID") if array else None
    allocation = Allocation(
        job_id=int(job_id),
        slurm_id=f"{array}_{task}" if array else job_id,
        task=int(task) if task else None,
        restarts=int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        hosts=commands.hostnames(os.environ["SLURM_JOB_NODELIST"]),
    )
    record_itself(folder, allocation)
    return Job(spec, allocation, script).run()


def record_itself(folder: RunFolder, allocation: Allocation) -> None:
    """Whoever submitted the job may have been killed before it could write that down."""
    if allocation.slurm_id not in {submission.slurm_id for submission in submissions(folder)}:
        job_id = int(allocation.slurm_id.partition("_")[0])
        append_submission(folder, Submission(job_id=job_id, time_s=time.time(), task=allocation.task))


if __name__ == "__main__":
    sys.exit(main())
