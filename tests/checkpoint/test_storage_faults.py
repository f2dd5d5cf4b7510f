"""A real run on a disk that fills up and vanishes under it: training goes on, nothing committed is harmed."""

import contextlib
import os
import signal
import subprocess
from pathlib import Path

import pytest
from disturbed_run import Run, prepare_data, wait_for

from orchestrator.checkpoint.commit import committed_steps, newest_valid
from orchestrator.checkpoint.store import Store
from orchestrator.checkpoint.verify import verify

DISK_BYTES = 24 << 20


class Disk:
    """A small file system of its own, mounted where checkpoints go; `take_away` and `bring_back` keep its content."""

    def __init__(self, folder: Path) -> None:
        self.kept, self.path = folder / "kept", folder / "mounted"
        self.kept.mkdir()
        self.path.mkdir()

    def __enter__(self) -> "Disk":
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(self.kept)]
        if os.geteuid() or subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("needs root and the right to mount")
        self.bring_back()
        return self

    def __exit__(self, *_: object) -> None:
        for path in (self.path, self.kept):
            subprocess.run(["umount", "-l", str(path)], check=False, capture_output=True)

    def bring_back(self) -> None:
        subprocess.run(["mount", "--bind", str(self.kept), str(self.path)], check=True)

    def take_away(self) -> None:
        subprocess.run(["umount", "-l", str(self.path)], check=True)

    def fill(self) -> None:
        """To the last byte; again where retention has freed some since."""
        with (self.kept / "filler").open("ab", buffering=0) as file:
            for chunk_bytes in (1 << 20, 4096):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(chunk_bytes))

    def free(self) -> None:
        (self.kept / "filler").unlink()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return prepare_data(tmp_path_factory.mktemp("data"))


def failures(run: Run, fault: str) -> list[dict]:
    return [event for event in run.events("checkpoint_failed") if event["fault"] == fault]


def assert_all_sound(disk: Disk) -> None:
    store = Store(disk.kept / "checkpoints")
    assert committed_steps(store)
    for step in committed_steps(store):
        assert verify(store, step) == []


@pytest.mark.real
def test_a_run_outlives_a_full_and_a_vanished_disk(tmp_path, data):
    with Disk(tmp_path) as disk:
        words = [f"data.path={data}", f"checkpoint.url={disk.path}/checkpoints"]
        words += [f"checkpoint.local_dir={disk.path}/local", "checkpoint.local_every_steps=5"]
        run = Run(tmp_path, words)
        try:
            committed = run.wait_for_commit_after(0)

            def is_full() -> bool:
                disk.fill()
                return bool(failures(run, "full"))

            wait_for("a full disk to be noticed", is_full, run.process)
            run.wait_until_it_trains()
            assert_all_sound(disk)
            disk.free()
            committed = run.wait_for_commit_after(failures(run, "full")[-1]["step"])

            disk.take_away()
            wait_for("a vanished disk to be noticed", lambda: bool(failures(run, "gone")), run.process)
            run.wait_until_it_trains()
            assert list(disk.path.iterdir()) == [], "nothing may be written below the mount point"
            disk.bring_back()
            committed = run.wait_for_commit_after(max(committed, failures(run, "gone")[-1]["step"]))
            assert_all_sound(disk)

            # The last checkpoint waits for space.
            before = len(failures(run, "full"))

            def is_full_again() -> bool:
                disk.fill()
                return len(failures(run, "full")) > before

            wait_for("the disk to be full again", is_full_again, run.process)
            run.process.send_signal(signal.SIGUSR1)

            def is_waiting() -> bool:
                disk.fill()  # the other tier may have pruned meanwhile
                return "the last checkpoint, of" in run.said()

            wait_for("the run to wait for its last checkpoint", is_waiting, run.process)
            assert run.process.poll() is None
            disk.free()
            assert run.end() == 75
            assert_all_sound(disk)
            said = run.said()
            assert said.count("no space left to write") <= 6, "once for each outage and tier, not for each checkpoint"
            assert said.count("checkpoints are written again") >= 2
            assert "on the nodes' disks failed, training goes on: no space left to write" in said
            assert said.count("checkpoints are written to the nodes' disks again") >= 2
            assert said.count("on the nodes' disks failed") <= 6, "once for each cause and outage"
            found = newest_valid(Store(disk.kept / "checkpoints"), None, lambda *_: pytest.fail("rejected"))
            assert found is not None
            assert found.step == run.events("checkpoint_committed")[-1]["step"] > committed

            give_up(tmp_path, disk, words, found.step)
        finally:
            run.kill()


def give_up(root: Path, disk: Disk, words: list[str], newest_step: int) -> None:
    """The run goes on, and is told to stop; its last checkpoint waits for a limit, then it leaves with a sentence: it
    can go on from the checkpoint before."""
    # Nothing else is saved: what is pruned after it would make room.
    none_else = ["checkpoint.every_steps=0", "checkpoint.local_dir=null"]
    run = Run(root, [*words, "checkpoint.final_timeout_s=3", *none_else])
    try:
        before = run.trained_steps()
        wait_for("it to train", lambda: run.trained_steps() > before + 2, run.process)
        disk.fill()
        run.process.send_signal(signal.SIGUSR1)
        assert run.end() == 75
        assert "checkpoint.final_timeout_s=3: no space left to write" in run.said()
        assert not run.events("run_failed")
        disk.free()
        assert_all_sound(disk)
        store = Store(disk.kept / "checkpoints")
        assert committed_steps(store)[-1] == newest_step
    finally:
        run.kill()
