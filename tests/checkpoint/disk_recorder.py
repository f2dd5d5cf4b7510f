"""Records what a save does to the disk, for real: run as a process, it patches the system's functions in itself.

    python disk_recorder.py FOLDER RECORD.jsonl [prune]

commits step 20 over a store in FOLDER, as two ranks, and then, where asked to, lets retention keep the newest only.
Each line of the record is one operation on FOLDER:
    ["create", path] ["write", path, offset, hex] ["truncate", path, bytes] ["fsync", path] ["mkdir", path]
    ["rename", from, to] ["link", from, to] ["unlink", path] ["rmdir", path] ["fsync_folder", path]
    ["returned"]                                      after the last one: the commit has returned

Whoever replays them can check that nothing is missing: the replayed disk must equal the real one.
"""

import json
import os
import sys
from pathlib import Path

SHAPES = {"wte": (24, 6), "b": (5,), "mlp.up": (6, 12)}
FIRST_STEP, SECOND_STEP = 10, 20


class Recorder:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.operations: list[list[object]] = []
        self.is_on = False

    def inside(self, path: object) -> str | None:
        """Relative to the folder; None for what is elsewhere."""
        if isinstance(path, int):
            path = Path(f"/proc/self/fd/{path}").readlink()
        if not isinstance(path, str | Path):
            return None
        absolute = Path(path).absolute()
        return str(absolute.relative_to(self.folder)) if absolute.is_relative_to(self.folder) else None

    def note(self, name: str, *arguments: object) -> None:
        if self.is_on:
            self.operations.append([name, *arguments])

    def install(self) -> None:
        sys.addaudithook(self.audit)
        for name in ("replace", "rename"):
            self.wrap(name, lambda source, target: self.note("rename", self.inside(source), self.inside(target)))
        self.wrap("link", lambda source, target: self.note("link", self.inside(source), self.inside(target)))
        self.wrap("unlink", lambda path: self.note("unlink", self.inside(path)))
        self.wrap("remove", lambda path: self.note("unlink", self.inside(path)))
        self.wrap("rmdir", lambda path: self.note("rmdir", self.inside(path)))
        self.wrap("mkdir", lambda path: self.note("mkdir", self.inside(path)))
        self.wrap("fsync", self.note_fsync)
        self.wrap_write("write")
        for name in ("pwrite", "writev", "pwritev", "ftruncate", "truncate", "fdatasync", "symlink", "sendfile"):
            self.refuse(name)

    def wrap(self, name, note) -> None:
        real = getattr(os, name)

        def call(*arguments, **options):
            folder = options.get("dir_fd")
            path = arguments[0] if folder is None else Path(f"/proc/self/fd/{folder}").readlink() / arguments[0]
            result = real(*arguments, **options)
            assert not any(value is not None for key, value in options.items() if key in {"src_dir_fd", "dst_dir_fd"})
            arguments = (path, *arguments[1:])
            paths = 2 if name in {"replace", "rename", "link"} else 1
            if self.is_on and self.inside(arguments[0]) is not None:
                note(*arguments[:paths])
            return result

        setattr(os, name, call)

    def wrap_write(self, name) -> None:
        real = getattr(os, name)

        def call(descriptor, data):
            path = self.inside(descriptor) if self.is_on else None
            offset = os.lseek(descriptor, 0, os.SEEK_CUR) if path is not None else 0
            count = real(descriptor, data)
            if path is not None:
                self.note("write", path, offset, bytes(memoryview(data)[:count]).hex())
            return count

        setattr(os, name, call)

    def refuse(self, name) -> None:
        real = getattr(os, name)

        def call(*arguments, **options):
            if self.is_on and self.inside(arguments[0]) is not None:
                raise AssertionError(f"os.{name} changes the disk, and the recorder does not know it")
            return real(*arguments, **options)

        setattr(os, name, call)

    def note_fsync(self, descriptor) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        self.note("fsync_folder" if path.is_dir() else "fsync", self.inside(path))

    def audit(self, event, arguments) -> None:
        """Files are opened in C: seen by the interpreter's own audit, before it is done."""
        if event != "open" or not self.is_on or isinstance(arguments[0], int):
            return
        path, _, flags = arguments
        relative = self.inside(os.fsdecode(path)) if isinstance(path, str | bytes | Path) else None
        if relative is None:
            return
        if flags & os.O_CREAT and not Path(path).exists():
            self.note("create", relative)
        elif flags & os.O_TRUNC:
            self.note("truncate", relative, 0)
        elif flags & (os.O_WRONLY | os.O_RDWR) and not flags & os.O_CREAT:
            raise AssertionError(f"{relative} is changed in place")


def main() -> None:
    from saving import random_state, save

    from orchestrator.checkpoint.commit import prune
    from orchestrator.checkpoint.retention import Retention
    from orchestrator.checkpoint.store import Store

    folder = Path(sys.argv[1]).absolute()
    recorder = Recorder(folder)
    recorder.install()
    store = Store(folder)
    recorder.is_on = True
    save(store, SECOND_STEP, random_state(SHAPES, seed=2), world_size=2, seed=2)
    if sys.argv[3:] == ["prune"]:
        assert prune(store, Retention(keep_last=1)) == [FIRST_STEP]
    recorder.is_on = False
    recorder.operations.append(["returned"])
    Path(sys.argv[2]).write_text("".join(json.dumps(line) + "\n" for line in recorder.operations))


if __name__ == "__main__":
    main()
