"""The real W&B client: without an account, with a dead server, with a broken installation."""

import http.server
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from step_rows import row

from orchestrator.config import WandbConfig, WandbMode
from orchestrator.observe.artifacts import wandb_safe
from orchestrator.observe.names import row_values
from orchestrator.observe.tracking import QUEUE_ITEMS, SCRATCH_PREFIX, NullTracker, start_tracking
from orchestrator.observe.wandb_values import event_values, init_arguments, without_secrets
from orchestrator.runfolder import RunFolder
from orchestrator.scratch import sweep_folders

FAKE_KEY = "a" * 40
PATIENCE_S = 120.0


@pytest.fixture(autouse=True)
def nobody_is_logged_in(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith(("WANDB_", "NETRC"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()


@pytest.fixture(autouse=True)
def nothing_is_left(temporary) -> Iterator[None]:
    """In the system's temporary folder."""
    yield
    assert [*temporary.rglob("*")] == []


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    (tmp_path / "runs/demo").mkdir(parents=True)
    return RunFolder(tmp_path / "runs/demo")


def started(folder, *, resumed=False, run_config=None, **settings):
    config = WandbConfig(**settings)
    return start_tracking(config, run_id="demo", run_folder=folder, run_config=run_config or {}, resumed=resumed)


def offline_segments(folder: RunFolder) -> list[Path]:
    return sorted(folder.wandb.glob("offline-run-*"))


def recorded(segment: Path) -> bytes:
    """The transaction log that `wandb sync` uploads."""
    (log,) = segment.glob("*.wandb")
    return log.read_bytes()


def children_named(name: str) -> list[psutil.Process]:
    """Whose names hold `name`; one that ends while it is looked at is left out."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            found += [child] if name in child.name() else []
    return found


@contextmanager
def server(answer: bytes):
    """An HTTP server that gives every request the same answer."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST  # noqa: N815

        def log_message(self, *args): ...

    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{listening.server_port}"
    listening.shutdown()
    listening.server_close()
    thread.join()


@pytest.mark.real
def test_without_a_key_the_run_is_offline_and_says_how_to_upload_it(folder):
    tracker = started(folder, run_config={"optim": {"lr": 0.125}, "hub": {"api_key": "hidden"}})
    where = tracker.wait_until_known(PATIENCE_S)
    (notice,) = tracker.take_notices()
    for step in (1, 2):
        tracker.log(row(step, loss=1.0625))
    tracker.event({"t": 1.0, "event": "rank_died", "attempt": 1, "step": 2, "rank": 1, "signal": 9})
    tracker.alert("a rank died", "restarting")
    tracker.summarise({"goodput(%)": 93.0625})
    tracker.close(0)

    (segment,) = offline_segments(folder)
    assert where == str(segment)
    assert notice.startswith("W&B: offline (no usable API key")
    assert notice.endswith(f"to upload later: phalanx sync {folder.path}")
    log = recorded(segment)
    assert log.count(b"1.0625") >= 2
    for text in (b"loss_metrics/global_avg_loss", b"train/step", b"events/rank_died", b"demo", b"93.0625"):
        assert text in log
    assert b"hidden" not in log
    assert tracker.take_notices() == []


@pytest.mark.real
def test_a_restart_goes_on_with_the_same_run(folder):
    for resumed in (False, True):
        tracker = started(folder, mode=WandbMode.offline, resumed=resumed, tags=["a"])
        assert tracker.wandb_run_id == "demo"
        tracker.close(75 if not resumed else 0)
        assert len(tracker.take_notices()) == 1
    segments = offline_segments(folder)
    assert len(segments) == 2
    for segment in segments:
        assert [log.name for log in segment.glob("*.wandb")] == ["run-demo.wandb"]


@pytest.mark.real
def test_nothing_is_left_running_after_close(folder):
    tracker = started(folder, mode=WandbMode.offline)
    tracker.wait_until_known(PATIENCE_S)
    mine = children_named("wandb")
    assert mine
    tracker.close(0)
    tracker.close(0)
    assert psutil.wait_procs(mine, timeout=PATIENCE_S)[1] == []


@pytest.mark.real
def test_what_a_killed_client_has_in_the_temporary_folder_goes(folder, temporary):
    """And what clients of killed drivers have left there, as soon as another starts; not what a living one has."""
    (temporary / f"{SCRATCH_PREFIX}1-stale").mkdir()
    tracker = started(folder, mode=WandbMode.offline)
    tracker.wait_until_known(PATIENCE_S)
    (scratch,) = temporary.iterdir()
    assert [*scratch.iterdir()]
    sweep_folders(SCRATCH_PREFIX, str(temporary))
    assert scratch.is_dir()
    log = str(folder.wandb / "client.log")
    commands = {child: child.as_dict(["cmdline"])["cmdline"] or [] for child in psutil.Process().children()}
    (client,) = [child for child, command in commands.items() if log in command]
    for process in [*client.children(recursive=True), client]:
        process.kill()
    tracker.close(0)
    assert any("its client died" in notice for notice in tracker.take_notices())
    assert [*temporary.iterdir()] == []


@pytest.mark.real
def test_a_dead_server_ends_in_an_offline_run(folder, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", FAKE_KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")
    tracker = started(folder, start_timeout_s=2.0)
    for step in range(1, 4):
        tracker.log(row(step, loss=1.0625))
    tracker.close(0)
    (segment,) = offline_segments(folder)
    assert tracker.where == str(segment)
    assert recorded(segment).count(b"1.0625") >= 3
    (notice,) = tracker.take_notices()
    assert notice.startswith("W&B: offline (")
    assert FAKE_KEY not in notice + (folder.wandb / "client.log").read_text()


@pytest.mark.real
def test_garbage_from_the_server_ends_in_an_offline_run(folder, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", FAKE_KEY)
    with server(b"garbage{") as url:
        monkeypatch.setenv("WANDB_BASE_URL", url)
        tracker = started(folder)
        tracker.log(row(1, loss=1.0625))
        tracker.close(0)
    (segment,) = offline_segments(folder)
    assert b"1.0625" in recorded(segment)


@pytest.mark.real
def test_an_answer_that_kills_the_client_s_service_is_only_a_notice(folder, monkeypatch):
    """FACTS part C: finish() then raises in the process that called it; ours says so and goes on."""
    monkeypatch.setenv("WANDB_API_KEY", FAKE_KEY)
    with server(b'{"data": null}') as url:
        monkeypatch.setenv("WANDB_BASE_URL", url)
        tracker = started(folder)
        tracker.wait_until_known(PATIENCE_S)
        tracker.log(row(1))
        tracker.close(0)
    assert any("phalanx sync" in notice for notice in tracker.take_notices())


@pytest.mark.real
def test_close_is_bounded_where_the_client_hangs_and_the_oldest_rows_go(folder, monkeypatch, tmp_path):
    """An import that never ends stands for a hanging file system; the pipe fills, then the queue."""
    (tmp_path / "hanging").mkdir()
    (tmp_path / "hanging/wandb.py").write_text("import signal\nsignal.pause()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "hanging"))
    others = children_named("python")
    tracker = started(folder, close_timeout_s=0.5)
    for step in range(2 * QUEUE_ITEMS):
        tracker.log(row(step))
    tracker.close(0)
    late, missing = tracker.take_notices()
    assert "tracking.wandb.close_timeout_s=0.5" in late
    assert "to send them: phalanx sync" in missing
    assert set(children_named("python")) <= set(others)


@pytest.mark.real
@pytest.mark.parametrize(
    "broken", ["raise ImportError('half installed')", "raise SystemExit(3)", "import os; os._exit(4)"]
)
def test_a_broken_wandb_never_reaches_the_run(folder, monkeypatch, tmp_path, broken):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/wandb.py").write_text(broken)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))
    tracker = started(folder)
    assert tracker.wait_until_known(PATIENCE_S) is None
    tracker.log(row(1))
    tracker.close(0)
    (notice,) = tracker.take_notices()
    assert notice.startswith("W&B stopped")


@pytest.mark.real
def test_the_client_does_not_outlive_a_killed_driver(folder):
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "import psutil\n"
        "from orchestrator.config import WandbConfig, WandbMode\n"
        "from orchestrator.observe.tracking import start_tracking\n"
        "from orchestrator.runfolder import RunFolder\n"
        "tracker = start_tracking(WandbConfig(mode=WandbMode.offline), run_id='demo',\n"
        "                         run_folder=RunFolder(Path(sys.argv[1])), run_config={}, resumed=False)\n"
        "tracker.wait_until_known(120)\n"
        "print(*(child.pid for child in psutil.Process().children(recursive=True)), flush=True)\n"
        "sys.stdin.read()\n"
    )
    driver = subprocess.Popen(
        [sys.executable, "-c", program, str(folder.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    pids = [int(pid) for pid in driver.stdout.readline().split()]
    assert len(pids) >= 2  # the client and the service that it started
    watched = [os.pidfd_open(pid) for pid in pids]
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    for pidfd in watched:
        assert select.select([pidfd], [], [], PATIENCE_S)[0]
        os.close(pidfd)
    (segment,) = offline_segments(folder)
    assert b"demo" in recorded(segment)


def test_disabled_starts_nothing(folder, monkeypatch):
    assert isinstance(started(folder, mode=WandbMode.disabled), NullTracker)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    tracker = started(folder, mode=WandbMode.online)
    assert isinstance(tracker, NullTracker)
    tracker.log(row(1))
    tracker.event({"event": "rank_died"})
    tracker.alert("a", "b")
    tracker.close(0)
    assert (tracker.where, tracker.wait_until_known(0), tracker.take_notices()) == (None, None, [])
    assert not folder.wandb.exists()


def test_a_folder_that_can_t_be_written_is_a_notice(tmp_path):
    (tmp_path / "file").write_text("")
    tracker = started(RunFolder(tmp_path / "file"))
    (notice,) = tracker.take_notices()
    assert notice.startswith("W&B is off")


def test_what_the_person_exported_wins():
    config = WandbConfig(project="p", entity="e", group="g", tags=["t"], notes="n", job_type="j")
    folder = RunFolder(Path("/runs/a"))
    assert init_arguments(config, "a", folder, {}) == {
        "project": "p",
        "entity": "e",
        "group": "g",
        "name": "a",
        "notes": "n",
        "job_type": "j",
        "tags": ["t"],
        "resume": "allow",
        "dir": "/runs/a",
        "id": "a",
    }
    names = ["PROJECT", "ENTITY", "RUN_GROUP", "NAME", "NOTES", "TAGS", "RESUME", "DIR", "JOB_TYPE"]
    exported = {f"WANDB_{name}": "theirs" for name in names}
    assert init_arguments(config, "a", folder, exported | {"WANDB_RUN_ID": "b"}) == {"id": "b"}


def test_the_run_id_as_wandb_takes_it():
    assert wandb_safe("gpt_125m-1a2b3c4d.x") == "gpt_125m-1a2b3c4d.x"
    assert wandb_safe("a/b\\c#d?e%f:g h") == "a-b-c-d-e-f-g-h"
    assert len(wandb_safe("x" * 500)) == 128


def test_secrets_are_blanked_and_ordinary_words_are_not():
    config = {
        "checkpoint": {"url": "s3://me:pass@host/bucket", "keep_last": 3},
        "ds": [{"hf_token": "x", "api_key": "y"}, "plain"],
        "data": {"tokenizer": "t.json", "path": "data/tokens"},
        "empty": {"password": ""},
    }
    assert without_secrets(config) == {
        "checkpoint": {"url": "s3://***@host/bucket", "keep_last": 3},
        "ds": [{"hf_token": "***", "api_key": "***"}, "plain"],
        "data": {"tokenizer": "t.json", "path": "data/tokens"},
        "empty": {"password": ""},
    }


def test_rows_have_torchtitan_s_names():
    values = row_values(row(7, world_size=8, mfu=0.412, memory_bytes=3 * 2**30))
    assert values == {
        "train/step": 7,
        "train/attempt": 1,
        "train/workers": 8,
        "loss_metrics/global_avg_loss": 3.421,
        "grad_norm": 0.91,
        "lr": 2.9e-4,
        "throughput(tps)": 64_042.5,
        "throughput/total_tokens_per_s": 512_340.0,
        "mfu(%)": pytest.approx(41.2),
        "time_metrics/end_to_end(s)": 0.5,
        "time_metrics/data_loading(s)": 0.006,
        "time_metrics/data_loading(%)": pytest.approx(1.2),
        "memory/max_reserved(GiB)": 3.0,
    }


def test_the_numbers_of_an_event():
    record = {
        "t": 5.0,
        "event": "recovered",
        "attempt": 2,
        "step": 50,
        "downtime_s": 0.4,
        "source": "disk",
        "ok": True,
    }
    assert event_values(record) == {"events/recovered/downtime_s": 0.4, "train/step": 50}
    assert event_values({"t": 5.0, "event": "node_lost", "attempt": 2, "step": None}) == {}
