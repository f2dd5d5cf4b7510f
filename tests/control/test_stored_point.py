"""Where a start goes on from: the nodes' disks or the storage, whichever has the newest that verifies."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from saving import flip_byte, random_state, save

from launch.compose import compose
from orchestrator.checkpoint.lineage import Fork, Lineage
from orchestrator.checkpoint.spread import SpreadStep
from orchestrator.checkpoint.store import Store
from orchestrator.control.opening import OpenRun
from orchestrator.control.storedpoint import stored_point
from orchestrator.errors import StoreError
from orchestrator.plan import plan_run
from orchestrator.runfolder import RunFolder
from orchestrator.spec import ResumePoint

STATE = random_state({"w": (5, 3)})


@dataclass
class Disks:
    """The nodes' disks: step -> the attempt that wrote it; those in `damaged` don't verify."""

    steps: dict[int, int]
    damaged: set[int] = field(default_factory=set)

    def points(self) -> list[SpreadStep]:
        return [SpreadStep(step, self.steps[step], "m", 0, {0: (0,)}) for step in sorted(self.steps, reverse=True)]

    def restorable(self, point, fingerprint, on_reject) -> ResumePoint | None:
        if point.step in self.damaged:
            on_reject(point.step, "damaged", "/scratch")
            return None
        return ResumePoint(step=point.step, source="disk", is_spread=True)


@pytest.fixture
def run(tmp_path: Path) -> OpenRun:
    config = compose(["experiment=tiny_test"]).config
    plan = plan_run(config, None, device="cpu")
    return OpenRun(config, plan, None, RunFolder(tmp_path / "run"), str(tmp_path / "store"), is_resumed=True)


def stored(run: OpenRun, *steps: int) -> Store:
    store = Store(run.checkpoint_url)
    for step in steps:
        save(store, step, STATE, fingerprint=run.plan.fingerprint, identity=run.plan.identity)
    return store


def chosen(run: OpenRun, store: Store, disks: Disks | None, **how) -> tuple[int, str, int, list[int]]:
    """(step, where from, newest step in storage, what was rejected)."""
    rejected: list[int] = []
    point = stored_point(run, store, disks, lambda step, reason, where: rejected.append(step), **how)
    source = "disks" if point.resume.is_spread else point.resume.source
    return point.resume.step, source, point.committed_step, rejected


@pytest.mark.parametrize(
    ("in_storage", "on_disks", "damaged", "expected"),
    [
        ((), {}, (), (0, "start", 0, [])),
        ((10, 20), {}, (), (20, "disk", 20, [])),
        ((10,), {15: 1, 12: 1}, (), (15, "disks", 10, [])),
        ((), {15: 1}, (), (15, "disks", 0, [])),
        ((10, 20), {15: 1}, (), (20, "disk", 20, [])),
        ((10, 20), {20: 1}, (), (20, "disks", 20, [])),
        ((10,), {15: 1, 12: 1}, (15,), (12, "disks", 10, [15])),
        ((10,), {15: 1, 8: 1}, (15,), (10, "disk", 10, [15])),
        ((10,), {15: 1}, (15,), (10, "disk", 10, [15])),
    ],
)
def test_the_newest_that_verifies_wherever_it_is(run, in_storage, on_disks, damaged, expected):
    assert chosen(run, stored(run, *in_storage), Disks(on_disks, set(damaged))) == expected


def test_storage_s_newest_is_damaged_and_a_disk_has_something_newer_than_its_next(run):
    store = stored(run, 10, 20)
    payload = max(Path(store.url, "step_00000020").glob("*.safetensors"))
    flip_byte(payload, payload.stat().st_size - 1)
    assert chosen(run, store, Disks({15: 1})) == (15, "disks", 10, [20])


def test_what_a_rollback_left_behind_is_not_taken_from_a_disk(run):
    lineage = Lineage((Fork(attempt=1, at_step=12),))
    disks = Disks({15: 1, 14: 2, 11: 1})
    assert chosen(run, stored(run, 10), disks, lineage=lineage)[:2] == (14, "disks")
    assert chosen(run, stored(run), disks, lineage=lineage, max_step=13)[:2] == (11, "disks")


def test_while_the_store_does_not_answer_the_disks_serve_where_nothing_newer_can_be_there(run, tmp_path):
    (tmp_path / "file").write_text("")
    silent = Store(tmp_path / "file" / "store")
    assert chosen(run, silent, Disks({15: 1}), known_committed=10) == (15, "disks", 10, [])
    for known in (None, 20):
        with pytest.raises(StoreError):
            chosen(run, silent, Disks({15: 1}), known_committed=known)
