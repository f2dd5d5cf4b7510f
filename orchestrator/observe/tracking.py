"""The run's mirror in W&B. Training never fails and never waits because of it.

W&B's client lives in a process of its own (wandb_process.py): its import takes half a second of the
interpreter, it installs exit hooks, and an answer that it does not expect kills its service. Here is only a
bounded queue, a thread that writes it to a pipe and one that reads what the client says. metrics.jsonl has
everything anyway, and what W&B lacks of it is sent when it can next be reached.
"""

import contextlib
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import psutil  # type: ignore[import-untyped]

from orchestrator.config import WandbConfig, WandbMode
from orchestrator.observe.artifacts import committed_artifact
from orchestrator.observe.goodput import in_order
from orchestrator.observe.ledger import read_events
from orchestrator.observe.metrics import StepRow, read_last_rows, surviving_rows
from orchestrator.observe.wandb_values import (
    init_arguments,
    rewind_point,
    wandb_item,
    without_secrets,
)
from orchestrator.runfolder import RunFolder
from orchestrator.scratch import locked_folder, sweep_folders

QUEUE_ITEMS = 10_000
"""Rows and events kept while W&B can't take them (about 10 MB); beyond that the oldest go."""
SCRATCH_PREFIX = "phx-wb-"
"""Of the client's temporary folder: its end by a signal leaves what it has there, so the folder is ours to remove."""
LONGEST_PARENT = 32
"""Bytes: of the 107 that Linux allows for a socket's path, the client's sockets and our folder need the others."""


class NullTracker:
    """W&B is disabled, or could not be started at all."""

    def __init__(self, notice: str | None = None) -> None:
        self._notices = [notice] if notice else []

    wandb_run_id: str | None = None
    where: str | None = None

    def wait_until_known(self, timeout_s: float) -> str | None:
        return None

    def log(self, row: StepRow) -> None: ...
    def event(self, record: Mapping[str, Any]) -> None: ...
    def alert(self, title: str, text: str, level: str = "WARN") -> None: ...
    def summarise(self, values: Mapping[str, Any]) -> None: ...
    def close(self, exit_code: int) -> None: ...

    def take_notices(self) -> list[str]:
        taken, self._notices = self._notices, []
        return taken


