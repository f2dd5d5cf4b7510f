"""python -m orchestrator.sweep.leash PARENT_PID COMMAND...: becomes COMMAND, which the kernel kills when PARENT_PID
ends. For trials on a Ray that ends with the sweep's driver: without it they could only hang."""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(parent: int, command: list[str]) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it has ended before the kernel knew of the leash
        os._exit(1)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
