"""A power cut at any moment of a save leaves the old checkpoint or the new one, whole; `crash_disk` has the model."""

import hashlib
import json
import random
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from crash_disk import Disk, read_state, write_state
from disk_recorder import FIRST_STEP, SECOND_STEP, SHAPES
from saving import flip_byte, random_state, save

from orchestrator.checkpoint.commit import committed_steps, newest_valid
from orchestrator.checkpoint.layout import MARKER
from orchestrator.checkpoint.reader import CheckpointReader
from orchestrator.checkpoint.store import Store
from orchestrator.checkpoint.verify import logical_digest, verify

CRASHES = [pytest.param(1_500, id="sample"), pytest.param(12_000, id="all", marks=pytest.mark.soak)]
DAMAGES = [pytest.param(150, id="sample"), pytest.param(2_000, id="all", marks=pytest.mark.soak)]
SEED = 20


@dataclass
class Recorded:
    before: Path
    """The store with the older checkpoint only."""
    after: Path
    operations: list[list]
    digests: dict[int, str]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Recorded:
    return record(tmp_path_factory.mktemp("recorded"))


@pytest.fixture(scope="module")
def recorded_retention(tmp_path_factory) -> Recorded:
    """The save, and then the older one is deleted."""
    return record(tmp_path_factory.mktemp("recorded"), "prune")


def record(folder: Path, *words: str) -> Recorded:
    before, after = folder / "before", folder / "after"
    save(Store(before), FIRST_STEP, random_state(SHAPES, seed=1), world_size=2, seed=1)
    shutil.copytree(before, after)
    script = Path(__file__).with_name("disk_recorder.py")
    environment = {"PYTHONPATH": ":".join(path for path in sys.path if path), "PATH": "/usr/bin:/bin"}
    subprocess.run([sys.executable, script, after, folder / "record", *words], check=True, env=environment)
    operations = [json.loads(line) for line in (folder / "record").read_text().splitlines()]
    digests = {FIRST_STEP: digest_of(Store(before), FIRST_STEP), SECOND_STEP: digest_of(Store(after), SECOND_STEP)}
    return Recorded(before, after, operations, digests)


def digest_of(store: Store, step: int) -> str:
    return logical_digest(CheckpointReader.open(store.url_of(f"step_{step:08d}")))


def loaded_step(folder: Path, digests: dict[int, str]) -> int:
    """What a run would resume from; nothing may be rejected, and its digest must be that of the saved state."""
    store = Store(folder)
    marker = newest_valid(store, None, lambda step, reason: pytest.fail(f"step {step} was rejected: {reason}"))
    assert marker is not None, "no checkpoint is left"
    assert logical_digest(CheckpointReader(store, marker)) == digests[marker.step]
    return marker.step


def test_the_record_is_complete(recorded):
    """Replayed, it gives the real disk to the byte; and it has what a durable save needs."""
    disk = Disk(recorded.before)
    for operation in recorded.operations:
        disk.do(operation)
    assert disk.current() == read_state(recorded.after)
    names = [operation[0] for operation in recorded.operations]
    assert names[-1] == "returned"
    assert {"mkdir", "create", "write", "fsync", "rename", "link", "unlink", "fsync_folder"} <= set(names)


def prefixes(recorded):
    """(operations done so far, the disk then), from none to all; the disk changes with each step."""
    disk = Disk(recorded.before)
    yield 0, disk
    for done, operation in enumerate(recorded.operations, start=1):
        disk.do(operation)
        yield done, disk


@pytest.mark.parametrize("count", CRASHES)
def test_every_crash_leaves_the_old_or_the_new_checkpoint(recorded, tmp_path, count):
    operations = recorded.operations
    came_out = {FIRST_STEP: 0, SECOND_STEP: 0}
    for number, (done, files) in enumerate(crash_states(recorded, count)):
        folder = tmp_path / str(number)
        write_state(files, folder)
        step = loaded_step(folder, recorded.digests)
        came_out[step] += 1
        assert step == SECOND_STEP or done < len(operations), "the commit had returned"
        shutil.rmtree(folder)
    print(f"{sum(came_out.values())} distinct states of {len(operations)} operations, seed {SEED}: {came_out}")
    assert sum(came_out.values()) >= count
    assert all(came_out.values())


