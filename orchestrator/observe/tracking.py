"""The run's mirror in W&B. Training never fails and never waits because of it.

W&B's client lives in a process of its own (wandb_process.py): its import takes half a second of the
interpreter, it installs exit hooks, and an answer that it does not expect kills its service. Here is only a
bounded queue, a thread that writes it to a pipe and one that reads what the client says. metrics.jsonl has
everything anyway.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from orchestrator.config import WandbConfig, WandbMode
from orchestrator.observe.goodput import Goodput
from orchestrator.observe.metrics import StepRow
from orchestrator.runfolder import RunFolder

QUEUE_ITEMS = 10_000
"""Rows and events kept while W&B can't take them (about 10 MB); beyond that the oldest go."""

# Each argument of wandb.init and the variable by which a person sets it: what they exported wins.
_EXPORTED = {
    "project": "WANDB_PROJECT",
    "entity": "WANDB_ENTITY",
    "group": "WANDB_RUN_GROUP",
    "name": "WANDB_NAME",
    "notes": "WANDB_NOTES",
    "tags": "WANDB_TAGS",
    "resume": "WANDB_RESUME",
    "dir": "WANDB_DIR",
}
_SECRET_KEY = re.compile(r"(^|_)(api_?key|access_?key|secret|secret_key|password|passwd|credentials|token)$", re.I)
_URL_USER = re.compile(r"(?<=://)[^/\s@]+@")


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
    def alert(self, title: str, text: str) -> None: ...
    def summarise(self, values: Mapping[str, Any]) -> None: ...
    def close(self, exit_code: int) -> None: ...

    def take_notices(self) -> list[str]:
        taken, self._notices = self._notices, []
        return taken


class WandbTracker:
    """One W&B run. Every method returns at once, but for `close`, which is bounded; none raises."""

    def __init__(self, start: dict[str, Any], *, log: Path, close_timeout_s: float) -> None:
        self.wandb_run_id: str = start["init"]["id"]
        self.where: str | None = None
        """URL of the run, or the folder that `wandb sync` uploads; None until the client has said."""
        self._close_timeout_s = close_timeout_s
        self._queue: deque[dict[str, Any]] = deque([{"start": start}])
        self._dropped = 0
        self._changed = threading.Condition()
        self._closing = False
        self._gone = False
        self._is_late = False
        self._notices: list[str] = []
        self._known = threading.Event()
        self._process = subprocess.Popen(
            # -P: neither our folder nor the working directory may shadow what wandb imports.
            [sys.executable, "-P", str(Path(__file__).with_name("wandb_process.py")), str(log)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C on the terminal is the driver's to handle
        )
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._write, self._read)]
        for thread in self._threads:
            thread.start()

    def wait_until_known(self, timeout_s: float) -> str | None:
        """`where`, waiting for the client to say it for at most so long (or until it has ended)."""
        self._known.wait(timeout_s)
        return self.where

    def log(self, row: StepRow) -> None:
        self._put({"log": row_values(row)})

    def event(self, record: Mapping[str, Any]) -> None:
        """`record` as the ledger returned it: its name is counted, its numbers are drawn over the steps."""
        self._put({"event": event_values(record), "name": record["event"]})

    def alert(self, title: str, text: str) -> None:
        self._put({"alert": {"title": title[:63], "text": text}})

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
                " and was stopped; metrics.jsonl has every row"
            )
        self._end_processes()
        for thread in self._threads:
            thread.join(max(1.0, deadline - time.monotonic()))
        if self._dropped:
            self._notices.append(f"W&B was too slow: it misses {self._dropped} rows; metrics.jsonl has every row")

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
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._queue)
                    items = [self._queue.popleft() for _ in range(min(len(self._queue), 100))]
                pipe.write("".join(json.dumps(item, default=str) + "\n" for item in items).encode())
                pipe.flush()
                if "close" in items[-1]:
                    return
        self._gone = True

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
                    self._known.set()
                has_ended = has_ended or "ended" in said
        if not has_ended and not self._is_late:
            self._notices.append("W&B stopped: its client died; metrics.jsonl has every row")
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


Tracker = WandbTracker | NullTracker


