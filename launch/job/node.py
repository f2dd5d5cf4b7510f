"""One node of a job: starts Ray with what SLURM gave this node, ends exactly that, and leaves nothing.

`srun` runs it once per node as `python -m launch.job.node [INTERFACE]`. It hears lines on stdin and answers on
stdout, both through srun:
    start {"token", "job", "slurm_id"}
                             make a private folder; the head (SLURM_NODEID 0) starts its Ray
                             -> head {"address", "folder"}
    join {"address"}         the other nodes start theirs -> up
    end                      the job is over: end every process that descends from here
    end of input             the job's program has died: the same
It says `failed {"text"}` where Ray does not start and `died {"text"}` where it ends too early.

With --no-kill, a job whose first node dies stays RUNNING for SLURM until its time limit, with nothing in it. So who
is left of it looks, and puts it back into the queue.

SLURM sends SIGTERM to every process of a step as soon as a job is cancelled or preempted, long before the run has
saved. So the signal is blocked here, and all that is started inherits that.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import IO

import psutil

from launch.job.lines import LineReader, Message, line
from launch.job.raystart import PORTS_PER_BLOCK, allocated, port_blocks, ray_words
from launch.job.waking import Wakeup
from launch.slurm import commands
from launch.slurm.jobstate import JobState
from orchestrator.errors import PhalanxError
from orchestrator.fleet.surroundings import RAY_SETTINGS, locked_temp_dir, remove_stale_temp_dirs
from orchestrator.processes import named

BLOCKED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
START_TRIES = 3
MAIN_PROCESSES = ("raylet", "gcs_server")
"""Without one of these the node's Ray is gone."""
PR_SET_CHILD_SUBREAPER = 36
LAST_LINES = 5
LOOK_S = 15.0
"""How often what is left of a job without its first node asks SLURM."""


