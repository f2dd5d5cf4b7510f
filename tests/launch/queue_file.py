"""squeue, played by a script."""

from pathlib import Path


def squeue_of(queue: Path) -> str:
    """Answers from lines `ID STATE SCRIPT` in a file, each as it was asked for; other lines are of the job before."""
    asked = 'for word; do case "$word" in --format=*) begin=${word#--format=}; esac; done'
    return f'{asked}\nsed "s/^[0-9]/${{begin%%\\%*}}&/" {queue}'
