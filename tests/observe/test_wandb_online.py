"""The real W&B client against a server of our own: one run, a complete history in order, whatever dies."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from step_rows import row
from wandb_server import API_KEY, Stored, WandbServer

from launch import cli
from launch.compose import compose, resolved_yaml
from orchestrator.config import WandbConfig, WandbMode
from orchestrator.observe.ledger import Ledger
from orchestrator.observe.metrics import MetricsLog
from orchestrator.observe.tracking import NullTracker, Tracker, WandbTracker, start_tracking
from orchestrator.observe.wandb_values import rewind_point
from orchestrator.runfolder import RunFolder

pytestmark = pytest.mark.real

WANDB = str(Path(sys.executable).with_name("wandb"))
PATIENCE_S = 120.0


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, temporary: Path) -> None:
    for name in [name for name in os.environ if name.startswith(("WANDB_", "NETRC"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_API_KEY", API_KEY)
    (tmp_path / "home").mkdir()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    with WandbServer() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        yield server


class Told:
    """A run as its drivers tell it: to the run folder first, then to W&B."""

    def __init__(self, root: Path) -> None:
        self.folder = RunFolder(root / "runs/demo")
        self.folder.path.mkdir(parents=True)
        self.attempt = 0
        self.notices: list[str] = []
        self._now_s = 1000.0
        self.configure(start_timeout_s=PATIENCE_S)

    def configure(self, *, start_timeout_s: float) -> None:
        """What `phalanx sync` reads: how long a server may take to answer at all."""
        words = ["experiment=quickstart", "run.id=demo", f"tracking.wandb.start_timeout_s={start_timeout_s}"]
        self.folder.config.write_text(resolved_yaml(compose(words).config))

    def drive(
        self, first: int, last: int, *, exit_code: int | None = 0, used: Any = (), **settings: Any
    ) -> WandbTracker:
        """A driver that does the steps `first` to `last`; with `exit_code` None it is left open."""
        is_resumed = self.folder.metrics.exists()
        config = WandbConfig(
            **({"tags": ["a"], "start_timeout_s": PATIENCE_S, "close_timeout_s": PATIENCE_S} | settings)
        )
        tracker = start_tracking(
            config,
            run_id="demo",
            run_folder=self.folder,
            run_config={"lr": 0.125},
            resumed=is_resumed,
            used=used,
        )
        assert isinstance(tracker, WandbTracker)
        self.attempt += 1
        self.event(tracker, "attempt_started", first - 1)
        self.steps(tracker, first, last)
        if exit_code is not None:
            tracker.close(exit_code)
            self.notices = tracker.take_notices()
        return tracker

    def steps(self, tracker: WandbTracker, first: int, last: int, **changes: Any) -> None:
        log = MetricsLog(self.folder.metrics)
        for step in range(first, last + 1):
            done = row(step, self.attempt, loss=float(step), **changes)
            log.append(done)
            tracker.log(done)
        log.close()

    def event(self, tracker: Tracker, name: str, step: int, **fields: Any) -> None:
        self._now_s += 1
        ledger = Ledger(self.folder.events, lambda: self._now_s)
        tracker.event(ledger.append(name, self.attempt, step, **fields))
        ledger.close()


@pytest.fixture
def told(tmp_path: Path) -> Told:
    return Told(tmp_path)


def steps_of(run: Stored) -> list[int]:
    """Of the rows in order; W&B's own step is ours in each."""
    rows = [row for row in run.rows if "train/step" in row]
    assert [row["_step"] for row in rows] == [row["train/step"] for row in rows]
    return [row["train/step"] for row in rows]


def until(server: WandbServer, look: Any) -> None:
    with server.changed:
        assert server.changed.wait_for(look, PATIENCE_S)


