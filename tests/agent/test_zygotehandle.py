"""A zygote that is there before its agent: taken over by one, with its environment, and left behind by nobody."""

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from agent.processes import Watched, descendants, zygotes_below

from orchestrator.agent.agent import NodeAgent
from orchestrator.agent.channel import Channel
from orchestrator.agent.zygotehandle import ZygoteAhead, ZygoteHandle, environment
from orchestrator.errors import WorkerFailedError

SAFETY_S = 120.0


@pytest.fixture
def ahead(tmp_path) -> Iterator[ZygoteAhead]:
    with closing(ZygoteAhead(tmp_path, 1, "cpu", is_warm=False)) as zygote:
        yield zygote


def take_over(ahead: ZygoteAhead) -> ZygoteHandle:
    handle = ZygoteHandle.take_over(ahead.path, 1)
    assert handle is not None
    assert handle.hear()["op"] == "ready"
    return handle


def fork(handle: ZygoteHandle, entry: str) -> tuple[int, str]:
    """(pid, what it printed to its end, or nothing for a store)."""
    channel, theirs = Channel.pair()
    readable, writable = os.pipe()
    handle.send({"op": "fork", "entry": entry, "label": entry}, [theirs, writable])
    os.close(theirs)
    os.close(writable)
    forked = handle.hear()
    assert forked["op"] == "forked"
    with closing(channel), os.fdopen(readable) as output:
        return forked["pid"], "" if entry == "store" else output.read()


def test_only_this_user_may_connect(ahead):
    mode = Path(ahead.path).stat().st_mode
    assert stat.S_IMODE(mode) == 0o600
    assert stat.S_ISSOCK(mode)


def test_what_it_forks_has_the_agents_environment(ahead, monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "abacus")  # deepspeed refuses it by name, when the child imports it
    handle = take_over(ahead)
    assert "abacus" in fork(handle, "canary")[1]


def test_it_and_its_children_end_with_the_agent(ahead):
    handle = take_over(ahead)
    pid, _ = fork(handle, "store")
    with Watched([ahead.pid, pid]) as watched:
        handle.end()
        assert watched.living(SAFETY_S) == []
    with pytest.raises(EOFError):
        while True:
            handle.hear()
    assert handle.is_gone


def test_only_one_agent_is_let_in(ahead):
    take_over(ahead)
    assert ZygoteHandle.take_over(ahead.path, 1) is None


def test_it_ends_with_a_killed_driver_that_had_no_agent(tmp_path):
    command = [sys.executable, Path(__file__).with_name("ahead_process.py"), tmp_path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as driver:
        try:
            with Watched([int(driver.stdout.readline())]) as watched:
                driver.kill()
                assert watched.living(SAFETY_S) == []
        finally:
            driver.kill()


def test_an_agent_starts_its_own_where_the_one_ahead_has_died(ahead):
    before = descendants() - {ahead.pid}
    with Watched([ahead.pid]) as watched:
        os.kill(ahead.pid, 9)
        assert watched.living(SAFETY_S) == []
    with closing(NodeAgent(0, "127.0.0.1", is_warm=False, threads=1, zygote_ahead=ahead.path)) as agent:
        assert len(descendants() - before) == 1
        assert agent.start_store() > 0


def test_one_that_can_not_import_is_told_of_at_once_with_its_last_words(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise ImportError('half installed')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with (
        closing(NodeAgent(0, "127.0.0.1", is_warm=True, threads=1)) as agent,
        pytest.raises(WorkerFailedError, match=r"has died as it started: ImportError: half installed$"),
    ):
        agent.warm_up()


def test_an_agent_needs_no_zygote_of_its_own_where_one_is_ahead(ahead):
    before = descendants()
    with closing(NodeAgent(0, "127.0.0.1", is_warm=False, threads=1, zygote_ahead=ahead.path)) as agent:
        assert agent.start_store() > 0
        assert descendants() - before == descendants(ahead.pid)


def is_listening(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def kill_store(zygote: int) -> None:
    """As soon as there is one."""
    while not (children := psutil.Process(zygote).children()):
        pass
    with Watched([children[0].pid]) as watched:
        os.kill(children[0].pid, signal.SIGKILL)
        assert watched.living(SAFETY_S) == []


def test_a_store_that_has_died_is_started_again():
    others = zygotes_below()
    with closing(NodeAgent(0, "127.0.0.1", is_warm=False, threads=1)) as agent:
        (zygote,) = zygotes_below() - others
        with ThreadPoolExecutor(1) as caller:
            port = caller.submit(agent.start_store)
            kill_store(zygote)  # while it still imports
            port.result()
        assert is_listening(agent.start_store())
        kill_store(zygote)
        assert is_listening(agent.start_store())


PAGE_FAULTS_OF_STEPS = """
import resource
import numpy as np
def steps(count):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        held = [np.ones(size, np.float32) for size in (1 << 22, 12 << 20)]
        del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
steps(2)
print(steps(10))
"""


def test_ranks_use_freed_memory_again():
    """64 MiB allocated, written and freed ten times over, without new pages from the kernel."""
    command = [sys.executable, "-c", PAGE_FAULTS_OF_STEPS]
    done = subprocess.run(command, env=environment(1, "cpu"), stdout=subprocess.PIPE, text=True, check=True)
    assert int(done.stdout) < 1000


def test_a_persons_own_settings_of_libc_are_kept(monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=2")
    assert environment(1, "cpu")["GLIBC_TUNABLES"] == "glibc.malloc.arena_max=2"
