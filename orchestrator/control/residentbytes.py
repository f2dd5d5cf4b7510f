"""What a process holds in memory."""

import resource
from pathlib import Path


def peak_resident_bytes() -> int:
    """The process's own high-water mark; getrusage would count the zygote it was forked from."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
