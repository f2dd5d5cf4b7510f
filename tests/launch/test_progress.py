"""Progress of many trials: a bar on a terminal, lines elsewhere, nothing for a few."""

import os
import pty
import subprocess
import sys

import pytest

from launch.progress import FEWEST_SHOWN, counted


@pytest.mark.parametrize(
    ("items", "said"),
    [
        (FEWEST_SHOWN - 1, []),
        (FEWEST_SHOWN, [f"trials: {done} of 100" for done in range(10, 100, 10)]),
        (2005, [f"trials: {done:,} of 2,005" for done in (201, 401, 602, 802, 1003, 1203, 1404, 1604, 1805)]),
    ],
)
def test_lines_on_standard_error(items: int, said: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert list(counted("trials", range(items))) == list(range(items))
    told = capsys.readouterr()
    assert (told.out, told.err.splitlines()) == ("", said)


@pytest.mark.parametrize(("terminal", "said"), [("xterm", b"trials "), ("dumb", b"trials: 10 of 100")])
def test_a_bar_on_a_terminal(terminal: str, said: bytes) -> None:
    ours, theirs = pty.openpty()
    program = f"from launch.progress import counted; print(sum(1 for _ in counted('trials', range({FEWEST_SHOWN}))))"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TTY_")}
    environment["TERM"] = terminal
    command = [sys.executable, "-c", program]
    try:
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=theirs, check=True)
        assert int(done.stdout) == FEWEST_SHOWN
    finally:
        os.close(theirs)  # nothing to read is an error then, and not a wait for ever
    try:
        assert said in os.read(ours, 4000)
    finally:
        os.close(ours)
