"""A sweep as one SLURM job array: a task requeues itself alone, its trial's end is recorded, the command goes on."""

import json
import re

import pytest
from cluster.jobs import ENDED, job_fields
from cluster.submitting import LATER, WORDS, held, killed_by_sbatch, left_on, phalanx, prepare_data, wait_until

from launch.virtual.cluster import VirtualCluster
from orchestrator.observe.ledger import read_events
from orchestrator.observe.metrics import read_last_rows, surviving_rows
from orchestrator.observe.state import is_held
from orchestrator.runfolder import RunFolder
from orchestrator.sweep.folder import SweepFolder

pytestmark = pytest.mark.cluster
STEPS = 150


class ArraySweep:
    def __init__(self, cluster: VirtualCluster) -> None:
        data = prepare_data(cluster)
        self.cluster = cluster
        self.folder = SweepFolder(cluster.shared / "runs/array")
        places = [f"data.path={data}", f"run.root={cluster.shared}/runs", "sweep.id=array"]
        own = ["cluster.num_workers=1", f"train.steps={STEPS}", "sweep.window_steps=5"]
        own += ["fault.hang_constant_s=600"]  # a rank is held while a notice is on its way
        self.words = [*WORDS, *places, *own]

    def submit(self, learning_rates: str) -> str:
        """What it printed."""
        done = phalanx(self.cluster, "sweep", *self.words, f"optim.lr={learning_rates}")
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def trial(self, task: int) -> str:
        return str(json.loads(self.folder.array.read_text())["tasks"][str(task)])

    def state(self, task: str) -> str:
        return job_fields(self.cluster, task)["JobState"]

    def output(self, task: str) -> str:
        return (self.folder.slurm / f"{task}.out").read_text()

    def status(self) -> dict[str, object]:
        return dict(json.loads(phalanx(self.cluster, "status", str(self.folder.path), "--json").stdout))


def has_notice(run: RunFolder) -> bool:
    return any(event["event"] == "preemption_notice" for event in read_events(run.events))


def test_from_the_command_to_the_best_trial(slurm: VirtualCluster) -> None:
    sweep = ArraySweep(slurm)
    said = sweep.submit("1e-3,2e-3,4e-3")
    job = said.splitlines()[0].removeprefix("Submitted batch job ")
    assert "3 as tasks 0-2" in said
    assert sweep.status()["state"] in ("queued", "running")

    # One task is told to leave, the one that SLURM gave the array's own number: it alone is requeued, and resumes.
    wait_until("all tasks", lambda: all(sweep.state(f"{job}_{n}") == "RUNNING" for n in range(3)))
    (own,) = [n for n in range(3) if job_fields(slurm, f"{job}_{n}")["JobId"] == job]
    run, task = sweep.folder.trial(sweep.trial(own)), f"{job}_{own}"
    wait_until("a step", lambda: run.metrics.exists() and [*read_last_rows(run.metrics, 1)])
    with held(slurm, run, 1, 0):
        slurm.run(slurm.head, "scancel", "--batch", "--signal=USR1", task)
        wait_until("the notice", lambda: has_notice(run))
    wait_until("its requeue", lambda: any(e["event"] == "requeued" for e in read_events(run.events)))

    for number in range(3):
        wait_until(f"the end of task {number}", lambda n=number: sweep.state(f"{job}_{n}") in ENDED)
        assert sweep.state(f"{job}_{number}") == "COMPLETED", sweep.output(f"{job}_{number}")
        folder = sweep.folder.trial(sweep.trial(number))
        assert sorted(surviving_rows(folder.metrics)) == list(range(1, STEPS + 1))
        starts = len([e for e in read_events(folder.events) if e["event"] == "attempt_started"])
        assert starts == (2 if number == own else 1)
        assert folder.job_output(f"{job}_{number}").samefile(sweep.folder.slurm / f"{job}_{number}.out")
    assert re.search(r"caught SIGUSR1, .*requeued \(restart 1\)", sweep.output(task))
    status = sweep.status()
    assert status["state"] == "ended"
    assert [trial["state"] for trial in status["trials"]] == ["finished"] * 3
    assert status["best"] is not None
    assert sweep.folder.report.exists()

    # The same command has nothing to do; another value is another task, and the others stay as they are.
    assert sweep.submit("1e-3,2e-3,4e-3").startswith("nothing to submit: ")
    said = sweep.submit("1e-3,2e-3,4e-3,8e-3")
    assert "1 as tasks 3" in said
    task = f"{said.splitlines()[0].removeprefix('Submitted batch job ')}_3"
    assert f"job {task} of array-" in phalanx(slurm, "cancel", str(sweep.folder.path), "--now").stdout
    wait_until("its end", lambda: task not in slurm.run(slurm.head, "squeue", "--array", "--format=%i").stdout)
    assert "1 as tasks 3" in sweep.submit("1e-3,2e-3,4e-3,8e-3")
    (fourth,) = [trial for trial in sweep.status()["trials"] if trial["id"] == sweep.trial(3)]
    assert fourth["failures"] == 0
    wait_until("the fourth", lambda: [t["state"] for t in sweep.status()["trials"]] == ["finished"] * 4)
    for node in slurm.nodes:
        wait_until("an empty node", lambda n=node: not left_on(slurm, n))


