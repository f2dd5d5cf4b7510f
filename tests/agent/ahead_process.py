"""A driver that starts a zygote ahead, says its pid, and waits to be killed."""

import sys
from pathlib import Path

from orchestrator.agent.zygotehandle import ZygoteAhead

if __name__ == "__main__":
    zygote = ZygoteAhead(Path(sys.argv[1]), 1, "cpu", is_warm=False)
    print(zygote.pid, flush=True)
    sys.stdin.read()
