"""`phalanx train`, or `sweep`, as a SLURM step of its own: `python -m launch.job.driver VERB [KEY=VALUE ...]`.

SLURM sends SIGTERM to every process of a step as soon as a job is cancelled or preempted, and the job passes its
notice on besides: the second of two notices ends a driver at once, before anything is saved. So SIGTERM is blocked
here, and SIGUSR1 from the job is the only one.
"""

import signal
import sys

from launch.cli import main
from orchestrator.leaving import leave_with

if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    leave_with(lambda: main(sys.argv[1:]))
