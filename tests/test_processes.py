"""Processes are told apart from later ones that got their number."""

import os
import subprocess
import sys

import psutil

from orchestrator.processes import birth_s, find_process, named


def test_a_number_that_was_given_away_again_is_nobody() -> None:
    this = psutil.Process()
    assert find_process(this.pid, birth_s(this.pid)) == this
    assert find_process(this.pid, birth_s(this.pid) - 100) is None


def test_what_has_ended_is_nobody_also_before_it_is_reaped() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        born_s = birth_s(process.pid)
        assert find_process(process.pid, born_s) is not None
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it is a zombie
        assert find_process(process.pid, born_s) is None
    assert find_process(process.pid, born_s) is None


def test_what_ends_while_its_name_is_asked_for_is_passed_over() -> None:
    """As the short-lived helpers of a Ray that has just started."""
    lasting, brief = [subprocess.Popen(["sleep", "1000"]) for _ in range(2)]
    try:
        listed = psutil.Process().children()
        brief.kill()
        brief.wait()
        assert [(process.pid, name) for process, name in named(listed, ("sleep",))] == [(lasting.pid, "sleep")]
    finally:
        for process in (lasting, brief):
            process.kill()
            process.wait()
