"""The process that holds W&B's client: the only file that imports wandb. Started by tracking.py only.

Commands come as JSON lines on standard input: first `start`, then `log`, `event`, `alert`, `rewind`, at the end
`lineage` and `close`; the end of the input without `close` means that the driver was killed. Answers go out as JSON
lines: `where` (with what W&B has of the run) and `notice`. Standard library and wandb only: it runs on its own.

W&B's own step is ours, and it only grows: a row of a step that W&B has is left out. After a restart that is the same
row again. After a rollback W&B's history is first cut back to where the new branch begins (`resume_from`): by the
server at once, or by it when an offline segment is synced.
"""

import contextlib
import json
import os
import shutil
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
        self._newest_step: int = start["written"]["newest_step"]
        """Of what W&B has; where it is online, it knows better itself."""
        self._open_step = 0
        """What events are logged with: the newest row's step, which stays open until the next one."""
        self._has_own_step = False
        """W&B could not be cut back: it counts by itself, and `train/step` is the axis all the same."""

    def begin(self) -> None:
        """Online unless offline is asked for; any failure of W&B's falls back to offline with its reason."""
        mode = self._start["mode"]
        if mode in ("offline", "dryrun"):
            self._begin("offline")
            return
        try:
            self._begin("shared" if mode == "shared" else "online")
        except Exception as error:
            if mode == "must_be_online":
                raise
            self._go_offline(_reason(error))

    def handle(self, command: dict[str, Any]) -> None:
        """One command; where the client breaks, it is repeated on an offline segment of the same run."""
        try:
            self._handle(command)
        except Exception as error:
            if self._is_online and self._start["mode"] != "must_be_online":
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
            self.say(notice=f"W&B: the upload was cut short; to send what is missing: {self._start['sync_command']}")
            raise

    def say(self, **answer: Any) -> None:
        with contextlib.suppress(OSError):  # the driver may be gone
            self._answers.write(json.dumps(answer) + "\n")
            self._answers.flush()

    def _begin(
        self, mode: Literal["online", "offline", "shared"], reason: str = "", *, rewind_to: int | None = None
    ) -> None:
        import wandb  # here, so that a broken installation is one more failure to report

        arguments = dict(self._start["init"])
        tags = arguments.pop("tags", [])
        if rewind_to is not None:
            arguments.pop("resume", None)
            arguments["resume_from"] = f"{arguments['id']}?_step={rewind_to}"
        settings = wandb.Settings(
            mode=mode,
            console="off",
            silent=True,
            finish_timeout=self._start["finish_timeout_s"],
            finish_timeout_raises=True,
            x_stats_pid=self._start["driver_pid"],
            x_stats_track_process_tree=True,
        )
        if self._start["init_timeout_s"] is not None:  # else the person exported WANDB_INIT_TIMEOUT
            settings.init_timeout = self._start["init_timeout_s"]
        # A resumed run's tags are replaced by those given here, so then they are added instead.
        is_resumed = self._start["resumed"] or self._run is not None
        given = {} if is_resumed else {"tags": tags}
        self._run = wandb.init(**arguments, **given, settings=settings, allow_val_change=True)
        if is_resumed and tags:
            self._run.tags = tuple(dict.fromkeys((*(self._run.tags or ()), *tags)))
        self._run.define_metric("train/step")
        self._run.define_metric("*", step_metric="train/step")
        self._is_online = mode != "offline"
        if rewind_to is not None:
            self._newest_step = rewind_to
        elif self._is_online:
            self._newest_step = self._run.starting_step - 1 if self._run.starting_step else 0
            attempt = int(self._run.summary.get("train/attempt") or 0)
            self.say(where=self._run.url, newest_step=self._newest_step, newest_attempt=attempt)
        else:
            folder = Path(self._run.settings.sync_dir)
            why = f" ({reason})" if reason else ""
            self.say(where=str(folder), notice=f"W&B: offline{why}; to upload later: {self._start['sync_command']}")
        self._open_step = self._newest_step + 1

    def _go_offline(self, reason: str) -> None:
        import wandb

        with contextlib.suppress(Exception):  # its service may be dead, or hold the run's id
            wandb.teardown()
        self._begin("offline", reason)

    def _handle(self, command: dict[str, Any]) -> None:
        if "log" in command:
            step: int = command["step"]
            if step > self._newest_step:
                self._run.log(command["log"], step=None if self._has_own_step else step)
                self._newest_step = self._open_step = step
        elif "event" in command:
            key = f"events/{command['name']}"
            self._counts[key] = self._counts.get(key, 0) + 1
            values = {key: self._counts[key], **command["event"]}
            if self._has_own_step:
                self._run.log(values)
            else:
                self._run.log(values | {"train/step": self._open_step}, step=self._open_step)
        elif "lineage" in command:
            self._record_lineage(command["lineage"])
        elif "rewind" in command:
            self._rewind(command["rewind"])
        elif "alert" in command:
            self._run.alert(**command["alert"])
        elif "summary" in command:
            self._run.summary.update(command["summary"])

    def _record_lineage(self, lineage: dict[str, Any]) -> None:
        """What the run used and made, as references: nothing is uploaded. A server that is slow with it is left."""
        recording = threading.Thread(target=self._log_artifacts, args=(lineage,), daemon=True)
        recording.start()
        recording.join(self._start["finish_timeout_s"] / 2)

    def _log_artifacts(self, lineage: dict[str, Any]) -> None:
        for used in lineage["used"] if self._is_online else ():  # W&B has no such record offline
            with contextlib.suppress(Exception):  # the history counts for more
                self._run.use_artifact(_reference(used))
        for made in lineage["made"]:
            with contextlib.suppress(Exception):
                self._run.log_artifact(_reference(made), aliases=made["aliases"])

    def _rewind(self, step: int) -> None:
        """Take back what W&B has after `step`, of which the run has made another branch."""
        if step >= self._newest_step:
            return
        is_online = self._is_online
        self._run.finish()
        try:
            self._begin("online" if is_online else "offline", rewind_to=step)
        except Exception as error:
            import wandb

            with contextlib.suppress(Exception):
                wandb.teardown()
            self._begin("online" if is_online else "offline")
            self._newest_step, self._has_own_step = step, True
            what = f"W&B can't take back the steps after {step:,} ({_reason(error)})"
            self.say(notice=f"{what}: its charts show both branches")


def _reference(artifact: dict[str, Any]) -> Any:
    import wandb

    reference = wandb.Artifact(artifact["name"], type=artifact["type"], metadata=artifact["metadata"])
    reference.add_reference(artifact["uri"], name=artifact["entry"], checksum=False)
    return reference


def _reason(error: BaseException) -> str:
    if "API key" in str(error):
        return "no usable API key: `wandb login`, or WANDB_API_KEY"
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0][:200]


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
    if exported := os.environ.pop("WANDB_RESUME", None):  # from there it would forbid `resume_from`
        start["init"]["resume"] = exported
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
    shutil.rmtree(sys.argv[2], ignore_errors=True)  # our temporary folder; the driver may have been killed
    os._exit(0)  # the client's own exit hooks raise where its service has died
