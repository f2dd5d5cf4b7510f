"""Files of a virtual cluster, and the start of its nodes."""

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from launch.virtual import network
from launch.virtual.machine import CODE, login_environment
from launch.virtual.node_init import MUNGE_KEY_FILE, READY, SPEC_FILE
from launch.virtual.slurm_text import etc_files
from launch.virtual.spec import VirtualSpec
from orchestrator.codec import encode
from orchestrator.errors import ConfigError, PhalanxError

ROOT = Path("/var/tmp/phalanx-virtual")
"""Not below /tmp, which each node has to itself. Short: sockets lie below it."""
_MUNGE_KEY_BYTES = 1024
_LAST_LINES = 5


class VirtualClusterError(PhalanxError):
    """A node did not come up or did not end, or a command in it failed; carries what was said."""


def write_files(spec: VirtualSpec) -> Path:
    """All that the nodes read; returns the cluster's folder."""
    ROOT.mkdir(mode=0o755, exist_ok=True)
    if ROOT.is_symlink() or ROOT.stat().st_uid != os.geteuid():
        raise ConfigError(f"{ROOT} belongs to somebody else; remove it first")
    folder = ROOT / spec.name
    shutil.rmtree(folder, ignore_errors=True)  # of a cluster whose namespaces went with a reboot
    for inside in ("shared/home", f"{spec.head}/state", *(f"{node}/log" for node in spec.all_nodes)):
        (folder / inside).mkdir(parents=True)
    (folder / SPEC_FILE).write_text(json.dumps(encode(spec), indent=2))  # first: whose it is must never be unknown
    (folder / "shared").chmod(0o1777)
    for name, text in etc_files(spec, folder, Path("/etc/passwd").read_text()).items():
        path = folder / "etc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    key = folder / MUNGE_KEY_FILE
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(_MUNGE_KEY_BYTES))
    return folder


def boot(spec: VirtualSpec, nodes: Iterable[str]) -> None:
    """Start the nodes' first processes, all at once, and wait for each. Raises VirtualClusterError with the logs."""
    readers = {node: _start(spec, node) for node in nodes}
    silent = []
    for node, reader in readers.items():
        with os.fdopen(reader, "rb") as pipe:
            silent += [] if pipe.read(len(READY)) == READY else [node]
    if silent:
        raise VirtualClusterError(f"{', '.join(silent)} did not boot{last_lines(ROOT / spec.name)}")


def last_lines(folder: Path) -> str:
    """The end of every log in the cluster's folder."""
    found = []
    for path in sorted(folder.glob("*/log/*.log")):
        lines = path.read_text(errors="replace").splitlines()[-_LAST_LINES:]
        found += [f"\n{path.relative_to(folder)}: {line}" for line in lines]
    return "".join(found)


def _start(spec: VirtualSpec, node: str) -> int:
    """The descriptor on which the node says that it is ready; its end without a word is a failure."""
    folder = ROOT / spec.name
    reader, writer = os.pipe()
    netns = f"{network.NETNS_FOLDER}/{network.namespace(spec.name, node)}"
    fresh = ["unshare", "--pid", "--fork", "--mount", "--uts", "--ipc"]
    init = [sys.executable, "-P", "-m", "launch.virtual.node_init", str(folder), node, str(writer)]
    try:
        with (folder / node / "log/init.log").open("ab") as log:
            subprocess.run(
                ["setsid", "--fork", "nsenter", f"--net={netns}", *fresh, *init],
                env=login_environment(folder / "shared/home") | {"PYTHONPATH": str(CODE)},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[writer],
                check=True,
            )
    finally:
        os.close(writer)
    return reader
