"""The first process of a virtual node: makes the machine look like one of its own, then starts its daemons.

Runs in fresh network, PID, mount, UTS and IPC namespaces, as `python -m launch.virtual.node_init FOLDER NODE FD`.
Writes `READY` to the descriptor FD when the daemons are up; what goes wrong is on stderr.
"""

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

from launch.virtual.spec import VirtualSpec
from orchestrator.codec import decode

READY = b"ready"
SPEC_FILE = "spec.json"
MUNGE_KEY_FILE = "munge.key"
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "net/tun")
_NULL_DEVICE = os.makedev(1, 3)


def main() -> None:
    try:
        _become(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
    except subprocess.CalledProcessError as error:  # it has said why on stderr, which is the node's log
        sys.exit(f"{' '.join(error.cmd)} exited with {error.returncode}")
    _reap_forever()


def _become(cluster_folder: Path, node: str, ready_fd: int) -> None:
    spec = decode(VirtualSpec, json.loads((cluster_folder / SPEC_FILE).read_text()))
    own = cluster_folder / node
    _run("mount", "--make-rprivate", "/")
    _run("mount", "-t", "proc", "proc", "/proc")
    _run("hostname", node)
    _run("mount", "-t", "overlay", "-o", f"ro,lowerdir={cluster_folder / 'etc'}:/etc", "overlay", "/etc")
    _mount_dev(own / "dev", spec)
    _mount_sys(own / "cgroup")
    _mount_private(own, spec.keep)
    _start_daemons(spec, node, cluster_folder / MUNGE_KEY_FILE)
    os.write(ready_fd, READY)
    os.close(ready_fd)


def _mount_dev(folder: Path, spec: VirtualSpec) -> None:
    """A /dev with the harmless devices of the machine, a /dev/shm of its own and the made-up GPUs."""
    folder.mkdir(exist_ok=True)
    _run("mount", "-t", "tmpfs", "-o", "mode=755,size=1m", "tmpfs", str(folder))
    for name in ("shm", "pts", "mqueue", "net"):
        (folder / name).mkdir()
    for name in _DEVICES:
        if Path("/dev", name).exists():
            (folder / name).touch()
            _run("mount", "--bind", f"/dev/{name}", str(folder / name))
    for name, target in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        (folder / name).symlink_to(target)
    (folder / "ptmx").symlink_to("pts/ptmx")
    for number in range(spec.gpus):
        os.mknod(folder / f"nvidia{number}", 0o666 | stat.S_IFCHR, _NULL_DEVICE)
    _run("mount", "-t", "devpts", "-o", "newinstance,ptmxmode=0666,mode=620", "devpts", str(folder / "pts"))
    _run("mount", "-t", "tmpfs", "-o", f"mode=1777,size={spec.shm_mib}m", "tmpfs", str(folder / "shm"))
    _run("mount", "--rbind", str(folder), "/dev")


def _mount_sys(folder: Path) -> None:
    """A /sys of this network namespace; the machine's cgroups stay where SLURM looks for them."""
    folder.mkdir(exist_ok=True)
    _run("mount", "--rbind", "/sys/fs/cgroup", str(folder))
    _run("mount", "-t", "sysfs", "sysfs", "/sys")
    _run("mount", "--rbind", str(folder), "/sys/fs/cgroup")
    _run("umount", "--lazy", str(folder))


def _mount_private(own: Path, keep: tuple[str, ...]) -> None:
    """/run and /var/log vanish with the node's power, /tmp is on its disk. Of /tmp, `keep` is the machine's."""
    for folder in ("/run", "/var/log"):
        _run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", folder)
    for name in ("log", "spool", "tmp"):
        (own / name).mkdir(exist_ok=True)
    (own / "tmp").chmod(0o1777)
    for kept in keep:
        inside = own / "tmp" / Path(kept).relative_to("/tmp")
        inside.mkdir(parents=True, exist_ok=True)
        _run("mount", "--rbind", kept, str(inside))
    _run("mount", "--rbind", str(own / "tmp"), "/tmp")


def _start_daemons(spec: VirtualSpec, node: str, key: Path) -> None:
    os.chdir("/")
    os.umask(0o022)
    run = Path("/run/munge")
    run.mkdir(mode=0o755)
    _run(
        *("munged", "--force", f"--key-file={key}", f"--socket={run}/munge.socket.2", f"--pid-file={run}/munged.pid"),
        *(f"--log-file={run}/munged.log", f"--seed-file={run}/munged.seed"),
    )
    if node == spec.head:
        _run("slurmctld")
    else:
        _run("slurmd", "-N", node)


def _reap_forever() -> None:
    """Orphans of the node become children of its first process."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    while True:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass
        signal.sigwait({signal.SIGCHLD})


def _run(*words: str) -> None:
    subprocess.run(words, check=True, stdin=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
