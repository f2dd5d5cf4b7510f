"""python -m orchestrator.sweep.leash PARENT_PID COMMAND...: becomes COMMAND, which the kernel kills when PARENT_PID
ends. For trials on a Ray that ends with the sweep's driver: without it they could only hang."""

import os
import sys

from orchestrator.leash import die_with_parent


def main(parent: int, command: list[str]) -> None:
    die_with_parent(parent)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
