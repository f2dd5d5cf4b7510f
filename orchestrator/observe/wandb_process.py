"""The process that holds W&B's client: the only file that imports wandb. Started by tracking.py only.

Commands come as JSON lines on standard input: first `start`, then `log`, `event`, `alert`, last `close`; the
end of the input without `close` means that the driver was killed. Answers go out as JSON lines: `where` and
`notice`. Standard library and wandb only: this file runs on its own.
"""

import contextlib
import json
import os
import shlex
import signal
import sys
import threading
from pathlib import Path
from typing import Any, Literal, TextIO

_PREEMPTED = 75
_DRIVER_KILLED = 255


class WandbRun:
    """The W&B run, online where that works and offline where it doesn't."""

    def __init__(self, start: dict[str, Any], answers: TextIO) -> None:
        self._start = start
        self._answers = answers
        self._counts: dict[str, int] = {}
        self._run: Any = None
        self._is_online = False

    def begin(self) -> None:
        """Online unless offline is asked for; any failure of W&B's falls back to offline with its reason."""
        mode = self._start["mode"]
        if mode in ("offline", "dryrun"):
            self._begin("offline")
            return
        try:
            self._begin("shared" if mode == "shared" else "online")
        except Exception as error:
            self._go_offline(_reason(error))

    def handle(self, command: dict[str, Any]) -> None:
        """One command; where the client breaks, it is repeated on an offline segment of the same run."""
        try:
            self._handle(command)
        except Exception as error:
            if self._is_online:
                self._go_offline(_reason(error))
                self._handle(command)
            else:
                raise

    def finish(self, exit_code: int) -> None:
        """Errors: whatever the client raises; what was not uploaded is in its folder, as a notice says."""
        if exit_code == _PREEMPTED:
            self._run.mark_preempting()
        try:
            self._run.finish(exit_code=exit_code)
        except Exception:
            folder = shlex.quote(str(self._run.settings.sync_dir))
            self.say(notice=f"W&B: the upload was cut short; to send what is missing: wandb sync {folder}")
            raise

    def say(self, **answer: Any) -> None:
        with contextlib.suppress(OSError):  # the driver may be gone
            self._answers.write(json.dumps(answer) + "\n")
            self._answers.flush()

    def _begin(self, mode: Literal["online", "offline", "shared"], reason: str = "") -> None:
        import wandb  # here, so that a broken installation is one more failure to report

        arguments = dict(self._start["init"])
        tags = arguments.pop("tags", [])
        settings = wandb.Settings(
            mode=mode,
            console="off",
            silent=True,
            finish_timeout=self._start["finish_timeout_s"],
            x_stats_pid=self._start["driver_pid"],
            x_stats_track_process_tree=True,
        )
        if self._start["init_timeout_s"] is not None:  # else the person exported WANDB_INIT_TIMEOUT
            settings.init_timeout = self._start["init_timeout_s"]
        # A resumed run's tags are replaced by those given here, so then they are added instead.
        given = {} if self._start["resumed"] else {"tags": tags}
        self._run = wandb.init(**arguments, **given, settings=settings, allow_val_change=True)
        if self._start["resumed"] and tags:
            self._run.tags = tuple(dict.fromkeys((*(self._run.tags or ()), *tags)))
        # Steps run again after a rollback are smaller than W&B's own step, so ours is the axis.
        self._run.define_metric("train/step")
        self._run.define_metric("*", step_metric="train/step")
        self._is_online = mode != "offline"
        if self._is_online:
            self.say(where=self._run.url)
        else:
            folder = Path(self._run.settings.sync_dir)
            why = f" ({reason})" if reason else ""
            self.say(where=str(folder), notice=f"W&B: offline{why}; to upload later: {_sync_command(folder)}")

    def _go_offline(self, reason: str) -> None:
        import wandb

        with contextlib.suppress(Exception):  # its service may be dead, or hold the run's id
            wandb.teardown()
        self._begin("offline", reason)

    def _handle(self, command: dict[str, Any]) -> None:
        if "log" in command:
            self._run.log(command["log"])
        elif "event" in command:
            key = f"events/{command['name']}"
            self._counts[key] = self._counts.get(key, 0) + 1
            self._run.log({key: self._counts[key], **command["event"]})
        elif "alert" in command:
            self._run.alert(**command["alert"])
        elif "summary" in command:
            self._run.summary.update(command["summary"])


def _reason(error: BaseException) -> str:
    if "API key" in str(error):
        return "no usable API key: `wandb login`, or WANDB_API_KEY"
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0][:200]


def _sync_command(folder: Path) -> str:
    """Uploads every segment of the run, in order; the start pattern is the shell's to expand."""
    return f"wandb sync {shlex.quote(str(folder.parent))}/offline-run-*"


def _detach_standard_streams(log: Path) -> tuple[TextIO, TextIO]:
    """Our ends of the driver's pipes, out of the reach of wandb and of the service that it starts."""
    commands, answers = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    quiet = os.open(os.devnull, os.O_RDONLY)
    printed = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for target, source in ((0, quiet), (1, printed), (2, printed)):
        os.dup2(source, target)
    return commands, answers


def main(log: Path) -> None:
    # The driver decides when to end: a scheduler's signals to the whole job must not cut the run short.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    commands, answers = _detach_standard_streams(log)
    start = json.loads(commands.readline())["start"]
    run = WandbRun(start, answers)
    try:
        run.begin()
        exit_code = _DRIVER_KILLED
        for line in commands:
            command = json.loads(line)
            if "close" in command:
                exit_code = command["close"]
                break
            run.handle(command)
        _end_after(2 * start["finish_timeout_s"])
        run.finish(exit_code)
        run.say(ended=True)
    except Exception as error:
        run.say(ended=True, notice=f"W&B stopped: {_reason(error)}; metrics.jsonl has every row")


def _end_after(timeout_s: float) -> None:
    """Whatever the client waits for, this process does not outlive the run for long, driver or no driver."""
    timer = threading.Timer(timeout_s, os._exit, args=(1,))
    timer.daemon = True
    timer.start()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    if "wandb" in sys.modules:
        with contextlib.suppress(Exception):
            sys.modules["wandb"].teardown()
    os._exit(0)  # the client's own exit hooks raise where its service has died
