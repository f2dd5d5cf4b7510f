"""Who holds a lock file."""

import fcntl
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import holding


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """Descriptors of one file, opened twice, as two processes have it."""
    descriptors = [os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT) for _ in range(2)]
    yield descriptors[0], descriptors[1]
    for descriptor in descriptors:
        os.close(descriptor)


def test_who_comes_second_hears_who_holds_it(two: tuple[int, int]) -> None:
    first, second = two
    os.write(first, b"an earlier holder, with a longer name than ours may have" * 2)
    holding.lock(first)
    holding.sign(first)
    with pytest.raises(holding.HeldError, match=rf"^pid {os.getpid()} on {re.escape(socket.gethostname())}$"):
        holding.lock(second)


def test_a_holder_that_has_not_signed_yet(two: tuple[int, int]) -> None:
    first, second = two
    holding.lock(first)
    with pytest.raises(holding.HeldError, match=r"^by another process$"):
        holding.lock(second)


def test_who_only_looks_is_no_holder(two: tuple[int, int]) -> None:
    """`phalanx status`, and a sweep that watches its trials, take a shared lock for a moment (observe/state.py)."""
    looker, driver = two
    fcntl.flock(looker, fcntl.LOCK_SH)
    holding.lock(driver, pause=lambda: fcntl.flock(looker, fcntl.LOCK_UN))
    with pytest.raises(BlockingIOError):
        fcntl.flock(looker, fcntl.LOCK_SH | fcntl.LOCK_NB)
