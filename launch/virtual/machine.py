"""Whether this machine can hold a virtual cluster, and what of the machine goes into one."""

import dataclasses
import os
import shutil
import sys
from pathlib import Path

import launch
from launch.virtual import cgroups, network
from launch.virtual.spec import VirtualSpec

COMMANDS = ("ip", "nsenter", "unshare", "setsid", "mount", "munged", "slurmctld", "slurmd", "sbatch")
CODE = Path(launch.__file__).parents[1]
_NEEDS = "a virtual cluster needs Linux, root, and slurm-wlm, munge and iproute2"


def missing_requirement() -> str | None:
    """The sentence for a machine where no virtual cluster can be; None where it can."""
    absent = [command for command in COMMANDS if shutil.which(command) is None]
    if absent:
        return f"{_NEEDS}; not on the PATH: {', '.join(absent)}; run: apt-get install slurm-wlm munge iproute2"
    if os.geteuid() != 0:
        return f"{_NEEDS}; this is user {os.geteuid()}: run it with sudo"
    refused = network.refusal()
    return (
        f"{_NEEDS}; network namespaces are refused here ({refused}): use a machine of your own" if refused else None
    )


def fitted(spec: VirtualSpec) -> VirtualSpec:
    """`spec` with what the machine decides: whether SLURM has cgroups, and our own code where it is below /tmp."""
    code = {str(path) for path in (CODE, Path(sys.prefix).resolve()) if path.is_relative_to("/tmp")}
    return dataclasses.replace(
        spec, has_cgroups=spec.has_cgroups and cgroups.are_usable(), keep=(*spec.keep, *sorted(code))
    )


def login_environment(home: Path) -> dict[str, str]:
    """What a login on a node would have. Of the caller's own environment only PYTHONPATH and TERM get in."""
    folders = [str(Path(sys.executable).parent)]
    folders += [f"{root}/{kind}" for root in ("/usr/local", "/usr", "") for kind in ("sbin", "bin")]
    # What DeepSpeed has built fits: a node has this machine's processor.
    built = os.environ.get("TORCH_EXTENSIONS_DIR", str(Path("~/.cache/torch_extensions").expanduser()))
    passed_on = {name: os.environ[name] for name in ("PYTHONPATH", "TERM") if name in os.environ}
    return {
        "PATH": ":".join(folders),
        "HOME": str(home),
        "USER": "root",
        "LOGNAME": "root",
        "SHELL": "/bin/bash",
        "LANG": "C.UTF-8",
        "TORCH_EXTENSIONS_DIR": built,
    } | passed_on
