"""The rates themselves, on this machine's cores and over its loopback."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.real
ROOT = Path(__file__).resolve().parents[2]
PAIR = """
import json, sys
from orchestrator.doctor.rates import matrix_flops_per_s, own_store, pair_bytes_per_s, store_of
if sys.argv[1] == "0":
    store = own_store("127.0.0.1")
    print(store.port, flush=True)
else:
    store = store_of("127.0.0.1", int(sys.argv[2]))
sums = [pair_bytes_per_s(store, int(sys.argv[1]), device="cpu", turn=turn) for turn in (0, 1)]
print(json.dumps([*matrix_flops_per_s("cpu"), *sums]))
"""


def start(*words: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", PAIR, *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def test_two_processes_measure_the_same_sums_twice() -> None:
    with start("0") as first:
        assert first.stdout is not None
        port = first.stdout.readline().strip()
        with start("1", port) as second:
            said = [process.communicate()[0].splitlines()[-1] for process in (second, first)]
    rates = [json.loads(line) for line in said]
    assert first.returncode == second.returncode == 0
    assert all(len(each) == 3 for each in rates)
    assert all(1e8 < product < 1e14 for product, _, _ in rates)
    assert all(1e6 < speed < 1e12 for _, *speeds in rates for speed in speeds)


def test_a_partner_that_is_not_there_is_an_error_in_seconds() -> None:
    script = "from orchestrator.doctor.rates import store_of; store_of('127.0.0.1', 1)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT)
    assert "Error" in done.stderr.splitlines()[-1]
