"""Which jobs a run was submitted as: jobs.jsonl in its folder, one object a line."""

import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from orchestrator.codec import decode, encode
from orchestrator.observe.jsonlines import JsonLines, read_records
from orchestrator.runfolder import RunFolder


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    job_id: int
    time_s: float
    """Unix seconds."""
    follows: bool = False
    """Whether the job before it submitted it."""
    task: int | None = None
    """Of a job array."""

    @property
    def slurm_id(self) -> str:
        """As SLURM's commands take it: 12, or 12_3 for a task of an array; 12 would mean all of the array."""
        return str(self.job_id) if self.task is None else f"{self.job_id}_{self.task}"


def id_fields(slurm_id: str) -> dict[str, int | None]:
    """As `Submission` has them, for `status --json`: 12_3 is task 3 of the array 12."""
    job, _, task = slurm_id.partition("_")
    return {"job_id": int(job), "task": int(task) if task else None}


def append_submission(folder: RunFolder, submission: Submission) -> None:
    lines = JsonLines(folder.jobs)
    lines.append(encode(submission))
    lines.sync()
    lines.close()


def link_output(output: Path, links: Iterable[Path]) -> None:
    """`links` lead to what a job prints, whoever else makes them at this moment."""
    for link in links:
        link.parent.mkdir(parents=True, exist_ok=True)
        new = link.with_name(f".{link.name}.{secrets.token_hex(4)}")
        new.symlink_to(os.path.relpath(output, link.parent))
        new.replace(link)


def submissions(folder: RunFolder) -> list[Submission]:
    """The oldest first; none for a run that was never submitted.

    One that `submit` and the job itself have written down at the same moment is there once.
    """
    found: dict[str, Submission] = {}
    for record in read_records(folder.jobs):
        submission = decode(Submission, record)
        found.setdefault(submission.slurm_id, submission)
    return list(found.values())


def newest_submission(folder: RunFolder) -> Submission | None:
    """None for a run that was never submitted."""
    found = submissions(folder)
    return found[-1] if found else None
