"""The parts of a job's start: ports, words, the barrier, lines over pipes, signals in a pipe, ends of processes."""

import itertools
import os
import signal
import socket
import subprocess
import sys

import psutil
import pytest

from launch.job.gathering import Gathering
from launch.job.lines import LineReader, line
from launch.job.node import free_block, own_address
from launch.job.raystart import FIRST_PORT, LAST_PORT, PORTS_PER_BLOCK, allocated, port_blocks, ray_words
from launch.job.waking import Wakeup
from launch.slurm.jobstate import SlurmError


def test_blocks_of_ports_don_t_overlap_and_neighbours_begin_apart() -> None:
    blocks = list(port_blocks(4711))
    assert len(blocks) == len({*blocks}) == (LAST_PORT + 1 - FIRST_PORT) // PORTS_PER_BLOCK
    assert all(block % PORTS_PER_BLOCK == FIRST_PORT % PORTS_PER_BLOCK for block in blocks)
    assert min(blocks) == FIRST_PORT
    assert max(blocks) + PORTS_PER_BLOCK - 1 <= LAST_PORT
    firsts = [next(port_blocks(job)) for job in range(100)]
    assert len({*firsts}) == 100


def test_a_block_in_which_a_port_is_taken_is_passed_over() -> None:
    job = os.getpid()
    first = free_block(job)
    with socket.socket() as taken:
        taken.bind(("", first + 1))
        assert free_block(job) != first


def test_ray_is_told_what_slurm_gave() -> None:
    environment = {"SLURM_CPUS_ON_NODE": "4", "SLURM_GPUS_ON_NODE": "2", "SLURM_MEM_PER_NODE": "2048"}
    assert allocated(environment) == (4, 2, 2 * 2**30)
    assert allocated({"SLURM_CPUS_ON_NODE": "4", "SLURM_MEM_PER_CPU": "512"}) == (4, 0, 2 * 2**30)
    assert allocated({"SLURM_CPUS_ON_NODE": "1", "CUDA_VISIBLE_DEVICES": "0,3"}) == (1, 2, None)
    sizes = {"python": "py", "temp_dir": "/tmp/x", "node_ip": "10.0.0.1", "block": 20_000, "cpus": 4, "gpus": 2}
    head = ray_words(**sizes, memory_bytes=None, join=None)  # type: ignore[arg-type]
    assert {"--head", "--port=20000", "--ray-client-server-port=20001", "--num-gpus=2"} <= {*head}
    assert not any(word.startswith("--memory") for word in head)
    joined = ray_words(**sizes, memory_bytes=5, join="10.0.0.9:20000")  # type: ignore[arg-type]
    assert {"--address=10.0.0.9:20000", "--memory=5", "--num-cpus=4"} <= {*joined}
    assert "--head" not in joined


def test_addresses() -> None:
    assert own_address("lo", None) == "127.0.0.1"
    assert own_address(None, "127.0.0.1:5") == "127.0.0.1"
    assert own_address(None, None)


HOSTS = ["v1", "v2", "v3"]


def gathered(*messages: tuple[str, str], spare: int = 0) -> Gathering:
    gathering = Gathering(HOSTS, spare, 120.0)
    for node, op in messages:
        gathering.hear({"op": op, "node": node, "address": "a:1", "folder": "/tmp/f", "text": "port taken"})
    return gathering


def test_the_barrier_opens_when_all_are_there() -> None:
    for order in itertools.permutations([("v1", "head"), ("v2", "up"), ("v3", "up")]):
        gathering = gathered(*order[:2])
        gathering.check(5.0, has_ended=False)
        assert not gathering.is_complete
        gathering.hear({"op": order[2][1], "node": order[2][0], "address": "a:1", "folder": "/tmp/f"})
        gathering.check(6.0, has_ended=False)
        assert gathering.is_complete
        assert (gathering.address, gathering.folder, gathering.warnings) == ("a:1", "/tmp/f", [])


@pytest.mark.parametrize(
    ("messages", "elapsed_s", "has_ended", "sentence"),
    [
        (
            [("v1", "head"), ("v3", "up")],
            120.0,
            False,
            r"v2 did not start Ray in cluster.start_timeout_s=120 \(v1, v3 did\): nothing was heard from there",
        ),
        ([], 3.0, True, "v1, v2, v3 did not start Ray: nothing was heard"),
        ([("v1", "failed")], 3.0, False, "v1, v2, v3 did not start Ray: v1: port taken"),
        ([("v1", "head"), ("v2", "failed")], 3.0, False, r"v2, v3 did not start Ray \(v1 did\): v2: port taken"),
    ],
)
def test_who_is_missing_is_named(
    messages: list[tuple[str, str]], elapsed_s: float, has_ended: bool, sentence: str
) -> None:
    with pytest.raises(SlurmError, match=sentence):
        gathered(*messages).check(elapsed_s, has_ended=has_ended)


def test_a_spare_node_may_be_missing() -> None:
    late = gathered(("v1", "head"), ("v2", "up"), spare=1)
    late.check(119.0, has_ended=False)
    assert not late.is_complete
    late.check(120.0, has_ended=False)
    assert late.is_complete
    assert late.warnings == [
        "without v3: nothing was heard from there; see the job's output above for srun's own words"
    ]
    failed = gathered(("v1", "head"), ("v2", "failed"), ("v3", "up"), spare=1)
    failed.check(5.0, has_ended=False)
    assert failed.is_complete
    assert failed.warnings == ["without v2: v2: port taken"]


def test_lines_come_whole_and_foreign_ones_are_passed_over() -> None:
    readable, writable = os.pipe()
    reader = LineReader(readable)
    os.write(writable, b"srun says hello\n[1]\n" + line({"op": "up", "node": "v1"}) + b'{"op": "he')
    assert reader.read() == [{"op": "up", "node": "v1"}]
    os.write(writable, b'ad"}\n')
    os.close(writable)
    assert reader.read() == [{"op": "head"}]
    assert reader.is_closed
    os.close(readable)


def test_signals_wake_and_no_longer_kill() -> None:
    with Wakeup(signal.SIGUSR1, signal.SIGTERM) as wakeup:
        assert wakeup.wait([], 0.0) == []
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert wakeup.wait([], None) == [signal.SIGUSR1, signal.SIGTERM]
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


FAMILY = """
import ctypes, signal, subprocess, sys
from launch.job.node import BLOCKED, end_descendants
signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
words = "['sleep', '1000'], start_new_session=True, stdout=subprocess.DEVNULL"
grandchild = f"import subprocess; print(subprocess.Popen({words}).pid)"
pid = int(subprocess.run([sys.executable, "-c", grandchild], stdout=subprocess.PIPE, text=True, check=True).stdout)
print(pid, flush=True)
sys.stdin.readline()
end_descendants()
print("ended", flush=True)
"""


def test_what_a_node_program_starts_ignores_sigterm_and_ends_with_it_orphans_too() -> None:
    family = subprocess.Popen(
        [sys.executable, "-c", FAMILY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert family.stdin is not None and family.stdout is not None
    with family:
        orphan = psutil.Process(int(family.stdout.readline()))
        orphan.terminate()
        family.terminate()
        assert orphan.is_running() and orphan.status() != psutil.STATUS_ZOMBIE
        assert orphan.parent() == psutil.Process(family.pid)
        family.stdin.write("\n")
        family.stdin.flush()
        assert family.stdout.readline() == "ended\n"
        assert not orphan.is_running()
        family.kill()
