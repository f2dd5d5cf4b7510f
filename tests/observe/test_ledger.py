import json
import os
import signal
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.observe.ledger import EventName, Ledger, read_events

# DESIGN section 5, word for word.
CONTRACT = (
    "run_started attempt_started first_step rank_died node_lost hang_detected straggler anomaly rollback "
    "snapshot checkpoint_started checkpoint_committed checkpoint_failed checkpoint_rejected recovered "
    "resized preemption_notice requeued run_finished run_failed"
)

BEYOND_IT = {"gpu_fault"}


def ledger(path: Path) -> Ledger:
    ticks = count(100)
    return Ledger(path, lambda: float(next(ticks)))


def test_the_names_are_those_of_the_contract():
    assert [str(name) for name in EventName if name not in BEYOND_IT] == CONTRACT.split()


def test_a_line_holds_time_event_attempt_step_and_the_fields(tmp_path):
    events = ledger(tmp_path / "events.jsonl")
    returned = events.append("rank_died", 2, 7, rank=1, node="a", signal=9)
    events.append("run_finished", 2, None)
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == returned
    assert returned == {
        "t": 100.0,
        "event": "rank_died",
        "attempt": 2,
        "step": 7,
        "rank": 1,
        "node": "a",
        "signal": 9,
    }
    assert json.loads(lines[1]) == {"t": 101.0, "event": "run_finished", "attempt": 2, "step": None}


def test_an_unknown_event_is_refused_and_writes_nothing(tmp_path):
    events = ledger(tmp_path / "events.jsonl")
    with pytest.raises(ValueError, match="rank_dead"):
        events.append("rank_dead", 1, None)
    with pytest.raises(ValueError, match="field t"):
        events.append("rank_died", 1, None, t=3)
    assert (tmp_path / "events.jsonl").read_bytes() == b""


def test_what_is_not_finite_is_null_and_named(tmp_path):
    ledger(tmp_path / "events.jsonl").append("anomaly", 1, 3, loss=float("nan"), seen={"norms": [1.0, float("inf")]})
    (event,) = read_events(tmp_path / "events.jsonl")
    assert event["loss"] is None
    assert event["seen"] == {"norms": [1.0, None]}
    assert event["not_finite"] == {"loss": "nan", "seen.norms.1": "inf"}


def test_no_file_has_no_events(tmp_path):
    assert read_events(tmp_path / "events.jsonl") == []


@given(
    cut=st.integers(min_value=1, max_value=200),
    messages=st.lists(st.text(max_size=20), min_size=1, max_size=4),
)
def test_a_torn_last_line_is_lost_and_nothing_else(tmp_path_factory, cut, messages):
    path = tmp_path_factory.mktemp("ledger") / "events.jsonl"
    before = ledger(path)
    for message in messages:
        before.append("anomaly", 1, None, message=message)
    before.close()
    whole = path.read_bytes()
    last = len(whole.splitlines(keepends=True)[-1])
    os.truncate(path, len(whole) - min(cut, last - 1))
    kept = messages if cut == 1 else messages[:-1]  # only the newline is missing: nothing is lost

    assert [event["message"] for event in read_events(path)] == kept
    after = ledger(path)
    after.append("run_finished", 2, 5)
    after.append("run_finished", 2, 6)
    assert [event.get("message") for event in read_events(path)] == [*kept, None, None]


def test_two_writers_never_mix_their_lines(tmp_path):
    path = tmp_path / "events.jsonl"
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from orchestrator.observe.ledger import Ledger\n"
        "ledger = Ledger(Path(sys.argv[1]), lambda: 1.0)\n"
        "for step in range(300): ledger.append('snapshot', int(sys.argv[2]), step, filler='x' * 500)\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program, str(path), str(attempt)]) for attempt in (1, 2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    events = read_events(path)
    # Opening while the other is in the middle of a write may leave an empty line.
    lines = [line for line in path.read_text().splitlines() if line]
    assert len(events) == 600 == len(lines)
    for attempt in (1, 2):
        assert [event["step"] for event in events if event["attempt"] == attempt] == list(range(300))


def test_sigkill_loses_at_most_the_line_being_written(tmp_path):
    path = tmp_path / "events.jsonl"
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from orchestrator.observe.ledger import Ledger\n"
        "ledger = Ledger(Path(sys.argv[1]), lambda: 1.0)\n"
        "step = 0\n"
        "while True:\n"
        "    ledger.append('snapshot', 1, step)\n"
        "    print(step, flush=True)\n"
        "    step += 1\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True)
    said = [int(writer.stdout.readline()) for _ in range(50)]
    writer.send_signal(signal.SIGKILL)
    said += [int(line) for line in writer.communicate()[0].splitlines()]
    steps = [event["step"] for event in read_events(path)]
    assert steps == list(range(len(steps)))
    assert len(steps) >= len(said)


def test_a_full_disk_is_said_and_the_next_line_is_whole(tmp_path):
    """RLIMIT_FSIZE cuts the write short as a full disk does."""
    program = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from orchestrator.observe.ledger import Ledger\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "ledger = Ledger(Path(sys.argv[1]), lambda: 1.0)\n"
        "ledger.append('snapshot', 1, 1)\n"
        "hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))\n"
        "for step in (2, 3):\n"
        "    try: ledger.append('snapshot', 1, step, filler='x' * 200)\n"
        "    except OSError as error: print(error)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))\n"
        "ledger.append('snapshot', 1, 4)\n"
    )
    path = tmp_path / "events.jsonl"
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    said = [f"[Errno 28] No space left on device: '{path}'", f"[Errno 27] File too large: '{path}'"]
    assert done.stdout.splitlines() == said
    assert [event["step"] for event in read_events(path)] == [1, 4]