class Node:
    def __init__(self, interface: str | None, name: str, is_head: bool) -> None:
        self._interface = interface
        self._name = name
        self._is_head = is_head
        self._temp_dir = ""
        self._job = 0
        self._slurm_id = ""
        self._environment: dict[str, str] = {}
        self._joining: str | None = None
        self._address = ""
        self._starting: subprocess.Popen[bytes] | None = None
        self._tries = 0
        self._main: dict[int, str] = {}
        self._is_over = False
        self._has_lost_ray = False

    def run(self, orders: IO[bytes]) -> None:
        """Until the job is over; then nothing that was started here is left."""
        reader = LineReader(orders.fileno())
        with Wakeup(signal.SIGCHLD) as wakeup:
            try:
                while not (self._is_over or reader.is_closed or self._has_lost_ray):
                    wakeup.wait([reader], None)
                    self._reap()
                    for message in reader.read():
                        self._obey(message)
            finally:
                self._clear()
            while not (self._is_over or self._is_head) and requeue_if_headless(self._slurm_id):
                wakeup.wait([] if reader.is_closed else [reader], LOOK_S)
                self._is_over = any(message["op"] == "end" for message in reader.read())

    def _clear(self) -> None:
        end_descendants()
        if self._temp_dir:
            shutil.rmtree(self._temp_dir, ignore_errors=True)

    def _own_address(self) -> str:
        return own_address(self._interface, self._joining)

    def _share(self) -> tuple[int, int, int | None]:
        """CPUs, GPUs and bytes of memory that Ray may give away here."""
        return allocated(os.environ)

    def _say(self, op: str, **fields: object) -> None:
        # Who ran srun may be gone; then the end of input comes next.
        with contextlib.suppress(BrokenPipeError):
            os.write(1, line({"op": op, "node": self._name, **fields}))

    def _obey(self, message: Message) -> None:
        match message["op"]:
            case "start":
                self._slurm_id = message.get("slurm_id", "")
                self._prepare(message["token"], message["job"])
                if self._is_head:
                    self._start_ray()
            case "join" if not self._is_head:
                self._joining = message["address"]
                self._start_ray()
            case "end":
                self._is_over = True

    def _prepare(self, token: str, job: int) -> None:
        """The folder for Ray's sockets and logs and for the token, readable by us alone, unlocked by our death."""
        remove_stale_temp_dirs()
        self._temp_dir, self._lock = locked_temp_dir()
        self._job = job
        path = Path(self._temp_dir) / "token"
        path.touch(mode=0o600)
        path.write_text(token)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path), "TMPDIR": self._temp_dir}
        self._environment = kept | RAY_SETTINGS | own

    @property
    def _log(self) -> Path:
        return Path(self._temp_dir) / "start.log"

    def _start_ray(self) -> None:
        """Starts `ray start`, whose end `_reap` sees: its exit code says whether this node's Ray runs."""
        self._tries += 1
        block = free_block(self._job)
        self._address = self._own_address()
        cpus, gpus, memory_bytes = self._share()
        words = ray_words(
            python=sys.executable,
            temp_dir=self._temp_dir,
            node_ip=self._address,
            block=block,
            cpus=cpus,
            gpus=gpus,
            memory_bytes=memory_bytes,
            join=self._joining,
        )
        if self._joining is None:
            self._address = f"{self._address}:{block}"
        with self._log.open("wb") as log:
            self._starting = subprocess.Popen(
                words, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self._temp_dir
            )

    def _reap(self) -> None:
        """Whoever ended: `ray start`, a main process of Ray, or an orphan."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if self._starting is not None and pid == self._starting.pid:
                self._starting.returncode = os.waitstatus_to_exitcode(status)
                self._started(self._starting.returncode)
            elif pid in self._main:
                self._say("died", text=f"{self._main[pid]} ended with {os.waitstatus_to_exitcode(status)}")
                self._has_lost_ray = True

    def _started(self, exit_code: int) -> None:
        self._starting = None
        if exit_code == 0:
            descendants = psutil.Process().children(recursive=True)
            self._main = {process.pid: name for process, name in named(descendants, MAIN_PROCESSES)}
            self._say("head" if self._is_head else "up", address=self._address, folder=self._temp_dir)
        elif self._tries < START_TRIES:  # a port was taken between probe and use, or the machine is slow
            end_descendants()
            self._start_ray()
        else:
            said = self._log.read_text(errors="replace").splitlines()[-LAST_LINES:]
            self._say("failed", text=f"ray start exited with {exit_code}: " + " | ".join(filter(None, said)))


def requeue_if_headless(job: str) -> bool:
    """Put the job back into the queue if SLURM has taken its batch host out of it; True while it may still do so."""
    try:
        view = commands.job(job)
        if view is None or view.state is not JobState.RUNNING or view.nodes is None:
            return False
        if view.batch_host in commands.hostnames(view.nodes):
            return True
        commands.requeue(job)
    except PhalanxError:  # SLURM is busy, or another node was faster; in a container it can't be asked
        return commands.is_there()
    return False


def free_block(job: int) -> int:
    """The first port of the job's first block in which every port is free now. Raises OSError where none is."""
    for block in port_blocks(job):
        with contextlib.ExitStack() as opened:
            try:
                for port in range(block, block + PORTS_PER_BLOCK):
                    opened.enter_context(socket.socket()).bind(("", port))
            except OSError:
                continue
            return block
    raise OSError("no port between 20000 and 31999 is free")


def own_address(interface: str | None, head: str | None) -> str:
    """This node's IPv4 address: the interface's, else the one towards the head, else the host name's."""
    if interface is not None:
        entries = psutil.net_if_addrs().get(interface, [])
        return next((entry.address for entry in entries if entry.family == socket.AF_INET), "")
    if head is not None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((head.rpartition(":")[0], 9))
            return str(probe.getsockname()[0])
    named = socket.gethostbyname(socket.gethostname())
    if not named.startswith("127."):
        return named
    every = [entry for entries in psutil.net_if_addrs().values() for entry in entries]
    outward = [e.address for e in every if e.family == socket.AF_INET and not e.address.startswith("127.")]
    return (outward or [named])[0]


def end_descendants() -> None:
    """SIGKILL everything that descends from this process, orphans too, until nothing is left."""
    this = psutil.Process()
    while children := this.children(recursive=True):
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, 0)
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def become_subreaper() -> None:
    """What descends from here and loses its parent becomes our child: nothing gets away."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def main() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)
    become_subreaper()
    interface = sys.argv[1] if len(sys.argv) > 1 else None
    node = Node(
        interface, os.environ.get("SLURMD_NODENAME") or socket.gethostname(), os.environ["SLURM_NODEID"] == "0"
    )
    node.run(sys.stdin.buffer)


if __name__ == "__main__":
    main()
