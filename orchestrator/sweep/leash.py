"""python -m orchestrator.sweep.leash PARENT_PID COMMAND...: becomes COMMAND, which the kernel kills when PARENT_PID
ends. For trials, and for a SLURM job's driver, on a Ray that ends with PARENT: without it they could only hang."""

import os
import sys

from orchestrator.leash import die_with_parent


def main(parent: int, command: list[str]) -> None:
    die_with_parent(parent)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
