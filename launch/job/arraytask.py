"""One task of a sweep's job array: its trial as a job, then a line in the study.

The batch script becomes this process (`exec python -m launch.job.arraytask SWEEP_FOLDER`).
"""

import json
import os
import sys
from pathlib import Path

from launch.job.batch import run_job, say
from launch.slurm.record import link_output
from orchestrator.errors import EXIT_FAILED, PhalanxError
from orchestrator.sweep.folder import SweepFolder
from orchestrator.sweep.studylog import locked

LOCK_TIMEOUT_S = 120.0
"""Other tasks, and whoever submits, hold the study's lock for a moment."""


def main() -> int:
    folder = SweepFolder(Path(sys.argv[1]))
    array = json.loads(folder.array.read_text())
    number = os.environ["SLURM_ARRAY_TASK_ID"]
    trial = array["tasks"][number]
    show_output(folder, trial, f"{os.environ['SLURM_ARRAY_JOB_ID']}_{number}")
    code = run_job(folder.trial(trial), folder.array_script)
    if code in (0, EXIT_FAILED):
        record_end(folder, array["words"], trial)
    return code


def show_output(folder: SweepFolder, trial: str, slurm_id: str) -> None:
    """To `logs --job`: whoever submitted the task may have been killed before it could, and a job before this one."""
    links = (folder.trial(trial).job_output(slurm_id), folder.log(trial))
    link_output(folder.task_output(slurm_id), links)


def record_end(folder: SweepFolder, words: list[str], trial: str) -> None:
    """The trial's own state is in its run folder; what can't be recorded now is by the next `phalanx sweep`."""
    from launch.sweep import recipe_of
    from launch.sweep_array import settle

    try:
        recipe, read = recipe_of(folder, words)
        with locked(folder, wait_s=LOCK_TIMEOUT_S):
            settle(folder, recipe, read, trial)
    except PhalanxError as error:
        say(f"the end of trial {trial} is not in the study yet: {error}")


if __name__ == "__main__":
    sys.exit(main())
