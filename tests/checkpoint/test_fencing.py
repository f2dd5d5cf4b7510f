import json
import subprocess
import sys
from pathlib import Path

import pytest
from saving import random_state, save, write

from orchestrator.checkpoint.commit import commit, committed_steps, read_marker
from orchestrator.checkpoint.fencing import new_claim, newest_attempt, refuse_if_fenced, take
from orchestrator.checkpoint.store import Store
from orchestrator.checkpoint.verify import verify
from orchestrator.errors import CheckpointError, FencedError

STATE = random_state({"w": (5,), "b": (2, 2)})
ROUNDS = 25


def claimed(store: Store, attempt: int):
    claim = new_claim(attempt, "run-1")
    assert take(store, claim)
    return claim


def test_a_claim_says_who_it_is(tmp_path):
    store = Store(tmp_path)
    assert newest_attempt(store) == 0
    claim = claimed(store, 3)
    facts = json.loads((tmp_path / "attempts" / "attempt_00003.json").read_text())
    assert facts["run_id"] == "run-1"
    assert facts.keys() >= {"host", "pid", "time"}
    assert newest_attempt(store) == 3
    assert take(store, claim), "its own claim is its own"
    assert not take(store, new_claim(3, "run-1"))
    assert committed_steps(store) == []


def test_the_newest_of_many_claims_is_that_of_the_highest_number(tmp_path):
    store = Store(tmp_path)
    for attempt in (99_998, 7, 100_000, 99_999):
        claimed(store, attempt)
    store.write_atomic("attempts/attempt_00100001.json.superseded", [b""])
    assert newest_attempt(store) == 100_000


def test_an_older_attempt_commits_no_step_any_more(tmp_path):
    store = Store(tmp_path)
    older = claimed(store, 1)
    commit(store, write(store, 10, STATE, attempt=1), older)
    claimed(store, 2)
    late = write(store, 20, STATE, attempt=1)
    with pytest.raises(FencedError, match=r"attempt 1 may not commit to .* attempt 2 \(on .*, pid \d+\) has taken"):
        commit(store, late, older)
    assert committed_steps(store) == [10]
    assert verify(store, 10) == []


def test_the_number_belongs_to_one_of_two(tmp_path):
    store = Store(tmp_path)
    claimed(store, 1)
    with pytest.raises(FencedError, match="another attempt 1"):
        refuse_if_fenced(store, 1, new_claim(1, "run-1"))


def test_what_could_not_be_claimed_at_the_start_is_claimed_by_the_first_commit(tmp_path):
    store = Store(tmp_path)
    late = new_claim(4, "run-1")
    commit(store, write(store, 10, STATE, attempt=4), late)
    assert newest_attempt(store) == 4
    with pytest.raises(FencedError):
        commit(store, write(store, 20, STATE, attempt=3), new_claim(3, "run-1"))


def test_an_unreadable_claim_fences_all_the_same(tmp_path):
    store = Store(tmp_path)
    store.write_atomic("attempts/attempt_00009.json", [b"{"])
    with pytest.raises(FencedError, match=r"attempt_00009\.json"):
        save(store, 10, STATE)


RACER = """
import sys
sys.path.insert(0, sys.argv[2])
from saving import random_state, write
from orchestrator.checkpoint.commit import commit
from orchestrator.checkpoint.fencing import new_claim, newest_attempt, take
from orchestrator.checkpoint.store import Store
from orchestrator.errors import CheckpointError, FencedError
state = random_state({"w": (5,), "b": (2, 2)})
print("ready", flush=True)
for line in sys.stdin:
    mode, folder = line.split()
    store = Store(folder)
    if mode == "same":
        # Two copies think that they are attempt 1, and commit the same step.
        claim = new_claim(1, "run-1")
        seed = int(claim.content.decode().split('"token": "')[1][:4], 16)
        marker = write(store, 10, state, attempt=1, seed=0, loss=float(seed))
        try:
            commit(store, marker, claim)
            print("committed", seed, flush=True)
        except CheckpointError:
            print("refused", seed, flush=True)
    else:
        # Each takes the next number, then commits step after step until it is refused.
        while True:
            claim = new_claim(newest_attempt(store) + 1, "run-1")
            if take(store, claim):
                break
        done = []
        try:
            for step in range(10, 40, 10):
                commit(store, write(store, step, state, attempt=claim.attempt), claim)
                done.append(step)
        except FencedError:
            pass
        print(claim.attempt, *done, flush=True)
"""


@pytest.fixture
def racers():
    command = [sys.executable, "-c", RACER, "-", str(Path(__file__).parent)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    yield processes
    for process in processes:
        process.communicate()
        assert process.returncode == 0


def race(processes, mode: str, folder: Path) -> list[list[str]]:
    for process in processes:
        process.stdin.write(f"{mode} {folder}\n")
        process.stdin.flush()
    return [process.stdout.readline().split() for process in processes]


def test_of_two_processes_with_one_number_exactly_one_commits(racers, tmp_path):
    for number in range(ROUNDS):
        folder = tmp_path / str(number)
        answers = race(racers, "same", folder)
        assert sorted(answer[0] for answer in answers) == ["committed", "refused"]
        (winner,) = [float(seed) for outcome, seed in answers if outcome == "committed"]
        store = Store(folder)
        assert read_marker(store, 10).loss == winner
        assert verify(store, 10) == []


def test_of_two_live_copies_the_newer_one_goes_on(racers, tmp_path):
    for number in range(ROUNDS):
        folder = tmp_path / str(number)
        answers = sorted([int(word) for word in answer] for answer in race(racers, "newest", folder))
        assert [answer[0] for answer in answers] == [1, 2]
        assert answers[1][1:] == [10, 20, 30], "the newest claim is never refused"
        store = Store(folder)
        for step in (10, 20, 30):
            assert read_marker(store, step).attempt == 2
            assert verify(store, step) == []


def test_a_fenced_attempt_is_not_a_damaged_checkpoint(tmp_path):
    assert issubclass(FencedError, CheckpointError)
    assert FencedError("x").exit_code == 1
