"""What a virtual cluster could leave behind on the machine, read without asking the cluster's own code."""

import os
from pathlib import Path


def leftovers(name: str) -> list[str]:
    """Namespaces, cgroups, folders and living processes that carry the cluster's name."""
    found = [str(path) for path in Path("/run/netns").glob(f"phalanx-{name}-*")]
    found += [str(path) for path in Path("/sys/fs/cgroup").glob(f"*/slurm_{name}*")]
    found += [str(path) for path in Path("/var/tmp/phalanx-virtual").glob(name)]
    for folder in Path("/proc").glob("[0-9]*"):
        if int(folder.name) == os.getpid():
            continue
        try:
            environment, command = (folder / "environ").read_bytes(), (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if f"phalanx-virtual/{name}/".encode() in environment + command:
            found.append(f"process {folder.name}: {command.decode(errors='replace')}")
    return found