def start_tracking(
    config: WandbConfig, *, run_id: str, run_folder: RunFolder, run_config: dict[str, Any], resumed: bool
) -> Tracker:
    """Begins the run's W&B run, or goes on with it, in the background. Call once per driver, never per rank.

    `run_config` is shown in W&B without what looks like a secret. Never raises.
    """
    if (os.environ.get("WANDB_MODE") or config.mode) == WandbMode.disabled:
        return NullTracker()
    start = {
        "init": init_arguments(config, run_id, run_folder, os.environ) | {"config": without_secrets(run_config)},
        "mode": os.environ.get("WANDB_MODE") or str(config.mode),
        "resumed": resumed,
        "init_timeout_s": None if os.environ.get("WANDB_INIT_TIMEOUT") else config.start_timeout_s,
        "finish_timeout_s": config.close_timeout_s * 0.8,
        "driver_pid": os.getpid(),
    }
    try:
        run_folder.wandb.mkdir(parents=True, exist_ok=True)
        return WandbTracker(start, log=run_folder.wandb / "client.log", close_timeout_s=config.close_timeout_s)
    except OSError as error:
        return NullTracker(f"W&B is off: its client could not be started ({error}); metrics.jsonl has every row")


def init_arguments(
    config: WandbConfig, run_id: str, run_folder: RunFolder, environment: Mapping[str, str]
) -> dict[str, Any]:
    """Arguments of wandb.init that the environment does not set; the run id is always there."""
    chosen = {
        "project": config.project,
        "entity": config.entity,
        "group": config.group,
        "name": run_id,
        "notes": config.notes,
        "tags": list(config.tags),
        "resume": "allow",
        "dir": str(run_folder.path.resolve()),
    }
    arguments = {key: value for key, value in chosen.items() if value and not environment.get(_EXPORTED[key])}
    return arguments | {"id": environment.get("WANDB_RUN_ID") or wandb_safe(run_id)}


def wandb_safe(run_id: str) -> str:
    """The run id as W&B takes it: none of / \\ # ? % :, at most 128 characters."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", run_id)[:128]


def without_secrets(value: Any, key: str = "") -> Any:
    """A copy in which values under secret-looking keys and users in URLs are `***`."""
    if isinstance(value, Mapping):
        return {name: without_secrets(inner, str(name)) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(inner, key) for inner in value]
    if isinstance(value, str):
        return "***" if value and _SECRET_KEY.search(key) else _URL_USER.sub("***@", value)
    return value


def row_values(row: StepRow) -> dict[str, Any]:
    """A row under the names that torchtitan's users know; what is not known is left out."""
    per_worker = row.tokens_per_s / row.world_size if row.world_size else None
    values = {
        "train/step": row.step,
        "train/attempt": row.attempt,
        "loss_metrics/global_avg_loss": row.loss,
        "grad_norm": row.grad_norm,
        "lr": row.lr,
        "throughput(tps)": per_worker,
        "throughput/total_tokens_per_s": row.tokens_per_s,
        "mfu(%)": None if row.mfu is None else 100 * row.mfu,
        "time_metrics/end_to_end(s)": row.step_s,
        "time_metrics/data_loading(s)": row.data_s,
        "time_metrics/data_loading(%)": 100 * row.data_s / row.step_s if row.step_s > 0 else None,
        "memory/max_reserved(GiB)": None if row.memory_bytes is None else row.memory_bytes / 2**30,
        "eval/loss": row.eval_loss,
        "eval/perplexity": row.eval_perplexity,
        "eval/bits_per_byte": row.eval_bits_per_byte,
        "goodput(%)": None if row.goodput is None else 100 * row.goodput,
    }
    return {name: value for name, value in values.items() if value is not None}


def summary_values(goodput: Goodput) -> dict[str, Any]:
    """Where the run's time went, for W&B's summary."""
    parts = {f"goodput/{part}(s)": seconds for part, seconds in goodput.seconds().items()}
    whole = {} if goodput.ratio is None else {"goodput(%)": 100 * goodput.ratio}
    return whole | parts | {"goodput/wall(s)": goodput.wall_s}


def event_values(record: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of an event, as `events/NAME/FIELD`, and the step that they belong to."""
    name = record["event"]
    numbers = {
        f"events/{name}/{field}": value
        for field, value in record.items()
        if field not in ("t", "attempt", "step") and isinstance(value, int | float) and not isinstance(value, bool)
    }
    return numbers if record.get("step") is None else numbers | {"train/step": record["step"]}