def test_an_array_whose_sweep_was_killed_is_taken_up(slurm: VirtualCluster) -> None:
    sweep = ArraySweep(slurm)
    folder = SweepFolder(slurm.shared / "runs/unrecorded")
    words = ["sweep", *sweep.words, "sweep.id=unrecorded", LATER, "optim.lr=1e-3,2e-3"]
    killed_by_sbatch(slurm, *words)
    wait_until("the tasks", lambda: str(folder.array_script) in slurm.run(slurm.head, "squeue", "--format=%o").stdout)
    wait_until("sbatch's end", lambda: not is_held(folder.lock))
    assert json.loads(phalanx(slurm, "status", str(folder.path), "--json").stdout)["state"] == "queued"
    again = phalanx(slurm, *words)
    assert again.stdout.startswith("nothing to submit: 2 trials: 2 running"), again.stdout + again.stderr
    cancelled = phalanx(slurm, "cancel", str(folder.path)).stdout
    assert len(re.findall(r"^job \d+_[01] of unrecorded-\w+ is cancelled", cancelled, re.MULTILINE)) == 2, cancelled


@pytest.mark.parametrize("more", [[], ["--one-job", "sweep.max_concurrent=2"]])
def test_what_slurm_refuses_leaves_nothing_behind(slurm: VirtualCluster, more: list[str]) -> None:
    words = [*ArraySweep(slurm).words, "sweep.id=refused", "optim.lr=1e-3,2e-3", "cluster.slurm.reservation=friday"]
    done = phalanx(slurm, "sweep", *words, *more)
    assert done.returncode == 2, done.stdout
    assert "SLURM refuses the job: allocation failure: Requested reservation is invalid" in done.stderr
    assert not (slurm.shared / "runs/refused").exists()


def test_all_trials_in_one_job(slurm: VirtualCluster) -> None:
    """Three trials on two nodes; all save before the time limit, and the requeued job goes on with them."""
    sweep = ArraySweep(slurm)
    words = [*sweep.words, "sweep.id=whole", "optim.lr=1e-3,2e-3,4e-3", "sweep.max_concurrent=2"]
    folder = SweepFolder(slurm.shared / "runs/whole")
    done = phalanx(slurm, "sweep", "--one-job", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    job = done.stdout.splitlines()[0].removeprefix("Submitted batch job ")
    again = phalanx(slurm, "sweep", "--one-job", *words)
    assert (again.returncode, "already" in again.stderr) == (2, True), again.stderr

    def going() -> list[str]:
        """Trials with a step."""
        runs = folder.trials.iterdir() if folder.trials.is_dir() else ()
        files = [run / "metrics.jsonl" for run in runs]
        return [file.parent.name for file in files if file.exists() and surviving_rows(file)]

    wait_until("steps of two trials", lambda: len(going()) >= 2)
    run = min(map(folder.trial, going()), key=lambda run: max(surviving_rows(run.metrics)))
    with held(slurm, run, 1, 0):
        slurm.run(slurm.head, "scancel", "--batch", "--signal=USR1", job)
        wait_until("the notice", lambda: has_notice(run))
    wait_until("the requeue", lambda: job_fields(slurm, job)["Restarts"] == "1")
    wait_until("the end", lambda: sweep.state(job) in ENDED)
    output = (folder.slurm / f"{job}.out").read_text()
    assert (sweep.state(job), job_fields(slurm, job)["ExitCode"]) == ("COMPLETED", "0:0"), output
    # One of the two may have done its last step before the signal came.
    assert re.search(r"caught SIGUSR1, .*saved [12] trials? in \d+ s, requeued \(restart 1\)", output), output
    told = json.loads(phalanx(slurm, "status", str(folder.path), "--json").stdout)
    assert (told["state"], [trial["state"] for trial in told["trials"]]) == ("ended", ["finished"] * 3)
    assert {trial["failures"] for trial in told["trials"]} == {0}
    for trial in told["trials"]:
        assert sorted(surviving_rows(folder.trial(trial["id"]).metrics)) == list(range(1, STEPS + 1))
    assert "whole" not in phalanx(slurm, "list", "runs", "--root", str(slurm.shared / "runs")).stdout
    for node in slurm.nodes:
        wait_until("an empty node", lambda n=node: not left_on(slurm, n))
