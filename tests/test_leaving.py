"""The end of our processes: what C++ has left for exit() to call is not called, everything of Python's is."""

import os
import subprocess
import sys
from pathlib import Path

CHILD = """
import atexit, ctypes, sys, threading, time
from orchestrator.leaving import leave_with

libc = ctypes.CDLL(None)
libc.on_exit(libc.abort, None)

def linger():
    threading.main_thread().join()
    print("thread")

def main():
    atexit.register(print, "hook")
    threading.Thread(target=linger).start()
    print("main")
    {end}

leave_with(main)
"""


def ended(end: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", CHILD.format(end=end)], capture_output=True, text=True, check=False)


def test_what_is_printed_is_there_and_the_exit_code_is_mains() -> None:
    child = ended("return 75")
    assert (child.returncode, child.stderr) == (75, "")
    assert child.stdout.splitlines() == ["main", "thread", "hook"]


def test_an_error_that_nobody_caught_is_told_and_fails() -> None:
    child = ended("raise RuntimeError('lost')")
    assert child.returncode == 1
    assert child.stderr.endswith("RuntimeError: lost\n")
    assert child.stdout.splitlines() == ["main", "thread", "hook"]


def test_what_could_not_be_written_is_a_failure() -> None:
    command = [sys.executable, "-c", CHILD.format(end="return 0")]
    with Path("/dev/full").open("wb") as full:
        child = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    assert child.returncode == 1


def test_ctrl_c_has_the_shells_code() -> None:
    assert ended("raise KeyboardInterrupt").returncode == 130


def test_a_reader_that_has_gone_changes_no_exit_code() -> None:
    command = [sys.executable, "-c", CHILD.format(end="return 3")]
    buffered = os.environ | {"PYTHONUNBUFFERED": ""}
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=buffered)
    assert child.stdout is not None
    child.stdout.close()
    assert child.wait() == 3
    assert child.stderr is not None
    assert child.stderr.read() == b""
    child.stderr.close()
