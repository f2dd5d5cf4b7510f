"""`phalanx cluster virtual` as a person types it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cluster.leftovers import leftovers

from launch.virtual.cluster import end

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).resolve().parents[2]


def phalanx(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launch.cli", "cluster", "virtual", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, **options)


def test_from_up_to_down(can_be_virtual: None, unused_name: Callable[[], str]) -> None:
    name = unused_name()
    try:
        up = phalanx("up", "2", "--name", name, "--gpus", "1", "--owner", str(os.getpid()))
        assert up.returncode == 0, up.stderr
        assert f"2 nodes idle: {name}1 to {name}2; the head is {name}0" in up.stdout
        submitted = phalanx("exec", f"{name}0", "sbatch", "--wait", input="#!/bin/sh\necho hello\n")
        assert "Submitted batch job 1" in submitted.stdout
        assert phalanx("exec", f"{name}1", "cat", "slurm-1.out").stdout == "hello\n"
        assert phalanx("exec", f"{name}1", "--", "sh", "-c", "exit 75").returncode == 75
        assert phalanx("crash", f"{name}2").returncode == 0
        off = phalanx("exec", f"{name}2", "true")
        assert (off.returncode, off.stderr) == (
            2,
            f"{name}2 is off; to switch it on: phalanx cluster virtual boot {name}2\n",
        )
        states = {
            node["node"]: node["state"]
            for cluster in json.loads(phalanx("status", "--json").stdout)
            for node in cluster["nodes"]
        }
        assert (states[f"{name}0"], states[f"{name}1"], states[f"{name}2"]) == ("on", "on", "off, isolated")
        assert f"  {name}1 " in phalanx("status").stdout
        assert phalanx("down", "--name", name).returncode == 0
        assert leftovers(name) == []
        again = phalanx("down", "--name", name)
        assert (again.returncode, again.stdout) == (0, f"no virtual cluster called {name} is there\n")
    finally:
        end(name)


def test_a_wrong_size_and_an_unknown_node_are_refused(can_be_virtual: None) -> None:
    refused = phalanx("up", "0", "--name", "b-1")
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 2
    assert phalanx("exec", "nosuch1", "true").returncode == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="switches to another user, so it needs root")
def test_other_users_are_told_what_it_needs(can_be_virtual: None) -> None:
    """In the interpreter itself: other users may be barred from the virtual environment's folder."""
    script = (
        "import os, sys; from launch import cli, cluster, cluster_virtual; "
        "os.setuid(65534); sys.exit(cli.main(sys.argv[1:]))"
    )
    words = [sys.executable, "-c", script, "cluster", "virtual", "up", "2"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "this is user 65534: run it with sudo" in done.stderr
    assert "PATH" in subprocess.run(
        [sys.executable, "-m", "launch.cli", "cluster", "virtual", "up", "2"],
        cwd=ROOT, capture_output=True, text=True, check=False, env={"PATH": "/nowhere"},
    ).stderr  # fmt: skip
