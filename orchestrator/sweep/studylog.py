"""The study and its file: each record is on disk before it counts."""

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator import holding
from orchestrator.codec import encode
from orchestrator.errors import ConfigError
from orchestrator.observe.jsonlines import JsonLines, read_records
from orchestrator.sweep.folder import SweepFolder
from orchestrator.sweep.study import Part, Record, Study, Trial, read_study


class StudyLog:
    """The sweep's one writer of study.jsonl: appended lines, so any file system will do; needs the sweep's lock."""

    def __init__(self, folder: SweepFolder) -> None:
        self.study: Study = read_study(read_records(folder.study))
        self.starts = {r["trial"]: r for r in read_records(folder.study) if r["event"] == Record.trial_started}
        """Trial -> the record of its newest start by an earlier driver."""
        self._path = folder.study
        self._lines = JsonLines(folder.study)

    def add(self, trial_id: str, parameters: Mapping[str, str], part: Part | None = None) -> Trial:
        place = {} if part is None else {"part": encode(part)}
        self._append({"event": Record.trial_added, "trial": trial_id, "parameters": dict(parameters), **place})
        return self.study.trials[trial_id]

    def record(self, event: Record, trial: Trial, **fields: Any) -> Trial:
        """Returns the trial as it is after the record."""
        self._append({"event": event, "trial": trial.id, **fields})
        return self.study.trials[trial.id]

    @contextlib.contextmanager
    def unless_refused(self, *errors: type[Exception]) -> Iterator[None]:
        """What was recorded within is taken back where it raises one of `errors`; open the log anew then."""
        size = self._path.stat().st_size
        try:
            yield
        except errors:
            os.truncate(self._path, size)
            raise

    def close(self) -> None:
        self._lines.close()

    def _append(self, record: Mapping[str, Any]) -> None:
        whole = {"t": time.time(), **record}
        self._lines.append(whole)
        self._lines.sync()
        self.study.apply(whole)


@contextlib.contextmanager
def locked(folder: SweepFolder, wait_s: float = 0.0) -> Iterator[int]:
    """Hold the sweep's lock (its descriptor), which the kernel frees however this process ends.

    Raises ConfigError where another holds it for longer than `wait_s`.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    try:
        with holding.held(folder.lock, wait_s) as lock:
            yield lock
    except holding.HeldError as holder:
        raise ConfigError(
            f"sweep {folder.sweep_id} is already running ({holder}); watch it with: phalanx status {folder.quoted}"
        ) from None
