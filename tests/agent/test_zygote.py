"""The zygote's own protocol, spoken directly; a cold one, which has imported nothing and starts at once."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agent.processes import Watched

from orchestrator.agent.channel import Channel, receive_with_descriptors, send_with_descriptors

SAFETY_S = 120.0


class Spoken:
    def __init__(self) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(SAFETY_S)
        command = [sys.executable, "-m", "orchestrator.agent.zygote", str(theirs.fileno()), "cold"]
        self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()

    def hear(self) -> dict[str, Any]:
        return receive_with_descriptors(self.socket)[0]

    def fork(self, entry: str) -> tuple[int, Channel, int]:
        """(pid, our end of its channel, what it prints)."""
        channel, theirs = Channel.pair()
        readable, writable = os.pipe()
        send_with_descriptors(self.socket, {"op": "fork", "entry": entry, "label": entry}, [theirs, writable])
        os.close(theirs)
        os.close(writable)
        answer = self.hear()
        assert (answer["op"], answer["label"]) == ("forked", entry)
        return answer["pid"], channel, readable

    def kill(self, pid: int) -> None:
        send_with_descriptors(self.socket, {"op": "kill", "pid": pid}, [])

    def close(self) -> None:
        self.socket.close()
        self.process.wait(SAFETY_S)


@pytest.fixture
def zygote() -> Iterator[Spoken]:
    spoken = Spoken()
    try:
        assert spoken.hear()["op"] == "ready"
        yield spoken
    finally:
        spoken.close()


@pytest.mark.real
def test_a_warm_one_has_imported_all_that_an_engine_needs(data, tmp_path):
    """A rank that imports does so at each recovery."""
    words = ("parallel=zero3", "parallel.offload=params", "cluster.num_workers=1")
    done = subprocess.run(
        [sys.executable, "-m", "agent.prewarmed_process", data.path, tmp_path, *words],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == []


def read_all(descriptor: int) -> str:
    with os.fdopen(descriptor) as output:
        return output.read()


def test_a_child_that_raises_prints_why_and_exits_1(zygote):
    pid, channel, output = zygote.fork("nonsense")
    end = zygote.hear()
    assert end == {
        "op": "exited", "label": "nonsense", "pid": pid, "exit_code": 1, "signal": None, "is_stopped": False,
    }  # fmt: skip
    assert "ValueError: unknown entry nonsense" in read_all(output)
    channel.close()


def test_a_killed_child_was_stopped_and_a_dead_one_was_not(zygote):
    _, channel, output = zygote.fork("nonsense")
    dead = zygote.hear()
    pid, other, printed = zygote.fork("store")
    zygote.kill(dead["pid"])  # reaped: the number may be anybody's by now
    zygote.kill(pid)
    end = zygote.hear()
    assert (end["pid"], end["signal"], end["exit_code"], end["is_stopped"]) == (pid, 9, None, True)
    for descriptor in (output, printed):
        os.close(descriptor)
    for end_of_pair in (channel, other):
        end_of_pair.close()


def test_a_child_that_died_before_it_was_to_be_stopped_was_not_stopped(zygote):
    """Both are waiting for the zygote when it looks: what came first is what is told."""
    pid, channel, output = zygote.fork("store")
    os.kill(zygote.process.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, zygote.process.pid, os.WSTOPPED | os.WNOWAIT)
    with Watched([pid]) as watched:
        os.kill(pid, signal.SIGKILL)
        assert watched.living(SAFETY_S) == []
    zygote.kill(pid)
    os.kill(zygote.process.pid, signal.SIGCONT)
    end = zygote.hear()
    assert (end["pid"], end["signal"], end["is_stopped"]) == (pid, signal.SIGKILL, False)
    os.close(output)
    channel.close()


def test_the_next_fork_is_not_taken_for_a_stopped_one(zygote):
    pid, channel, output = zygote.fork("store")
    zygote.kill(pid)
    assert zygote.hear()["is_stopped"]
    zygote.fork("nonsense")
    assert not zygote.hear()["is_stopped"]
    os.close(output)
    channel.close()


def test_children_end_with_the_agent(zygote):
    children = [zygote.fork("store") for _ in range(2)]
    with Watched([zygote.process.pid, *(pid for pid, _, _ in children)]) as watched:
        zygote.socket.close()
        assert watched.living(SAFETY_S) == []
    assert zygote.process.wait(SAFETY_S) == 0


def test_children_end_with_a_killed_zygote(zygote):
    children = [zygote.fork("store") for _ in range(2)]
    with Watched(pid for pid, _, _ in children) as watched:
        zygote.process.kill()
        assert watched.living(SAFETY_S) == []


@pytest.fixture
def process_limit() -> Iterator[Path]:
    """A pids cgroup (version 1), without a limit yet."""
    group = Path("/sys/fs/cgroup/pids") / f"phalanx-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no pids cgroup of version 1 can be made here: {error}")
    yield group
    for pid in (group / "cgroup.procs").read_text().split():
        (group.parent / "cgroup.procs").write_text(pid)
    group.rmdir()


def test_what_can_not_be_forked_ends_nothing_else(zygote: Spoken, process_limit: Path) -> None:
    pid, channel, output = zygote.fork("store")
    (process_limit / "cgroup.procs").write_text(str(zygote.process.pid))
    (process_limit / "pids.max").write_text("1")
    ours, theirs = Channel.pair()
    readable, writable = os.pipe()
    send_with_descriptors(zygote.socket, {"op": "fork", "entry": "store", "label": "another"}, [theirs, writable])
    os.close(theirs)
    os.close(writable)
    answer = zygote.hear()
    assert (answer["op"], answer["label"], answer["exit_code"], answer["signal"]) == ("exited", "another", None, None)
    assert "could not be forked ([Errno 11]" in answer["reason"]
    assert read_all(readable) == ""  # nobody holds its other end
    ours.close()

    (process_limit / "pids.max").write_text("max")
    later, later_channel, later_output = zygote.fork("store")  # it goes on, and so does what it had forked
    for channel_of, output_of, pid_of in ((channel, output, pid), (later_channel, later_output, later)):
        channel_of.close()
        os.close(output_of)
        assert zygote.hear()["pid"] == pid_of
