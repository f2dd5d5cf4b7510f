"""`phalanx cluster up|down|status`: what is wrong is said before anything starts; records survive their file."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launch.hosts.marks import MARK, processes_of
from launch.hosts.raising import raise_cluster
from launch.hosts.record import ClusterRecord, Host, Started, parse_hosts
from orchestrator.codec import decode, encode
from orchestrator.errors import ConfigError, PhalanxError
from orchestrator.processes import find_process


def phalanx(home: Path, *words: str, path: str | None = None) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"HOME": str(home)} | ({"PATH": path} if path else {})
    command = [sys.executable, "-m", "launch.cli", "cluster", *words]
    return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)


def test_hosts_and_their_sizes() -> None:
    lines = ["# ours", "", "head cpus=4  # no GPU", "me@n1 cpus=16 gpus=8 cpus=32", "n2"]
    assert parse_hosts(lines, where="line") == [
        Host(name="head", cpus=4),
        Host(name="me@n1", cpus=32, gpus=8),
        Host(name="n2"),
    ]


def test_every_problem_of_a_hosts_file_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as refused:
        parse_hosts(["-oProxyCommand=x", "n1 cpus=0", "n1 memory=1", "n2 cpus=many gpus"], where="hosts.txt, line")
    assert list(refused.value.problems) == [
        f"hosts.txt, line {text}; write it as in node1 cpus=16 gpus=8"
        for text in (
            "1: -oProxyCommand=x is not a host's name",
            "2: cpus=0 is not cpus=N or gpus=N",
            "3: memory=1 is not cpus=N or gpus=N",
            "4: cpus=many is not cpus=N or gpus=N",
            "4: gpus is not cpus=N or gpus=N",
        )
    ] + ["n1 is named twice; once is enough"]


WRONG_WORDS = {
    "no host": (["up"], "name the hosts, or a file of them"),
    "hosts twice": (["up", "n1", "--hosts", "hosts.txt"], "name the hosts, or a file of them"),
    "no such file": (
        ["up", "--hosts", "nowhere.txt"],
        "--hosts nowhere.txt can't be read (No such file or directory)",
    ),
    "an empty file": (["up", "--hosts", "empty.txt"], "no host is named"),
    "an option for ssh": (["up", "--", "-oProxyCommand=id"], "host 1: -oProxyCommand=id is not a host's name"),
    "a wrong name": (["up", "n1", "--name", "../../x"], "--name '../../x' is not a name"),
    "no CPUs": (["up", "n1", "--cpus", "0"], "--cpus 0 is too small; use 1 or more"),
    "no time": (["up", "n1", "--timeout", "0"], "--timeout 0 is out of range"),
    "no name of a cluster": (["down", "--name", "a/b"], "--name 'a/b' is not a name"),
    "nor this": (["status", "--name", "x" * 300], f"--name '{'x' * 300}' is not a name"),
    "an unknown one": (["status", "--name", "other"], "no cluster is up; to make one: phalanx cluster up HOST ..."),
}


@pytest.mark.parametrize("wrong", WRONG_WORDS)
def test_wrong_words_are_refused(tmp_path: Path, wrong: str) -> None:
    words, sentence = WRONG_WORDS[wrong]
    (tmp_path / "empty.txt").write_text("# nobody\n")
    done = phalanx(tmp_path, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(sentence), done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / ".phalanx").exists()


def test_without_ssh_there_is_one_sentence(tmp_path: Path) -> None:
    done = phalanx(tmp_path, "up", "n1", path=str(tmp_path))
    assert (done.returncode, done.stderr) == (2, "ssh is not on the PATH; install its client (openssh-client)\n")


def test_down_and_status_of_nothing(tmp_path: Path) -> None:
    assert phalanx(tmp_path, "down").stdout == "no cluster called default is up\n"
    assert phalanx(tmp_path, "status").stdout == "no cluster is up; to make one: phalanx cluster up HOST ...\n"


def test_a_record_survives_its_file() -> None:
    record = ClusterRecord(
        name="a",
        mark="b",
        hosts=(Host(name="n1", cpus=2), Host(name="n2")),
        ssh=("ssh", "-T"),
        python="python3",
        address="n1:1",
        started={"n1": Started(pid=1, born_s=2.5, folder="/tmp/x")},
    )
    assert decode(ClusterRecord, encode(record)) == record


HOLDS = """
import ctypes, subprocess, sys
held = open(sys.argv[1]) if len(sys.argv) > 1 else None
if len(sys.argv) > 2:
    ctypes.CDLL(None).prctl(15, sys.argv[2].encode())  # PR_SET_NAME
