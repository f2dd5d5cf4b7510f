"""Whose SIGKILL it was: the kernel's own counters, and a process that the kernel really kills."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.agent.oomkills import OomKills, _group_files, oom_kills

GROUPS = Path("/sys/fs/cgroup/memory")
KILLED = {"signal": signal.SIGKILL, "is_stopped": False}
LIMIT_BYTES = 64 * 2**20


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A memory cgroup (version 1) with a limit."""
    group = GROUPS / f"phalanx-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(LIMIT_BYTES))
    except OSError as error:
        pytest.skip(f"no memory cgroup of version 1 can be made here: {error}")
    yield group
    group.rmdir()


def test_a_process_that_the_kernel_kills_for_its_memory(small_group: Path) -> None:
    kills = OomKills()
    assert kills.reason(KILLED) == ""
    hungry = f"open({str(small_group / 'cgroup.procs')!r}, 'w').write('0'); x = b'x' * {4 * LIMIT_BYTES}"
    assert subprocess.run([sys.executable, "-c", hungry], check=False).returncode == -signal.SIGKILL
    assert "out of memory: the kernel killed it" in kills.reason(KILLED)
    assert kills.reason(KILLED) == ""


@pytest.mark.parametrize(
    "end", [{"signal": signal.SIGSEGV, "is_stopped": False}, {"signal": signal.SIGKILL, "is_stopped": True}]
)
def test_other_ends_have_other_reasons(end: dict[str, object]) -> None:
    assert OomKills().reason(end) == ""


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("low 0\nhigh 0\nmax 7\noom 2\noom_kill 3\noom_group_kill 0\n", 3),
        ("oom_kill_disable 0\nunder_oom 0\noom_kill 12\n", 12),
        ("nr_free_pages 1\noom_kill 0\n", 0),
        ("", None),
        ("oom_kill\n", None),
    ],
)
def test_the_counter_in_each_of_the_kernels_files(text: str, count: int | None) -> None:
    assert oom_kills(text) == count


@pytest.mark.parametrize(
    ("memberships", "file"),
    [
        ("0::/a/b\n", "/sys/fs/cgroup/a/b/memory.events"),
        ("9:name=systemd:/\n4:memory:/a\n", "/sys/fs/cgroup/memory/a/memory.oom_control"),
        ("4:cpu,memory:/\n", "/sys/fs/cgroup/memory/memory.oom_control"),
    ],
)
def test_the_groups_of_both_versions(memberships: str, file: str) -> None:
    assert [str(found) for found in _group_files(memberships)] == [file]
