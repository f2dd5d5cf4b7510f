"""A zygote from outside: started by its agent, or ahead of the agent by a driver that starts Ray on the same machine.

The imports of a zygote take as long as Ray's own start, so the driver begins both at once. The zygote ahead listens
at a socket in the driver's private folder; the agent connects, and from then on the zygote is the agent's as if the
agent had started it: it ends with the agent, and its ranks have the agent's environment.
"""

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

from orchestrator.agent.channel import Channel, Message, receive_with_descriptors, send_with_descriptors
from orchestrator.fleet.surroundings import has_gpu

MODULE = "orchestrator.agent.zygote"
LAST_BYTES = 4096
"""Of what it printed, where it is told what that was."""
MALLOC_TUNABLES = (
    "glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=4294967296:glibc.malloc.top_pad=67108864"
    ":glibc.malloc.hugetlb=1"
)
"""A step frees what the next one needs again. By default glibc gives blocks of 32 MiB and more back to the kernel,
which then clears every page anew: tens of thousands of page faults a step with 10 M parameters, a fifth of its time.

And memory is of huge pages where the kernel gives them on request (`madvise`): it takes back the memory of a killed
process before anybody hears of the death, page by page. With 10 M parameters that was half of the time until the
driver heard of it and until the others were gone, 0.11 of 0.42 s from the kill to the next step.
"""


class ZygoteHandle:
    """The agent's side. Not thread-safe but for `send`."""

    def __init__(self, sock: socket.socket, process: "subprocess.Popen[bytes] | None", output: int) -> None:
        """`process`: None where the zygote is another process's child. `output`: descriptor of the file that it
        prints to, ours from now on."""
        self._socket = sock
        self._process = process
        self._output = output
        self._pidfd: int | None = None
        """Of the zygote, once it is ready."""

    @classmethod
    def start(cls, threads: int, *, is_warm: bool) -> "ZygoteHandle":
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        output = os.memfd_create("phalanx-zygote-output")
        with theirs:
            process = subprocess.Popen(
                _command(theirs, is_warm=is_warm),
                env=environment(threads, "cuda" if has_gpu() else "cpu"),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        return cls(ours, process, output)

    @classmethod
    def take_over(cls, path: str, threads: int) -> "ZygoteHandle | None":
        """The zygote that listens at `path`; None where there is none, or it has died by now, or is taken."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.connect(path)
            handle = cls(sock, None, os.open(_log_of(path), os.O_RDONLY))
            handle.send({"op": "environment", "environment": environment(threads, "cuda" if has_gpu() else "cpu")})
        except OSError:
            sock.close()
            return None
        return handle

    @property
    def is_gone(self) -> bool:
        return self._is_polled(select.POLLHUP)

    @property
    def has_spoken(self) -> bool:
        """Whether an answer waits for `hear`."""
        return self._is_polled(select.POLLIN)

    def _is_polled(self, event: int) -> bool:
        poll = select.poll()
        poll.register(self._socket, event)
        return any(found & event for _, found in poll.poll(0))

    def send(self, message: Message, descriptors: "list[int] | None" = None) -> None:
        """Raises OSError where the zygote is gone."""
        send_with_descriptors(self._socket, message, descriptors or [])

    def hear(self) -> Message:
        """The next answer. Raises EOFError or OSError when the zygote is gone."""
        answer = receive_with_descriptors(self._socket)[0]
        if answer["op"] == "ready":
            self._pidfd = os.pidfd_open(answer["pid"])
        return answer

    def wait(self) -> str:
        """Call once, when `hear` has raised: reap it. What it printed last."""
        if self._process is not None:
            self._process.wait()
        start = max(0, os.fstat(self._output).st_size - LAST_BYTES)
        printed = os.pread(self._output, LAST_BYTES, start).decode(errors="replace").strip()
        os.close(self._output)
        pidfd, self._pidfd = self._pidfd, None
        if pidfd is not None:
            os.close(pidfd)
        return printed

    def kill(self) -> None:
        """And with it all that was forked; nothing where it is not ready yet."""
        if self._pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def end(self) -> None:
        """Ask it to end, and its children with it; `hear` raises once they have."""
        with contextlib.suppress(OSError):  # it has died before
            self._socket.shutdown(socket.SHUT_WR)


class ZygoteAhead:
    """The driver's side: a zygote for an agent that does not exist yet. It ends when this process does, until an
    agent has taken it over; then when the agent does. `close` ends it in any case."""

    def __init__(self, folder: Path, threads: int, accelerator: str, *, is_warm: bool) -> None:
        """`folder`: private to this user. Its messages go to a file there."""
        self.path = str(folder / "zygote")
        held, self._held = os.pipe()
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
            Path(_log_of(self.path)).open("wb") as log,
        ):
            listener.bind(self.path)
            Path(self.path).chmod(0o600)
            listener.listen(1)
            self._process = subprocess.Popen(
                [*_command(listener, is_warm=is_warm), str(held)],
                env=environment(threads, accelerator),
                pass_fds=[listener.fileno(), held],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C is the driver's to act on
            )
        os.close(held)

    @property
    def pid(self) -> int:
        return self._process.pid

    def close(self) -> None:
        """Kill it, and with it every rank that it has forked."""
        self._process.kill()
        self._process.wait()
        os.close(self._held)


def environment(threads: int, accelerator: str) -> dict[str, str]:
    """This process's, and what libc, torch and deepspeed read when they are loaded."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
        "DEEPSPEED_LOG_LEVEL": "error",
        "DS_ACCELERATOR": os.environ.get("DS_ACCELERATOR", accelerator),
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", MALLOC_TUNABLES),
    }


def problem_of_canary(channel: Channel) -> str | None:
    """What a forked canary says of its GPU; None if all is well."""
    try:
        problem: str | None = channel.receive()["problem"]
    except (EOFError, OSError):
        problem = "the forked process died"
    return problem


def _log_of(path: str) -> str:
    """Where the zygote that listens at `path` prints to."""
    return f"{path}.log"


def _command(sock: socket.socket, *, is_warm: bool) -> list[str]:
    return [sys.executable, "-m", MODULE, str(sock.fileno()), "warm" if is_warm else "cold"]