def upload(told: Told) -> str:
    segments = sorted(map(str, told.folder.wandb.glob("offline-run-*")))
    done = subprocess.run(
        [WANDB, "sync", *segments], cwd=told.folder.path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_one_run_with_its_history_config_and_alerts(server: WandbServer, told: Told) -> None:
    tracker = told.drive(1, 20, exit_code=None, group="g", job_type="train", notes="n")
    told.event(tracker, "rank_died", 20, rank=1)
    tracker.alert("a rank died", "restarting")
    tracker.summarise({"goodput(%)": 93.5})
    tracker.close(0)
    assert tracker.take_notices() == []
    assert tracker.where == f"{server.url}/me/phalanx/runs/demo"
    (run,) = server.runs.values()
    assert steps_of(run) == list(range(1, 21))
    assert run.rows[-1]["events/rank_died"] == 1
    assert run.rows[0]["events/attempt_started"] == 1
    assert (run.config["lr"], run.tags, run.exit_codes) == (0.125, ["a"], [0])
    created = run.created
    assert [created[key] for key in ("groupName", "jobType", "notes", "displayName")] == ["g", "train", "n", "demo"]
    assert [(alert["title"], alert["severity"]) for alert in server.alerts] == [("a rank died", "WARN")]
    assert run.summary["goodput(%)"] == 93.5


def test_what_the_run_used_and_made_is_referred_to(server: WandbServer, told: Told) -> None:
    data = {"name": "data-books-1a2b3c4d", "type": "dataset", "entry": "data", "uri": "s3://bucket/books"}
    tracker = told.drive(1, 5, exit_code=None, used=[{**data, "aliases": [], "metadata": {"train_tokens": 5}}])
    for step in (2, 4):
        (told.folder.checkpoints / f"step_{step}").mkdir(parents=True)
        told.event(tracker, "checkpoint_committed", step, path=f"{told.folder.path}/checkpoints/step_{step}", bytes=7)
    tracker.close(0)
    assert tracker.take_notices() == []
    made = {artifact["artifactCollectionName"]: artifact for artifact in server.artifacts}
    assert {*made} == {"data-books-1a2b3c4d", "demo-checkpoint"}
    assert json.loads(made["demo-checkpoint"]["metadata"]) == {"step": 4, "bytes": 7}
    aliases = {entry["alias"] for entry in made["demo-checkpoint"]["aliases"]}
    assert aliases == {"latest", "step-4"}
    assert [use["runName"] for use in server.uses] == ["demo"]
    assert steps_of(server.runs["demo"]) == [1, 2, 3, 4, 5]


def test_restarts_go_on_with_the_same_run_and_repeat_no_step(server: WandbServer, told: Told) -> None:
    told.drive(1, 20, exit_code=1)
    told.drive(16, 30, exit_code=75)
    tracker = told.drive(31, 35, exit_code=None)
    told.steps(tracker, 33, 40)  # a restart within one driver
    tracker.close(0)
    assert [*server.runs] == ["demo"]
    run = server.runs["demo"]
    assert steps_of(run) == list(range(1, 41))
    assert [row["train/attempt"] for row in run.rows] == [1] * 20 + [2] * 10 + [3] * 10
    assert run.tags == ["a"]


def test_what_a_dead_server_missed_is_sent_when_the_run_is_next_started(server: WandbServer, told: Told) -> None:
    server.stop()
    told.drive(1, 10, exit_code=75, start_timeout_s=2.0)
    assert told.notices[0].startswith("W&B: offline (")
    assert f"phalanx sync {told.folder.path}" in told.notices[0]
    server.start()
    told.drive(11, 20)
    assert steps_of(server.runs["demo"]) == list(range(1, 21))


def test_what_a_server_missed_that_died_in_the_middle_is_sent_by_the_verb(
    server: WandbServer, told: Told, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = told.drive(1, 10, exit_code=None, close_timeout_s=4.0)
    until(server, lambda: "demo" in server.runs and len(server.runs["demo"].history) >= 9)
    server.stop()
    told.steps(tracker, 11, 50)
    told.event(tracker, "run_finished", 50)
    tracker.close(0)
    assert any(f"phalanx sync {told.folder.path}" in notice for notice in tracker.take_notices())
    told.configure(start_timeout_s=2.0)
    assert cli.main(["sync", str(told.folder.path)]) == 1
    assert "W&B" in capsys.readouterr().err
    told.configure(start_timeout_s=PATIENCE_S)
    server.start()
    for _ in range(2):
        assert cli.main(["sync", str(told.folder.path)]) == 0
    assert "W&B has every step of run demo" in capsys.readouterr().out
    run = server.runs["demo"]
    assert steps_of(run) == list(range(1, 51))
    assert run.exit_codes[-1] == 0


def test_of_two_that_send_at_once_the_second_is_refused(
    server: WandbServer, told: Told, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is typed while the server has the first one's question."""
    told.drive(1, 10, mode=WandbMode.offline)
    answer, second = server.answer, list[int]()

    def asked(operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        if not second:
            second.append(-1)
            second[0] = cli.main(["sync", str(told.folder.path)])
        return answer(operation, variables)

    monkeypatch.setattr(server, "answer", asked)
    assert cli.main(["sync", str(told.folder.path)]) == 0
    assert second == [2]
    assert "run demo is running and sends its steps itself" in capsys.readouterr().err
    assert steps_of(server.runs["demo"]) == list(range(1, 11))


def test_a_server_that_comes_back_gets_everything_from_the_running_client(server: WandbServer, told: Told) -> None:
    tracker = told.drive(1, 10, exit_code=None, close_timeout_s=90.0)
    until(server, lambda: "demo" in server.runs and len(server.runs["demo"].history) >= 9)
    server.stop()
    told.steps(tracker, 11, 50)
    server.start()
    tracker.close(0)
    assert tracker.take_notices() == []
    assert steps_of(server.runs["demo"]) == list(range(1, 51))


def test_rows_are_taken_at_once_while_the_server_has_not_answered(server: WandbServer, told: Told) -> None:
    """No step waits: 2,000 rows are handed over before the server has answered anything."""
    server.delay_s = PATIENCE_S
    tracker = told.drive(1, 2000, exit_code=None, start_timeout_s=PATIENCE_S)
    assert server.runs == {}
    assert tracker.where is None
    server.delay_s = 0.2
    server.answer_late_ones()
    tracker.close(0)
    assert tracker.take_notices() == []
    assert steps_of(server.runs["demo"]) == list(range(1, 2001))


def rolled_back(told: Told, **settings: Any) -> list[str]:
    """Ten steps, the last four of them bad; another branch from step 6 on."""
    tracker = told.drive(1, 10, exit_code=None, **settings)
    told.event(tracker, "rollback", 10, to_step=6, branch=1)
    told.attempt += 1
    told.steps(tracker, 7, 12)
    tracker.close(0)
    return tracker.take_notices()


def test_a_rollback_takes_the_left_branch_back(server: WandbServer, told: Told) -> None:
    assert rolled_back(told) == []
    run = server.runs["demo"]
    assert run.rewinds == [6]
    assert steps_of(run) == list(range(1, 13))
    assert [row["train/attempt"] for row in run.rows] == [1] * 6 + [2] * 6


def test_a_rollback_offline_is_taken_back_at_the_upload(server: WandbServer, told: Told) -> None:
    rolled_back(told, mode=WandbMode.offline)
    upload(told)
    run = server.runs["demo"]
    assert run.rewinds == [6]
    assert steps_of(run) == list(range(1, 13))
    assert [row["train/attempt"] for row in run.rows] == [1] * 6 + [2] * 6


def test_an_offline_run_stays_offline_after_a_rollback_whatever_is_exported(
    server: WandbServer, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that answers and a key are there, and yet nothing may go there."""
    monkeypatch.setenv("WANDB_RESUME", "allow")
    rolled_back(told, mode=WandbMode.offline)
    assert server.operations == []
    assert server.runs == {}
    assert cli.main(["sync", str(told.folder.path)]) == 0
    assert steps_of(server.runs["demo"]) == list(range(1, 13))


def test_a_server_that_can_t_take_back_shows_both_branches(server: WandbServer, told: Told) -> None:
    server.can_rewind = False
    (notice,) = rolled_back(told)
    assert "its charts show both branches" in notice
    rows = [row["train/step"] for row in server.runs["demo"].rows if "train/step" in row]
    assert rows == [*range(1, 11), *range(7, 13)]


def test_a_rollback_that_the_server_has_not_heard_of_is_made_up_for(server: WandbServer, told: Told) -> None:
    tracker = told.drive(1, 10, exit_code=None, close_timeout_s=2.0)
    until(server, lambda: "demo" in server.runs and len(server.runs["demo"].history) >= 9)
    server.stop()
    told.event(tracker, "rollback", 10, to_step=6, branch=1)
    tracker.close(1)
    server.start()
    told.drive(7, 12)
    run = server.runs["demo"]
    assert run.rewinds == [6]
    assert steps_of(run) == list(range(1, 13))


def test_a_rollback_that_the_client_was_killed_before_is_taken_back_at_the_upload(
    server: WandbServer, told: Told
) -> None:
    told.drive(1, 10, exit_code=1, mode=WandbMode.offline)
    told.event(NullTracker(), "rollback", 10, to_step=6, branch=1)
    told.drive(7, 12, mode=WandbMode.offline)
    upload(told)
    run = server.runs["demo"]
    assert run.rewinds == [6]
    assert steps_of(run) == list(range(1, 13))
    assert [row["train/attempt"] for row in run.rows] == [1] * 6 + [2] * 6


def test_five_restarts_offline_read_back_by_the_library_s_own_reader(told: Told, server: WandbServer) -> None:
    for first, last in ((1, 20), (15, 30), (31, 44), (40, 61), (62, 70), (69, 80)):
        told.drive(first, last, exit_code=1, mode=WandbMode.offline)
    segments = sorted(told.folder.wandb.glob("offline-run-*"))
    assert len(segments) == 6
    ids, steps = set(), []
    for segment in segments:
        done = subprocess.run(
            [WANDB, "leet", "inspect", "--json", str(segment)],
            cwd=told.folder.path,
            capture_output=True,
            text=True,
            check=True,
        )
        for record in map(json.loads, done.stdout.splitlines()):
            if record["type"] == "run":
                ids.add(record["run"]["run_id"])
            if record["type"] == "history":
                steps.append(record["history"]["step"]["num"])
    assert ids == {"demo"}
    assert steps == list(range(1, 81))
    upload(told)
    assert steps_of(server.runs["demo"]) == list(range(1, 81))


@pytest.mark.parametrize(
    ("rollbacks", "newest_step", "newest_attempt", "expected"),
    [
        ([], 10, 1, None),
        ([(1, 6)], 10, 1, 6),
        ([(1, 6)], 10, 2, None),  # its rows are of the new branch
        ([(1, 6)], 5, 1, None),  # it has nothing of the branch that was left
        ([(1, 6), (3, 2)], 10, 1, 2),
        ([(1, 2), (3, 6)], 10, 3, 6),
    ],
)
def test_where_a_history_is_cut_back_to(
    rollbacks: list[tuple[int, int]], newest_step: int, newest_attempt: int, expected: int | None
) -> None:
    events = [{"attempt": attempt, "to_step": to_step} for attempt, to_step in rollbacks]
    assert rewind_point(events, newest_step=newest_step, newest_attempt=newest_attempt) == expected
