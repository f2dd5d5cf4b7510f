import dataclasses
import json
import resource
import secrets
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from saving import flip_byte, random_state, save, write

from orchestrator.checkpoint.commit import (
    Standing,
    commit,
    committed_steps,
    newest_valid,
    prune,
    read_marker,
    set_aside,
    set_aside_left_behind,
    step_standings,
    steps_to_prune,
)
from orchestrator.checkpoint.layout import MARKER, REJECTED, step_folder
from orchestrator.checkpoint.lineage import Fork, Lineage
from orchestrator.checkpoint.retention import Retention
from orchestrator.checkpoint.store import Store
from orchestrator.checkpoint.verify import verify
from orchestrator.errors import CheckpointError, CheckpointMismatchError, FencedError

STATE = random_state({"w": (5,), "b": (2, 2)})


@pytest.fixture(params=["local", "memory"])
def store(request, tmp_path):
    if request.param == "local":
        yield Store(tmp_path / "checkpoints")
    else:
        store = Store(f"memory://{secrets.token_hex(8)}")
        yield store
        store.remove("")


def nobody_rejected(step, reason):
    pytest.fail(f"step {step} was rejected: {reason}")


def damage(store: Store, step: int) -> None:
    path = f"{step_folder(step)}/{read_marker(store, step).files[0].file}"
    data = bytearray(store.read(path))
    data[-1] ^= 1
    store.write_atomic(path, [bytes(data)])


def test_without_its_marker_a_checkpoint_does_not_exist(store):
    marker = write(store, 10, STATE)
    assert committed_steps(store) == []
    assert newest_valid(store, None, nobody_rejected) is None
    commit(store, marker)
    assert committed_steps(store) == [10]
    assert newest_valid(store, marker.fingerprint, nobody_rejected) == marker


def test_an_empty_store_has_nothing(store):
    assert step_standings(store) == []
    assert newest_valid(store, None, nobody_rejected) is None
    assert prune(store, Retention(keep_last=1)) == []


def test_a_marker_is_not_written_while_a_file_is_missing_or_short(store):
    marker = write(store, 10, STATE)
    first, second = (f"step_00000010/{file.file}" for file in marker.files)
    store.remove(first)
    store.write_atomic(second, [b"short"])
    with pytest.raises(CheckpointError, match="can't be committed") as caught:
        commit(store, marker)
    assert f"{first} is missing" in str(caught.value)
    assert f"{second} has 5 bytes" in str(caught.value)
    assert committed_steps(store) == []


def test_a_marker_with_gaps_is_not_written(store):
    marker = write(store, 10, STATE)
    tensors = {name: entry._replace(shape=(99,)) for name, entry in marker.tensors.items()}
    with pytest.raises(CheckpointError, match=r"b \(master\): elements 4 to 98 are missing"):
        commit(store, dataclasses.replace(marker, tensors=tensors))
    assert committed_steps(store) == []


def test_the_same_content_commits_again(store):
    marker = save(store, 10, STATE)
    commit(store, marker)
    assert read_marker(store, 10) == marker


@pytest.mark.parametrize(("attempt", "error"), [(1, FencedError), (2, CheckpointError)])
def test_an_equal_or_older_attempt_is_refused(store, attempt, error):
    """The older one has looked for claims before the newer one's was there: to be refused here is to be fenced."""
    newer = save(store, 10, STATE, attempt=2)
    older = write(store, 10, STATE, attempt=attempt, loss=9.0)
    words = f"attempt {attempt} may not commit .* attempt 2 of run run-1 has"
    with pytest.raises(CheckpointError, match=words) as caught:
        commit(store, older)
    assert type(caught.value) is error
    assert read_marker(store, 10) == newer


def test_a_newer_attempt_replaces_an_older_one_and_keeps_its_marker(store):
    older = save(store, 10, STATE, attempt=1)
    newer = save(store, 10, STATE, attempt=2, seed=5)
    assert newest_valid(store, None, nobody_rejected) == newer
    (kept,) = [name for name in store.list("step_00000010") if name.startswith("superseded_")]
    assert store.read(f"step_00000010/{kept}").decode() == older.to_json()