def test_every_crash_of_retention_leaves_only_whole_checkpoints(recorded_retention, tmp_path):
    """A folder that is half deleted is nobody's checkpoint, and the newest is never touched."""
    recorded, rng = recorded_retention, random.Random(SEED)
    old = f"step_{FIRST_STEP:08d}"
    first = next(i for i, operation in enumerate(recorded.operations) if operation[1:2] == [f"{old}/{MARKER}"])
    states = {}
    for done, disk in prefixes(recorded):
        for files in [disk.current(), *(disk.crashed(rng) for _ in range(100))] if done >= first else []:
            states[hashlib.sha256(repr(sorted(files.items())).encode()).digest()] = files
    came_out = Counter()
    for number, files in enumerate(states.values()):
        folder = tmp_path / str(number)
        write_state(files, folder)
        store = Store(folder)
        steps = committed_steps(store)
        assert all(verify(store, step) == [] for step in steps)
        assert loaded_step(folder, recorded.digests) == SECOND_STEP
        came_out[f"{len(steps)} committed, {len([path for path in files if path.startswith(old)])} old files"] += 1
        shutil.rmtree(folder)
    print(f"{len(states)} distinct states of {len(recorded.operations) - first} operations: {dict(came_out)}")
    assert {"2 committed, 3 old files", "1 committed, 2 old files", "1 committed, 0 old files"} <= set(came_out)


def crash_states(recorded: Recorded, count: int) -> list[tuple[int, dict[str, bytes]]]:
    """At least `count` different (operations done, disk): every prefix uncut, then seeded crashes of each."""
    rng = random.Random(SEED)
    states: dict[tuple[bytes, bool], tuple[int, dict[str, bytes]]] = {}

    def add(done: int, files: dict[str, bytes]) -> None:
        key = hashlib.sha256(repr(sorted(files.items())).encode()).digest()
        states.setdefault((key, done == len(recorded.operations)), (done, files))

    for done, disk in prefixes(recorded):
        add(done, disk.current())
    while len(states) < count:
        for done, disk in prefixes(recorded):
            for _ in range(20):
                add(done, disk.crashed(rng))
    return list(states.values())


def test_the_model_finds_a_missing_fsync(recorded, tmp_path):
    """The same search, over a save that leaves out one kind of fsync, meets a state that loads wrong."""
    for left_out in ("fsync", "fsync_folder"):
        rng = random.Random(SEED)
        disk = Disk(recorded.before)
        for operation in recorded.operations:
            if operation[0] != left_out:
                disk.do(operation)
        outcomes = set()
        for trial in range(100):
            folder = tmp_path / f"{left_out}-{trial}"
            write_state(disk.crashed(rng), folder)
            rejected: list[int] = []
            marker = newest_valid(Store(folder), None, lambda step, reason: rejected.append(step))  # noqa: B023
            outcomes.add((marker.step if marker else None, bool(rejected)))
        assert any(step != SECOND_STEP for step, _ in outcomes), left_out


@pytest.mark.parametrize("count", DAMAGES)
def test_every_flip_and_truncation_is_refused_and_the_older_one_taken(recorded, tmp_path, count):
    folder = tmp_path / "store"
    shutil.copytree(recorded.after, folder)
    newer = folder / f"step_{SECOND_STEP:08d}"
    names = sorted(path.name for path in newer.iterdir())
    assert MARKER in names
    rng = random.Random(SEED)
    for trial in range(count):
        path = newer / rng.choice(names)
        whole = path.read_bytes()
        position = rng.randrange(len(whole))
        if trial % 2:
            flip_byte(path, position, rng.randint(1, 255))
        else:
            path.write_bytes(whole[:position])
        told: dict[int, str] = {}
        marker = newest_valid(Store(folder), None, told.__setitem__)
        assert marker is not None
        assert (marker.step, list(told)) == (FIRST_STEP, [SECOND_STEP]), f"byte {position} of {path.name}"
        path.write_bytes(whole)
        (newer / "REJECTED.json").unlink()
    assert loaded_step(folder, recorded.digests) == SECOND_STEP