class WandbTracker:
    """One W&B run. Every method returns at once, but for `close`, which is bounded; none raises."""

    def __init__(self, start: dict[str, Any], run_folder: RunFolder, *, close_timeout_s: float) -> None:
        self.wandb_run_id: str = start["init"]["id"]
        self._start = start
        self._folder = run_folder
        self.where: str | None = None
        """URL of the run, or the folder of its offline segment; None until the client has said."""
        self._close_timeout_s = close_timeout_s
        self._queue: deque[dict[str, Any]] = deque()
        self._dropped = 0
        self._changed = threading.Condition()
        self._closing = False
        self._gone = False
        self._is_late = False
        self._notices: list[str] = []
        self._known = threading.Event()
        self._made: list[dict[str, Any]] = start["made"]
        """Artifacts that W&B shall know as this run's: of a training run its newest checkpoint."""
        self._has: dict[str, int] | None = None
        """What W&B's server says it has of the run, once it has said; offline its segments have what was written."""
        self._scratch, self._held = locked_folder(SCRATCH_PREFIX, scratch_parent())
        self._process = start_client(run_folder, self._scratch, self._held)
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._write, self._read)]
        for thread in self._threads:
            thread.start()

    def wait_until_known(self, timeout_s: float) -> str | None:
        """`where`, waiting for the client to say it for at most so long (or until it has ended)."""
        self._known.wait(timeout_s)
        return self.where

    def log(self, row: StepRow) -> None:
        self._put(wandb_item(row))

    def event(self, record: Mapping[str, Any]) -> None:
        """`record` as the ledger returned it: its name is counted, its numbers are drawn over the steps.

        A rollback takes back what W&B has of the branch that was left.
        """
        self._put(wandb_item(record))
        if record["event"] == "checkpoint_committed":
            self._made = [committed_artifact(self.wandb_run_id, record)]
        if record["event"] == "rollback":
            self._put({"rewind": record["to_step"]})

    def alert(self, title: str, text: str, level: str = "WARN") -> None:
        """`level`: INFO, WARN or ERROR."""
        self._put({"alert": {"title": title[:63], "text": text, "level": level}})

    def summarise(self, values: Mapping[str, Any]) -> None:
        """What the run's summary shows beside the last row."""
        self._put({"summary": values})

    def take_notices(self) -> list[str]:
        """Lines for the person that came up since the last call, each once."""
        taken, self._notices = self._notices, []
        return taken

    def close(self, exit_code: int) -> None:
        """Ends the W&B run, waiting for it at most `tracking.wandb.close_timeout_s`. Twice is harmless."""
        with self._changed:
            if self._closing:
                return
            self._queue.append({"lineage": {"used": self._start["used"], "made": self._made}})
            self._queue.append({"close": exit_code})
            self._closing = True
            self._changed.notify()
        deadline = time.monotonic() + self._close_timeout_s
        try:
            self._process.wait(self._close_timeout_s)
        except subprocess.TimeoutExpired:
            self._is_late = True
            self._notices.append(
                f"W&B did not finish within tracking.wandb.close_timeout_s={self._close_timeout_s:g}"
                f" and was stopped; to send what it lacks: {self._start['sync_command']}"
            )
        self._end_processes()
        shutil.rmtree(self._scratch, ignore_errors=True)
        os.close(self._held)
        for thread in self._threads:
            thread.join(max(1.0, deadline - time.monotonic()))
        if self._dropped:
            self._notices.append(
                f"W&B was too slow: it lacks {self._dropped} rows; to send them: {self._start['sync_command']}"
            )

    def _put(self, item: dict[str, Any]) -> None:
        with self._changed:
            if self._closing or self._gone:
                return
            if len(self._queue) >= QUEUE_ITEMS:
                self._queue.popleft()
                self._dropped += 1
            self._queue.append(item)
            self._changed.notify()

    def _write(self) -> None:
        """Queue to pipe, until the queue is closed or the client is gone (then nothing more is kept)."""
        pipe = self._process.stdin
        assert pipe is not None
        with contextlib.suppress(OSError), pipe:
            _send(pipe, [{"start": self._start}])
            self._known.wait()  # what is dropped from the queue meanwhile is in metrics.jsonl, which is read now
            if self.where is not None:
                dropped, self._dropped = self._dropped, 0
                for item in self._lacking(self._has or self._start["written"], was_full=bool(dropped)):
                    _send(pipe, [item])
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._queue)
                    items = [self._queue.popleft() for _ in range(min(len(self._queue), 100))]
                _send(pipe, items)
                if "close" in items[-1]:
                    return
        self._gone = True

    def _lacking(self, has: Mapping[str, int], *, was_full: bool) -> Iterator[dict[str, Any]]:
        """What W&B lacks of the rows that were written before now, and of earlier drivers' events."""
        events = [event for event in read_events(self._folder.events) if event["t"] < self._start["started_s"]]
        rollbacks = [event for event in events if event["event"] == "rollback"]
        rewind_to = rewind_point(rollbacks, newest_step=has["newest_step"], newest_attempt=has["newest_attempt"])
        if rewind_to is not None:
            yield {"rewind": rewind_to}
        newest_step = has["newest_step"] if rewind_to is None else rewind_to
        if was_full or self._start["written"]["newest_step"] > newest_step:
            last = math.inf if was_full else self._start["written"]["newest_step"]  # later ones are in the queue
            rows = [row for step, row in surviving_rows(self._folder.metrics).items() if newest_step < step <= last]
            later = (event for event in events if (event["step"] or 0) > newest_step)
            yield from map(wandb_item, in_order(later, rows))

    def _read(self) -> None:
        """What the client says, until it ends; an end that it did not announce is one more thing to tell."""
        pipe = self._process.stdout
        assert pipe is not None
        has_ended = False
        with contextlib.suppress(OSError, ValueError), pipe:
            for line in pipe:
                said = json.loads(line)
                if "notice" in said:
                    self._notices.append(said["notice"])
                if "where" in said:
                    self.where = said["where"]
                    if "newest_step" in said and not self._known.is_set():
                        self._has = {name: said[name] for name in ("newest_step", "newest_attempt")}
                    self._known.set()
                has_ended = has_ended or "ended" in said
        if not has_ended and not self._is_late:
            self._notices.append(f"W&B stopped: its client died; to send the rest: {self._start['sync_command']}")
        self._known.set()

    def _end_processes(self) -> None:
        """Kills the client, where it still runs, with the service that it started."""
        family: list[psutil.Process] = []
        with contextlib.suppress(psutil.Error):
            client = psutil.Process(self._process.pid)
            family = [*client.children(recursive=True), client]
        for process in family:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self._process.wait()


