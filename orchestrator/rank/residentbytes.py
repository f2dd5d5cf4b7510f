"""How much memory a process has had at most."""

import resource


def peak_resident_bytes() -> int:
    """This process's own high-water mark: the kernel counts anew in a forked child. A rank asks at each step, and
    reading it in /proc takes a hundred times as long."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