child = subprocess.Popen(["sleep", "1000"], env={})
print(child.pid, flush=True)
child.wait()
"""


def test_processes_are_found_by_mark_file_and_descent(tmp_path: Path) -> None:
    """What has written over its environment still holds a file of the cluster, or descends from what has not."""
    log = tmp_path / "log"
    log.touch()
    started = [
        subprocess.Popen([sys.executable, "-c", HOLDS, *words], env=environment, stdout=subprocess.PIPE, text=True)
        for words, environment in (
            ([], {MARK: "ours"}),
            ([str(log), "ray::Agent"], {}),
            ([], {MARK: "another's"}),
            ([str(log), "driver"], {}),
        )
    ]
    children = [int(process.stdout.readline()) for process in started]
    try:
        found = {process.pid for process in processes_of("ours", str(tmp_path))}
        assert found == {started[0].pid, started[1].pid, *children[:2]}
        assert {process.pid for process in processes_of("ours", "")} == {started[0].pid, children[0]}
    finally:
        for pid in (*(process.pid for process in started), *children):
            os.kill(pid, signal.SIGKILL)
        for process in started:
            process.wait()
            process.stdout.close()


SSH = """#!/bin/sh
case "$2 $3" in second*launch.hosts.node*) [ -p alive ] && echo $$ > alive;; esac
HOST=$2 exec sh -c "$3; exit"
"""
PYTHON = '#!/bin/sh\nif [ "$3" = launch.hosts.node ]; then exec {python} {program}; fi\nexec {python} "$@"\n'
PROGRAM = """
import json, os, signal, sys
from orchestrator.processes import birth_s

def say(op):
    own = {"pid": os.getpid(), "born_s": birth_s(os.getpid()), "folder": "", "node": ""}
    print(json.dumps({"op": op, "address": "first:1", **own}), flush=True)

for text in sys.stdin:
    match json.loads(text):
        case {"op": "start", "is_head": True}:
            say("head")
        case {"op": "join"} if os.environ["HOST"] != "first":
            say("up")
            if os.path.exists("alive"):
                sys.exit("the power is gone")
        case {"op": "keep"} if os.environ["HOST"] == "first":
            say("kept")
            signal.pause()
        case {"op": "keep"}:
            sys.exit("the power is gone")
"""
"""A host's program without a Ray: the first host's stays when it is told to, the other one's dies then, or, where
there is a FIFO called `alive` (which gets its connection's pid), with its word that it is up."""


@pytest.mark.parametrize("moment", ["as it is up", "as it is to stay"])
def test_a_host_that_is_lost_at_the_last_moment_leaves_nothing_on_the_others(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was told to stay does not end with its connection."""
    monkeypatch.chdir(tmp_path)
    fifo = tmp_path / "alive"
    if moment == "as it is up":
        os.mkfifo(fifo)

    def say(text: str) -> None:
        if fifo.exists() and text.startswith("first is up"):
            os.waitid(os.P_PID, int(fifo.read_text()), os.WEXITED | os.WNOWAIT)  # its word and its end come at once

    (tmp_path / "program.py").write_text(PROGRAM)
    for name, text in (
        ("ssh", SSH),
        ("python", PYTHON.format(python=sys.executable, program=tmp_path / "program.py")),
    ):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    asked = ClusterRecord(
        name="a",
        mark="b",
        hosts=(Host(name="first"), Host(name="second")),
        ssh=(str(tmp_path / "ssh"),),
        python=str(tmp_path / "python"),
        started={},
    )
    written: list[ClusterRecord] = []
    try:
        with pytest.raises(PhalanxError, match="second was lost while the cluster came up: the power is gone"):
            raise_cluster(asked, "token", 600.0, write=written.append, say=say)
        assert [find_process(host.pid, host.born_s) for host in written[0].started.values()] == [None, None]
    finally:
        for host in (host for record in written for host in record.started.values()):
            if (left := find_process(host.pid, host.born_s)) is not None:
                left.kill()