def start_client(run_folder: RunFolder, scratch: str, held: int) -> "subprocess.Popen[bytes]":
    """The client, with `scratch` as its temporary folder, which stays locked until this process and the client have
    both ended."""
    program, log = Path(__file__).with_name("wandb_process.py"), run_folder.wandb / "client.log"
    return subprocess.Popen(
        # -P: neither our folder nor the working directory may shadow what wandb imports.
        [sys.executable, "-P", str(program), str(log), scratch],
        env=os.environ | {"TMPDIR": scratch},
        pass_fds=[held],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # a Ctrl-C on the terminal is the driver's to handle
    )


def scratch_parent() -> str:
    usual = tempfile.gettempdir()
    return usual if len(os.fsencode(usual)) <= LONGEST_PARENT else "/tmp"


Tracker = WandbTracker | NullTracker


def start_tracking(
    config: WandbConfig,
    *,
    run_id: str,
    run_folder: RunFolder,
    run_config: dict[str, Any],
    resumed: bool,
    used: Sequence[dict[str, Any]] = (),
    made: Sequence[dict[str, Any]] = (),
    job_type: str | None = None,
    must_be_online: bool = False,
    sync_command: str | None = None,
) -> Tracker:
    """Begins the run's W&B run, or goes on with it, in the background. Call once per driver, never per rank.

    `run_config` is shown in W&B without what looks like a secret. `used` and `made` are artifacts (artifacts.py);
    of a training run its newest checkpoint is added by itself.
    `must_be_online`: stop, with a notice, rather than record offline. `sync_command`: what a person is told to type
    to send what W&B lacks, where that is not `phalanx sync`. Never raises.
    """
    if not must_be_online and (os.environ.get("WANDB_MODE") or config.mode) == WandbMode.disabled:
        return NullTracker()
    if job_type is not None:
        config = replace(config, job_type=job_type)
    start = {
        "init": init_arguments(config, run_id, run_folder, os.environ) | {"config": without_secrets(run_config)},
        "mode": "must_be_online" if must_be_online else os.environ.get("WANDB_MODE") or str(config.mode),
        "started_s": time.time(),
        "used": list(used),
        "made": list(made),
        "resumed": resumed,
        "sync_command": sync_command or f"phalanx sync {shlex.quote(str(run_folder.path))}",
        "init_timeout_s": None if os.environ.get("WANDB_INIT_TIMEOUT") else config.start_timeout_s,
        "finish_timeout_s": config.close_timeout_s * 0.8,
        "driver_pid": os.getpid(),
    }
    try:
        sweep_folders(SCRATCH_PREFIX, scratch_parent())
        run_folder.wandb.mkdir(parents=True, exist_ok=True)
        written = read_last_rows(run_folder.metrics, 1)
        step, attempt = (written[0].step, written[0].attempt) if written else (0, 0)
        start["written"] = {"newest_step": step, "newest_attempt": attempt}
        return WandbTracker(start, run_folder, close_timeout_s=config.close_timeout_s)
    except OSError as error:
        return NullTracker(f"W&B is off: its client could not be started ({error}); metrics.jsonl has every row")


def _send(pipe: IO[bytes], items: Sequence[Mapping[str, Any]]) -> None:
    pipe.write("".join(json.dumps(item, default=str) + "\n" for item in items).encode())
    pipe.flush()
