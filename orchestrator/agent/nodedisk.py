"""The disk tier on one node: checkpoints of the ranks that run here, on the node's own disk, beside checkpoint.url.

The folder is laid out like any store (see checkpoint/layout.py), but a step has only this node's payloads; the marker
is the whole one. The driver has it written here once every node's payloads are durable, and finds the steps again by
asking every agent what its disk has (checkpoint/spread.py). Claims are put here as in the store at checkpoint.url.
"""

import contextlib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.checkpoint.commit import Standing, set_aside, step_standings
from orchestrator.checkpoint.fencing import Claim, newest_attempt, refuse_if_fenced
from orchestrator.checkpoint.layout import MARKER, REJECTED, step_folder
from orchestrator.checkpoint.marker import Marker
from orchestrator.checkpoint.reader import read_marker
from orchestrator.checkpoint.store import Store
from orchestrator.checkpoint.verify import expected_headers, file_problems, size_problem
from orchestrator.errors import CheckpointError, StoreError
from orchestrator.rank.rangereads import HOLDERS


class NodeDisk:
    """Every method but the constructor may be called by the driver, through the agent; all raise StoreError."""

    def __init__(self, folder: str, is_private: bool) -> None:
        self._store = Store(folder, is_private)
        self.folder = Path(self._store.url)

    def held(self) -> dict[str, Any]:
        """The newest attempt that has claimed this disk, and what it has of each committed step."""
        try:
            return {"newest_attempt": newest_attempt(self._store), "steps": self._held_steps()}
        except StoreError:  # a disk that fails has nothing to offer; the next commit on it says why
            return {"newest_attempt": 0, "steps": []}

    def _held_steps(self) -> list[dict[str, Any]]:
        steps = []
        for step, marker, text in self._committed():
            files = [i for i, file in enumerate(marker.files) if size_problem(self._store, step, file) is None]
            marker_hash = hashlib.sha256(text).hexdigest()
            steps.append(
                {
                    "step": step,
                    "attempt": marker.attempt,
                    "marker": marker_hash,
                    "num_files": len(marker.files),
                    "files": files,
                }
            )
        return steps

    def claim(self, attempt: int, content: bytes) -> None:
        """Older attempts commit nothing here from now on. Raises FencedError where a newer one has claimed."""
        with contextlib.suppress(StoreError):  # a disk that fails takes no commit either
            refuse_if_fenced(self._store, attempt, Claim(attempt, content))

    def marker(self, step: int) -> str:
        return self._store.read(f"{step_folder(step)}/{MARKER}").decode()

    def problems(self, marker_text: str, files: Sequence[int]) -> list[str]:
        """What is wrong with these of the marker's files: every byte is read. Empty: nothing."""
        marker = Marker.from_json(marker_text, "the marker")
        headers = expected_headers(marker) if marker.encryption is None else {}
        chosen = [marker.files[i] for i in files]
        return [
            problem
            for file in chosen
            for problem in file_problems(self._store, marker.step, file, headers.get(file.file))
        ]

    def commit(self, step: int, attempt: int, marker_text: str, keep_last: int) -> list[int]:
        """Write the marker, then delete what is older than the newest `keep_last`; the steps deleted.

        Raises FencedError where a newer attempt has claimed this disk.
        """
        refuse_if_fenced(self._store, attempt)
        self._store.write_atomic(f"{step_folder(step)}/{MARKER}", [marker_text.encode()])
        with contextlib.suppress(StoreError):  # the next commit tries again; another agent on this host may have
            return self._prune(keep_last)
        return []

    def prepare_restore(self, step: int, marker_text: str, holders: dict[str, tuple[str, int]]) -> None:
        """Before ranks read the step: its marker, and where the files are that this node lacks."""
        folder = step_folder(step)
        self._store.write_atomic(f"{folder}/{MARKER}", [marker_text.encode()])
        self._store.write_atomic(f"{folder}/{HOLDERS}", [json.dumps(holders).encode()])

    def reject(self, step: int, reason: str) -> None:
        """Set it aside: never chosen again."""
        if self._store.exists(f"{step_folder(step)}/{MARKER}"):
            set_aside(self._store, step, reason)

    def clear(self) -> None:
        """The run has finished: everything goes."""
        with contextlib.suppress(StoreError):
            self._store.remove("")

    def _committed(self) -> list[tuple[int, Marker, bytes]]:
        """Steps with a readable marker that were not set aside, oldest first; a damaged marker is nobody's step."""
        found = []
        for item in step_standings(self._store):
            if item.standing is Standing.committed:
                with contextlib.suppress(CheckpointError):
                    text = self._store.read(f"{step_folder(item.step)}/{MARKER}")
                    found.append((item.step, read_marker(self._store, item.step), text))
        return found

    def _prune(self, keep_last: int) -> list[int]:
        """A step of an older attempt is older, whatever its number: that attempt had gone further, and was lost."""
        committed = sorted((marker.attempt, step) for step, marker, _ in self._committed())
        newest_step = committed[-1][1]
        doomed = [step for _, step in committed[:-keep_last]]
        torn = [
            item.step
            for item in step_standings(self._store)
            if item.standing is Standing.torn and item.step < newest_step
        ]
        for step in doomed + torn:
            if not self._store.exists(f"{step_folder(step)}/{REJECTED}"):
                self._store.remove(f"{step_folder(step)}/{MARKER}")
                self._store.remove(step_folder(step))
        return sorted(doomed)