def test_of_two_live_copies_of_an_attempt_one_commits(tmp_path):
    store = Store(tmp_path)
    marker = write(store, 10, STATE)
    start, outcomes = threading.Barrier(6), []

    def attempt(number: int) -> None:
        start.wait()
        try:
            commit(store, dataclasses.replace(marker, time=float(number)))
            outcomes.append(number)
        except CheckpointError:
            pass

    threads = [threading.Thread(target=attempt, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 1
    assert read_marker(store, 10).time == float(outcomes[0])


def test_a_bad_checkpoint_is_set_aside_and_the_next_older_taken(store):
    for step in (10, 20, 30):
        save(store, step, STATE)
    damage(store, 30)
    damage(store, 20)
    told: dict[int, str] = {}
    found = newest_valid(store, None, told.__setitem__)
    assert found is not None
    assert found.step == 10
    assert list(told) == [30, 20]
    assert "its checksum is" in told[30]
    standings = step_standings(store)
    assert [(item.step, item.standing) for item in standings] == [
        (10, Standing.committed),
        (20, Standing.rejected),
        (30, Standing.rejected),
    ]
    assert standings[2].reason == told[30]
    assert newest_valid(store, None, nobody_rejected) == found


def test_a_full_disk_does_not_keep_a_bad_checkpoint_from_being_passed_over(tmp_path):
    store = Store(tmp_path)
    for step in (10, 20):
        save(store, step, STATE)
    damage(store, 20)
    told: dict[int, str] = {}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        found = newest_valid(store, None, told.__setitem__)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert found is not None
    assert (found.step, list(told), committed_steps(store)) == (10, [20], [10, 20])
    newest_valid(store, None, told.__setitem__)
    assert committed_steps(store) == [10]


def test_it_stays_set_aside_when_the_damage_is_gone(store):
    save(store, 10, STATE)
    set_aside(store, 10, "a person said so")
    assert verify(store, 10) == []
    assert newest_valid(store, None, nobody_rejected) is None


def test_a_step_that_was_set_aside_can_be_committed_anew(store):
    save(store, 10, STATE, attempt=1)
    damage(store, 10)
    assert newest_valid(store, None, lambda *_: None) is None
    anew = save(store, 10, STATE, attempt=2)
    assert newest_valid(store, None, nobody_rejected) == anew
    assert committed_steps(store) == [10]


def test_a_damaged_marker_can_be_committed_over(tmp_path):
    store = Store(tmp_path)
    save(store, 10, STATE, attempt=1)
    flip_byte(tmp_path / "step_00000010" / MARKER, 50)
    told: dict[int, str] = {}
    assert newest_valid(store, None, told.__setitem__) is None
    assert "COMMITTED.json is damaged" in told[10]
    assert newest_valid(store, None, nobody_rejected) is None
    anew = save(store, 10, STATE, attempt=2)
    assert newest_valid(store, None, nobody_rejected) == anew


def test_an_unreadable_rejection_still_rejects(store):
    save(store, 10, STATE)
    store.write_atomic(f"step_00000010/{REJECTED}", [b"{"])
    assert newest_valid(store, None, nobody_rejected) is None


def test_another_run_is_refused_with_both_values(store):
    save(store, 10, STATE)
    identity = {"model.hidden_size": 16, "run.seed": 1, "optim.betas": (0.9, 0.95), "new.key": None}
    with pytest.raises(CheckpointMismatchError) as caught:
        newest_valid(store, "ffffffffffffffff", nobody_rejected, identity)
    assert len(caught.value.problems) == 2
    hidden_size, new_key = caught.value.problems
    assert hidden_size.startswith("model.hidden_size=16 does not match the checkpoint ")
    assert "which has 8; use the same settings" in hidden_size
    assert new_key.startswith("new.key=None")
    with pytest.raises(CheckpointMismatchError, match=r"fingerprint ffffffffffffffff .* has 00112233445566aa"):
        newest_valid(store, "ffffffffffffffff", nobody_rejected)
    assert committed_steps(store) == [10]


def test_prune_keeps_the_newest(store):
    for step in (10, 20, 30, 40):
        save(store, step, STATE)
    assert steps_to_prune(store, Retention(keep_last=2)) == [10, 20]
    assert committed_steps(store) == [10, 20, 30, 40]
    assert prune(store, Retention(keep_last=0)) == []
    assert prune(store, Retention(keep_last=2)) == [10, 20]
    assert committed_steps(store) == [30, 40]
    assert store.list() == ["step_00000030", "step_00000040"]
    assert prune(store, Retention(keep_last=2)) == []


def test_prune_removes_leftovers_of_older_attempts_only(store):
    write(store, 10, STATE, attempt=1)
    write(store, 20, STATE, attempt=2)  # may still be being written by the attempt that lives
    save(store, 30, STATE, attempt=2)
    write(store, 40, STATE, attempt=1)
    assert prune(store, Retention(keep_last=3)) == [10]
    assert [item.step for item in step_standings(store)] == [20, 30, 40]


def test_prune_never_deletes_rejected_checkpoints(store):
    for step in (10, 20, 30, 40):
        save(store, step, STATE)
    set_aside(store, 20, "bad")
    assert prune(store, Retention(keep_last=1)) == [10, 30]
    assert [item.step for item in step_standings(store)] == [20, 40]


def test_prune_deletes_nothing_while_no_newer_checkpoint_is_whole(store):
    for step in (10, 20, 30):
        save(store, step, STATE)
    for step in (20, 30):
        store.remove(f"{step_folder(step)}/{read_marker(store, step).files[0].file}")
    assert prune(store, Retention(keep_last=2)) == []
    assert prune(store, Retention(keep_last=1)) == []
    found = newest_valid(store, None, lambda *_: None)
    assert found is not None
    assert found.step == 10


def test_a_prune_cut_off_after_the_marker_is_finished_by_a_later_attempt(store):
    save(store, 10, STATE, attempt=1)
    store.remove(f"step_00000010/{MARKER}")
    save(store, 20, STATE, attempt=2)
    assert committed_steps(store) == [20]
    assert prune(store, Retention(keep_last=5)) == [10]
    assert store.list() == ["step_00000020"]


def run_and_be_killed(code: str, folder: Path) -> None:
    prelude = """
import os, signal, sys
import numpy as np
sys.path.insert(0, sys.argv[2])
from saving import random_state, save, write
from orchestrator.checkpoint import commit as commits
from orchestrator.checkpoint.layout import Extent, step_folder
from orchestrator.checkpoint.payload import write_payload
from orchestrator.checkpoint.store import Store
store, state = Store(sys.argv[1]), random_state({"w": (5,), "b": (2, 2)})
def die():
    os.kill(os.getpid(), signal.SIGKILL)
"""
    command = [sys.executable, "-c", prelude + code, str(folder), str(Path(__file__).parent)]
    assert subprocess.run(command, check=False).returncode == -9


@pytest.mark.parametrize(
    "code",
    [
        "write(store, 20, state); die()",
        """
write(store, 20, state)
def late():
    die()
write_payload(store, step_folder(20), 7, 1, [(Extent("w", "master", (5,), 0, 5), late)], {})
""",
    ],
    ids=["between payload and marker", "in the middle of a payload"],
)
def test_a_save_that_was_killed_is_never_chosen(tmp_path, code):
    store = Store(tmp_path)
    older = save(store, 10, STATE)
    run_and_be_killed(code, tmp_path)
    assert [item.standing for item in step_standings(store)] == [Standing.committed, Standing.torn]
    assert newest_valid(store, None, nobody_rejected) == older
    # The next attempt does the step again, in the same folder.
    anew = save(store, 20, STATE, attempt=2)
    assert newest_valid(store, None, nobody_rejected) == anew


def test_rejections_are_readable(tmp_path):
    store = Store(tmp_path)
    save(store, 10, STATE)
    set_aside(store, 10, "the reason")
    raw = json.loads((tmp_path / "step_00000010" / REJECTED).read_text())
    assert raw["reason"] == "the reason"
    assert set(raw) == {"reason", "time", "marker_sha256"}


LEFT = Lineage((Fork(attempt=2, at_step=25),))
"""Attempt 2 went back to step 25."""


def save_two_branches(store: Store) -> None:
    for step, attempt in ((10, 1), (20, 2), (30, 2), (40, 2)):
        save(store, step, STATE, attempt=attempt)


def test_what_a_rollback_left_behind_is_never_chosen_marked_or_not(store):
    save_two_branches(store)
    assert committed_steps(store, LEFT) == [10, 20]
    assert newest_valid(store, None, nobody_rejected, lineage=LEFT).step == 20
    assert newest_valid(store, None, nobody_rejected, lineage=LEFT, max_step=19).step == 10
    assert newest_valid(store, None, nobody_rejected, lineage=LEFT, max_step=9) is None
    assert not store.exists(f"step_00000030/{REJECTED}")
    assert set_aside_left_behind(store, LEFT) == [30, 40]
    assert committed_steps(store) == [10, 20], "also for those who don't know of the rollback"
    assert set_aside_left_behind(store, LEFT) == []
    assert store.exists(f"step_00000040/{MARKER}"), "and never deleted"


def test_the_new_branch_commits_the_same_steps_anew(store):
    save_two_branches(store)
    set_aside_left_behind(store, LEFT)
    save(store, 30, STATE, attempt=3, branch=1, seed=5)
    assert committed_steps(store, LEFT) == [10, 20, 30]
    assert newest_valid(store, None, nobody_rejected, lineage=LEFT).branch == 1


def test_retention_does_not_count_what_was_left_behind(store):
    """The store did not answer when the branch began: nothing is marked yet."""
    save_two_branches(store)
    assert steps_to_prune(store, Retention(keep_last=1)) == [10, 20, 30], "as if nothing had happened"
    assert prune(store, Retention(keep_last=1), lineage=LEFT) == [10]
    assert committed_steps(store, LEFT) == [20], "the last good one of the branch that lives"
